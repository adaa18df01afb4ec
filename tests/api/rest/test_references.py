"""The reference of a dataset: the list, the job's page and comparisons show the others against it."""

from __future__ import annotations

import pytest

from tests.api.rest.test_compare import trained
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl


def test_a_dataset_has_one_reference_that_the_list_and_comparisons_show(small: Served) -> None:
    client, browser = small.client("read", "submit"), small.browser()
    first, second = trained(small, 0.60, "first"), trained(small, 0.75, "second", epochs=7)
    third = trained(small, 0.50, "third", epochs=8)

    assert client.post(f"/v1/jobs/{second}/reference").json()["reference_at"]
    assert client.post(f"/v1/jobs/{first}/reference").json()["reference_at"]
    assert client.get(f"/v1/jobs/{second}").json()["reference_at"] is None
    shown = browser.get("/").text
    assert shown.count("Difference to the reference first") == 2
    assert ">+15.0 points<" in shown
    assert ">-10.0 points<" in shown
    assert ">reference<" in shown

    compared = client.get("/v1/compare", params={"job": [second, third]}).json()
    assert compared["reference"]["job_ids"] == [first]
    assert [each["name"] for each in compared["configurations"]] == ["second", "third"]
    assert [row["reference"]["mean"] for row in compared["results"]] == pytest.approx([0.60])
    page = browser.get("/compare", params={"job": [second, third]}).text
    assert "+15.0 points to the reference" in page
    assert f'data-job="{first}"' in page
    inside = browser.get("/compare", params={"job": [first, second]}).text
    assert "+15.0 points to the reference" in inside
    assert "Reference: first" not in inside

    assert f'data-id="{first}"' in browser.get(f"/jobs/{second}").text
    assert 'id="reference"' not in browser.get(f"/jobs/{first}").text
    assert browser.post(f"/jobs/{first}/unreference", headers={"Origin": small.url}).status_code == 303
    assert " points<" not in browser.get("/").text
    assert client.get("/v1/compare", params={"job": [second, third]}).json()["reference"] is None


def test_a_deleted_reference_is_absent_and_an_evaluation_is_none(small: Served) -> None:
    client = small.client()
    first, second = trained(small, 0.6, "first"), trained(small, 0.7, "second", epochs=7)
    evaluation = rows.submit(small.database, "evaluate")
    client.post(f"/v1/jobs/{first}/reference")

    assert "evaluation" in assert_problem(client.post(f"/v1/jobs/{evaluation}/reference"), 409)["detail"]
    assert client.delete(f"/v1/jobs/{first}").status_code == 200
    assert client.get("/v1/compare", params={"job": second}).json()["reference"] is None
    client.post(f"/v1/jobs/{second}/reference")
    client.post(f"/v1/jobs/{first}/restore")
    assert client.get("/v1/compare", params={"job": first}).json()["reference"]["job_ids"] == [second]
    assert client.get("/v1/audit").json()["findings"] == []


def test_the_command_sets_the_reference_and_compare_prints_it(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_URL", small.url)
    monkeypatch.setenv("WCL_KEY", small.key())
    first, second = trained(small, 0.6, "first"), trained(small, 0.7, "second", epochs=7)

    assert wcl("reference", first).stdout == f"{first} is the reference of digits\n"
    assert "reference: first" in wcl("compare", second, first).stdout.replace("\n", " ")
    assert wcl("reference", first, "--undo").stdout == f"{first} is not the reference of digits\n"
