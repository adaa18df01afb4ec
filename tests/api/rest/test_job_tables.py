"""The list of jobs as a CSV file."""

from __future__ import annotations

import csv
import io

import pytest

from api.rest import job_tables
from tests.api.rest.test_compare import trained
from tests.api.served import Served, assert_problem
from tests.jobs import rows


def test_the_list_comes_as_one_file_as_filtered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_tables, "_PAGE", 2)
    client, browser = served.client(), served.browser()
    done = trained(served, 0.6, "=1+1")
    waiting = [rows.submit(served.database, name="a, b\nc", tags=("x", "y")) for _ in range(3)]
    client.patch(f"/v1/jobs/{waiting[0]}", json={"starred": True})

    def table(query: str = "") -> list[dict[str, str]]:
        response = client.get(f"/v1/jobs.csv{query}")
        assert response.headers["content-type"].startswith("text/csv")
        return list(csv.DictReader(io.StringIO(response.text)))

    every = table()
    assert [row["id"] for row in every] == [job["id"] for job in client.get("/v1/jobs").json()["items"]]
    (row,) = table("?kind=pretrain&status=succeeded")
    assert (row["id"], row["name"], row["knn_top1"], row["method"]) == (done, "'=1+1", "0.6", "wcl")
    assert row["created_at"].endswith("Z")
    queued = table("?status=queued&status=running&tag=x")
    assert {row["id"] for row in queued} == set(waiting)
    assert {row["tags"] for row in queued} == {"x, y"}
    assert [row["id"] for row in table("?starred=true")] == waiting[:1]
    assert table("?q=absent") == []
    assert_problem(client.get("/v1/jobs.csv?archived=maybe"), 422)
    assert 'href="/v1/jobs.csv?status=queued&amp;tag=x"' in browser.get("/?status=queued&tag=x").text
