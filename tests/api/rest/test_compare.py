"""The comparison by REST and by the command: the verdict over seeds, results side by side, and what differs."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.models import DatasetVersion
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_core.protocol import KNN_TOP1


def trained(served: Served, accuracy: float, name: str, **spec: Any) -> str:
    """Return the id of a training that ended, with a kNN accuracy from a curve and one from an evaluation."""
    database = served.database
    sent = {"data": {"name": "digits", "image_size": 8}} | spec
    job_id = rows.submit(database, spec=sent, name=name)
    run = rows.Run(database, rows.claim(database))
    curve = [rows.metrics(step, **{KNN_TOP1: value}) for step, value in ((0, 0.3), (10, accuracy))]
    run.deliver(rows.started(), *curve, rows.checkpoint(10, job_id.replace("-", "") * 2), rows.end("succeeded"))
    checkpoint = {"kind": "checkpoint", "checkpoint_id": rows.checkpoints(database, job_id)[-1].id}
    rows.submit(database, "evaluate", {"features": checkpoint})
    measured = rows.evaluation(accuracy, protocol="knn", params={"k": 20})
    rows.Run(database, rows.claim(database)).deliver(rows.started(), measured, rows.end("succeeded"))
    return job_id


def test_one_job_is_compared_with_its_twin_over_the_seeds_of_both(served: Served) -> None:
    counts = {"test": [60, 40]}
    served.database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))
    ours = [trained(served, 0.70 + seed / 100, f"ours, seed {seed}", seed=seed) for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        trained(served, 0.66 + seed / 50, f"theirs, seed {seed}", seed=seed, method="simclr")
    trained(served, 0.9, "not a twin", loss={"temperature": 0.5})

    with WclClient(served.url, served.key("read")) as client:
        found = client.compare(ours[:1], twin=True)
        alone = client.compare(ours)

    names = [(each["name"], each["method"], each["seeds"]) for each in found["configurations"]]
    assert names == [("ours", "wcl", [0, 1, 2]), ("theirs", "simclr", [0, 1, 2])]
    assert found["verdict"]["sentence"] == (
        "ours is better than theirs by 3.0 ± 2.5 points (t-interval over 3 paired seeds)."
    )
    page = served.browser("read").get(f"/compare?job={ours[0]}&twin=true").text
    assert page.index(found["verdict"]["sentence"]) < page.index("Evaluations</h2>") < page.index("Curves</h2>")
    assert f"{found['results'][0]['verdict']}</span>" in page
    (result,) = found["results"]
    assert (result["title"], result["params"]) == ("kNN accuracy", {"k": 20})
    assert [each["mean"] for each in result["results"]] == pytest.approx([0.71, 0.68])
    assert result["difference"]["value"] == pytest.approx(0.03)
    assert result["difference"]["is_shown"] is True
    assert result["verdict"] == "ours is better than theirs by 3.0 ± 2.5 points"
    assert found["differing"] == [{"field": "method", "values": ["wcl", "simclr"]}]
    assert (alone["verdict"], len(alone["configurations"])) == (None, 1)
    assert_problem(served.client("read").get("/v1/compare?job=absent"), 404)
    assert_problem(served.client("read").get("/v1/compare"), 422)


def test_a_run_without_a_twin_gets_one_from_the_page_and_by_the_printed_command(served: Served) -> None:
    job_id = rows.submit(served.database, name="ours", spec={"loss": {"temperature": 0.5}})
    browser, origin = served.browser("read", "submit"), {"Origin": served.url}
    page = browser.get(f"/compare?job={job_id}").text
    assert f'action="/jobs/{job_id}/twin"' in page
    assert "Train the SimCLR twin" in page
    assert "Train the SimCLR twin" not in served.browser("read").get(f"/compare?job={job_id}").text

    created = browser.post(f"/jobs/{job_id}/twin", data={"key": "one"}, headers=origin)

    twin = rows.job(served.database, created.headers["location"].removeprefix("/jobs/"))
    assert (twin.name, twin.spec["method"], twin.spec["loss"]["temperature"]) == ("ours-simclr", "simclr", 0.5)
    again = browser.post(f"/jobs/{job_id}/twin", data={"key": "one"}, headers=origin)
    assert again.headers["location"] == f"/compare?job={job_id}&twin=true", "a second request trains no second twin"
    assert "Compare with the twin" in browser.get(f"/compare?job={job_id}").text
