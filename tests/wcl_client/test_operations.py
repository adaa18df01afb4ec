"""Commands for jobs and workers, against a real server."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from jobs import keys, transitions, workers
from jobs.database import new_id
from jobs.models import Job, Worker
from tests.api.rest.test_artifacts import store
from tests.api.served import Served, native_checkpoint
from tests.jobs import rows
from tests.jobs.rows import Run
from wcl_client.cli import app, run
from wcl_client.errors import ConflictError, InvalidError, NotFoundError
from wcl_core.data.cache import COMPILED, Cache


def wcl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def printed_json(*arguments: str) -> object:
    """Return the JSON that a command prints."""
    done = wcl(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def submit(*arguments: str) -> str:
    done = wcl("submit", "--preset", "digits-cpu", *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_pause_resume_cancel_retry_and_clone(server: Served) -> None:
    job_id = submit()

    assert wcl("pause", "last").stdout == f"{job_id} paused\n"
    assert wcl("resume", job_id[-12:]).stdout == f"{job_id} queued\n"
    rows.claim(server.database)
    assert wcl("pause", job_id).stdout == f"{job_id} running, pause requested\n"
    assert wcl("cancel", job_id).stdout == f"{job_id} running, cancel requested\n"
    server.database.write(lambda session: session.execute(update(Job).values(status="failed")))
    retried = wcl("retry", job_id).stdout.strip()
    number = len(json.loads(wcl("jobs", "--json").stdout))
    planned = wcl("clone", job_id, "--set", "seed=9", "--dry-run").stdout
    assert "Nothing was submitted" in planned
    assert " steps, " in planned
    assert json.loads(wcl("clone", job_id, "--set", "seed=9", "--dry-run", "--json").stdout)["spec"]["seed"] == 9
    cloned = wcl("clone", job_id, "--set", "seed=9").stdout.strip()
    assert len(json.loads(wcl("jobs", "--json").stdout)) == number + 1

    assert rows.job(server.database, retried).parent_id == job_id
    assert rows.job(server.database, cloned).spec["seed"] == 9
    assert isinstance(wcl("resume", job_id).exception, ConflictError)


def test_a_folder_and_a_file_of_several_specs_are_submitted_together(server: Served, tmp_path: Path) -> None:
    folder, file = tmp_path / "runs", tmp_path / "more.yaml"
    folder.mkdir()
    for name in ("b.yaml", "a.json", "notes.txt"):
        (folder / name).write_text('{"seed": 7}')
    file.write_text("seed: 1\n---\nseed: 2\n---\nepochs: 0")

    refused = wcl("submit", "--preset", "digits-cpu", str(folder), str(file)).exception
    file.write_text("seed: 1\n---\nseed: 2")
    done = wcl("submit", "--preset", "digits-cpu", "--tag", "t", "--set", "epochs=20", str(folder), str(file))

    assert isinstance(refused, InvalidError)
    assert [problem.pointer for problem in refused.errors] == ["more 3: /spec/epochs"]
    jobs = [rows.job(server.database, job_id) for job_id in done.stdout.split()]
    assert [(job.name, job.spec["seed"], job.spec["epochs"]) for job in jobs] == [
        *(("a", 7, 20), ("b", 7, 20), ("more", 1, 20), ("more 2", 2, 20))
    ]
    assert len(rows.rows_of(server.database, Job)) == 4
    assert "4 jobs" in done.stderr
    assert "warning" not in done.stderr
    again = wcl("submit", "--preset", "digits-cpu", "--set", "epochs=20", str(folder)).stderr
    assert "warning: another job has the name a, so only ids tell them apart" in again
    for option in (("--name", "x"), ("--seeds", "1,2"), ("--dry-run",)):
        assert f"{option[0]}: expected one spec, but there are 4" in " ".join(
            wcl("submit", str(folder), str(file), *option).stderr.replace("│", " ").split()
        )


def test_a_finished_job_goes_on(server: Served) -> None:
    job_id = submit()
    run = rows.Run(server.database, rows.claim(server.database))
    run.deliver(rows.started(), rows.checkpoint(5), rows.end("succeeded"))

    done = wcl("continue", job_id[-12:], "--epochs", "20")

    said = " ".join(done.stderr.split())
    assert "again: warm-up over 2 epochs, cosine to 0 at epoch 80" in said
    assert f"{server.url}/jobs/{done.stdout.strip()}" in said
    assert rows.job(server.database, done.stdout.strip()).spec["restarts"] == [60]
    assert f"continues wcl digits tiny ({job_id[-12:]}), step 5" in " ".join(
        wcl("show", done.stdout.strip()).stdout.split()
    )
    doubled = wcl("continue", job_id)  # as many epochs as it had, like the form of the page
    assert rows.job(server.database, doubled.stdout.strip()).spec["epochs"] == 120
    assert "  60 more epochs, as no number was given: --epochs N for another one" in doubled.stderr


def test_a_training_without_a_checkpoint_says_when_the_first_one_comes(server: Served) -> None:
    job_id = submit("--set", "checkpoints.every_epochs=7", "--set", "checkpoints.first_epoch=false")
    error = wcl("download", job_id).exception
    assert "has no checkpoint yet; it writes the first one after epoch 7 of 60" in str(error)


def test_a_job_that_has_ended_has_no_checkpoint_yet_to_come(server: Served) -> None:
    job_id = submit()
    wcl("cancel", job_id)
    error = str(wcl("download", job_id).exception)
    assert error.endswith("has no checkpoint: it has ended, and either wrote none or its checkpoints were deleted")


def test_retry_and_clone_print_page_and_next_command_beside_the_id(server: Served) -> None:
    job_id = submit()
    wcl("cancel", job_id)
    for verb, ending in (("retry", ""), ("clone", "-3")):  # the cancelled job had not begun, and keeps no name
        done = wcl(verb, job_id)
        new = done.stdout.strip()
        assert f"wcl digits tiny{ending}  {server.url}/jobs/{new}" in done.stderr
        assert "by a rule of thumb; the first epoch tells more" in done.stderr
        assert (f"{60 * 3:,} steps, 3 an epoch" in done.stderr) == (verb == "clone")
        assert f"follow it: wcl watch {new[-12:]}" in done.stderr
        assert wcl(verb, job_id, "--json").stderr == ""


def test_submit_says_page_steps_place_and_what_will_hardly_learn(server: Served) -> None:
    submit()
    done = wcl("submit", "--preset", "digits-cpu", "--set", "epochs=20", "--name", "short")
    job_id = done.stdout.strip()
    steps = 1000 // 256  # of `rows.add_dataset`
    text = " ".join(done.stderr.split())
    for part in (
        f"short {server.url}/jobs/{job_id}",
        f"{20 * steps:,} steps, {steps:,} an epoch",
        f"warning: {20 * steps} steps in all, too few to learn anything",
        "place 2 in the queue of pool default",
        f"follow it: wcl watch {job_id[-12:]}",
    ):
        assert part in text, (part, text)
    page = server.browser("read").get(f"/jobs/{job_id}").text
    assert f"{20 * steps} steps in all, too few to learn anything" in page
    copied = wcl("clone", job_id, "--name", "short")
    taken = "another job has the name short, so only ids tell them apart; short-2 is free"
    for part in (taken, f"warning: {20 * steps} steps in all, too few to learn anything"):
        assert part in " ".join(copied.stderr.split())
    planned = wcl("submit", "--preset", "digits-cpu", "--name", "short", "--dry-run").stdout
    assert taken.replace("another job has", "2 other jobs have") in " ".join(planned.split())
    assert wcl("submit", "--preset", "digits-cpu", "--dry-run").stdout.startswith("wcl digits tiny  one pretrain job")
    for _ in range(2):
        seeds = wcl("submit", "--preset", "digits-cpu", "--name", "both", "--seeds", "1,2").stderr
    assert "warning: another job has the name both, seed 1, so only ids" in " ".join(seeds.split())


def test_a_waiting_job_is_changed(server: Served) -> None:
    job_id = submit()

    done = wcl("change", job_id, "--priority", "7", "--name", "urgent", "--tag", "a", "--tag", "b")

    assert done.exit_code == 0, done.output
    job = rows.job(server.database, job_id)
    assert (job.priority, job.name) == (7, "urgent")
    assert wcl("change", job_id).exit_code == 2
    assert isinstance(wcl("change", job_id, "--priority", "5000").exception, InvalidError)


def test_brackets_in_a_name_are_text(server: Served) -> None:
    job_id = submit("--name", "[/b] [red]x", "--tag", "[/i]")
    wcl("cancel", job_id)

    for arguments in (("jobs",), ("show", job_id), ("watch", job_id)):
        assert "[/b] [red]x" in wcl(*arguments).stdout, arguments


def test_show_prints_why_a_job_waits(server: Served) -> None:
    job_id = submit()

    shown = wcl("show", job_id).stdout

    assert "no worker of the pool default is running, place 1 in the queue (no_worker)" in shown


def test_submit_sends_limits_and_dependencies(server: Served) -> None:
    dependency = submit()

    limits = ("--max-seconds", "60", "--preemptible", "--gpus", "2")
    job_id = submit("--after-checkpoint", "last", *limits)

    job = rows.job(server.database, job_id)
    assert (job.status, job.max_seconds, job.preemptible, job.gpus) == ("blocked", 60, True, 2)
    rows.Run(server.database, rows.claim(server.database)).deliver(rows.started(), rows.checkpoint(1))
    plain = rows.job(server.database, submit("--after-checkpoint", dependency[-12:]))
    assert (plain.status, plain.max_seconds, plain.preemptible) == ("queued", None, False)


def test_the_error_for_an_absent_object_names_it_and_the_expected_form(server: Served) -> None:
    submit()
    absent = str(uuid4())
    for arguments, expected in (
        (("submit", "--preset", "digits-cpu", "--after", "nothing"), "no job matches nothing; expected a name"),
        (("download", absent), f"there is no checkpoint {absent!r}"),
        (("show", absent[:8]), "four or more characters"),
    ):
        with pytest.raises(NotFoundError, match=expected):
            CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_part_of_an_id_stands_for_a_job_that_many_newer_ones_follow(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wcl_client.references._MOST_READ", 1)
    oldest = submit("--name", "the oldest")
    for _ in range(2):
        submit()

    assert wcl("show", oldest[-12:]).stdout.startswith("the oldest")


def test_workers_are_listed_and_drained_by_name_or_id(server: Served) -> None:
    for number in (1, 2, 3):
        facts = rows.worker(id=f"00000000-0000-7000-8000-00000000000{number}", name=f"box-{number // 2}")
        server.database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]

    done = wcl("worker", "drain", "box-0")
    listed = wcl("workers").stdout.splitlines()

    assert done.stdout == "box-0 idle, drain requested\n"
    assert ["draining" in line for line in listed if "box-0" in line] == [True]
    assert ["draining" in line for line in listed if "box-1" in line] == [False, False]
    assert isinstance(wcl("worker", "drain", "box-1").exception, InvalidError), "two have this name"
    assert isinstance(wcl("worker", "drain", "nobody").exception, NotFoundError)
    assert wcl("worker", "drain", "000000000003").exit_code == 0
    by_id = {worker["id"][-1]: worker["drain_requested_at"] for worker in printed_json("workers")}  # type: ignore[attr-defined]
    assert [by_id[number] is not None for number in "123"] == [True, False, True]


def test_a_submission_is_told_of_a_job_that_it_repeats_and_not_of_itself(server: Served) -> None:
    first = wcl("submit", "--preset", "digits-cpu", "--set", "seed=4711")
    second = wcl("submit", "--preset", "digits-cpu", "--set", "seed=4711")
    third = wcl("submit", "--preset", "digits-cpu", "--set", "seed=4711")

    assert "repeats it" not in first.stderr
    for repeated in (second, third):
        assert f"({first.stdout.strip()[-12:]}, queued) has the same spec and seed" in " ".join(repeated.stderr.split())


def test_the_list_of_workers_has_those_that_live_and_counts_the_others(server: Served) -> None:
    for number, name in enumerate(("alive", "stopped", "lost")):
        facts = rows.worker(id=f"00000000-0000-7000-8000-00000000000{number}", name=name)
        server.database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]
    ids = [f"00000000-0000-7000-8000-00000000000{number}" for number in (1, 2)]
    server.database.write(lambda session: workers.stop(session, ids[0]))
    server.database.write(lambda session: workers.mark_lost(session, ids[1], 0))

    done, complete = wcl("worker", "list"), wcl("worker", "list", "--all")

    assert [name in done.stdout for name in ("alive", "stopped", "lost")] == [True, False, False]
    assert done.stderr == "2 stopped or lost workers not shown; --all shows them\n"
    assert [name in complete.stdout for name in ("alive", "stopped", "lost")] == [True, True, True]
    assert complete.stderr == ""
    assert {row["name"] for row in printed_json("worker", "list")} == {"alive", "stopped", "lost"}  # type: ignore[attr-defined]


def test_a_cordoned_worker_that_has_ended_is_uncordoned_for_its_next_start(server: Served) -> None:
    facts = [rows.worker(id=f"00000000-0000-7000-8000-00000000000{number}", name="box") for number in (1, 2, 3)]

    def start(number: int) -> None:
        def change(session: Session) -> None:
            workers.register(session, facts[number], 1, [])
            session.flush()
            session.execute(update(Worker).where(Worker.id == facts[number].id).values(started_at=number))

        server.database.write(change)

    start(0)
    server.database.write(lambda session: workers.stop(session, facts[0].id))
    start(1)
    assert wcl("worker", "cordon", "box").stdout == "box idle, takes no further job\n"
    server.database.write(lambda session: workers.stop(session, facts[1].id))

    assert wcl("worker", "uncordon", "box").stdout == "box stopped, takes jobs once it has started again\n"
    assert "another one of its name has started since" in str(wcl("worker", "uncordon", facts[0].id).exception)
    start(2)
    with server.database.read() as session:
        assert session.get_one(Worker, facts[2].id).cordoned_at is None


def test_a_refused_token_is_no_key(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WCL_WORKER_TOKEN", "wrong")

    assert run(["worker", "join", server.url]) == 5

    error = capsys.readouterr().err
    assert "wcl worker invite" in error
    assert "WCL_KEY" not in error


def test_a_name_means_the_worker_that_has_replaced_a_killed_one(server: Served) -> None:
    """The row of the killed one is live until its lease ends; two that both send heartbeats stay ambiguous."""
    ids = [f"00000000-0000-7000-8000-00000000000{number}" for number in (1, 2)]
    for worker_id in ids:
        facts = rows.worker(id=worker_id, name="box")
        server.database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]

    def pass_by(killed_at: int, start: int, seen_at: int) -> None:
        times = {ids[0]: (0, killed_at), ids[1]: (start, seen_at)}
        for worker_id, (started_at, last_seen_at) in times.items():
            changed = update(Worker).where(Worker.id == worker_id).values(started_at=started_at, seen_at=last_seen_at)
            server.database.write(lambda session, changed=changed: session.execute(changed))  # type: ignore[misc]

    for killed_at, start, seen_at in ((40_000, 50_000, 60_000), (55_000, 50_000, 80_000)):
        pass_by(killed_at, start, seen_at)
        for command in ("drain", "cordon", "uncordon"):
            assert "box matches 2 workers; use an id" in str(wcl("worker", command, "box").exception)
    pass_by(40_000, 50_000, 80_000)

    assert wcl("worker", "cordon", "box").exit_code == 0
    assert wcl("worker", "uncordon", "box").exit_code == 0
    assert wcl("worker", "drain", "box").exit_code == 0
    drained = {worker["id"]: worker["drain_requested_at"] for worker in printed_json("workers")}  # type: ignore[attr-defined]
    assert [drained[worker_id] is not None for worker_id in ids] == [False, True]


def test_workers_that_take_no_jobs_say_why(server: Served) -> None:
    unable = workers.Unable("storage_unavailable", "the storage folder [x] is another storage")
    server.database.write(lambda session: workers.register(session, rows.worker(), 1, [], unable=unable))

    listed = wcl("workers")

    assert "idle, takes no jobs" in listed.stdout
    assert "worker takes no jobs: the storage folder [x] is another storage" in " ".join(listed.stderr.split())


def test_doctor_looks_at_the_disks_of_the_service(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path / "of no service"))
    roomy, full = rows.worker(id=new_id(), name="roomy"), rows.worker(id=new_id(), name="full")
    for facts, free in ((roomy, 5 << 30), (full, 300 << 20)):
        server.database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]
        server.database.write(
            lambda session, facts=facts, free=free: workers.heartbeat(session, facts.id, None, disk_free_bytes=free)  # type: ignore[misc]
        )

    done = wcl("doctor", "--json")
    seen = {each["name"]: (each["is_ok"], each["detail"]) for each in json.loads(done.stdout)}

    assert done.exit_code == 1
    assert "Data folder" not in seen
    is_ok, detail = seen["Workers"]
    assert not is_ok
    assert "roomy (5.0 GiB free)" in detail
    assert "full (300.0 MiB free)" in detail
    assert "the disk of full is nearly full: at least 1 GiB is needed" in detail


@pytest.mark.parametrize(
    ("limit", "shown"),
    [(str(3 << 30), "2.0 GiB of at most 3.0 GiB"), (None, "2.0 GiB of at most a quarter of its disk")],
)
def test_doctor_shows_the_cache_with_its_limit(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, shown: str
) -> None:
    cache = Cache(tmp_path / "cache")
    (cache.folder / COMPILED).mkdir(parents=True)
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_CACHE_BYTES", limit) if limit else monkeypatch.delenv("WCL_CACHE_BYTES", raising=False)
    server.database.write(lambda session: workers.register(session, rows.WORKER, 1, []))
    for digest, gib in (("a" * 64, 1.25), ("b" * 64, 0.5)):
        with cache.path(digest, 32).open("wb") as file:
            file.truncate(int(gib * (1 << 30)))

    assert findings("doctor")["Cache"] == (True, f"{cache.folder}: 2 decoded datasets, {shown.replace('2.0', '1.8')}")
    with (cache.folder / COMPILED / "kernel").open("wb") as file:
        file.truncate(1 << 28)
    assert findings("doctor")["Cache"] == (True, f"{cache.folder}: 2 decoded datasets and compiled code, {shown}")
    monkeypatch.setenv("WCL_CACHE_DIR", str(tmp_path / "absent"))
    assert "Cache" not in findings("doctor")


def test_doctor_verifies_every_file(server: Served) -> None:
    server.database.write(lambda session: workers.register(session, rows.WORKER, 1, []))
    run = rows.Run(server.database, rows.running(server.database))
    run.deliver(rows.started())
    ids = [server.checkpoint(native_checkpoint(), run, step) for step in (1, 2, 3)]
    store(server, run, "probe.png", b"pixels")
    assert findings("doctor", "--verify")["Files"] == (True, "4 read, 0 of them damaged or missing")
    server.file_of(ids[0]).write_bytes(b"other bytes")
    server.file_of(ids[1]).unlink()
    next(server.settings.checkpoints_dir.rglob("*-probe.png")).write_bytes(b"pixelz")

    done = wcl("doctor", "--verify")

    assert done.exit_code == 1
    words = " ".join(done.stdout.split())
    assert f"checkpoint {ids[0]}" in words
    assert "step 1: its file is damaged" in words
    assert "step 2: its file is missing" in words
    assert "artifact probe.png of job" in words
    assert "4 read, 3 of them damaged or missing" in words
    assert [row.flaw for row in rows.checkpoints(server.database, run.job_id)] == ["damaged", "missing", None]
    assert "Files" not in findings("doctor")
    assert "damaged" in wcl("checkpoints", run.job_id).stdout
    refused = wcl("download", ids[0], "--output", str(server.settings.data_dir / "model"))
    assert isinstance(refused.exception, ConflictError)
    assert "its file is damaged" in str(refused.exception)


def findings(*arguments: str) -> dict[str, tuple[bool, str]]:
    return {each["name"]: (each["is_ok"], each["detail"]) for each in printed_json(*arguments)}  # type: ignore[attr-defined]


def test_the_audit_exits_with_1_when_events_and_rows_differ(server: Served) -> None:
    job_id = submit()
    assert wcl("audit").stdout == "1 job, 0 attempts, 1 event: 0 findings\n"
    server.database.write(lambda session: session.execute(update(Job).values(attempt=1)))

    done = wcl("audit")

    assert done.exit_code == 1
    assert f"{job_id} attempts the row is at attempt 1, but its events are at 0" in " ".join(done.stderr.split())
    assert json.loads(wcl("audit", "--json").stdout)["findings"][0]["rule"] == "attempts"


def test_tables_as_csv_and_metrics_as_parquet(server: Served, tmp_path: Path) -> None:
    from pyarrow import parquet

    run = Run(server.database, rows.running(server.database, name="[x] one"))
    run.deliver(rows.started(), rows.metrics(1, **{"train/loss": 2.5}), rows.metrics(2, **{"train/loss": None}))
    other = rows.submit(server.database, name="two")

    listed = list(csv.DictReader(io.StringIO(wcl("jobs", "--csv", "--limit", "1").stdout)))
    assert [row["name"] for row in listed] == ["two", "[x] one"]
    assert wcl("jobs", "--csv", "--status", "running").stdout.count("\n") == 2
    assert wcl("compare", "--csv", run.job_id, other).stdout.startswith("configuration,method,dataset,")
    for command in (("jobs",), ("compare", other)):
        assert "give one of them" in wcl(*command, "--csv", "--json").output
    out = tmp_path / "metrics.parquet"
    assert "2 points" in wcl("metrics", run.job_id, other, "-o", str(out)).stdout
    table = parquet.read_table(out)
    assert table.schema.names == ["job_id", "metric", "step", "value", "attempt"]
    assert [(each["job_id"], each["step"], each["value"]) for each in table.to_pylist()] == [
        (run.job_id, 1, 2.5),
        (run.job_id, 2, None),
    ]


def test_parquet_without_its_library_is_refused_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wcl_client.commands.jobs.find_spec", lambda _: None)

    assert "wcl-service[parquet]" in wcl("metrics", "x", "-o", str(tmp_path / "m.parquet")).output


def test_the_commands_take_jobs_or_filters(server: Served) -> None:
    anna = server.database.write(lambda session: keys.create(session, "anna")[0].id)
    jobs = [rows.submit(server.database, created_by=anna) for _ in range(3)]

    assert "would cancel 3 jobs" in wcl("cancel", "--by", "anna", "--status", "queued", "--dry-run").stdout
    assert "paused 3 jobs" in wcl("pause", "--by", "anna").stdout
    assert "resumed 3 jobs" in wcl("resume", "--by", "anna").stdout
    assert wcl("cancel", jobs[0], jobs[1]).stdout == f"{jobs[0]} cancelled\n{jobs[1]} cancelled\n"
    again = wcl("cancel", jobs[0])
    assert (again.exit_code, again.stdout.split(" (")[1]) == (
        0,
        f"{jobs[0][-12:]}) is already cancelled; nothing to do\n",
    )
    assert "cancelled 1 job" in wcl("cancel", "--by", "anna", "--status", "queued").stdout
    assert len(wcl("jobs", "--by", "anna").stdout.splitlines()) > 3
    assert "deleted 3 jobs" in wcl("delete", "--by", "anna", "--yes").stdout
    assert wcl("delete", "--by", "anna", "--dry-run").stdout == "no job matches; nothing would be deleted\n"
    assert "expected either jobs, or at least one of --by" in wcl("cancel").output
    assert "expected either jobs" in wcl("resume", "--by", "anna", jobs[0]).output
    assert "no key has the name or id 'ben'" in str(wcl("cancel", "--by", "ben").exception)


def test_jobs_of_other_keys_that_match_are_counted(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str) -> tuple[str, str]:
        key, secret = server.database.write(lambda session: keys.create(session, name))
        return key.id, secret

    anna, secret = create("anna")
    ben, _ = create("ben")
    for owner in (ben, ben, anna):
        rows.submit(server.database, created_by=owner)
    monkeypatch.setenv("WCL_KEY", secret)
    refused = "2 jobs of other keys stay: only their owner or an administrator may"

    for verb, status in (("cancel", ("--status", "queued")), ("pause", ())):
        done, planned = wcl(verb, "--by", "ben", *status), wcl(verb, "--by", "ben", *status, "--dry-run")
        assert (done.exit_code, planned.exit_code) == (5, 5)
        assert f"{refused} {verb} them\n" in done.stderr
        assert f"{refused} {verb} them\n" in planned.stderr
    some = wcl("pause", "--kind", "pretrain")
    assert (some.exit_code, some.stdout.splitlines()[-1]) == (0, "paused 1 job")
    assert refused in some.stderr
    none = wcl("resume", "--by", "ben")
    assert (none.exit_code, none.stderr, none.stdout) == (0, "", "resumed 0 jobs\n")
    job_id = rows.submit(server.database, created_by=ben)
    server.database.write(lambda session: transitions.pause(session, job_id))
    one = wcl("resume", "--by", "ben")
    assert (one.exit_code, one.stdout) == (5, "resumed 0 jobs\n")
    assert one.stderr == "1 job of other keys stays: only its owner or an administrator may resume it\n"
