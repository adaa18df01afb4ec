"""The datasets of this worker; `wcl_core describe-dataset` describes each one, since the worker reads no images."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jobs.datasets import DatasetFacts, SampleSheet
from jobs.settings import Settings
from worker.process import module_environment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset of this worker: its public facts, and the paths that never leave the worker."""

    facts: DatasetFacts
    path: Path | None
    lists: dict[str, Path] = field(default_factory=dict)


def find(settings: Settings) -> dict[str, Source]:
    """Return the datasets of the settings by name; an unusable one is left out, with an error in the log."""
    entries: list[tuple[str, str, Path | None]] = [(name, "builtin", None) for name in settings.builtin_datasets]
    entries += [(name, _kind_of(path), path) for name, path in settings.datasets.items()]
    sources = (_describe(*entry, settings) for entry in entries)
    return {source.facts.name: source for source in sources if source is not None}


def _kind_of(path: Path) -> str:
    return "packed" if path.is_file() or path.suffix == ".wclpack" else "folder"


def _describe(name: str, kind: str, path: Path | None, settings: Settings) -> Source | None:
    command = [sys.executable, "-m", "wcl_core", "describe-dataset", name, kind]
    if path is not None:
        command += [str(path), "--cache", str(settings.descriptions_dir / f"{name}.json")]
    lists = settings.label_lists.get(name, {})
    command += [f"--list={list_name}={list_path}" for list_name, list_path in lists.items()]
    done = subprocess.run(command, env=module_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        log.error("dataset %s is left out: %s", name, done.stderr.strip()[-1000:])
        return None
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    log.info("dataset %s: %s", name, ", ".join(f"{count} {split}" for split, count in facts["counts"].items()))
    samples = facts.pop("samples")
    sheet = None if samples is None else SampleSheet(**samples | {"png": base64.b64decode(samples["png"])})
    return Source(DatasetFacts(**facts, sheet=sheet), path, lists)
