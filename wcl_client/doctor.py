"""The checks of `wcl doctor`: this machine, the server, and the fix for each problem."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wcl_client.api import WclClient
from wcl_client.connection import Answers
from wcl_client.errors import NotFoundError, Unreachable, WclError
from wcl_client.key_expiry import ROTATION_ADVICE, expiry_text
from wcl_client.output import unable_workers
from wcl_client.processes import module_environment
from wcl_client.registration import pending, refusals
from wcl_client.responses import Worker
from wcl_core.text import file_size

_ALL = 1 << 31  # jobs
_LEAST_BYTES = 1 << 30
_CHECK_SECONDS = 60.0
_NO_DATASET = "none; a worker announces them when it starts"
_NO_WORKER = "none is running; start one with `wcl worker`"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    is_ok: bool
    detail: str


def examine(client: WclClient, data_dir: Path) -> list[Finding]:
    """Run all checks and return their findings: first the machine, then the server."""
    of_service = _server(client)
    # The service may run elsewhere, and a folder that it does not use says nothing about its disks.
    has_data = data_dir.exists() or not of_service[0].is_ok
    here = [_disk(data_dir), *_cache(data_dir), *_database(data_dir)] if has_data else []
    return [_python(), _torch(), *here, *of_service]


def verify_files(client: WclClient) -> Iterator[Finding]:
    """Let the server read every registered file; yield a finding for each bad one, and then a summary."""
    num_files = num_bad = 0
    for job in client.jobs(limit=_ALL):
        for checkpoint in client.checkpoints(job["id"]):
            num_files += 1
            name = f"checkpoint {checkpoint['id']} of job {job['name']}, step {checkpoint['step']}"
            if (problem := _problem_of(client, checkpoint["id"])) is not None:
                num_bad += 1
                yield Finding("File", False, f"{name}: {problem}")
        for artifact in client.artifacts(job["id"]):
            num_files += 1
            try:
                client.artifact(job["id"], artifact["name"])
            except WclError as error:
                num_bad += 1
                yield Finding("File", False, f"artifact {artifact['name']} of job {job['name']}: {error}")
    for row in client.all_weights():
        num_files += 1
        try:
            problem = client.verify_weights(row["sha256"])["flaw"]
        except NotFoundError:  # removed meanwhile
            continue
        except WclError as error:
            problem = str(error)
        if problem is not None:
            num_bad += 1
            yield Finding("File", False, f"weights {row['name']}: {problem}; import the same file again")
    yield Finding("Files", not num_bad, f"{num_files} read, {num_bad} of them damaged or missing")


def _problem_of(client: WclClient, checkpoint_id: str) -> str | None:
    try:
        checkpoint = client.verify(checkpoint_id)
    except NotFoundError:  # deleted meanwhile
        return None
    except WclError as error:
        return str(error)
    if checkpoint["damaged_at"]:
        return "its file is damaged"
    return "its file is missing" if checkpoint["missing_at"] else None


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
    folder = data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    problems = [] if os.access(folder, os.W_OK) else ["not writable; choose another one with WCL_DATA_DIR"]
    if free < _LEAST_BYTES:
        problems.append("at least 1 GiB is needed")
    return Finding("Data folder", not problems, "; ".join([f"{data_dir}: {file_size(free)} free", *problems]))


def _cache(data_dir: Path) -> list[Finding]:
    """Return the size of this machine's cache of decoded datasets, if there is one."""
    folder = Path(os.environ.get("WCL_CACHE_DIR") or data_dir / "cache")
    if not folder.is_dir():
        return []
    sizes = [path.stat().st_size for path in folder.glob("*.wclpack")]
    compiled = sum(path.lstat().st_size for path in (folder / "compiler").rglob("*") if path.is_file())
    limit = os.environ.get("WCL_CACHE_BYTES")
    most = file_size(int(limit)) if limit and limit.isdecimal() else "a quarter of its disk"
    size = f"{file_size(sum(sizes) + compiled)} of at most {most}"
    content = f"{len(sizes)} decoded dataset{'s' * (len(sizes) != 1)}{' and compiled code' if compiled else ''}"
    return [Finding("Cache", True, f"{folder}: {content}, {size}")]


def _database(data_dir: Path) -> list[Finding]:
    """Check the database of this machine's service, if there is one, also while no server can start."""
    if not (data_dir / "wcl.sqlite3").exists() and "WCL_DATABASE_URL" not in os.environ:
        return []
    environment = module_environment() | {"WCL_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "jobs", "check"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        return [Finding("Database", False, f"no answer within {_CHECK_SECONDS:g} s")]
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return [Finding("Database", done.returncode == 0, lines[-1].removeprefix("error: ") if lines else "no answer")]


def _server(client: WclClient) -> list[Finding]:
    obstacle = client.obstacle()
    if isinstance(obstacle, Unreachable):
        return [
            Finding(
                "Server", False, f"{client.url} does not respond; start it, with `wcl up` or its unit, or set WCL_URL"
            )
        ]
    if obstacle is not None:
        return [Finding("Server", False, f"{client.url} is not ready: {obstacle}")]
    problems = client.problems()
    findings = [Finding("Server", True, client.url), *(Finding("Service", False, problem) for problem in problems)]
    try:
        workers, datasets = client.workers(), client.datasets()
    except WclError as error:
        return [*findings, Finding("Key", False, str(error))]
    live = ", ".join(map(_with_room, filter(lambda worker: worker["is_live"], workers)))
    unable = [*unable_workers(workers), *_nearly_full(workers)]
    names, refused = ", ".join(dataset["name"] for dataset in datasets), refusals(workers)
    reading = [f"a worker is still reading {name}" for name in pending(workers)]
    return [
        *findings,
        _key(),
        Finding("Workers", bool(live) and not unable, "; ".join([live, *unable] if live else [_NO_WORKER])),
        Finding("Datasets", bool(names) and not refused, "; ".join([names or _NO_DATASET, *refused, *reading])),
    ]


def _key() -> Finding:
    """Return whether the key that the server has accepted expires soon."""
    expires = Answers.key_expires
    if expires is None:
        return Finding("Key", True, "accepted")
    return Finding("Key", False, f"accepted; expires on {expiry_text(expires)}; {ROTATION_ADVICE}")


def _with_room(worker: Worker) -> str:
    free = worker.get("disk_free_bytes")
    return worker["name"] if free is None else f"{worker['name']} ({file_size(free)} free)"


def _nearly_full(workers: Sequence[Worker]) -> list[str]:
    """Return a sentence for each live worker whose disk has little room; one that takes no jobs has its own."""
    able = [worker for worker in workers if worker["is_live"] and not worker.get("unable")]
    rooms = [(worker["name"], worker.get("disk_free_bytes")) for worker in able]
    return [
        f"the disk of {name} is nearly full: at least 1 GiB is needed"
        for name, free in rooms
        if free is not None and free < _LEAST_BYTES
    ]
