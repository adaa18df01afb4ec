"""A real worker process on a database of the tests, and its jobs."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from jobs import queries, submission
from jobs.database import Database
from jobs.models import Event, Job, Worker
from jobs.submission import NewJob
from tests.processes import Forked, fork_runs, outside
from tests.waiting import PATIENCE, eventually
from wcl_core.config import Kind, parse_spec

T = TypeVar("T")

SHORT: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8},
    "epochs": 2,
    "warmup_epochs": 1,
    "weak_augmentation_epochs": 1,
    "backbone": {"name": "tiny", "stem": "stride2", "width": 4},
    "heads": {"hidden_dim": 32, "output_dim": 16},
    "threads": 1,
    "log_every_steps": 1,
    "checkpoints": {"every_epochs": 1, "first_epoch": True},
}
ENDLESS: dict[str, Any] = SHORT | {"epochs": 100_000, "checkpoints": {"every_epochs": 5, "first_epoch": True}}
SAVING: dict[str, Any] = ENDLESS | {"checkpoints": {"every_epochs": 1}}  # for tests that wait for several checkpoints


class RunningWorker:
    """`python -m worker`, with polls and leases short enough for a test."""

    def __init__(self, database: Database, folder: Path, **settings: str) -> None:
        self.database, self.folder = database, folder
        self.options: tuple[str, ...] = ()  # of its command line
        self._settings = {
            "WCL_DATA_DIR": str(folder),
            "WCL_DATABASE_URL": database.engine.url.render_as_string(hide_password=False),
            "WCL_LOOK_SECONDS": "0.5",
            "WCL_LEASE_SECONDS": "4",
            "WCL_CLAIM_SECONDS": "0.5",
        } | settings
        self._process: Forked | None = None

    def start(self) -> RunningWorker:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "worker.log"
        prepare = fork_runs if "--once" in self.options else None
        self._process = Forked("worker", outside() | self._settings, log, self.options, prepare)
        return self

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def is_idle(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.log()
        with self.database.read() as session:
            return any(
                worker.pid == self.pid and worker.state == "idle" and not worker.pending_datasets
                for worker in queries.workers(session)
            )

    def row(self) -> Worker:
        """Return the worker's row."""
        with self.database.read() as session:
            return next(worker for worker in queries.workers(session) if worker.pid == self.pid)

    def runs(self) -> list[psutil.Process]:
        """Return the training processes of the worker, which are its own children.

        The process that forks one for the standby process has the same command line for a moment.  Without that one no
        run begins, and the worker starts the run by command.
        """
        result = []
        with suppress(psutil.Error):  # the worker has ended
            for process in psutil.Process(self.pid).children():
                with suppress(psutil.Error):  # it has just ended
                    if "attempt" in process.cmdline():
                        result.append(process)
        return result

    def run_process(self) -> psutil.Process | None:
        """Return the training process of the worker."""
        return next(iter(self.runs()), None)

    def wait(self, seconds: float = 240) -> int:
        """Wait until the worker has ended by itself; return the exit code."""
        assert self._process
        return self._process.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 40) -> int:
        """Send a signal and wait; return the exit code."""
        self.send(number)
        return self.wait(seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal and return at once."""
        assert self._process
        self._process.send_signal(number)

    def log(self) -> str:
        """Return the end of the worker's log."""
        return self.whole_log()[-4000:]

    def whole_log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")


class Jobs:
    """Submits and reads jobs as the server does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, spec: dict[str, Any], kind: Kind = "pretrain", **fields: Any) -> str:
        new = NewJob(kind, spec, parse_spec(kind, spec), **fields)
        return self._database.write(lambda session: submission.submit(session, new)).id

    def get(self, job_id: str) -> Job:
        with self._database.read() as session:
            return queries.get_job(session, job_id)

    def wait_for(self, job_id: str, *statuses: str, seconds: float = PATIENCE) -> Job:
        return eventually(lambda: job if (job := self.get(job_id)).status in statuses else None, str(statuses), seconds)

    def num_checkpoints(self, job_id: str) -> int:
        with self._database.read() as session:
            return len(queries.checkpoints(session, job_id))

    def events(self, job_id: str) -> list[Event]:
        with self._database.read() as session:
            return queries.events_after(session, job_id, 0)

    def log(self, job_id: str) -> str:
        with self._database.read() as session:
            return "\n".join(line.line for line in queries.logs(session, job_id))
