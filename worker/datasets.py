"""The datasets of this worker, as processes of `wcl_core` describe them, since the worker reads no images."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import wcl_core
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.settings import Settings
from wcl_core import plugins
from wcl_core.config import DATASET_NAME, proposed_name
from wcl_core.data.kinds import is_archive, kind_of
from wcl_core.digests import digest_of
from wcl_core.files import write_bytes
from wcl_core.protocol import storable
from wcl_core.text import without_paths
from worker import children
from worker.background import BackgroundWork
from worker.process import module_environment

log = logging.getLogger(__name__)

_STOP_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # without a response of one dataset's files
_APART = ("samples", "place")  # of a description, since they are no facts for other machines
_WITHOUT_TORCH = ("digits",)  # builtin datasets that the process for folders describes


@dataclass(frozen=True)
class Source:
    """A dataset of this worker: its public facts, and the paths that never leave the worker.

    Attributes:
        path: of the images; of an archive, where they are unpacked.
        archive: the archive itself.
    """

    facts: DatasetFacts
    path: Path | None
    lists: dict[str, Path] = field(default_factory=dict)
    has_labels: bool = True
    archive: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """The image folder, archive or packed file, if it has one, and the label lists."""
        place = self.archive or self.path  # another worker that shares the folder may unpack the archive again
        return [*([place] if place else []), *self.lists.values()]


def names(settings: Settings) -> list[str]:
    """Return the names of the datasets of the settings, builtin ones first."""
    return list(dict.fromkeys((*settings.builtin_datasets, *settings.datasets)))


class Looks:
    """Looks whether files are there.  One that does not respond keeps its thread until it does, and holds up nothing.

    A mount whose server is gone answers neither yes nor no, and the thread that looks at it cannot be ended.
    """

    def __init__(self) -> None:
        self._hung: dict[str, BackgroundWork[None]] = {}

    def at(self, places: Mapping[str, Sequence[Path]]) -> dict[str, bool | None]:
        """Return by name whether all files are there; None where they do not respond."""
        self._hung = {name: work for name, work in self._hung.items() if not work.is_done()}
        result: dict[str, bool | None] = {name: None for name in self._hung if name in places}
        while left := [name for name in places if name not in result]:
            seen: dict[str, bool] = {}
            stop = threading.Event()
            work = BackgroundWork(partial(_look, places, left, seen, stop))
            last: str | None = None
            while not work.is_done(_LOOK_SECONDS):
                current = next((name for name in left if name not in seen), None)
                if current is not None and current == last:
                    stop.set()
                    self._hung[current], result[current] = work, None
                    break
                last = current
            result |= {name: seen[name] for name in left if name in seen and name not in result}
        return result


def _look(
    places: Mapping[str, Sequence[Path]], names: Sequence[str], seen: dict[str, bool], stop: threading.Event
) -> None:
    for name in names:
        if stop.is_set():
            return
        seen[name] = all(map(_is_there, places[name]))


class DatasetCheck:
    """The look whether the files of each dataset are there; a job without them would fail as having bad data.

    It makes no worker unable: only the jobs of a dataset wait that is absent, or whose files do not respond.

    Args:
        sources: the datasets by name.
        on_change: called with the name of each dataset whose files have gone or come back.

    Attributes:
        absent: names of the datasets without their files, as of the last look; also where these do not respond.
    """

    def __init__(self, sources: Mapping[str, Source], on_change: Callable[[str], None] = lambda _: None) -> None:
        self._sources, self._on_change = sources, on_change
        self._looks = Looks()
        self.absent: frozenset[str] = frozenset()

    def __call__(self) -> None:
        """Look at the files."""
        before = self.absent
        looks = self._looks.at({name: source.paths for name, source in list(self._sources.items())})
        self.absent = frozenset(name for name, is_there in looks.items() if not is_there)
        for name in sorted(self.absent - before):
            problem = "do not respond" if looks[name] is None else "are not there"
            log.error("dataset %s: its files %s, so this worker takes no job that needs it", name, problem)
        for name in sorted(self.absent ^ before):
            self._on_change(name)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it may not be searched, or its disk does not respond
        return False


class Listener:
    """Receiver of what is known of datasets before they are read whole; the methods are called on any thread."""

    def listed(self, name: str, kind: str, listed: dict[str, Any]) -> None:
        """Take the counts and classes of a dataset by the names of its files."""

    def read(self, name: str, share: float) -> None:
        """Take the share of a dataset that is read."""


def find(
    settings: Settings,
    stop: threading.Event,
    chosen: Sequence[str] | None = None,
    listener: Listener | None = None,
    keys: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, Source | str]]:
    """Describe the datasets of the settings, and yield each with its name: the reason instead of one that is refused.

    One process lists all folders, and then reads one after the other.

    Args:
        stop: when it is set, the description that runs is abandoned.
        chosen: the names; all by default.
        keys: names of the files with descriptions, where these are not the names of the datasets.
    """
    chosen = names(settings) if chosen is None else chosen
    builtin = [name for name in chosen if name not in settings.datasets]
    kept = {name: facts for name in builtin if (facts := _read(_builtin_cache(name, settings))) is not None}
    paths: dict[str, Path | None] = {
        name: settings.datasets.get(name)
        for name in chosen
        if name in settings.datasets or (name in _WITHOUT_TORCH and name not in kept)
    }
    with _Reader(settings, paths, listener or Listener(), keys) as reader:
        for name in chosen:
            if stop.is_set():
                return
            try:
                is_wrong = not re.search(DATASET_NAME, name)
                if is_wrong:
                    proposal = proposed_name(name)
                    expected = f"expected lower-case letters, digits, '.', '_' and '-': {proposal}"
                    raise ValueError(f"no spec can name it; {expected}")
                if (facts := kept.get(name)) is None:
                    facts = reader.facts(name, stop) if name in paths else _described(name, settings, stop)
                    if name in builtin:
                        _keep(_builtin_cache(name, settings), facts)
                result: Source | str = _source(name, facts, settings)
            except ValueError as error:
                log.error("dataset %s is refused: %s", name, error)
                result = _without_paths(str(error), name, settings)
            except Exception:  # one dataset must not keep the others from being registered
                log.exception("dataset %s cannot be described", name)
                result = "it cannot be described; the worker's log has the reason"
            if not stop.is_set():
                yield name, result


class _Reader:
    """The process that reads folders, packed files and the digits, and the thread that takes its messages."""

    def __init__(
        self, settings: Settings, paths: Mapping[str, Path | None], listener: Listener, keys: Mapping[str, str]
    ) -> None:
        self._settings, self._paths, self._listener, self._keys = settings, paths, listener, keys
        self._results: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Reader:
        if self._paths:
            self._process = children.start(
                lambda: subprocess.Popen(
                    [sys.executable, "-m", "wcl_core.registration"],
                    env=module_environment(self._settings.run_environment),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
            )
            threading.Thread(target=self._take, args=(self._process,), daemon=True, name="reader").start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            children.forget(self._process.pid)

    def _take(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(OSError, ValueError), process.stdout as messages:  # it is killed
                with process.stdin as requests:
                    requests.writelines(json.dumps(self._request(*each)) + "\n" for each in self._paths.items())
                for line in messages:
                    self._note(json.loads(line))
        finally:
            with self._changed:
                for name in self._paths.keys() - self._results.keys():
                    message = "the process that reads it has ended; the worker's log has the reason"
                    self._results[name] = {"error": message}
                self._changed.notify_all()

    def _request(self, name: str, path: Path | None) -> dict[str, Any]:
        lists = {each: str(place) for each, place in self._settings.label_lists.get(name, {}).items()}
        cache = str(self._settings.descriptions_dir / f"{self._keys.get(name, name)}.json")
        facts = {"name": name, "kind": kind_of(path), "path": path and str(path), "cache": cache, "lists": lists}
        return facts | {"has_labels": name not in self._settings.datasets_without_labels}

    def _note(self, message: dict[str, Any]) -> None:
        name = message["name"]
        if "listed" in message:
            self._listener.listed(name, kind_of(self._paths[name]), message["listed"])
        elif "share" in message:
            self._listener.read(name, message["share"])
        else:
            with self._changed:
                self._results[name] = message
                self._changed.notify_all()

    def facts(self, name: str, stop: threading.Event) -> dict[str, Any]:
        """Wait for a dataset's description.

        Raises:
            ValueError: it is refused, or `stop` is set.
        """
        with self._changed:
            while name not in self._results and not stop.is_set():
                self._changed.wait(_STOP_SECONDS)
            message = self._results.get(name, {"error": "the worker stops"})
        if "error" in message:
            raise ValueError(message["error"])
        description: dict[str, Any] = message["description"]
        return description | {"place": message["path"]}


def hung(settings: Settings, name: str) -> Source:
    """Return a dataset whose files do not respond, for the check that looks at them; it opens none."""
    facts = DatasetFacts(name, kind="", digest="", counts={}, classes=[])
    return Source(facts, settings.datasets.get(name), settings.label_lists.get(name, {}))


def refused(settings: Settings, name: str) -> Source:
    """Return a dataset of which only the place is known: the cache may have images of an earlier version."""
    path = settings.datasets.get(name)
    facts = DatasetFacts(name, kind_of(path), digest="", counts={}, classes=[])
    lists = settings.label_lists.get(name, {})
    archive = path if path is not None and is_archive(path) else None
    return Source(facts, path, lists, name not in settings.datasets_without_labels, archive)


def _source(name: str, facts: dict[str, Any], settings: Settings) -> Source:
    log.info("dataset %s: %s", name, ", ".join(f"{count} {split}" for split, count in facts["counts"].items()))
    samples = facts["samples"]
    sheet = None if samples is None else SampleSheet(**samples | {"png": base64.b64decode(samples["png"])})
    announced = DatasetFacts(**{key: value for key, value in facts.items() if key not in _APART}, sheet=sheet)
    place = facts.get("place")
    has_labels = name not in settings.datasets_without_labels
    own = settings.datasets.get(name)
    archive = own if own is not None and is_archive(own) else None
    return Source(announced, place and Path(place), settings.label_lists.get(name, {}), has_labels, archive)


def _without_paths(reason: str, name: str, settings: Settings) -> str:
    """Return a reason that all users may read: they must not learn where files lie on this machine."""
    paths = {str(path): f"list {list_name}" for list_name, path in settings.label_lists.get(name, {}).items()}
    if path := settings.datasets.get(name):
        paths |= {str(path.absolute()): "the folder", str(path): "the folder"}
    for place in sorted(paths, key=len, reverse=True):
        reason = reason.replace(place, paths[place])
    return storable(without_paths(reason).removeprefix("error: ").removeprefix(f"dataset {name}: "))


def _described(name: str, settings: Settings, stop: threading.Event) -> dict[str, Any]:
    """Describe a builtin dataset in a process of its own, which loads torch.

    Raises:
        ValueError: the dataset is unusable; the message is the end of what the process wrote to stderr.
    """
    lists = [f"--list={each}={path}" for each, path in settings.label_lists.get(name, {}).items()]
    command = [sys.executable, "-m", "wcl_core", "describe-dataset", name, "builtin", *lists]
    process = children.start(
        lambda: subprocess.Popen(
            command,
            env=module_environment(settings.run_environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    )
    while True:
        try:
            output, errors = process.communicate(timeout=_STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.kill()
    children.forget(process.pid)
    if process.returncode:
        raise ValueError(errors.strip()[-1000:] or f"its description ended with exit code {process.returncode}")
    facts: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return facts


def _keep(cache: Path | None, facts: dict[str, Any]) -> None:
    if cache is not None:
        with contextlib.suppress(OSError):
            write_bytes(cache, json.dumps(facts).encode())


def _read(cache: Path | None) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] | None = None if cache is None else json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return None
    return facts


def _builtin_cache(name: str, settings: Settings) -> Path | None:
    """Return the file that caches the description of a builtin dataset, beside the dataset's downloaded files.

    Its name changes with the packages that the images come from and with the code that describes them.  Without it,
    each start of a worker starts a process for a description that never changes.  None: a plugin may return other
    images each time, label lists may change, or the user has no home folder.
    """
    if settings.label_lists.get(name) or name in plugins.names("wcl.datasets"):
        return None
    code = sorted(
        (file.name, file.stat().st_mtime_ns) for file in (Path(wcl_core.__file__).parent / "data").glob("*.py")
    )
    key = digest_of([name, code, *(metadata.version(package) for package in ("scikit-learn", "torchvision"))])
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "wcl" / f"{name}-{key[:16]}.json"
    return None
