"""The rights of the files that a whole service makes."""

from __future__ import annotations

import os
from pathlib import Path

from tests.acceptance.service import SHORT_SPEC, Service, submit_when_ready
from tests.waiting import eventually
from wcl_client.api import WclClient


def test_the_data_folder_is_of_its_owner_alone(tmp_path: Path) -> None:
    """The folders above it, which it makes, are too; a job leaves files of every kind."""
    data_dir = tmp_path / "above" / "data"
    service = Service(tmp_path / "log")
    service.options = ["--data-dir", str(data_dir)]
    umask = os.umask(0)
    try:
        service.start()
        with WclClient(f"http://127.0.0.1:{service.port}", (data_dir / "key").read_text().strip()) as client:
            job = submit_when_ready(client, SHORT_SPEC)
            eventually(lambda: client.checkpoints(job["id"]), "a checkpoint")
        modes = {str(path.relative_to(tmp_path)): path.lstat().st_mode for path in (tmp_path / "above").rglob("*")}
    finally:
        os.umask(umask)
        service.stop()

    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert any(name.endswith(".safetensors") for name in modes)
    assert any(name.endswith("report.jsonl") for name in modes)
    assert (tmp_path / "above").stat().st_mode & 0o777 == 0o700
