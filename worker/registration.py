"""The registration of this worker's datasets: names first, then contents, and again when a folder changes.

    pending ──► listed: jobs are accepted and wait ──► read: announced, jobs start, or refused with the reason
       ▲                                                 │
       └── files were added, removed or renamed, a user has requested it, or a run has met other content ──┘

A look at the times of the folders finds a change: cheap, and blind to files that are rewritten in place.  Datasets that
a queued job waits for are read first.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import datasets as rows
from jobs import workers
from jobs.database import Database, is_outage
from jobs.eligibility import WorkerFacts, is_due
from jobs.fault_log import FaultLog
from jobs.models import Dataset, Job
from jobs.settings import Settings
from worker import datasets
from worker.backoff import Backoff
from worker.datasets import Listener, Source

log = logging.getLogger(__name__)

_LOOK_SECONDS = 15.0  # between two looks at the folders
_REQUEST_SECONDS = 2.0  # between two looks at the requests of users
_LOOK_SHARE = 0.01  # of the time that looks may take


class Registration(Listener):
    """The registration of the datasets of one worker.

    Args:
        facts: of the worker; its datasets are added and removed.
        sources: the datasets that can be used, by name; they are added.
        stop: set when the worker drains.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        facts: WorkerFacts,
        sources: dict[str, Source],
        stop: threading.Event,
    ) -> None:
        self._database, self._settings, self._facts, self._sources = database, settings, facts, sources
        self._stop = stop
        self._pending = set(datasets.names(settings))
        self._met: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self) -> None:
        """Read each dataset, then watch the folders and packed files until `stop`."""
        watch = FolderWatch(self._settings.datasets)
        requested: dict[str, int] = {}
        first = set[str]()
        try:
            with FaultLog(log, "the requests to read folders again"):
                requested, first = self._requested(), self._awaited()
            self._read(sorted(datasets.names(self._settings), key=lambda name: name not in first))
        finally:
            self._pending.clear()
        names = ", ".join(self._sources) or "no datasets"
        log.info("worker %s in pool %s with %s", self._facts.name, self._facts.pool, names)
        faults = FaultLog(log, "the look at the folders of datasets")
        while not self._stop.wait(_REQUEST_SECONDS):
            with faults:
                before, requested = requested, self._requested()
                read_again = [name for name in watch.names if requested.get(name, 0) > before.get(name, 0)]
                if changed := sorted({*read_again, *watch.changed(), *self._taken()}):
                    self._read_again(changed)

    def note_changed(self, name: str) -> None:
        """Read a dataset again soon, because a run has met other content than its job pins."""
        if name in self._settings.datasets:
            self._met.put(name)

    def _taken(self) -> Iterator[str]:
        while not self._met.empty():
            yield self._met.get()

    def is_awaited(self) -> bool:
        """Return whether a dataset that is not read yet is new, or a queued job waits for it.

        Raises:
            DBAPIError: the database does not respond.
        """
        pending = set(self._pending)  # before the look at the jobs, as it only shrinks
        if not pending:
            return False
        with self._database.read() as session:
            registered = select(Dataset.name).where(Dataset.name.in_(pending), Dataset.digest != "")
            is_new = len(session.execute(registered).all()) < len(pending)
        return is_new or bool(pending & self._awaited())

    def _awaited(self) -> set[str]:
        """Return the datasets of the queued jobs of this worker's pool."""
        with self._database.read() as session:
            names = select(Job.dataset_name).where(is_due(), Job.pool == self._facts.pool).distinct()
            return set(session.execute(names).scalars())

    def _requested(self) -> dict[str, int]:
        with self._database.read() as session:
            return rows.reads_requested(session)

    def _read(self, names: list[str]) -> None:
        for name, result in datasets.find(self._settings, self._stop, names, self):
            self._settle(name, result)

    def _read_again(self, names: list[str]) -> None:
        log.info("read again: %s", ", ".join(names))
        for name in names:
            self._facts.datasets.pop(name, None)
            self._write(lambda session, name=name: workers.begin_dataset(session, self._facts.id, name))  # type: ignore[misc]
        self._read(names)

    def listed(self, name: str, kind: str, listed: dict[str, object]) -> None:
        self._write(lambda session: rows.list_names(session, name, kind, listed))

    def read(self, name: str, share: float) -> None:
        self._write(lambda session: workers.note_share(session, self._facts.id, name, share))

    def _settle(self, name: str, result: Source | str) -> None:
        announced = result if isinstance(result, str) else result.facts
        if not isinstance(result, str):
            self._sources[name] = result  # before the row: a claim needs it
            self._facts.datasets[name] = result.facts.digest
        self._write(lambda session: workers.settle_dataset(session, self._facts.id, name, announced))
        self._pending.discard(name)

    def _write(self, act: Callable[[Session], None]) -> None:
        """Write as often as an outage of the database makes necessary."""
        backoff = Backoff(self._settings.lease_seconds)
        while not self._stop.is_set():
            try:
                self._database.write(act)
                return
            except Exception as error:
                if not is_outage(error):
                    raise
                self._stop.wait(backoff.pause())


class FolderWatch:
    """The times of folders and of all folders below them: files that are added, removed or renamed change them.

    A packed file has a time, too, and one that is not there yet is noticed once it is.  Links are not followed.  A
    change is reported once the folders have been quiet between two looks.

    Args:
        folders: by dataset.
    """

    def __init__(self, folders: dict[str, Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._folders, self._clock = folders, clock
        self._times: dict[str, dict[str, int]] = {}
        self._is_changing: set[str] = set()
        self._next_look = 0.0
        self.names = list(folders)
        for name in folders:
            self._times[name] = self._walk(name)

    def changed(self) -> list[str]:
        """Return the datasets whose folders have changed, each change once; between two looks none."""
        began = self._clock()
        if began < self._next_look:
            return []
        quiet = [name for name in self.names if self._is_quiet_again(name)]
        took = self._clock() - began
        self._next_look = began + max(_LOOK_SECONDS, took / _LOOK_SHARE)
        return quiet

    def _is_quiet_again(self, name: str) -> bool:
        if self._now(name) != self._times[name]:
            self._is_changing.add(name)
            self._times[name] = self._walk(name)
            return False
        was_changing = name in self._is_changing
        self._is_changing.discard(name)
        return was_changing

    def _now(self, name: str) -> dict[str, int]:
        """Return the present times of the folders that the last walk has found."""
        return {path: _time_of(path) for path in self._times[name]}

    def _walk(self, name: str) -> dict[str, int]:
        root = str(self._folders[name])
        return {path: _time_of(path) for path in [root, *(each for each, _, _ in os.walk(root))]}


def _time_of(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
