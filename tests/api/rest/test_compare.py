"""The comparison by REST and by the command: the verdict over seeds, results side by side, and what differs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from jobs.models import Checkpoint, DatasetVersion
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_client.commands import compare
from wcl_client.commands.shared import conclusion
from wcl_client.terminal import Terminal
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
    assert again.headers["location"] == f"/jobs/{twin.id}", "a second request trains no second twin"
    assert "Compare with the twin" in browser.get(f"/compare?job={job_id}").text


def test_a_row_of_one_run_at_an_earlier_epoch_is_left_out_beside_its_last_one(served: Served) -> None:
    ids = [trained(served, 0.7, name, epochs=2, method=method) for name, method in (("a", "wcl"), ("b", "simclr"))]
    names = [column.key for column in Checkpoint.__table__.columns]
    evaluations = {1: (ids[0], 0.5), 2: (ids[0], 0.6), 3: (ids[1], 0.4)}
    for place, (job_id, value) in evaluations.items():
        digest = f"{place}" * 64
        saved = rows.checkpoints(served.database, job_id)[-1]
        epoch = 1 if place == 1 else 2
        facts = {"sha256": digest, "epoch": epoch, "step": 100 + place, "storage_key": digest}
        columns = {name: getattr(saved, name) for name in names if name not in ("id", *facts)}
        new = Checkpoint(id=f"00000000-0000-7000-8000-00000000000{place}", **columns, **facts)
        served.database.write(lambda session, new=new: session.add(new))
        features = {"kind": "checkpoint", "checkpoint_id": f"00000000-0000-7000-8000-00000000000{place}"}
        rows.submit(served.database, "evaluate", {"features": features})
        measured = rows.evaluation(value, protocol="linear", params={"C": 1.0})
        rows.Run(served.database, rows.claim(served.database)).deliver(rows.started(), measured, rows.end("succeeded"))

    with WclClient(served.url, served.key("read")) as client:
        alone, both = client.compare(ids[:1]), client.compare(ids)

    def linear(compared: Any) -> list[Any]:
        return [
            (row["rule"], [each and each["mean"] for each in row["results"]])
            for row in compared["results"]
            if row["protocol"] == "linear"
        ]

    assert linear(alone) == [("last epoch", [0.6]), ("epoch 1", [0.5])]
    assert linear(both) == [("last epoch", [0.6, 0.4])]


def test_the_terminal_shows_what_both_must_beat(served: Served) -> None:
    counts = {"test": [60, 40]}
    served.database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))
    ids = [trained(served, 0.7, name, method=method) for name, method in (("a", "wcl"), ("b", "simclr"))]
    rows.submit(served.database, "evaluate", {"features": {"kind": "pixels"}})
    pixels = rows.evaluation(0.25, protocol="knn", params={"k": 20})
    rows.Run(served.database, rows.claim(served.database)).deliver(rows.started(), pixels, rows.end("succeeded"))
    with WclClient(served.url, served.key("read")) as client:
        comparison = client.compare(ids)
    (row,) = comparison["results"]
    assert row["to_beat"] == [{"name": "raw pixels", "value": 0.25}]
    piped = Console(file=io.StringIO(), width=1_000)
    Terminal(piped).show(compare._results(comparison))
    head, line = piped.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert head.split()[-2:] == ["raw", "pixels"]
    assert line.split()[-1] == "25.0%"


def test_a_watch_ends_with_the_verdict_and_the_next_commands(served: Served) -> None:
    counts = {"test": [60, 40]}
    served.database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))
    job_id = trained(served, 0.7, "ours")
    stopped = rows.submit(served.database, name="stopped", spec={"seed": 5})
    rows.Run(served.database, rows.claim(served.database)).deliver(rows.started(), rows.end("failed"))
    with WclClient(served.url, served.key("read")) as client:
        lines = [str(line) for line in conclusion(client, client.job(job_id))]
        assert conclusion(client, client.job(stopped)) == []
    short = job_id[-12:]
    assert lines[0].startswith("ours: Better than the untrained network by 40.0 ")
    assert lines[1:] == [
        f"  all results: wcl show {short}",
        f"  more measures, beside the untrained network: wcl evaluate {short} --baselines --watch",
        f"  features of new images: wcl features {short} FOLDER -o features.csv",
        f"  classes of new images: wcl classify fit {short} LABELLED_FOLDER -o classifier.safetensors",
        f"  SimCLR twin, which shows what the method adds: wcl clone {short} --set method=simclr --name ours-simclr",
    ]
