"""Readiness, and the metrics for Prometheus as its own parser reads them."""

from __future__ import annotations

import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from jobs import keys, monitoring, storage_id, workers
from jobs.database import DEFAULT_PROJECT, Database, new_id, within
from jobs.models import Activity, Attempt, Checkpoint, Job, Worker
from jobs.status import Reason
from tests import disks
from tests.api.served import Served
from tests.jobs import rows
from tests.servers import find_program
from wcl_core.version import VERSION

ROOT = Path(__file__).parents[3]
Values = dict[tuple[str, ...], float]


def scrape(served: Served) -> dict[str, Values]:
    """Return the values of each metric by the values of its labels, in the order of their names."""
    response = served.client("read").get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    metrics: dict[str, Values] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            of_name = metrics.setdefault(sample.name, {})
            assert labels not in of_name, f"{sample.name} has {labels} twice"
            of_name[labels] = sample.value
    return metrics


def test_metrics_of_an_idle_service_have_their_zeroes(served: Served) -> None:
    metrics = scrape(served)

    assert metrics["wcl_jobs"] == {(state,): 0 for state in ("blocked", "paused", "queued", "running")}
    assert metrics["wcl_jobs_paused"] == dict.fromkeys(
        [("disk_full",), ("no_resources",), ("storage_unavailable",), ("user",)], 0
    )
    assert metrics["wcl_workers"] == {("busy",): 0, ("idle",): 0}
    assert {labels[0] for labels in metrics["wcl_attempts_ended_last_hour"]} == {"succeeded", *Reason}
    assert {labels for labels in metrics["wcl_jobs_ended_last_hour"] if labels[1] == "failed"} == {
        (reason, "failed") for reason in Reason
    }
    assert not any(metrics["wcl_jobs_ended_last_hour"].values())
    assert (metrics["wcl_workers_lost_last_hour"], metrics["wcl_attempts_started_last_hour"]) == ({(): 0}, {(): 0})
    assert (metrics["wcl_build_info"], metrics["wcl_streams"]) == ({(VERSION,): 1}, {(): 0})
    assert (metrics["wcl_storage_available"], metrics["wcl_broker_available"]) == ({(): 1}, {(): 1})
    assert (metrics["wcl_backup_age_seconds"], metrics["wcl_administrator_key_seconds_left"]) == (
        {(): math.inf},
        {(): 0},
    )
    assert metrics["wcl_checkpoints_flawed"] == {("damaged",): 0, ("missing",): 0}


def test_metrics_of_backups_keys_and_checkpoints(served: Served) -> None:
    database = served.database
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started(), rows.checkpoint(1), rows.checkpoint(2), rows.checkpoint(3))
    database.write(lambda s: s.execute(update(Checkpoint).where(Checkpoint.step > 1).values(damaged_at=1)) and None)
    monitoring.note_backup(database, "/backups/monday", 10)
    ago = update(Activity).where(Activity.action == "backup.create").values(at=Activity.at - 90_000)
    database.write(lambda session: session.execute(ago) and None)
    for name, days in (("anna", 2), ("ben", 3)):
        database.write(lambda session, name=name, days=days: keys.create(session, name, keys.ADMINISTRATOR, days))  # type: ignore[misc]

    metrics = scrape(served)

    assert 90 <= metrics["wcl_backup_age_seconds"][()] < 3600
    assert 2 * 86_400 < metrics["wcl_administrator_key_seconds_left"][()] <= 3 * 86_400
    assert metrics["wcl_checkpoints_flawed"] == {("damaged",): 2, ("missing",): 0}


def test_metrics_whose_table_is_refused_are_absent_alone(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    def rename(old: str, new: str) -> None:
        served.database.write(lambda session: session.execute(text(f"ALTER TABLE {old} RENAME TO {new}")))

    rename("activities", "away")
    try:
        during = [scrape(served) for _ in range(2)][-1]
    finally:
        rename("away", "activities")
    after = scrape(served)

    assert "wcl_backup_age_seconds" not in during
    assert during["wcl_jobs"] == after["wcl_jobs"]
    assert (during["wcl_metrics_failed"]["backups",], during["wcl_metrics_failed"]["jobs",]) == (1, 0)
    assert set(after["wcl_metrics_failed"].values()) == {0}
    assert after["wcl_backup_age_seconds"] == {(): math.inf}
    assert len([each for each in caplog.messages if "metrics of backups" in each and "fails" in each]) == 1


def test_counts_of_flawed_checkpoints_are_read_once_a_minute_for_each_project(sqlite_database: Database) -> None:
    now = [0.0]
    counts = monitoring.FlawCounts(lambda: now[0])
    rows.add_dataset(sqlite_database)
    run = rows.Run(sqlite_database, rows.running(sqlite_database))
    run.deliver(rows.started(), rows.checkpoint(1))

    def read(project_id: str | None = None) -> int:
        with sqlite_database.read() as session, within(session, project_id):
            return counts.read(session)["missing"]

    assert read() == 0
    sqlite_database.write(lambda s: s.execute(update(Checkpoint).values(missing_at=1)) and None)
    assert (read(), read(DEFAULT_PROJECT), read("00000000-0000-7000-8000-0000000000ff")) == (0, 1, 0)
    now[0] += 61
    assert read() == 1


@pytest.mark.process
def test_promtool_takes_the_metrics_and_they_include_all_that_monitoring_asks_for(small: Served) -> None:
    text = small.client("read").get("/metrics").text
    done = subprocess.run([find_program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    files = (ROOT / "monitoring/alerts.yml", ROOT / "monitoring/grafana/dashboard.json")
    used = {name for file in files for name in re.findall(r"\b(?:wcl|process)_[a-z_]+\b", file.read_text())}

    assert done.returncode == 0, done.stdout + done.stderr
    assert {re.sub("_(bucket|count)$", "", name) for name in used} <= names
    assert len(used) > 15


def test_metrics_count_the_queue_and_the_last_hour(served: Served) -> None:
    database = served.database
    good = rows.Run(database, rows.running(database))
    good.deliver(rows.started(), rows.end("succeeded"))
    bad = rows.Run(database, rows.running(database))
    bad.deliver(rows.started(), rows.end("failed", "collapse"))
    older = rows.Run(database, rows.running(database))
    older.deliver(rows.started(), rows.end("failed", "collapse"))
    full = rows.Run(database, rows.running(database))
    full.deliver(rows.started(), rows.end("failed", "disk_full"))
    rows.running(database)
    waiting = rows.submit(database)

    def age(session: object) -> None:
        for table, key in ((Job, Job.id), (Attempt, Attempt.job_id)):
            ago = table.ended_at - monitoring.HOUR_MS
            session.execute(update(table).where(key == older.job_id).values(ended_at=ago))  # type: ignore[attr-defined]
        started = Attempt.started_at - 2 * monitoring.HOUR_MS
        session.execute(update(Attempt).where(Attempt.job_id == older.job_id).values(started_at=started))  # type: ignore[attr-defined]
        ago = Job.updated_at - 90_000
        session.execute(update(Job).where(Job.id == waiting).values(updated_at=ago))  # type: ignore[attr-defined]

    database.write(age)
    metrics = scrape(served)

    assert metrics["wcl_jobs"] == {("blocked",): 0, ("paused",): 1, ("queued",): 1, ("running",): 1}
    assert metrics["wcl_jobs_paused"]["disk_full",] == 1
    assert 90 <= metrics["wcl_oldest_due_seconds"]["default",] < 3600
    ended = {labels: value for labels, value in metrics["wcl_jobs_ended_last_hour"].items() if value}
    assert ended == {("", "succeeded"): 1, ("collapse", "failed"): 1}
    attempts = {labels: value for labels, value in metrics["wcl_attempts_ended_last_hour"].items() if value}
    assert attempts == {("succeeded",): 1, ("collapse",): 1, ("disk_full",): 1}
    assert metrics["wcl_attempts_started_last_hour"] == {(): 4}


def test_metrics_show_each_worker_its_disk_and_its_devices(served: Served) -> None:
    facts = rows.worker(gpus=2)
    twin = replace(facts, id=new_id(), devices=rows.devices(1, "twin"))
    warm = replace(facts.devices[0], load=0.35, memory_used=1, memory_bytes=4, temperature=51)
    broken = replace(facts.devices[1], problem="its driver reports Xid 79")

    def add(session: object) -> None:
        for worker in (facts, twin, rows.worker(id=new_id(), name="gone")):
            workers.register(session, worker, 1, [])  # type: ignore[arg-type]
        workers.heartbeat(session, facts.id, None, devices=(warm, broken), disk_free_bytes=1 << 40, lag_ms=1500)  # type: ignore[arg-type]
        lost = update(Worker).where(Worker.name == "gone").values(state="lost")
        session.execute(lost)  # type: ignore[attr-defined]

    served.database.write(add)
    metrics = scrape(served)

    assert metrics["wcl_workers"]["idle",] == 2
    assert metrics["wcl_workers_lost_last_hour"] == {(): 1}
    assert metrics["wcl_worker_disk_free_bytes"] == {(facts.name, facts.id): 1 << 40}
    assert metrics["wcl_ingest_lag_seconds"] == {(facts.name, facts.id): 1.5, (twin.name, twin.id): 0}
    assert metrics["wcl_devices_faulty"]["xid",] == 1
    assert metrics["wcl_devices_faulty"]["ecc",] == 0
    of_warm = ("0", warm.uuid, facts.name)
    assert metrics["wcl_device_load"] == {of_warm: 0.35}
    assert metrics["wcl_device_memory_used_bytes"] == {of_warm: 1}
    assert metrics["wcl_device_temperature_celsius"] == {of_warm: 51}
    assert sorted(metrics["wcl_device_broken"].values()) == [0, 0, 1]
    workers_by_id = {each["id"]: each for each in served.client("read").get("/v1/workers").json()["items"]}
    assert workers_by_id[facts.id]["disk_free_bytes"] == 1 << 40


def test_requests_are_counted_by_route_and_not_by_address(small: Served) -> None:
    client, job_id = small.client("read"), rows.submit(small.database)
    for address in (f"/v1/jobs/{job_id}", f"/v1/jobs/{new_id()}", "/v1/nothing/1", "/v1/nothing/2"):
        client.get(address)
    small.bare().request("BREW", "/v1/jobs")
    counts = scrape(small)["wcl_request_seconds_count"]

    assert counts["GET", "/v1/jobs/{job_id}", "200"] == 1
    assert counts["GET", "/v1/jobs/{job_id}", "404"] == 1
    assert counts["GET", "other", "404"] == 2
    assert not any("nothing" in label or job_id in label for labels in counts for label in labels)
    assert {labels[0] for labels in counts} <= {"GET", "other"}


@pytest.mark.process
def test_a_broker_that_is_away_is_a_problem_of_a_ready_server(sqlite_database: Database, tmp_path: Path) -> None:
    served = Served(sqlite_database, tmp_path / "data", broker_url="redis://127.0.0.1:1/0")
    served.start()
    served.app.state.broker_watch.check()
    ready = served.bare().get("/readyz")

    assert ready.status_code == 200
    assert "the broker does not respond" in ready.json()["problems"][0]
    assert scrape(served)["wcl_broker_available"] == {(): 0}
    served.stop()


@pytest.mark.process
def test_a_full_or_read_only_disk_is_seen(sqlite_template: Path, tmp_path: Path) -> None:
    with disks.mounted(tmp_path / "disk", "8m") as disk:
        (disk.folder / "wcl.sqlite3").write_bytes(sqlite_template.read_bytes())
        database = Database(f"sqlite:///{disk.folder / 'wcl.sqlite3'}")
        served = Served(database, disk.folder / "data")
        served.start()
        storage_id.connect(database, served.app.state.storage)
        served.app.state.storage_watch.check()
        free = scrape(served)["wcl_storage_free_bytes"][()]
        low = served.bare().get("/readyz")
        filler = disk.fill()
        full = served.bare().get("/readyz")
        filler.unlink()
        database.dispose()  # a disk with a file that is open for writing stays writable
        disk.make_read_only()
        read_only = served.bare().get("/readyz")
        served.stop()
        database.dispose()

    assert 0 < free < 8 << 20
    assert low.status_code == 200
    assert "the disk of the storage is nearly full" in low.json()["problems"][0]
    assert (full.status_code, full.json()["detail"]) == (503, "the database takes no changes: its disk is full")
    assert read_only.status_code == 503
    assert "read-only" in read_only.json()["detail"]


def test_a_search_without_an_index_is_a_problem_of_a_ready_server(small: Served) -> None:
    assert "problems" not in small.bare().get("/readyz").json()
    with small.database.engine.begin() as connection:
        for change in ("insert", "update", "delete"):
            connection.execute(text(f"DROP TRIGGER job_search_{change}"))
        connection.execute(text("DROP TABLE job_search"))

    ready = small.bare().get("/readyz")

    assert ready.status_code == 200
    assert "searches for a part of a name read every job" in ready.json()["problems"][0]


def test_a_read_only_postgres_is_not_ready(postgres_database: Database, tmp_path: Path) -> None:
    served = Served(postgres_database, tmp_path / "data")
    served.start()
    url = postgres_database.engine.url
    change = f"ALTER DATABASE {url.database} SET default_transaction_read_only = "
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as administrator:
        administrator.execute(f"{change}on".encode())
        postgres_database.dispose()  # the setting is of new connections
        try:
            refused = served.bare().get("/readyz")
        finally:
            administrator.execute(f"{change}off".encode())
            postgres_database.dispose()
    assert served.bare().get("/readyz").status_code == 200
    served.stop()

    assert refused.status_code == 503
    assert "it is read-only" in refused.json()["detail"]
