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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import wcl_core
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.settings import Settings
from jobs.workers import Unable
from wcl_core import plugins
from wcl_core.config import DATASET_NAME, proposed_name
from wcl_core.digests import digest_of
from wcl_core.files import write_bytes
from wcl_core.protocol import storable
from wcl_core.text import without_paths
from worker import children
from worker.process import module_environment

log = logging.getLogger(__name__)

_STOP_SECONDS = 0.2


@dataclass(frozen=True)
class Source:
    """A dataset of this worker: its public facts, and the paths that never leave the worker."""

    facts: DatasetFacts
    path: Path | None
    lists: dict[str, Path] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The image folder or packed file, if it has one, and the label lists."""
        return [*([self.path] if self.path else []), *self.lists.values()]


def names(settings: Settings) -> list[str]:
    """Return the names of the datasets of the settings, builtin ones first."""
    return list(dict.fromkeys((*settings.builtin_datasets, *settings.datasets)))


class DatasetCheck:
    """The check that the images of all datasets are there; a job without them would fail as having bad data."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def __call__(self) -> Unable | None:
        """Return why no attempt should start now; the message names no path."""
        absent = [name for name, source in list(self._sources.items()) if not all(map(Path.exists, source.paths))]
        if not absent:
            return None
        return Unable("dataset_absent", f"files of its dataset {absent[0]} are not there")


class Listener:
    """Receiver of what is known of datasets before they are read whole; the methods are called on any thread."""

    def listed(self, name: str, kind: str, listed: dict[str, Any]) -> None:
        """Take the counts and classes of a dataset by the names of its files."""

    def read(self, name: str, share: float) -> None:
        """Take the share of a dataset that is read."""


def find(
    settings: Settings, stop: threading.Event, chosen: Sequence[str] | None = None, listener: Listener | None = None
) -> Iterator[tuple[str, Source | str]]:
    """Describe the datasets of the settings, and yield each with its name: the reason instead of one that is refused.

    One process lists all folders, and then reads one after the other.

    Args:
        stop: when it is set, the description that runs is abandoned.
        chosen: the names; all by default.
    """
    chosen = names(settings) if chosen is None else chosen
    paths = {name: settings.datasets[name] for name in chosen if name in settings.datasets}
    with _Reader(settings, paths, listener or Listener()) as reader:
        for name in chosen:
            if stop.is_set():
                return
            try:
                is_wrong = not re.search(DATASET_NAME, name)
                if is_wrong:
                    proposal = proposed_name(name)
                    expected = f"expected lower-case letters, digits, '.', '_' and '-': {proposal}"
                    raise ValueError(f"no spec can name it; {expected}")
                result: Source | str = reader.result(name, stop) if name in paths else _builtin(name, settings, stop)
            except ValueError as error:
                log.error("dataset %s is refused: %s", name, error)
                result = _without_paths(str(error), name, settings)
            except Exception:  # one dataset must not keep the others from being registered
                log.exception("dataset %s cannot be described", name)
                result = "it cannot be described; the worker's log has the reason"
            if not stop.is_set():
                yield name, result


class _Reader:
    """The process that reads folders and packed files, and the thread that takes its messages."""

    def __init__(self, settings: Settings, paths: Mapping[str, Path], listener: Listener) -> None:
        self._settings, self._paths, self._listener = settings, paths, listener
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
            with contextlib.suppress(OSError, ValueError):  # it is killed
                with process.stdin as requests:
                    requests.writelines(json.dumps(self._request(*each)) + "\n" for each in self._paths.items())
                with process.stdout as messages:
                    for line in messages:
                        self._note(json.loads(line))
        finally:
            with self._changed:
                for name in self._paths.keys() - self._results.keys():
                    message = "the process that reads it has ended; the worker's log has the reason"
                    self._results[name] = {"error": message}
                self._changed.notify_all()

    def _request(self, name: str, path: Path) -> dict[str, Any]:
        lists = {each: str(place) for each, place in self._settings.label_lists.get(name, {}).items()}
        cache = str(self._settings.descriptions_dir / f"{name}.json")
        return {"name": name, "kind": _kind_of(path), "path": str(path), "cache": cache, "lists": lists}

    def _note(self, message: dict[str, Any]) -> None:
        name = message["name"]
        if "listed" in message:
            self._listener.listed(name, _kind_of(self._paths[name]), message["listed"])
        elif "share" in message:
            self._listener.read(name, message["share"])
        else:
            with self._changed:
                self._results[name] = message
                self._changed.notify_all()

    def result(self, name: str, stop: threading.Event) -> Source:
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
        return _source(name, message["description"], self._paths[name], self._settings)


def _source(name: str, facts: dict[str, Any], path: Path | None, settings: Settings) -> Source:
    log.info("dataset %s: %s", name, ", ".join(f"{count} {split}" for split, count in facts["counts"].items()))
    samples = facts.pop("samples")
    sheet = None if samples is None else SampleSheet(**samples | {"png": base64.b64decode(samples["png"])})
    return Source(DatasetFacts(**facts, sheet=sheet), path, settings.label_lists.get(name, {}))


def _builtin(name: str, settings: Settings, stop: threading.Event) -> Source:
    """Describe a builtin dataset.

    Raises:
        ValueError: the dataset is unusable.
    """
    lists = settings.label_lists.get(name, {})
    arguments = [name, "builtin", *(f"--list={list_name}={list_path}" for list_name, list_path in lists.items())]
    cache = None if lists else _builtin_cache(name)
    facts = _read(cache) or _run(arguments, cache, stop, settings.run_environment)
    return _source(name, facts, None, settings)


def _kind_of(path: Path) -> str:
    return "packed" if path.is_file() or path.suffix == ".wclpack" else "folder"


def _without_paths(reason: str, name: str, settings: Settings) -> str:
    """Return a reason that all users may read: they must not learn where files lie on this machine."""
    paths = {str(path): f"list {list_name}" for list_name, path in settings.label_lists.get(name, {}).items()}
    if path := settings.datasets.get(name):
        paths |= {str(path.absolute()): "the folder", str(path): "the folder"}
    for place in sorted(paths, key=len, reverse=True):
        reason = reason.replace(place, paths[place])
    return storable(without_paths(reason).removeprefix("error: ").removeprefix(f"dataset {name}: "))


def _run(arguments: list[str], cache: Path | None, stop: threading.Event, environment: list[str]) -> dict[str, Any]:
    """Describe a dataset in a process and keep the description in the cache.

    Raises:
        ValueError: the dataset is unusable; the message is the end of what the process wrote to stderr.
    """
    command = [sys.executable, "-m", "wcl_core", "describe-dataset", *arguments]
    process = children.start(
        lambda: subprocess.Popen(
            command,
            env=module_environment(environment),
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
    line = output.strip().splitlines()[-1]
    if cache is not None:
        with contextlib.suppress(OSError):
            write_bytes(cache, line.encode())
    facts: dict[str, Any] = json.loads(line)
    return facts


def _read(cache: Path | None) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] | None = None if cache is None else json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return None
    return facts


def _builtin_cache(name: str) -> Path | None:
    """Return the file that caches the description of a builtin dataset, beside the dataset's downloaded files.

    Its name changes with the packages that the images come from and with the code that describes them.  Without it,
    each start of a worker imports PyTorch for a description that never changes.  None: a plugin may return other images
    each time, or the user has no home folder.
    """
    if name in plugins.names("wcl.datasets"):
        return None
    code = sorted(
        (file.name, file.stat().st_mtime_ns) for file in (Path(wcl_core.__file__).parent / "data").glob("*.py")
    )
    key = digest_of([name, code, *(metadata.version(package) for package in ("scikit-learn", "torchvision"))])
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "wcl" / f"{name}-{key[:16]}.json"
    return None
