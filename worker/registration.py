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
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import dataset_sources, workers
from jobs import datasets as rows
from jobs.database import Database, is_outage
from jobs.dataset_sources import Added
from jobs.eligibility import WorkerFacts, is_due
from jobs.fault_log import FaultLog
from jobs.models import Dataset, Job
from jobs.settings import Settings
from wcl_core.data import unpacked
from worker import datasets
from worker.backoff import Backoff
from worker.cached_versions import CachedVersions
from worker.datasets import Listener, Looks, Source

log = logging.getLogger(__name__)

_HUNG = "its files do not respond; the worker reads it again once they do"
_LOOK_SECONDS = 15.0  # between two looks at the folders
_CACHE_SECONDS = 10.0  # between two looks for jobs that need files of the cache, if no dataset has changed
_REQUEST_SECONDS = 2.0  # between two looks at the requests of users; on PostgreSQL as between two heartbeats
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
        self._added: dict[str, Added] = {}
        self._pending = set(datasets.names(settings))
        self._cached = CachedVersions(database, settings, facts, self._folders)
        self._met: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._looks = Looks()

    def names(self) -> list[str]:
        """Return the datasets that are to be read: those of the settings, and those that administrators have added.

        Raises:
            DBAPIError: the database does not respond.
        """
        self._added, _ = self._requests()
        names = datasets.names(self._all)
        self._pending = set(names)
        return names

    @property
    def _all(self) -> Settings:
        """The settings, with the datasets that administrators have added."""
        without = [each.name for each in self._added.values() if not each.has_labels]
        changes = {
            "datasets": {**{name: Path(each.path) for name, each in self._added.items()}, **self._settings.datasets},
            "datasets_without_labels": [*self._settings.datasets_without_labels, *without],
        }
        return self._settings.model_copy(update=changes)

    def _requests(self) -> tuple[dict[str, Added], dict[str, int]]:
        """Return the datasets that administrators have added, and how often each is to be read again."""
        own = datasets.names(self._settings)
        added, requested = self._database.read_once(dataset_sources.requests)
        return {name: each for name, each in added.items() if name not in own}, requested

    def run(self) -> None:
        """Read each dataset, then watch the folders and packed files until `stop`."""
        watch = FolderWatch(self._all.datasets, may_read=lambda name: self._responds(name) and self._may_read(name))
        requested: dict[str, int] = {}
        first = set[str]()
        try:
            with FaultLog(log, "the requests to read folders again"):
                (_, requested), first = self._requests(), self._awaited()
            self._read(sorted(datasets.names(self._all), key=lambda name: name not in first))
            with FaultLog(log, "the look for earlier versions of datasets in the cache"):
                self._cached.refresh()
        finally:
            self._pending.clear()
        names = ", ".join(self._sources) or "no datasets"
        log.info("worker %s in pool %s with %s", self._facts.name, self._facts.pool, names)
        faults, next_refresh = FaultLog(log, "the look at the folders of datasets"), 0.0
        seconds = _REQUEST_SECONDS if self._settings.is_sqlite else max(_REQUEST_SECONDS, self._settings.look_seconds)
        while not self._stop.wait(seconds):
            with faults:
                present, latest = self._requests()
                is_changed = self._follow(watch, present)
                before, requested = requested, latest
                read_again = [name for name in watch.names if requested.get(name, 0) > before.get(name, 0)]
                if changed := sorted({*read_again, *watch.changed(), *self._taken()}):
                    self._read_again(changed)
                if is_changed or changed or time.monotonic() >= next_refresh:
                    next_refresh = time.monotonic() + _CACHE_SECONDS
                    self._cached.refresh()

    def _folders(self) -> list[str]:
        """Return the folders whose earlier versions jobs may use: also refused ones, but with their lists of labels.

        A list may be why a dataset is refused, and a job that needs it would fail instead of waiting.
        """
        sources = [(name, source) for name, source in list(self._sources.items()) if source.facts.kind == "folder"]
        names = [name for name, source in sources if name in self._facts.datasets or not source.lists]
        return [name for name in names if self._responds(name)]  # a run opens the folder, too

    def note_changed(self, name: str) -> None:
        """Read a dataset again soon, because a run has met other content than its job pins."""
        if name in self._all.datasets:
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

    def _follow(self, watch: FolderWatch, present: dict[str, Added]) -> bool:
        """Take over the datasets that administrators have added, renamed or removed; return whether there are any."""
        before = self._added
        for name in [name for name, each in before.items() if present.get(name) != each]:
            watch.remove(name)
            self._facts.datasets.pop(name, None)
            self._sources.pop(name, None)
            self._write(lambda session, name=name: workers.drop_dataset(session, self._facts.id, name))  # type: ignore[misc]
        for gone in {each.id for each in before.values()} - {each.id for each in present.values()}:
            _remove_descriptions(self._settings.descriptions_dir, gone)
        self._added = present
        if new := [name for name, each in present.items() if before.get(name) != each]:
            for name in new:
                watch.add(name, Path(present[name].path))
            self._read_again(new)
        return before != present

    def _read(self, names: list[str]) -> None:
        absent = {name: why for name in names if (why := self._why_absent(name))}
        for name, why in absent.items():
            if why == _HUNG:  # the check of the datasets looks at it, and reports when it responds
                self._sources.setdefault(name, datasets.hung(self._all, name))
            else:
                self._sources.pop(name, None)
            self._settle(name, why)
        keys = {name: each.id for name, each in self._added.items()}
        others = [name for name in names if name not in absent]
        for name, result in datasets.find(self._all, self._stop, others, self, keys):
            if isinstance(result, str) and name not in self._sources:
                self._sources[name] = datasets.refused(self._all, name)
            self._settle(name, result)

    def _why_absent(self, name: str) -> str | None:
        """Return why this worker does not read a dataset whose files hang, or one that an administrator has added."""
        if not self._responds(name):
            return _HUNG
        if (source := self._added.get(name)) is None:
            return None
        if not self._may_read(name):  # first, so that the reason does not tell what is elsewhere
            return "its path is in none of the folders that the settings of this worker allow (WCL_DATASET_ROOTS)"
        path = os.path.normpath(source.path)
        try:
            Path(source.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"there is no folder or file {path} on this machine"
        except OSError as error:
            return f"{path} cannot be read on this machine: {error.strerror or error}"
        if not os.access(source.path, os.R_OK):
            return f"the worker's account may not read {path} on this machine"
        return None

    def _responds(self, name: str) -> bool:
        """Return whether the files of a dataset respond, be they there or not."""
        paths = [*self._all.label_lists.get(name, {}).values()]
        if (path := self._all.datasets.get(name)) is not None:
            paths.append(path)
        return self._looks.at({name: paths})[name] is not None

    def _may_read(self, name: str) -> bool:
        """Return whether the settings allow to read a dataset: administrators add some, their own ones they name."""
        source = self._added.get(name)
        return source is None or dataset_sources.is_below(Path(source.path), self._settings.dataset_roots)

    def _read_again(self, names: list[str]) -> None:
        log.info("read again: %s", ", ".join(names))
        for name in names:
            self._facts.datasets.pop(name, None)
            self._write(lambda session, name=name: workers.begin_dataset(session, self._facts.id, name))  # type: ignore[misc]
        self._read(names)

    def listed(self, name: str, kind: str, listed: dict[str, object]) -> None:
        def store(session: Session) -> None:
            if self._is_current(session, name):
                rows.list_names(session, name, kind, listed)

        self._write(store)

    def read(self, name: str, share: float) -> None:
        self._write(lambda session: workers.note_share(session, self._facts.id, name, share))

    def _settle(self, name: str, result: Source | str) -> None:
        announced = result if isinstance(result, str) else result.facts
        if not isinstance(result, str):
            self._sources[name] = result  # before the row: a claim needs it
            self._facts.datasets[name] = result.facts.digest

        def settle(session: Session) -> None:
            if self._is_current(session, name):
                workers.settle_dataset(session, self._facts.id, name, announced)
            else:
                workers.drop_dataset(session, self._facts.id, name)

        self._write(settle)
        self._pending.discard(name)
        if not isinstance(result, str) and result.archive is not None and result.path is not None:
            key = self._added[name].id if name in self._added else name
            unpacked.keep_only(self._settings.descriptions_dir / key, result.path)

    def _is_current(self, session: Session, name: str) -> bool:
        """Return whether a dataset is to be announced: a user may have removed it meanwhile."""
        return name not in self._added or dataset_sources.is_current(session, self._added[name])

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
        may_read: whether the folder of a dataset may be read now; one that may not is never opened.
    """

    def __init__(
        self,
        folders: dict[str, Path],
        clock: Callable[[], float] = time.monotonic,
        may_read: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._folders, self._may_read, self._clock = dict(folders), may_read, clock
        self._times: dict[str, dict[str, int]] = {}
        self._is_changing: set[str] = set()
        self._next_look = 0.0
        self.names: list[str] = []
        for name, folder in folders.items():
            self.add(name, folder)

    def add(self, name: str, folder: Path) -> None:
        """Watch a further folder."""
        self._folders[name] = folder
        self._times[name] = self._walk(name)
        self.names.append(name)

    def remove(self, name: str) -> None:
        """Watch a folder no longer."""
        self.names.remove(name)
        self._is_changing.discard(name)

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
        if not self._may_read(name):
            return False
        if not self._times[name] or self._now(name) != self._times[name]:  # none: it did not respond before
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
        if not self._may_read(name):
            return {}
        root = str(self._folders[name])
        return {path: _time_of(path) for path in [root, *(each for each, _, _ in os.walk(root))]}


def _remove_descriptions(folder: Path, key: str) -> None:
    """Remove what was kept of a dataset that is removed."""
    for path in folder.glob(f"{key}.*"):
        if path.is_dir():  # of an archive
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _time_of(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
