"""`wcl doctor`: what works on this machine and with this server, and what to do where it does not."""

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
    """One thing looked at."""

    name: str
    is_ok: bool
    detail: str


def examine(client: WclClient, data_dir: Path) -> list[Finding]:
    """All findings, the machine's first."""
    return [_python(), _torch(), _disk(data_dir), *_server(client)]


def _python() -> Finding:
    return Finding("Python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")


def _torch() -> Finding:
    """PyTorch's version and GPUs, asked in a process of its own: the client never loads it."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return Finding("PyTorch", False, "not installed; training runs only where it is")
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
    writable = os.access(folder, os.W_OK)
    return Finding(
        "Data folder",
        writable and free > 1 << 30,
        f"{data_dir}: {free / (1 << 30):.1f} GiB free{'' if writable else ', not writable'}",
    )


def _server(client: WclClient) -> list[Finding]:
    if not client.is_ready():
        return [Finding("Server", False, f"{client.url} does not answer; start it with `wcl up`, or set WCL_URL")]
    found = [Finding("Server", True, client.url)]
    try:
        workers, datasets = client.workers(), client.datasets()
    except WclError as error:
        return [*found, Finding("Key", False, str(error))]
    found.append(Finding("Key", True, "accepted"))
    alive = [worker for worker in workers if worker["is_live"]]
    found.append(Finding("Workers", bool(alive), ", ".join(str(worker.get("name")) for worker in alive) or "none"))
    found.append(Finding("Datasets", bool(datasets), ", ".join(str(entry["name"]) for entry in datasets) or "none"))
    return found
