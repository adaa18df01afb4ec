"""`wcl evaluate` and the repeatable methods of the client, against a real server."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from jobs import workers
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts
from jobs.models import Job
from jobs.status import Status
from tests.api.served import Served
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_client.cli import app
from wcl_client.commands.shared import conclusion
from wcl_client.errors import ConflictError


def trained(database: Database) -> str:
    """Return the id of a job that succeeded with two checkpoints."""
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started(), rows.checkpoint(5, "5" * 64), rows.checkpoint(9, "9" * 64), rows.end("succeeded"))
    return run.job_id


def test_a_job_stands_for_its_last_checkpoint(server: Served) -> None:
    job_id = trained(server.database)
    first, last = rows.checkpoints(server.database, job_id)

    done = CliRunner().invoke(app, ["evaluate", job_id, "--protocol", "linear", "--set", "seed=3", "--json"])
    evaluation = json.loads(done.stdout)
    by_checkpoint = json.loads(CliRunner().invoke(app, ["evaluate", first.id, "--protocol", "linear", "--json"]).stdout)

    assert done.exit_code == 0
    assert (evaluation["kind"], evaluation["parent_id"]) == ("evaluate", job_id)
    assert evaluation["spec"]["features"]["checkpoint_id"] == last.id
    assert (evaluation["spec"]["protocols"], evaluation["spec"]["seed"]) == (["linear"], 3)
    assert by_checkpoint["spec"]["features"]["checkpoint_id"] == first.id


def test_several_jobs_are_evaluated_by_one_command_or_none_of_them(server: Served) -> None:
    first, second = trained(server.database), trained(server.database)
    arguments = ["--protocol", "knn", "--baselines"]
    refused = CliRunner().invoke(app, ["evaluate", first, "absent", *arguments])
    assert "no job matches absent" in str(refused.exception)
    assert len(rows.rows_of(server.database, Job)) == 2, "nothing was submitted"
    assert CliRunner().invoke(app, ["evaluate", first, second, "--checkpoint", "5"]).exit_code == 2

    done = CliRunner().invoke(app, ["evaluate", first, second, *arguments])

    assert done.exit_code == 0, done.output
    parents = [rows.job(server.database, job_id).parent_id for job_id in done.stdout.split()]
    assert parents == [first, second]
    listed = CliRunner().invoke(app, ["evaluate", first, second, "--protocol", "knn", "--json"])
    assert [each["parent_id"] for each in json.loads(listed.stdout)] == [first, second]


def test_the_twin_is_offered_at_once_and_then_compared(server: Served) -> None:
    job_id = CliRunner().invoke(app, ["submit", "--preset", "digits-cpu", "--name", "ours"]).stdout.strip()
    short = job_id[-12:]
    shown = " ".join(CliRunner().invoke(app, ["show", job_id]).stdout.split())
    offer = f"SimCLR twin, which shows what the method adds: wcl clone {short} --set method=simclr --name ours-simclr"
    assert offer in shown

    cloned = CliRunner().invoke(app, ["clone", short, "--set", "method=simclr", "--name", "ours-simclr"])
    other = cloned.stdout.strip()
    submitted = CliRunner().invoke(app, ["submit", "--preset", "digits-cpu", "--set", "epochs=70"])
    assert "SimCLR twin, which shows what the method adds" in " ".join(submitted.stderr.split())
    for each, named, title in ((job_id, "ours-simclr", "SimCLR"), (other, "ours", "WCL")):
        shown = " ".join(CliRunner().invoke(app, ["show", each]).stdout.split())
        assert f"{title} twin {named} (queued): wcl compare {each[-12:]}" in shown


def test_baselines_are_measured_in_the_same_way(server: Served) -> None:
    job_id = trained(server.database)
    done = CliRunner().invoke(app, ["evaluate", job_id, "--protocol", "linear", "--set", "seed=3", "--baselines"])
    assert done.exit_code == 0, done.output
    first, *lines = done.stderr.splitlines()
    assert first.startswith("measures the checkpoint of epoch ")
    assert [line.split(", for ")[0] for line in lines] == ["raw pixels", "untrained network"]
    measured = rows.job(server.database, done.stdout.strip()).spec
    for line, kind in zip(lines, ("pixels", "untrained"), strict=True):
        spec = rows.job(server.database, line.rsplit(" ", 1)[1]).spec
        assert {name for name in spec if spec[name] != measured[name]} == {"features"}
        assert spec["features"]["kind"] == kind
    assert spec["features"]["backbone"] == rows.job(server.database, job_id).spec["backbone"]


def test_baselines_of_an_evaluation_are_submitted_once_also_by_the_button(server: Served) -> None:
    job_id = trained(server.database)
    with WclClient.connect() as client:
        with pytest.raises(ConflictError, match="evaluate one first"):
            client.baselines(job_id)
        evaluation = client.evaluate(rows.checkpoints(server.database, job_id)[0].id, {"protocols": ["linear"]})
        first, again = client.baselines(evaluation["id"]), client.baselines(job_id)
    browser = server.browser()
    sent = browser.post(f"/jobs/{job_id}/baselines", data={"key": "a" * 32}, headers={"Origin": server.url})

    assert sent.status_code == 303
    assert [job["id"] for job in first] == [job["id"] for job in again]
    assert [job["parent_id"] for job in first] == [evaluation["id"]] * 2
    assert evaluation["measures"]["sentence"].startswith("the checkpoint of epoch ")
    assert len(rows.rows_of(server.database, Job)) == 4  # the training, its evaluation and two baselines


def test_the_page_measures_the_baselines_of_a_training_without_an_evaluation_and_names_the_jobs(server: Served) -> None:
    job_id = trained(server.database)
    browser, address = server.browser(), f"/jobs/{job_id}"
    assert "Measure baselines</button>" in browser.get(address).text
    for _ in range(2):  # a form that is sent again
        sent = browser.post(f"{address}/baselines", data={"key": "b" * 32}, headers={"Origin": server.url})
        assert (sent.status_code, sent.headers["location"]) == (303, f"{address}#evaluations")
    page = browser.get(address).text
    with WclClient.connect() as client:
        baselines = client.baselines(job_id)  # those that the form has submitted
    assert len(baselines) == 2
    for job in baselines:
        assert f'<a href="/jobs/{job["id"]}">{job["name"]}</a> (queued)' in page
    assert "Measure baselines</button>" not in page
    assert len(rows.rows_of(server.database, Job)) == 4  # the training, its evaluation and two baselines


def test_an_evaluation_that_measures_nothing_goes_on_without_baselines(server: Served) -> None:
    job_id = trained(server.database)
    done = CliRunner().invoke(app, ["evaluate", job_id, "--protocol", "map", "--baselines"])

    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[1].startswith("without baselines: this evaluation measures nothing")
    assert rows.job(server.database, done.stdout.strip()).spec["protocols"] == ["map"]


@pytest.mark.parametrize(("classes", "command"), [([], "--watch"), (["hat", "shoe"], "--baselines --watch")])
def test_what_a_watch_proposes_fits_the_dataset(server: Served, classes: list[str], command: str) -> None:
    counts = {"train": 490, "test": 107} if classes else {"train": 0, "test": 0, "unlabelled": 400}
    facts = DatasetFacts("photos", "folder", "f" * 64, counts, classes)
    worker = rows.worker(id=new_id(), name="tailor", datasets={"photos": "f" * 64})
    server.database.write(lambda session: workers.register(session, worker, 1, [facts]))
    job_id = rows.submit(server.database, spec={"data": {"name": "photos", "image_size": 8}})
    run = rows.Run(server.database, rows.claim(server.database, worker))
    run.deliver(rows.started(), rows.end("succeeded"))

    with WclClient.connect() as client:
        lines = [str(line) for line in conclusion(client, client.job(job_id))]
    assert any(line.endswith(f": wcl evaluate {job_id[-12:]} {command}") for line in lines), lines


def test_an_unknown_protocol_is_refused(server: Served) -> None:
    job_id = trained(server.database)

    done = CliRunner().invoke(app, ["evaluate", job_id, "--protocol", "nothing"])

    assert done.exit_code != 0
    assert "/protocols/0" in str(done.exception)


def test_a_request_repeated_with_its_key_creates_one_job(server: Served) -> None:
    job_id = trained(server.database)
    checkpoint = rows.checkpoints(server.database, job_id)[0].id
    failed = rows.job_in(server.database, Status.FAILED)
    before = len(rows.rows_of(server.database, Job))

    with WclClient.connect() as client:
        for _ in range(2):
            client.retry(failed, idempotency_key="one")
            client.clone(failed, {"seed": 1}, idempotency_key="two")
            client.evaluate(checkpoint, {"protocols": ["linear"]}, idempotency_key="three")
        client.retry(failed)

    assert len(rows.rows_of(server.database, Job)) == before + 4


def test_a_list_of_jobs_without_a_filter_leaves_evaluations_of_a_training_out(server: Served) -> None:
    run = trained(server.database)
    evaluation = CliRunner().invoke(app, ["evaluate", run, "--protocol", "linear", "--json"])
    ids = {"run": run, "evaluation": json.loads(evaluation.stdout)["id"]}

    def listed(*arguments: str) -> set[str]:
        done = CliRunner().invoke(app, ["jobs", *arguments])
        assert done.exit_code == 0, done.output
        return {name for name, job_id in ids.items() if job_id[-12:] in done.stdout}

    assert listed() == {"run"}
    assert listed("--all") == listed("--json") == listed("--csv") == {"run", "evaluation"}
    assert listed("--kind", "evaluate") == {"evaluation"}
