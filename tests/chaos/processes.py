"""The processes of a service under faults, which may be started many times.

A test's changes are set before their start, in their own process: the training command, the clock, the host's name,
the supported spec versions.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from jobs.datasets import DatasetFacts
from tests.chaos import body, clock
from tests.processes import Forked, fork_standby, outside
from wcl_core import config

BODY = Path(body.__file__)
# The dataset of stand-in bodies.
STANDIN = DatasetFacts("standin", "builtin", "5" * 64, {"train": 100_000, "test": 100}, ["a", "b"])


@dataclass(frozen=True)
class Start:
    """The start of a process.

    Args:
        module: `api` or `worker`.
        environment: its settings.
        log: the file its output is appended to.
        host: the machine it believes to be on.
        trains: runs the real science instead of the stand-in.
        forks: a standby process forks the stand-ins, as it does for real runs; otherwise each is started by command.
        clock_seconds: how far its wall clock is wrong.
        clock_file: a file that holds how far its wall clock is wrong, and that may change while it runs.
        machine_clock_file: the same for the clock of its machine, which SQLite reads, too.
        spec_versions: those it supports, if not all.
        orphan_seconds: how long it waits for orphaned runs, when not as long as usual.
        clean_seconds: the time between two removals of old rows by a server, when not as long as usual.
    """

    module: str
    environment: dict[str, str]
    log: Path
    host: str = "here"
    trains: bool = False
    forks: bool = False
    clock_seconds: float = 0.0
    clock_file: Path | None = None
    machine_clock_file: Path | None = None
    spec_versions: tuple[int, ...] | None = None
    orphan_seconds: float | None = None
    clean_seconds: float | None = None


@dataclass
class Node:
    """One process of the service, which may be restarted many times."""

    start_as: Start
    starts: int = 0
    _process: Forked | None = field(default=None, repr=False)

    def start(self) -> Node:
        self.start_as.log.parent.mkdir(parents=True, exist_ok=True)
        start = self.start_as
        self._process = Forked(start.module, outside() | start.environment, start.log, prepare=partial(_prepare, start))
        self.starts += 1
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL, seconds: float = 60) -> None:
        """Send a signal and wait for the end."""
        self.send(number)
        if self._process is not None:
            self._process.wait(seconds)

    def trainings(self) -> list[psutil.Process]:
        """Return its training processes."""
        with suppress(psutil.Error):
            return [process for process in psutil.Process(self.pid).children() if "--control-fd" in process.cmdline()]
        return []

    def words(self) -> str:
        with suppress(FileNotFoundError):
            return self.start_as.log.read_text(errors="replace")
        return ""


def _prepare(start: Start) -> None:
    """Make the changes in the new process."""
    socket.gethostname = lambda: start.host
    if start.machine_clock_file is not None:
        clock.set_machine_wrong(clock.read_from(start.machine_clock_file))
    elif start.clock_file is not None:
        clock.set_wrong(clock.read_from(start.clock_file))
    elif start.clock_seconds:
        clock.set_wrong(lambda: start.clock_seconds)
    if start.module == "worker":
        _prepare_worker(start)
    elif start.clean_seconds is not None:
        from api.rest import housekeeping

        housekeeping._PURGE_SECONDS = housekeeping._SWEEP_SECONDS = start.clean_seconds


def _prepare_worker(start: Start) -> None:
    from worker import datasets, process, recovery, standby
    from worker.datasets import Source

    if start.spec_versions is not None:
        config.SPEC_VERSIONS = start.spec_versions  # type: ignore[assignment]
    if start.orphan_seconds is not None:
        recovery._ORPHAN_SECONDS = start.orphan_seconds
    if not start.trains:
        if start.forks:
            standby.start = partial(fork_standby, run=body.run)
        else:
            os.environ["WCL_STANDBY"] = "off"  # it would fork the real science
        process.COMMAND = (sys.executable, "-I", "-S", str(BODY))
        datasets.names = lambda *args: [STANDIN.name]
        datasets.find = lambda *args, **more: iter([(STANDIN.name, Source(STANDIN, None))])
