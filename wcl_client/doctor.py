"""The checks of `wcl doctor`: this machine, the server, and the fix for each problem."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wcl_client.api import WclClient
from wcl_client.errors import WclError


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    is_ok: bool
    detail: str


def examine(client: WclClient, data_dir: Path) -> list[Finding]:
    """Run all checks and return their findings: first the machine, then the server."""
    return [_python(), _torch(), _disk(data_dir), *_server(client)]


def _python() -> Finding:
    is_ok = sys.version_info >= (3, 11)
    expected = "" if is_ok else "; expected 3.11 or later"
    return Finding("Python", is_ok, f"{platform.python_version()} on {platform.platform()}{expected}")


def _torch() -> Finding:
    """Return the version of PyTorch and the GPUs without loading PyTorch."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return Finding("PyTorch", False, "not installed; a worker on this machine needs it")
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
        gpus = listing.stdout.splitlines() if listing.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        gpus = []
    return Finding("PyTorch", True, f"{installed}, {', '.join(gpus) or 'no GPU'}, {os.cpu_count()} CPU cores")


def _disk(data_dir: Path) -> Finding:
    folder = data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    problems = [] if os.access(folder, os.W_OK) else ["not writable; choose another one with WCL_DATA_DIR"]
    if free <= 1 << 30:
        problems.append("at least 1 GiB is needed")
    return Finding("Data folder", not problems, "; ".join([f"{data_dir}: {free / (1 << 30):.1f} GiB free", *problems]))


def _server(client: WclClient) -> list[Finding]:
    if not client.is_ready():
        return [Finding("Server", False, f"{client.url} does not respond; start it with `wcl up`, or set WCL_URL")]
    findings = [Finding("Server", True, client.url)]
    try:
        workers, datasets = client.workers(), client.datasets()
    except WclError as error:
        return [*findings, Finding("Key", False, str(error))]
    live = ", ".join(worker["name"] for worker in workers if worker["is_live"])
    names = ", ".join(dataset["name"] for dataset in datasets)
    return [
        *findings,
        Finding("Key", True, "accepted"),
        Finding("Workers", bool(live), live or "none is running; start one with `wcl worker`"),
        Finding("Datasets", bool(names), names or "none; a worker announces them when it starts"),
    ]
