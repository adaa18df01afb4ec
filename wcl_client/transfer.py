"""Downloading for the command line: which checkpoint is meant, where it goes, a bar while it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from wcl_client.api import WclClient
from wcl_client.download import Downloaded
from wcl_client.errors import NotFoundError
from wcl_client.references import find_job


def find_checkpoint(client: WclClient, reference: str) -> str:
    """A checkpoint's id; a job stands for its last one."""
    try:
        job = find_job(client, reference)
    except NotFoundError:
        if len(reference) != 36:
            raise
        return client.checkpoint(reference)["id"]
    checkpoints = client.checkpoints(job["id"])
    if not checkpoints:
        raise NotFoundError(404, "Not found", f"job {job['id']} has no checkpoint yet")
    return checkpoints[-1]["id"]


def fetch(client: WclClient, checkpoint_id: str, target: Path | None, kind: str, console: Console) -> Downloaded:
    """Download into `target`, which may be a file, a folder, or nothing: a name in the working folder."""
    name = f"{checkpoint_id}-{kind}.safetensors"
    path = target / name if target and target.is_dir() else target or Path(name)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(path.name, total=None)
        chosen: Any = kind
        return client.download(
            checkpoint_id,
            path,
            kind=chosen,
            on_bytes=lambda have, total: bars.update(task, completed=have, total=total),
        )
