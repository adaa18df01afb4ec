"""`./run month`: a month of a service in an hour, with stand-in runs on PostgreSQL, Redis and real processes.

It has eight parts with equally many jobs.  After each part the jobs of the one before are deleted and purged, so sizes
should be equal from the second part on.  In between: the upgrade from a former schema under running jobs, an orderly
restart of the server and a kill, a backup while jobs run, and its restore into another database, where the jobs go on.
Then a real Prometheus watches the causes of the alerts of `monitoring/`, one after the other.

Ages are scaled (`WCL_RESTORE_DAYS`, …), and so are the times in the alerts, by `_SCALE`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from sqlalchemy import text, update

from jobs import backups, devices, monitoring, workers
from jobs.audit import audit
from jobs.database import Database, new_id
from jobs.eligibility import WorkerFacts
from jobs.models import Job, Worker
from jobs.storage import LocalStorage
from tests import disks, servers
from tests.chaos import body
from tests.chaos.stage import Stage, _with_driver, spec
from tests.chaos.test_copies import restored
from tests.processes import outside
from tests.waiting import PATIENCE, eventually
from wcl_core.config import SPEC_VERSIONS

ROOT = Path(__file__).parents[2]
_RESULT = ROOT / "benchmarks" / "results" / "month.md"
# Revisions between 0052_use_by_project and these write to `device_use` what no other version can.
_MENDED = [f":!migrations/versions/2026_11_30_{name}.py" for name in ("project_use", "removed_projects")]
_PARTS, _SCALE = 8, 20
_AGE_DAYS = "0.0002"  # 17 s
_AGES = {f"WCL_{name}_DAYS": _AGE_DAYS for name in ("RESTORE", "LOG", "POINT", "EVENT", "EXPORT")}
_SETTINGS = _AGES | {"WCL_MAX_FAILURES": "2", "WCL_KEEP_CHECKPOINTS": "1", "WCL_ACCESS_LOG": "true"}
_SETTINGS |= {"WCL_WEBHOOK_NETWORKS": '["127.0.0.0/8"]'}
# Other programs may keep the processor for seconds; a lease that ends then is no fault of the service.
_SETTINGS |= {"WCL_LEASE_SECONDS": "20", "WCL_LOOK_SECONDS": "1", "WCL_DRAIN_SECONDS": "25"}
_GROWING = {"activities", "deletions"}  # by design: who did what, for WCL_ACTIVITY_DAYS, and what was deleted
_CLEAN_SECONDS = 5.0
_BATCH = 100  # jobs of a request
_DISK = "700m"
_LATE = 3600.0  # seconds for a part on a busy machine
_START_SECONDS = 900.0  # for a server or a worker there
_ALERT_SECONDS = 900.0  # for an alert there
# The former version's worker with a stand-in in place of trainings
_FORMER_WORKER = """
import runpy
from pathlib import Path
from tests.chaos.processes import Start, _prepare
_prepare(Start("worker", {}, Path("log")))
runpy.run_module("worker", run_name="__main__")
"""


@dataclass
class Month:
    """The service, and what was seen of it.

    Args:
        stage: the service.
        num_jobs: of each part.
        former: the source of the former version; None without an upgrade.
        former_revision: its name.
        prometheus: its address.
    """

    stage: Stage
    num_jobs: int
    former: Path | None
    former_revision: str
    prometheus: str
    table: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alerts: dict[str, tuple[int, bool]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    former_processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = str(servers.free_port())
        settings = {"WCL_PORT": self.port}
        self.server = self.stage.server("server", settings=settings, clean_seconds=_CLEAN_SECONDS)
        self.workers = [self.stage.worker(f"worker-{place}") for place in range(2)]
        self.seed = 0
        self.began = time.monotonic()

    # --- requests ----------------------------------------------------------------------------------------------------

    def client(self, port: str | None = None) -> httpx.Client:
        key = (self.stage.folder / "server" / "key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{port or self.port}", headers=headers, timeout=60)

    def wait_for_server(self, port: str | None = None) -> None:
        def answers() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.get(f"http://127.0.0.1:{port or self.port}/readyz", timeout=PATIENCE).status_code == 200
            return False

        eventually(answers, "the server", _START_SECONDS)

    def submit(self, count: int, **changes: Any) -> list[str]:
        """Submit jobs by REST, some in a request; return their ids."""
        ids: list[str] = []
        fields = {name: changes.pop(name) for name in ("pool",) if name in changes}
        with self.client() as client:
            for start in range(0, count, _BATCH):
                number = min(_BATCH, count - start)
                self.seed += number
                specs = [spec(self.seed + place, **({"step_ms": 2} | changes)) for place in range(number)]
                batch = [{"kind": "pretrain", "spec": each, **fields} for each in specs]
                response = client.post("/v1/jobs:batch", json={"jobs": batch})
                assert response.status_code == 201, response.text[:500]
                ids += [each["id"] for each in response.json()["items"]]
        return ids

    def open_jobs(self, database: Database | None = None) -> int:
        statement = text("SELECT count(*) FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')")
        with (database or self.stage.database).read() as session:
            return int(session.execute(statement).scalar_one())

    def wait_until_left(self, most: int, database: Database | None = None) -> None:
        eventually(lambda: self.open_jobs(database) <= most, f"at most {most} open jobs", _LATE)

    def delete(self, ids: list[str]) -> None:
        with self.client() as client:
            for job_id in ids:
                assert client.delete(f"/v1/jobs/{job_id}").status_code == 200

    def purge(self, ids: list[str]) -> None:
        def is_purged() -> bool:
            with self.stage.database.read() as session:
                query = "SELECT count(*) FROM deletions WHERE purged_at IS NULL AND restored_at IS NULL"
                return session.execute(text(query)).scalar_one() == 0

        self.delete(ids)
        eventually(is_purged, "the purge", _LATE)

    # --- sizes -------------------------------------------------------------------------------------------------------

    def measure(self, part: int) -> None:
        with psycopg.connect(self.stage.url.replace("+psycopg", ""), autocommit=True) as connection:
            sizes = dict(
                connection.execute(
                    "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
                    "'public'::regnamespace ORDER BY 2 DESC"
                ).fetchall()
            )
            size = sum(sizes.values())
            rows = dict(
                connection.execute(
                    "SELECT relname, n_live_tup FROM pg_stat_user_tables WHERE n_live_tup > 0"
                ).fetchall()
            )
        files = [path for path in self.stage.checkpoints_dir.rglob("*") if path.is_file()]
        attempts = [path for path in self.stage.folder.glob("*/attempts/*") if path.is_dir()]
        logs = {node.start_as.host: node.start_as.log.stat().st_size for node in [self.server, *self.workers]}
        memory = {
            node.start_as.host: psutil.Process(node.pid).memory_info().rss for node in [self.server, *self.workers]
        }
        self.table.append(
            {
                "part": part,
                "database": size,
                "largest": list(sizes.items())[:6],
                "rows": rows,
                "files": len(files),
                "file_bytes": sum(path.stat().st_size for path in files),
                "attempts": len(attempts),
                "logs": logs,
                "memory": memory,
                "minutes": (time.monotonic() - self.began) / 60,
                "load": psutil.getloadavg()[2],
            }
        )
        print(json.dumps(self.table[-1]), flush=True)

    # --- the month ---------------------------------------------------------------------------------------------------

    def run(self, results: Path, only_alerts: bool = False) -> None:
        """Run all parts and the alerts; write the results after each part, so that an interruption keeps them."""
        former = self.start_former() if self.former else []
        if not former:
            self.stage.database.migrate()
            self.start_all()
        ids, before = self.submit(self.num_jobs), list[str]()
        if former:
            self.upgrade(former)
        for part in range(1, _PARTS + 1):
            if part > 1 and not only_alerts:
                ids = self.submit(self.num_jobs)
            {2: self.restart, 3: self.back_up_and_restore, 5: self.kill_server}.get(part, lambda: None)()
            self.wait_until_left(0)
            self.check_ends(ids, part)
            self.purge(before)
            before = ids
            self.measure(part)
            results.write_text(self.report(is_whole=False))
            if only_alerts:
                break
        self.check_sizes()
        self.watch_alerts()
        self.close_audit(self.stage.database, "at the end")
        results.write_text(self.report())

    def check_ends(self, ids: list[str], part: int) -> None:
        """Note the jobs of a part that have not succeeded."""
        statuses = dict(self._rows(self.stage.database, "SELECT id, status FROM jobs"))
        ends = Counter(statuses[each] for each in ids)
        if set(ends) != {"succeeded"}:
            self.problems.append(f"part {part}: its jobs ended {dict(ends)}")

    def check_sizes(self) -> None:
        """Compare the sizes after the last part with those after the second one, when all ages have begun to count."""
        first, last = self.table[min(1, len(self.table) - 1)], self.table[-1]
        for name in ("files", "attempts"):
            if last[name] > first[name] + 20:
                self.problems.append(f"{name}: {first[name]}, and {last[name]} at the end")
        for name, more in self._grown_tables().items():
            if name not in _GROWING:
                self.problems.append(f"table {name}: {more[0]} rows, and {more[1]} at the end")
        for name, size in last["memory"].items():
            if size > 1.1 * first["memory"][name]:
                self.problems.append(f"memory of {name}: {first['memory'][name]} bytes, and {size} at the end")

    def _grown_tables(self) -> dict[str, tuple[int, int]]:
        first, last = self.table[min(1, len(self.table) - 1)], self.table[-1]
        grown = {name: (first["rows"].get(name, 0), number) for name, number in last["rows"].items()}
        return {name: pair for name, pair in grown.items() if pair[1] > 1.5 * pair[0] + 20}

    def start_all(self) -> None:
        self.server.start()
        self.wait_for_server()
        for worker in self.workers:
            worker.start()
        self.wait_for_workers()

    def wait_for_workers(self) -> None:
        self.stage.wait_for_workers(*(worker.start_as.host for worker in self.workers), seconds=_START_SECONDS)

    def start_former(self) -> list[subprocess.Popen[bytes]]:
        """Start server and worker of the former version on an empty database."""
        processes = self.former_processes
        for node, command in ((self.server, ["-m", "api"]), (self.workers[0], ["-c", _FORMER_WORKER])):
            environment = outside() | node.start_as.environment | {"WCL_WORKER_NAME": "former", "WCL_STANDBY": "off"}
            options: dict[str, Any] = {"cwd": self.former, "env": environment}
            if node is self.server:
                subprocess.run([sys.executable, "-m", "jobs", "migrate"], check=True, **options)
            with node.start_as.log.open("ab") as log:
                processes.append(subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, **options))
            if node is self.server:
                self.wait_for_server()
        # The models have columns that the former schema lacks.
        query = "SELECT name FROM workers WHERE state = 'idle' AND pending_datasets::text = '[]'"
        eventually(lambda: self._rows(self.stage.database, query), "the former worker", _START_SECONDS)
        return processes

    def end_former(self) -> None:
        """End what an interruption has left of the former version."""
        for process in self.former_processes:
            if process.poll() is None:
                process.kill()

    def upgrade(self, former: list[subprocess.Popen[bytes]]) -> None:
        """Migrate under running jobs, replace the server, add new workers, and drain the former worker at last."""
        server, worker = former
        self.wait_until_left(self.num_jobs * 3 // 4)
        self.stage.database.migrate(lambda line: self.notes.append(f"migrate: {line}"))
        left = self.open_jobs()
        self.wait_until_left(max(0, left - self.num_jobs // 10))  # by both of the former version, on the new schema
        server.send_signal(signal.SIGTERM)
        server.wait(_START_SECONDS)
        self.server.start()
        self.wait_for_server()
        left = self.open_jobs()
        self.wait_until_left(max(0, left - self.num_jobs // 10))  # a new server with the former worker
        self.workers[1].start()
        worker.send_signal(signal.SIGTERM)
        code = worker.wait(_START_SECONDS)
        self.workers[0].start()
        self.notes.append(
            f"the former server ran on the new schema, the former worker under the new server; it ended with {code}"
        )

    def restart(self) -> None:
        self.server.end(signal.SIGTERM, _START_SECONDS)
        self.server.start()
        self.wait_for_server()
        self.notes.append("the server restarted in order while jobs ran")

    def kill_server(self) -> None:
        self.server.end(signal.SIGKILL, _START_SECONDS)
        self.server.start()
        self.wait_for_server()
        self.notes.append("the server was killed and started again while jobs ran")

    def back_up_and_restore(self) -> None:
        """Back up while jobs run; restore into another database and folder, where they go on."""
        folder = self.stage.folder / "backups"
        backup = backups.make_backup(self.stage.database, LocalStorage(self.stage.checkpoints_dir), folder, None)
        with restored(self.stage, backups.BackupFolder(folder)) as stage:
            left = self.open_jobs(stage.database)
            worker = stage.worker("restored-worker").start()
            self.wait_until_left(0, stage.database)
            ended = Counter(row for (row,) in self._rows(stage.database, "SELECT status FROM jobs"))
            self.close_audit(stage.database, "of the restored copy")
            worker.end(signal.SIGTERM, _START_SECONDS)
            jobs = backup.manifest.counts["jobs"]
            self.notes.append(
                f"backup of {jobs} jobs, {left} of them open; in the restored copy they ended: {dict(ended)}"
            )

    @staticmethod
    def _rows(database: Database, query: str) -> list[Any]:
        with database.read() as session:
            return list(session.execute(text(query)).all())

    def close_audit(self, database: Database, when: str) -> None:
        report = audit(database)
        self.notes.append(
            f"audit {when}: {report.jobs} jobs, {report.deletions} deletions, {len(report.findings)} findings"
        )
        self.problems += [f"audit {when}: {each.job_id}: {each.message}" for each in report.findings]

    # --- alerts ------------------------------------------------------------------------------------------------------

    def watch_alerts(self) -> None:
        """Make the cause of each alert, wait until it fires, end the cause, and wait until it is out."""
        causes: list[tuple[str, Callable[[], Any]]] = [
            ("WclServerDown", self._no_server),
            ("WclNoWorker", self._no_worker),
            ("WclWorkerLost", self._lost_worker),
            ("WclWorkerUnable WclStorageUnavailable", self._no_storage),
            ("WclDeviceBroken", self._broken_device),
            ("WclQueueStuck", self._stuck_queue),
            ("WclJobsFail", self._failing_jobs),
            ("WclStorageNearlyFull WclWorkerDiskNearlyFull", self._full_disk),
            ("WclBrokerUnavailable", self._no_broker),
            ("WclServerErrors", self._broken_table),
            ("WclRequestsSlow", self._slow_requests),
            ("WclWebhooksFail", self._failed_messages),
            ("WclMetricsFail", self._refused_metrics),
            ("WclNoBackup", self._old_backup),
            ("WclAdministratorKeyExpires", self._expiring_key),
            ("WclCheckpointsFlawed", self._damaged_file),
            ("WclDeliveriesLate", self._refused_reports),
        ]
        monitoring.note_backup(self.stage.database, "before the alerts", 0)
        began = time.time()
        for names, cause in causes:
            undo: Callable[[], None] | None = None
            try:
                undo = cause()
                for name in names.split():
                    eventually(lambda name=name: name in self._firing(), f"{name} fires", _ALERT_SECONDS)
            except (AssertionError, disks.CannotMount) as error:
                self.problems.append(f"{names}: {error}")
            finally:
                if undo:
                    undo()
            for name in names.split():
                try:
                    eventually(lambda name=name: name not in self._firing(), f"{name} goes out", _ALERT_SECONDS)
                except AssertionError as error:
                    self.problems.append(str(error))
            print(names, self._firing(), flush=True)
        episodes = self._episodes(began)
        firing = self._firing()
        for name in sorted({name for names, _ in causes for name in names.split()}):
            self.alerts[name] = (episodes.get(name, 0), name not in firing)
            if self.alerts[name] != (1, True):
                self.problems.append(f"{name} fired {episodes.get(name, 0)} times, expected 1")

    def _query(self, path: str, **params: Any) -> Any:
        return httpx.get(f"{self.prometheus}/api/v1/{path}", params=params, timeout=30).json()["data"]["result"]

    def _firing(self) -> set[str]:
        return {each["metric"]["alertname"] for each in self._query("query", query='ALERTS{alertstate="firing"}')}

    def _episodes(self, began: float) -> dict[str, int]:
        """Return how often each alert began to fire; pauses below 10 s do not count."""
        query = 'max by (alertname) (ALERTS{alertstate="firing"})'
        counts: dict[str, int] = {}
        for each in self._query("query_range", query=query, start=began, end=time.time(), step=1):
            times = [float(at) for at, _ in each["values"]]
            gaps = sum(later - earlier > 10 for earlier, later in pairwise(times))
            counts[each["metric"]["alertname"]] = 1 + gaps
        return counts

    def _no_server(self) -> Callable[[], None]:
        self.server.end(signal.SIGTERM, _START_SECONDS)
        return self._start_server

    def _start_server(self) -> None:
        self.server.start()
        self.wait_for_server()

    def _no_worker(self) -> Callable[[], None]:
        for worker in self.workers:
            worker.end(signal.SIGTERM, _START_SECONDS)

        def start() -> None:
            for worker in self.workers:
                worker.start()
            self.wait_for_workers()

        return start

    def _lost_worker(self) -> Callable[[], None]:
        self.workers[1].end(signal.SIGKILL, _START_SECONDS)

        def an_hour_passes() -> None:
            self.workers[1].start()
            old = update(Worker).where(Worker.state == "lost").values(seen_at=Worker.seen_at - 3_600_000)
            self.stage.database.write(lambda session: session.execute(old))

        return an_hour_passes

    def _no_storage(self) -> Callable[[], None]:
        marker = self.stage.checkpoints_dir / "storage-id"
        aside = marker.rename(self.stage.folder / "storage-id")

        def undo() -> None:
            aside.rename(marker)

        return undo

    def _broken_device(self) -> Callable[[], None]:
        """Keep a worker alive whose device is broken; no GPU is here."""
        broken = (devices.Device("GPU-month", 0, "NVIDIA H200", problem="its driver reports Xid 79"),)
        facts = WorkerFacts(new_id(), "gpu", "gpus", broken, {}, SPEC_VERSIONS)
        self.stage.database.write(lambda session: workers.register(session, facts, 1, ()))
        stop = threading.Event()

        def live() -> None:
            while not stop.wait(0.5):
                self.stage.database.write(lambda session: workers.heartbeat(session, facts.id, None, devices=broken))

        heart = threading.Thread(target=live, daemon=True)
        heart.start()

        def end() -> None:
            stop.set()
            heart.join()
            self.stage.database.write(lambda session: workers.stop(session, facts.id))

        return end

    def _stuck_queue(self) -> Callable[[], None]:
        ids = self.submit(1, pool="empty")

        def cancel() -> None:
            with self.client() as client:
                client.post(f"/v1/jobs/{ids[0]}/cancel").raise_for_status()

        return cancel

    def _age_ends(self) -> None:
        old = update(Job).where(Job.ended_at.is_not(None)).values(ended_at=Job.ended_at - 3_600_000)
        self.stage.database.write(lambda session: session.execute(old))

    def _failing_jobs(self) -> Callable[[], None]:
        self._age_ends()
        self.submit(4, behaviour=body.CRASHES)
        self.wait_until_left(0)
        return self._age_ends

    def _full_disk(self) -> Callable[[], None]:
        if "disk" not in self.stage.disks:
            raise disks.CannotMount("not made: this user may not mount a small disk")
        filler = self.stage.disks["disk"].fill(60 << 20)
        return filler.unlink

    def _no_broker(self) -> Callable[[], None]:
        assert self.stage.redis
        self.stage.redis.end()
        return self.stage.redis.start

    def _requests(self, path: str) -> tuple[threading.Event, list[threading.Thread]]:
        stop = threading.Event()

        def ask() -> None:
            with self.client() as client:
                while not stop.wait(0.2):
                    with suppress(httpx.HTTPError):
                        client.get(path)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        return stop, threads

    def _broken_table(self) -> Callable[[], None]:
        """Take away a table that only one request reads."""
        stop, _ = self._requests("/v1/views")
        self._execute("ALTER TABLE saved_views RENAME TO views_away")

        def undo() -> None:
            self._execute("ALTER TABLE views_away RENAME TO saved_views")
            stop.set()

        return undo

    def _refused_metrics(self) -> Callable[[], None]:
        """Take away a table that some of the metrics read."""
        self._execute("ALTER TABLE webhook_deliveries RENAME TO deliveries_away")
        return lambda: self._execute("ALTER TABLE deliveries_away RENAME TO webhook_deliveries")

    def _execute(self, statement: str) -> None:
        self.stage.database.write(lambda session: session.execute(text(statement)))

    def _slow_requests(self) -> Callable[[], None]:
        """Hold a lock on a table that only one page reads."""
        stop, _ = self._requests("/v1/views")

        def hold() -> None:
            with psycopg.connect(self.stage.url.replace("+psycopg", ""), autocommit=False) as connection:
                while not stop.is_set():
                    connection.execute("LOCK TABLE saved_views IN ACCESS EXCLUSIVE MODE")
                    stop.wait(4)
                    connection.rollback()
                    stop.wait(0.2)

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()

        def undo() -> None:
            stop.set()
            holder.join()

        return undo

    def _failed_messages(self) -> Callable[[], None]:
        """Send a message to a port that nothing listens on, and let the time for it pass."""
        with self.client() as client:
            hook = {"name": "gone", "url": "http://127.0.0.1:9/", "events": ["job.succeeded"]}
            response = client.post("/v1/webhooks", json=hook)
            assert response.status_code == 201, response.text
            self.submit(1)
            self.wait_until_left(0)
            statement = text("UPDATE webhook_deliveries SET give_up_at = 0, due_at = 0 WHERE state = 'pending'")
            self.stage.database.write(lambda session: session.execute(statement))
            webhook_id = response.json()["id"]

        def undo() -> None:
            with self.client() as client:
                client.delete(f"/v1/webhooks/{webhook_id}").raise_for_status()

        return undo

    def _old_backup(self) -> Callable[[], None]:
        self._execute("UPDATE activities SET at = at - 14400000 WHERE action = 'backup.create'")
        return lambda: monitoring.note_backup(self.stage.database, "last night", 0)

    def _expiring_key(self) -> Callable[[], None]:
        """Let the key of the local user, the only one with all rights, end in two days; later it has no end again."""
        with self.client() as client:
            key_id = client.get("/v1/whoami").json()["id"]

        def change(days: int | None) -> None:
            with self.client() as client:
                client.patch(f"/v1/keys/{key_id}", json={"days": days}).raise_for_status()

        change(2)
        return partial(change, None)

    def _damaged_file(self) -> Callable[[], None]:
        """Change a byte of a checkpoint, and change it back."""
        query = "SELECT id, path FROM checkpoints WHERE deleted_at IS NULL LIMIT 1"
        ((checkpoint_id, storage_key),) = self._rows(self.stage.database, query)
        path = self.stage.checkpoints_dir / storage_key
        path.chmod(0o600)

        def flip() -> None:
            content = bytearray(path.read_bytes())
            content[0] ^= 1
            path.write_bytes(content)
            with self.client() as client:
                client.post(f"/v1/checkpoints/{checkpoint_id}/verify").raise_for_status()

        flip()
        return flip

    def _refused_reports(self) -> Callable[[], None]:
        """Take away the table that reports go to while a run makes some."""
        (job_id,) = self.submit(1, epochs=100, step_ms=100)
        query = f"SELECT 1 FROM attempts WHERE job_id = '{job_id}' AND delivered_seq > 1"
        eventually(lambda: self._rows(self.stage.database, query), "the first report", _LATE)
        self._execute("ALTER TABLE points RENAME TO points_away")

        def undo() -> None:
            self._execute("ALTER TABLE points_away RENAME TO points")
            self.wait_until_left(0)

        return undo

    # --- the report --------------------------------------------------------------------------------------------------

    def report(self, is_whole: bool = True) -> str:
        first, last = self.table[min(1, len(self.table) - 1)], self.table[-1]
        mode = " --alerts" if is_whole and len(self.table) == 1 else ""
        former = f" --former {self.former_revision}" if self.former else ""
        minutes = (time.monotonic() - self.began) / 60
        part = "" if is_whole else f" **Interrupted: after part {last['part']} of {_PARTS}, without the alerts.**"
        lines = [
            "# A month in an hour",
            "",
            f"`./run month --jobs {self.num_jobs * _PARTS}{former}{mode}`, {date.today().isoformat()}, {minutes:.0f} "
            f"minutes on {psutil.cpu_count()} cores at niceness {os.nice(0)}; the load counts all programs of the "
            f"machine, over 15 minutes.{part} Each of {_PARTS} parts has {self.num_jobs} jobs; the jobs of the part "
            "before are deleted and purged, so sizes should be equal from the second part on.",
            "",
            "| part | minutes | load | database, MB | files | file kB | attempt folders | logs, kB | memory, MB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.table:
            logs = ", ".join(f"{name} {size / 1e3:.0f}" for name, size in row["logs"].items())
            memory = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in row["memory"].items())
            lines.append(
                f"| {row['part']} | {row['minutes']:.0f} | {row['load']:.0f} | {row['database'] / 1e6:.1f} | "
                f"{row['files']} | {row['file_bytes'] / 1e3:.0f} | {row['attempts']} | {logs} | {memory} |"
            )
        lines += ["", f"Largest tables, after part {first['part']} and after part {last['part']}, kB:", ""]
        then = dict(first["largest"])
        lines += [f"- {name}: {then.get(name, 0) / 1e3:.0f}, {size / 1e3:.0f}" for name, size in last["largest"]]
        lines += ["", f"Tables with more rows at the end (then, now): {self._grown_tables() or 'none'}.", ""]
        lines += [
            "The log of access (`WCL_ACCESS_LOG=true`) grows with the requests; the supervisor of the process rotates "
            "it. `activities` and `deletions` have an entry for",
            "each deletion, for `WCL_ACTIVITY_DAYS` and for ever. The memory of each process counts the PyTorch that "
            "it shares with the others here.",
            "",
        ]
        lines += [f"- {note}" for note in self.notes]
        if self.alerts:
            lines += ["", f"Alerts, with times and ages scaled by {_SCALE}:", ""]
        lines += [
            f"- {name}: fired {count} times{', then out' if out else ', and still'}"
            for name, (count, out) in self.alerts.items()
        ]
        lines += ["", "Problems:", "", *(f"- {each}" for each in self.problems or ["none"])]
        return "\n".join(lines) + "\n"


@contextmanager
def _prometheus(folder: Path, port: str, key: Path) -> Iterator[str]:
    """Start a Prometheus with the alerts, their times scaled; yield its address."""
    rules = (ROOT / "monitoring" / "alerts.yml").read_text()

    def scaled(match: re.Match[str]) -> str:
        number, unit = int(match[2]), {"m": 60, "h": 3600}[match[3]]
        return f"{match[1]}{max(6, number * unit // _SCALE)}s"

    rules = re.sub(r"(for: |\[)(\d+)([mh])", scaled, rules)
    rules = (
        rules.replace("> 14400", "> 10")
        .replace("> 172800", "> 10800")
        .replace("> 300\n", "> 10\n")
        .replace("20 * 1024 ^ 3", "100 * 1024 ^ 2")
        .replace("10 * 1024 ^ 3", "100 * 1024 ^ 2")
    )
    (folder / "alerts.yml").write_text(rules)
    listen = f"127.0.0.1:{servers.free_port()}"
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: 3s, evaluation_interval: 1s, scrape_timeout: 3s}}\nrule_files: [alerts.yml]\n"
        f"scrape_configs: [{{job_name: wcl, authorization: {{credentials_file: {key}}}, "
        f'static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]\n'
    )
    command = [servers.find_program("prometheus"), f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={listen}"]  # type: ignore[list-item]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://{listen}"
        finally:
            process.terminate()
            process.wait(30)


def _unpack(revision: str, folder: Path) -> Path:
    """Return the source of a former revision."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x"], cwd=folder, input=archive, check=True)
    return folder


def _former_revision() -> str:
    """Return the newest revision with another schema, beside whose server and worker this version can run."""
    log = ["git", "log", "-n1", "--diff-filter=A", "--format=%H", "--", "migrations/versions", *_MENDED]
    newest = subprocess.run(log, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    short = ["git", "rev-parse", "--short=8", f"{newest}~1"]
    return subprocess.run(short, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Return 0 if nothing grew, no alert failed, and the audit is closed."""
    parser = argparse.ArgumentParser(prog="./run month", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument(
        "--former", default=None, help="the revision to upgrade from; by default the newest with another schema"
    )
    parser.add_argument("--alerts", action="store_true", help="only the alerts, after one part of the month")
    parser.add_argument("--results", type=Path, default=_RESULT)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # all processes end first
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wcl-month-")))
        root.chmod(0o755)
        postgres, url = stack.enter_context(servers.postgres_server(autovacuum="on", autovacuum_naptime="5s"))
        redis, redis_url = stack.enter_context(servers.restartable_redis())
        folder = root / "service"
        folder.mkdir()
        disk = None
        try:
            disk = disks.mount(folder, _DISK)
        except disks.CannotMount as reason:
            print(reason)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE month")
        revision = options.former or _former_revision()
        former = None if options.alerts else _unpack(revision, root / "former")
        stage = Stage(folder, _with_driver(url, "month"), _SETTINGS | {"WCL_BROKER_URL": redis_url}, postgres, redis)
        if disk:
            stage.disks["disk"] = disk
        stack.callback(stage.close)
        month = Month(stage, max(1, options.jobs // _PARTS), former, revision, "")
        stack.callback(month.end_former)
        month.prometheus = stack.enter_context(_prometheus(root, month.port, folder / "server" / "key"))
        month.run(options.results, only_alerts=options.alerts)
        print(options.results.read_text())
    return 1 if month.problems else 0


if __name__ == "__main__":
    sys.exit(main())
