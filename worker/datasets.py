"""The datasets of this worker; `wcl_core describe-dataset` describes each one, since the worker reads no images."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import wcl_core
from jobs.database import Database, is_outage
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.eligibility import WorkerFacts
from jobs.settings import Settings
from jobs.workers import Unable, settle_dataset
from wcl_core import plugins
from wcl_core.config import DATASET_NAME, proposed_name
from wcl_core.digests import digest_of
from wcl_core.files import write_bytes
from wcl_core.protocol import storable
from wcl_core.text import without_paths
from worker import children
from worker.backoff import Backoff
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


def find(settings: Settings, stop: threading.Event) -> Iterator[tuple[str, Source | str]]:
    """Describe the datasets of the settings, and yield each with its name: the reason instead of one that is refused.

    Args:
        stop: when it is set, the description that runs is abandoned.
    """
    for name in names(settings):
        if stop.is_set():
            return
        path = settings.datasets.get(name)
        try:
            result: Source | str = _describe(name, path, settings, stop)
        except ValueError as error:
            log.error("dataset %s is refused: %s", name, error)
            result = _without_paths(str(error), name, settings)
        except Exception:  # one dataset must not keep the others from being registered
            log.exception("dataset %s cannot be described", name)
            result = "it cannot be described; the worker's log has the reason"
        if not stop.is_set():
            yield name, result


def _describe(name: str, path: Path | None, settings: Settings, stop: threading.Event) -> Source:
    """Describe one dataset.

    Raises:
        ValueError: the dataset is unusable, or no spec can name it.
    """
    if not re.search(DATASET_NAME, name):
        proposal = proposed_name(name)
        raise ValueError(f"no spec can name it; expected lower-case letters, digits, '.', '_' and '-': {proposal}")
    kind = "builtin" if path is None else _kind_of(path)
    arguments = [name, kind]
    if path is not None:
        arguments += [str(path), "--cache", str(settings.descriptions_dir / f"{name}.json")]
    lists = settings.label_lists.get(name, {})
    arguments += [f"--list={list_name}={list_path}" for list_name, list_path in lists.items()]
    cache = _builtin_cache(name) if kind == "builtin" and not lists else None
    facts = _read(cache) or _run(arguments, cache, stop, settings.run_environment)
    log.info("dataset %s: %s", name, ", ".join(f"{count} {split}" for split, count in facts["counts"].items()))
    samples = facts.pop("samples")
    sheet = None if samples is None else SampleSheet(**samples | {"png": base64.b64decode(samples["png"])})
    return Source(DatasetFacts(**facts, sheet=sheet), path, lists)


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


class Registration:
    """The registration of this worker's datasets, one by one: the worker takes jobs once all are read or refused.

    Args:
        facts: of the worker; its datasets are added.
        sources: the datasets that can be used, by name; they are added.
        stop: set when the worker drains.

    Attributes:
        is_done: set once no dataset is left.
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
        self.is_done = threading.Event()

    def run(self) -> None:
        """Describe and announce each dataset."""
        try:
            for name, result in find(self._settings, self._stop):
                self._settle(name, result)
        finally:
            self.is_done.set()
        found = ", ".join(self._sources) or "no datasets"
        log.info("worker %s in pool %s with %s", self._facts.name, self._facts.pool, found)

    def _settle(self, name: str, result: Source | str) -> None:
        """Store the result, as often as an outage of the database makes necessary."""
        backoff = Backoff(self._settings.lease_seconds)
        announced = result if isinstance(result, str) else result.facts
        while not self._stop.is_set():
            try:
                self._database.write(lambda session: settle_dataset(session, self._facts.id, name, announced))
                break
            except Exception as error:
                if not is_outage(error):
                    raise
                self._stop.wait(backoff.pause())
        if not isinstance(result, str):
            self._sources[name] = result
            self._facts.datasets[name] = result.facts.digest


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
