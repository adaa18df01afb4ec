"""Reads of the client and the pages: lists, parts of a job, curves, the catalog."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy import text

from jobs import transitions, workers
from jobs.database import Database
from jobs.datasets import DatasetFacts
from jobs.models import Dataset, DatasetVersion
from tests.api.served import SPEC, Served
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_core.config import parse_spec
from wcl_core.intervals import wilson
from wcl_core.presets import presets
from wcl_core.protocol import KNN_TOP1
from wcl_core.version import VERSION

FACTS = DatasetFacts("digits", "builtin", rows.DIGEST, {"train": 1000, "test": 100}, ["0", "1"])


def finished_run(database: Database) -> str:
    """Return a job with two attempts, of which the second resumed at step 5."""
    first = rows.Run(database, rows.running(database))
    first.deliver(rows.started(), *(rows.metrics(step, **{"train/loss": 10.0 - step}) for step in range(1, 9)))
    first.deliver(rows.checkpoint(5), rows.log("hello"), rows.end("drained"), output=[(1, "one"), (2, "two")])
    second = rows.Run(database, rows.claim(database))
    second.deliver(rows.started(5), *(rows.metrics(step, **{"train/loss": 1.0 * step}) for step in range(6, 11)))
    progress = {"type": "progress", "step": 10, "total_steps": 10, "epoch": 1.0, "total_epochs": 1, "phase": "train"}
    second.deliver(progress, rows.checkpoint(10, "b" * 64), rows.end("succeeded"), output=[(1, "three")])
    return first.job_id


def client_of(served: Served) -> WclClient:
    return WclClient(served.url, served.key("read"))


def test_a_list_is_read_page_by_page(served: Served) -> None:
    submitted = [rows.submit(served.database) for _ in range(7)]
    client = served.client("read")

    pages: list[dict[str, Any]] = []
    cursor = None
    while cursor or not pages:
        params = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        pages.append(client.get("/v1/jobs", params=params).json())
        cursor = pages[-1]["next_cursor"]

    assert [len(page["items"]) for page in pages] == [3, 3, 1]
    assert [job["id"] for page in pages for job in page["items"]] == submitted[::-1]
    with client_of(served) as typed:
        assert [job["id"] for job in typed.jobs(limit=5)] == submitted[:1:-1]


def test_the_reason_of_a_status_is_explained(served: Served) -> None:
    run = rows.Run(served.database, rows.running(served.database))
    client = served.client("read")
    assert client.get(f"/v1/jobs/{run.job_id}").json()["explanation"] is None

    run.deliver(rows.started(), rows.end("failed", "bad_data", "no image"))

    explanation = client.get(f"/v1/jobs/{run.job_id}").json()["explanation"]
    assert explanation["page"].endswith("/troubleshooting#bad_data")
    assert "then retry" in explanation["advice"]


def test_a_list_is_filtered(served: Served) -> None:
    database, client = served.database, served.client("read")
    tagged = rows.submit(database, tags=("demo",), name="WCL 100%")
    evaluation = rows.submit(database, "evaluate")
    cancelled = rows.submit(database)
    database.write(lambda session: transitions.cancel(session, cancelled))

    def listed_ids(**params: str) -> set[str]:
        return {job["id"] for job in client.get("/v1/jobs", params=params).json()["items"]}

    assert listed_ids(tag="demo") == {tagged}
    assert listed_ids(q="wcl 100%") == {tagged}
    assert listed_ids(q=tagged[-8:]) == {tagged}
    assert listed_ids(kind="evaluate") == {evaluation}
    assert listed_ids(status="cancelled") == {cancelled}
    assert listed_ids(status="queued,cancelled") == {tagged, evaluation, cancelled}
    assert listed_ids(status="running", tag="demo") == set()
    assert client.get("/v1/jobs").json()["items"][0].keys().isdisjoint({"spec", "spec_sent"})


def test_the_parts_of_a_job(served: Served) -> None:
    job_id = finished_run(served.database)

    with client_of(served) as client:
        job = client.job(job_id)
        attempts = client.attempts(job_id)
        events = client.events(job_id)
        logs = client.logs(job_id)
        checkpoints = client.checkpoints(job_id)

    assert (job["status"], job["attempt"], job["failures"]) == ("succeeded", 2, 0)
    assert job["progress"] is not None
    assert job["progress"]["step"] == 10
    assert job["latest_metrics"] == {"train/loss": 10.0}
    assert [(entry["number"], entry["start_step"]) for entry in attempts] == [(1, 0), (2, 5)]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {"submitted", "claimed", "started", "checkpoint", "requeued", "succeeded"} == {e["type"] for e in events}
    assert all("path" not in event["data"] for event in events)
    assert [(line["attempt"], line["stream"], line["line"]) for line in logs] == [
        (1, "run", "hello"),
        (1, "output", "one"),
        (1, "output", "two"),
        (2, "output", "three"),
    ]
    assert [(entry["step"], entry["sha256"]) for entry in checkpoints] == [(5, "a" * 64), (10, "b" * 64)]
    assert all("path" not in entry for entry in checkpoints)


def test_logs_are_read_on_without_gap_or_repeat(served: Served) -> None:
    job_id = finished_run(served.database)
    client = served.client("read")
    address = f"/v1/jobs/{job_id}/logs"

    lines, after = [], "0.0"
    for _ in range(5):
        page = client.get(address, params={"after": after, "limit": 1}).json()
        lines += [line["line"] for line in page["items"]]
        after = page["next_after"]

    assert lines == ["hello", "one", "two", "three"]
    assert client.get(address, params={"limit": 2}).json()["items"][0]["line"] == "two"
    assert client.get(f"/v1/jobs/{job_id}/events", params={"after": 2, "limit": 1}).json()["items"][0]["seq"] == 3


def test_a_curve_continues_where_the_next_attempt_resumed(served: Served) -> None:
    job_id = finished_run(served.database)

    with client_of(served) as client:
        (series,) = client.metrics(job_id, ["train/loss", "absent"])

    points = series["points"]
    assert series["name"] == "train/loss"
    assert [point["step"] for point in points] == list(range(1, 11))
    assert [point["attempt"] for point in points] == [1] * 5 + [2] * 5
    assert points[9] == {"step": 10, "value": 10.0, "min": 10.0, "max": 10.0, "attempt": 2}


@pytest.mark.parametrize("max_points", [1, 7, 100, 1000])
def test_a_curve_has_at_most_the_requested_points(small: Served, max_points: int) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    for start in range(0, 3000, 500):
        run.deliver(*(rows.metrics(step, loss=float(step)) for step in range(start, start + 500)))

    with client_of(small) as client:
        (series,) = client.metrics(run.job_id, max_points=max_points)

    assert 1 <= len(series["points"]) <= max_points
    assert min(point["min"] for point in series["points"]) == 0.0
    assert max(point["max"] for point in series["points"]) == 2999.0


def test_a_part_of_a_curve_comes_in_detail_with_its_times(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started(), *(rows.metrics(step, loss=float(step)) for step in range(5_000)))

    query = {"from_step": 1_000, "to_step": 1_099, "max_points": 100, "times": True}
    answer = small.client("read").get(f"/v1/jobs/{run.job_id}/metrics", params=query).raise_for_status().json()

    (series,) = answer["series"]
    assert [(point["step"], point["value"]) for point in series["points"]] == [
        (n, float(n)) for n in range(1_000, 1_100)
    ]
    assert [time["step"] for time in answer["times"]] == [1_000, 1_099]  # of one delivery, so at one time
    assert {time["attempt"] for time in answer["times"]} == {1}
    assert answer["times"][0]["at"].endswith("Z")


def test_evaluations_of_a_job_and_of_its_checkpoints(served: Served) -> None:
    database = served.database
    trained = rows.Run(database, rows.running(database))
    trained.deliver(rows.started(), rows.checkpoint(5), rows.end("succeeded"))
    with client_of(served) as client:
        checkpoint = client.checkpoints(trained.job_id)[-1]["id"]
        features = {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint}}
        measured = rows.Run(database, rows.running(database, kind="evaluate", spec=features))
        measured.deliver(rows.started(), rows.evaluation(0.75), rows.end("succeeded"))

        own, theirs = client.evaluations(measured.job_id), client.evaluations(trained.job_id)

    assert own == theirs
    assert own[0]["protocol"] == "linear"
    assert (own[0]["metric"], own[0]["value"], own[0]["n"], own[0]["params"]) == ("top1", 0.75, 100, {"C": 1.0})


def test_the_catalog(served: Served) -> None:
    served.database.write(lambda session: workers.register(session, rows.WORKER, 1, [FACTS]))

    with client_of(served) as client:
        (dataset,) = client.datasets()
        (worker,) = client.workers()
        listed = client.presets()["items"]

    assert (dataset["name"], dataset["counts"], dataset["classes"]) == ("digits", FACTS.counts, ["0", "1"])
    assert (worker["name"], worker["state"], worker["datasets"]) == ("worker", "idle", {"digits": rows.DIGEST})
    assert {entry["name"]: parse_spec(entry["kind"], entry["spec"]) for entry in listed} == presets()
    assert all(entry["description"] for entry in listed)


def test_health_and_readiness_are_public(served: Served) -> None:
    client = served.bare()

    assert client.get("/healthz").json() == {"status": "ok", "version": VERSION}
    assert client.get("/readyz").json() == {"status": "ok", "version": VERSION}


@pytest.mark.parametrize(
    ("revision", "remedy"), [("0012_clocks", "python -m jobs migrate"), ("9999_later", "Install the newer version")]
)
def test_a_database_of_another_version_is_not_ready(small: Served, revision: str, remedy: str) -> None:
    change = text("UPDATE alembic_version SET version_num = :revision")
    small.database.write(lambda session: session.execute(change, {"revision": revision}))

    answer = small.bare().get("/readyz")

    assert answer.status_code == 503
    assert remedy in answer.json()["detail"]


def test_the_client_submits_waits_and_cancels(served: Served) -> None:
    with WclClient(served.url, served.key()) as client:
        plan = client.plan("pretrain", SPEC)
        job = client.submit("pretrain", SPEC, name="first", tags=["a"], priority=2, pool="default")
        cancelled = client.cancel(job["id"])

        assert plan["dataset"]["name"] == "digits"
        assert cancelled["status"] == client.wait(job["id"], timeout_seconds=5)["status"] == "cancelled"
        assert client.sign_in_link().startswith(f"{served.url}/sign-in?token=")
        assert client.is_ready()


def test_ids_sort_in_the_order_of_creation(small: Served) -> None:
    client = small.client()
    created = [client.post("/v1/jobs", json={"kind": "pretrain", "spec": SPEC}).json()["id"] for _ in range(5)]

    assert all(older < newer for older, newer in itertools.pairwise(created))


def test_a_running_evaluation_names_its_part_and_no_time_that_it_does_not_know(served: Served) -> None:
    database = served.database
    job_id = rows.submit(database, "evaluate", {"features": {"kind": "pixels"}, "protocols": ["linear", "knn"]})
    run = rows.Run(database, rows.claim(database))
    facts = {"phase": "evaluate", "total_steps": 3, "epoch": 0.4, "total_epochs": 1}
    run.deliver(rows.started(), rows.progress(0, **facts) | {"share": 0.37, "part": "features of raw pixels"})
    page = " ".join(served.browser("read").get(f"/jobs/{job_id}").text.split())
    assert "<dt>Phase</dt><dd>features of raw pixels, part 1 of 3, 37%</dd>" in page
    assert "Time left" not in page
    run.deliver(rows.progress(2, **facts, eta_seconds=95.0) | {"share": 0.5, "part": "kNN of raw pixels"})
    page = " ".join(served.browser("read").get(f"/jobs/{job_id}").text.split())
    assert "kNN of raw pixels, part 3 of 3, 50%" in page
    assert "<dt>Time left</dt><dd>about " in page


def test_a_run_begins_with_its_verdict_and_its_evaluations_stand_beside_what_they_must_beat(served: Served) -> None:
    database = served.database
    counts = {"test": [60, 40], "train": [500, 500]}
    database.write(lambda session: session.query(Dataset).update({"class_counts": counts}))
    database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))
    job_id = rows.submit(database)
    run = rows.Run(database, rows.claim(database))
    curve = [rows.metrics(step, **{KNN_TOP1: value}) for step, value in ((0, 0.3), (10, 0.8))]
    run.deliver(rows.started(), *curve, rows.checkpoint(10), rows.end("succeeded"))
    backbone = rows.job(database, job_id).spec["backbone"]
    checkpoint = {"kind": "checkpoint", "checkpoint_id": rows.checkpoints(database, job_id)[-1].id}
    other = {"kind": "untrained", "backbone": backbone | {"width": 8}}
    for features, value in (
        ({"kind": "pixels"}, 0.44),
        ({"kind": "untrained", "backbone": backbone}, 0.35),
        (other, 0.99),
        (checkpoint, 0.81),
    ):
        rows.submit(database, "evaluate", {"features": features})
        rows.Run(database, rows.claim(database)).deliver(rows.started(), rows.evaluation(value), rows.end("succeeded"))
    page = " ".join(served.browser("read").get(f"/jobs/{job_id}").text.split())
    assert "Better than the untrained network in 2 of 2 measures</span>" in page
    assert page.index("Better than the untrained") < page.index("Evaluations</h2>") < page.index("Curves</h2>")
    beside = ("largest class", "60.0%"), ("raw pixels", "44.0%"), ("untrained", "35.0%")
    for name, value in beside:
        assert f'<th scope="row">{name}</th><td class="number">{value}</td>' in page
    assert "Better than untrained: +46.0 points" in page
    client = served.client("read")
    job = client.get(f"/v1/jobs/{job_id}").json()
    judged = job["verdict"]
    assert (judged["is_shown"], judged["contrasts"], judged["finding"]) == (True, [], "better")
    names = [(each["title"], each["finding"], each["is_paired"]) for each in judged["measures"]]
    assert names == [("kNN accuracy", "better", False), ("Linear probe accuracy", "better", False)]
    assert judged["sentence"].startswith("Better than the untrained network in 2 of 2 measures (kNN accuracy +50.0")
    assert job["warnings"][-1].endswith("more epochs, to at least 1,000 steps")
    assert f"{job['warnings'][-1]}." in page
    assert [(each["title"], each["value"], each["is_share"]) for each in job["metrics"][:1]] == [
        ("kNN accuracy", 0.8, True)
    ]
    (entry,) = client.get(f"/v1/jobs/{job_id}/evaluations").json()["items"]
    assert entry["title"] == "Linear probe accuracy"
    assert entry["interval"] == pytest.approx(wilson(0.81, 100))
    assert (entry["chance"], entry["pixels"], entry["untrained"], entry["epoch"]) == (0.6, 0.44, 0.35, 1)
    assert entry["difference"]["value"] == pytest.approx(0.46)
