"""Kinds of faults: each is injected into a running service and removed; a seed draws the next one.

Some are shorter than a lease, which must cost nothing, and some longer, which must cost no more than an attempt.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import psycopg
import redis
from sqlalchemy import make_url

from jobs import wake_up
from jobs.settings import Settings
from tests.chaos import clock
from tests.chaos.processes import Node
from tests.chaos.proxy import Proxy
from tests.chaos.stage import SCALED, Stage, arm

LEASE = float(SCALED["WCL_LEASE_SECONDS"])
_BRIEF, _LONG = (0.1, LEASE / 3), (LEASE * 1.3, LEASE * 2)


@dataclass
class Target:
    """A node with its network and failpoints; the thread that injects a fault holds `lock`."""

    node: Node
    proxy: Proxy | None
    failpoints: Path

    def __post_init__(self) -> None:
        self.lock = threading.RLock()

    @property
    def name(self) -> str:
        return self.node.start_as.host


class Faults:
    """Injects faults into a stage.

    Args:
        stage, targets: the service.
        draw: the random numbers of one thread.
    """

    def __init__(self, stage: Stage, targets: list[Target], draw: random.Random) -> None:
        self._stage, self._targets, self._draw = stage, targets, draw
        self._kinds = [kind for kind in _KINDS if self._can(kind)]

    def one(self) -> tuple[str, str]:
        """Inject one fault and remove it; return its kind and its target."""
        kind = self._draw.choice(self._kinds)
        if kind in _OF_STAGES:
            with self._stage.lock:
                _OF_STAGES[kind](self)
            return kind, "all"
        requested = [target for target in self._targets if self._fits(kind, target)]
        target = self._draw.choice(requested)
        with target.lock:
            _OF_NODES[kind](self, target)
        return kind, target.name

    def _can(self, kind: str) -> bool:
        if kind in _OF_STAGES:
            is_on_sqlite = self._stage.postgres is None
            return kind in _OF_FILES or is_on_sqlite == (kind in _OF_SQLITE)
        return any(self._fits(kind, target) for target in self._targets)

    def _fits(self, kind: str, target: Target) -> bool:
        is_worker = target.node.start_as.module == "worker"
        if kind == "copied folder" and self._stage.postgres is not None:
            return False  # a copy of a worker's folder alone would share the database
        if kind == "full file system" and target.name not in self._stage.disks:
            return False
        return (is_worker or kind not in _OF_WORKERS) and (target.proxy is not None or kind not in _OF_NETWORKS)

    def _hold(self, span: tuple[float, float]) -> None:
        time.sleep(self._draw.uniform(*span))

    def _either(self) -> tuple[float, float]:
        return self._draw.choice((_BRIEF, _LONG))

    # --- processes ---

    def _kill(self, target: Target) -> None:
        target.node.end(signal.SIGKILL)
        self._hold(self._either())
        target.node.start()

    def _kill_machine(self, target: Target) -> None:
        trainings = target.node.trainings()
        target.node.end(signal.SIGKILL)
        for training in trainings:
            with suppress(psutil.Error):
                training.kill()
        self._hold(self._either())
        target.node.start()

    def _kill_training(self, target: Target) -> None:
        for training in target.node.trainings():
            with suppress(psutil.Error):
                training.kill()

    def _stop_and_continue(self, target: Target) -> None:
        target.node.send(signal.SIGSTOP)
        self._hold(self._either())
        target.node.send(signal.SIGCONT)

    def _stop_training(self, target: Target) -> None:
        trainings = target.node.trainings()
        for number, span in ((signal.SIGSTOP, _BRIEF), (signal.SIGCONT, (0, 0))):
            for training in trainings:
                with suppress(psutil.Error):
                    training.send_signal(number)
            self._hold(span)

    def _terminate(self, target: Target) -> None:
        target.node.end(signal.SIGTERM)
        target.node.start()

    def _step_clock(self, target: Target) -> None:
        """Step the wall clock of a process that runs; it stays wrong, also over restarts, until the next step."""
        assert target.node.start_as.clock_file
        clock.step(target.node.start_as.clock_file, 3600.0 * self._draw.choice((-24, -1, 0, 1, 24)))

    # --- folders ---

    def _give_foreign_storage(self, target: Target) -> None:
        """Restart a worker with another folder in place of the checkpoints, as with a mount that is missing."""
        link = Path(target.node.start_as.environment["WCL_DATA_DIR"]) / "checkpoints"
        foreign = self._stage.folder / f"foreign-{target.name}"
        foreign.mkdir(exist_ok=True)
        for storage in (foreign, self._stage.checkpoints_dir):
            target.node.end(signal.SIGTERM)
            link.unlink()
            link.symlink_to(storage)
            target.node.start()
            self._hold(_BRIEF)

    def _start_copy(self, target: Target) -> None:
        """Copy a worker's folder and its database, and run a worker on the copies beside the original."""
        data_dir = Path(target.node.start_as.environment["WCL_DATA_DIR"])
        copy = self._stage.folder / f"copy-{time.monotonic_ns()}"
        with suppress(shutil.Error):  # files vanish while they are copied
            shutil.copytree(data_dir, copy, symlinks=True, ignore=shutil.ignore_patterns("failpoints", "checkpoints"))
        with suppress(shutil.Error):
            shutil.copytree(self._stage.checkpoints_dir, copy / "checkpoints", ignore=shutil.ignore_patterns(".*.part"))
        database = copy / "wcl.sqlite3"
        with sqlite3.connect(self._sqlite_file()) as source, sqlite3.connect(database) as backup:
            source.backup(backup)
        environment = target.node.start_as.environment | {
            "WCL_DATA_DIR": str(copy),
            "WCL_DATABASE_URL": f"sqlite:///{database}",
        }
        node = Node(replace(target.node.start_as, environment=environment, log=copy / "log")).start()
        self._hold(_LONG)
        node.end(signal.SIGKILL)

    def _flip_bit(self) -> None:
        """Flip one bit of a stored checkpoint."""
        files = [path for path in self._stage.checkpoints_dir.rglob("step-*") if path.is_file()]
        if not files:
            return
        path = self._draw.choice(files)
        self._stage.flipped.add(path.relative_to(self._stage.checkpoints_dir).as_posix())
        with suppress(FileNotFoundError), path.open("r+b") as file:  # retention may delete the file meanwhile
            place = self._draw.randrange(os.fstat(file.fileno()).st_size)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1 << self._draw.randrange(8)]))

    def _fill_file_system(self, target: Target) -> None:
        """Fill the disk of a worker's attempts."""
        filler = self._stage.disks[target.name].fill()
        self._hold(self._either())
        filler.unlink()

    # --- networks ---

    def _cut(self, target: Target) -> None:
        assert target.proxy
        target.proxy.cut()
        self._hold(self._either())
        target.proxy.mend()

    def _silence(self, target: Target) -> None:
        assert target.proxy
        target.proxy.silence()
        self._hold(self._either())
        if self._draw.random() < 0.5:  # data in transit arrives late, or never
            target.proxy.cut()
        target.proxy.mend()

    def _slow(self, target: Target) -> None:
        assert target.proxy
        target.proxy.slow(self._draw.uniform(0.01, 0.15))
        self._hold(_BRIEF)
        target.proxy.mend()

    def _lose_answer(self, target: Target) -> None:
        assert target.proxy
        before = target.proxy.num_lost_answers
        target.proxy.lose_next_answer(b"COMMIT")
        deadline = time.monotonic() + LEASE
        while target.proxy.num_lost_answers == before and time.monotonic() < deadline:
            time.sleep(0.05)
        target.proxy.mend()

    # --- failpoints ---

    def _arm(self, target: Target, name: str, action: str) -> None:
        (target.failpoints / "fired").unlink(missing_ok=True)
        arm(target.failpoints, f"{name} {action} {LEASE * 1.5}")
        deadline = time.monotonic() + LEASE
        while (target.failpoints / "armed").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        (target.failpoints / "armed").unlink(missing_ok=True)

    def _fill_disk(self, target: Target) -> None:
        self._arm(target, self._draw.choice(("storage.before_rename", "storage.after_rename")), "error")

    def _kill_at_failpoint(self, target: Target) -> None:
        self._arm(target, self._reached(target), "kill")

    def _hang_at_failpoint(self, target: Target) -> None:
        self._arm(target, self._reached(target), "hang")

    def _reached(self, target: Target) -> str:
        with suppress(FileNotFoundError):
            names = sorted(set((target.failpoints / "reached").read_text().splitlines()))
            return self._draw.choice(names)
        return "nothing"

    # --- database and broker ---

    def _restart_postgres(self) -> None:
        assert self._stage.postgres
        # SIGQUIT crashes PostgreSQL without leaving shared memory behind; it recovers from its log.
        self._stage.postgres.end(self._draw.choice((signal.SIGQUIT, signal.SIGINT)))
        self._hold(self._either())
        self._stage.postgres.start()

    def _make_postgres_read_only(self) -> None:
        """Turn the whole server read-only, as after a failover."""
        with psycopg.connect(self._postgres_url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            try:
                self._hold(self._either())
            finally:
                connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                connection.execute("SELECT pg_reload_conf()")

    def _postgres_url(self) -> str:
        return make_url(self._stage.url).set(drivername="postgresql").render_as_string(hide_password=False)

    def _lock_sqlite(self) -> None:
        """Hold SQLite's write lock."""
        connection = sqlite3.connect(self._sqlite_file(), isolation_level=None, timeout=LEASE)
        with closing(connection), suppress(sqlite3.OperationalError):  # the service may hold the lock itself
            connection.execute("BEGIN IMMEDIATE")
            self._hold(self._either())

    def _sqlite_file(self) -> Path:
        return Path(make_url(self._stage.url).database or "")

    def _break_redis(self) -> None:
        """Let Redis answer with errors: no memory is left, or the workers have no right to use their queues."""
        with redis.Redis.from_url(self._stage.settings["WCL_BROKER_URL"]) as client, suppress(redis.ConnectionError):
            if self._draw.random() < 0.5:
                client.config_set("maxmemory", 1)
            else:
                client.execute_command("ACL", "SETUSER", "default", "-brpop", "-lpush", "-publish")
            try:
                self._hold(self._either())
            finally:
                client.config_set("maxmemory", 0)
                client.execute_command("ACL", "SETUSER", "default", "+@all")

    def _kill_redis(self) -> None:
        assert self._stage.redis
        self._stage.redis.end(signal.SIGKILL)
        self._hold(self._either())
        self._stage.redis.start()

    def _flush_redis(self) -> None:
        with redis.Redis.from_url(self._stage.settings["WCL_BROKER_URL"]) as client, suppress(redis.ConnectionError):
            client.flushall()

    def _send_wake_ups(self) -> None:
        settings = Settings(broker_url=self._stage.settings["WCL_BROKER_URL"])
        with suppress(Exception):  # the broker may be down
            for _ in range(20):
                wake_up.send(settings, settings.pool)


_OF_NODES: dict[str, Callable[[Faults, Target], None]] = {
    "kill": Faults._kill,
    "kill machine": Faults._kill_machine,
    "kill training": Faults._kill_training,
    "SIGSTOP, SIGCONT": Faults._stop_and_continue,
    "SIGSTOP, SIGCONT of training": Faults._stop_training,
    "SIGTERM": Faults._terminate,
    "stepping clock": Faults._step_clock,
    "foreign storage": Faults._give_foreign_storage,
    "copied folder": Faults._start_copy,
    "network cut": Faults._cut,
    "half-open connections": Faults._silence,
    "slow network": Faults._slow,
    "answer lost after commit": Faults._lose_answer,
    "disk full": Faults._fill_disk,
    "full file system": Faults._fill_file_system,
    "kill at a failpoint": Faults._kill_at_failpoint,
    "hang at a failpoint": Faults._hang_at_failpoint,
}
_OF_WORKERS = {
    "kill machine",
    "kill training",
    "SIGSTOP, SIGCONT of training",
    "disk full",
    "foreign storage",
    "copied folder",
}
_OF_NETWORKS = {"network cut", "half-open connections", "slow network", "answer lost after commit"}
_OF_STAGES: dict[str, Callable[[Faults], None]] = {
    "flipped bit": Faults._flip_bit,
    "locked SQLite": Faults._lock_sqlite,
    "read-only PostgreSQL": Faults._make_postgres_read_only,
    "restart of PostgreSQL": Faults._restart_postgres,
    "errors of Redis": Faults._break_redis,
    "kill of Redis": Faults._kill_redis,
    "FLUSHALL": Faults._flush_redis,
    "doubled wake-ups": Faults._send_wake_ups,
}
_OF_FILES = {"flipped bit"}
_OF_SQLITE = {"locked SQLite"}
_KINDS = [*_OF_NODES, *_OF_STAGES]
