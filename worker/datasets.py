"""The datasets of this worker; `wcl_core describe-dataset` describes each one, since the worker reads no images."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import wcl_core
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.settings import Settings
from jobs.workers import Unable
from wcl_core import plugins
from wcl_core.digests import digest_of
from wcl_core.files import write_bytes
from worker.process import module_environment

log = logging.getLogger(__name__)


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


def find(settings: Settings) -> dict[str, Source]:
    """Return the datasets of the settings by name; an unusable one is left out, with an error in the log."""
    entries: list[tuple[str, str, Path | None]] = [(name, "builtin", None) for name in settings.builtin_datasets]
    entries += [(name, _kind_of(path), path) for name, path in settings.datasets.items()]
    sources = (_describe(*entry, settings) for entry in entries)
    return {source.facts.name: source for source in sources if source is not None}


class DatasetCheck:
    """The check that the images of all datasets are there; a job without them would fail as having bad data."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def __call__(self) -> Unable | None:
        """Return why no attempt should start now; the message names no path."""
        absent = [name for name, source in self._sources.items() if not all(map(Path.exists, source.paths))]
        if not absent:
            return None
        return Unable("dataset_absent", f"files of its dataset {absent[0]} are not there")


def _kind_of(path: Path) -> str:
    return "packed" if path.is_file() or path.suffix == ".wclpack" else "folder"


def _describe(name: str, kind: str, path: Path | None, settings: Settings) -> Source | None:
    arguments = [name, kind]
    if path is not None:
        arguments += [str(path), "--cache", str(settings.descriptions_dir / f"{name}.json")]
    lists = settings.label_lists.get(name, {})
    arguments += [f"--list={list_name}={list_path}" for list_name, list_path in lists.items()]
    cache = _builtin_cache(name) if kind == "builtin" and not lists else None
    try:
        facts = _read(cache) or _run(arguments, cache)
    except ValueError as error:
        log.error("dataset %s is left out: %s", name, error)
        return None
    log.info("dataset %s: %s", name, ", ".join(f"{count} {split}" for split, count in facts["counts"].items()))
    samples = facts.pop("samples")
    sheet = None if samples is None else SampleSheet(**samples | {"png": base64.b64decode(samples["png"])})
    return Source(DatasetFacts(**facts, sheet=sheet), path, lists)


def _run(arguments: list[str], cache: Path | None) -> dict[str, Any]:
    """Describe a dataset in a process and keep the description in the cache.

    Raises:
        ValueError: the dataset is unusable; the message is the end of what the process wrote to stderr.
    """
    command = [sys.executable, "-m", "wcl_core", "describe-dataset", *arguments]
    done = subprocess.run(command, env=module_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip()[-1000:])
    line = done.stdout.strip().splitlines()[-1]
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
