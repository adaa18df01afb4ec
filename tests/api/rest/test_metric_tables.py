"""All points of all metrics in one CSV file, in short transactions."""

from __future__ import annotations

import csv
import io

import pytest

from jobs import curves
from jobs.database import new_id
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from tests.jobs.rows import Run


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_point_comes_once_also_after_a_resume(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "_PAGE", 3)
    run = Run(served.database, rows.running(served.database))
    run.deliver(rows.started(), *(rows.metrics(step, loss=step / 10) for step in range(1, 9)), rows.checkpoint(5))
    run.end("drained")
    again = Run(served.database, rows.claim(served.database))
    again.deliver(rows.started(5), rows.metrics(6, loss=0.25), rows.metrics(7, loss=None))

    response = served.client("read").get(f"/v1/jobs/{run.job_id}/metrics.csv")

    assert response.headers["content-type"].startswith("text/csv")
    points = [(row["metric"], int(row["step"]), row["value"], row["attempt"]) for row in table(response.text)]
    first = [("loss", step, str(step / 10), "1") for step in range(1, 6)]
    assert points == [*first, ("loss", 6, "0.25", "2"), ("loss", 7, "", "2")]


def test_several_jobs_come_in_one_file_and_an_absent_one_is_named(small: Served) -> None:
    client = small.client("read")
    ids = []
    for value in (0.5, 0.75):
        run = Run(small.database, rows.running(small.database))
        run.deliver(rows.started(), rows.metrics(1, loss=value, accuracy=0.25))
        run.end("succeeded")
        ids.append(run.job_id)

    lines = table(client.get("/v1/metrics.csv", params={"job": ids}).text)

    assert [(row["job_id"], row["metric"], row["value"]) for row in lines] == [
        (ids[0], "accuracy", "0.25"),
        (ids[0], "loss", "0.5"),
        (ids[1], "accuracy", "0.25"),
        (ids[1], "loss", "0.75"),
    ]
    assert_problem(client.get("/v1/metrics.csv", params={"job": [ids[0], new_id()]}), 404)
    assert_problem(client.get("/v1/metrics.csv"), 422)
