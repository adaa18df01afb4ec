"""The demo as a newcomer runs it, made short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.service import ROOT

pytestmark = pytest.mark.timeout(600)


def test_the_demo_ends_by_itself_with_table_weak_labels_and_checkpoint(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    done = subprocess.run(
        [sys.executable, "-m", "wcl_client", "demo", "--epochs", "6", "--data-dir", "data"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=400,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("raw pixels", "untrained", "SimCLR", "WCL", "kNN, k = 20", "chance", "/weak-labels", "sign-in"):
        assert words in done.stdout, words
    assert "token=" not in done.stdout, "a file with this output would keep the secret of a sign-in link"
    assert "±" in done.stdout
    assert len(list((tmp_path / "data" / "demo").glob("wcl-*-last.safetensors"))) == 1
    assert not _is_served(tmp_path / "data"), "the service was left running"


def _is_served(data_dir: Path) -> bool:
    from wcl_client.up import UpError, locked

    try:
        with locked(data_dir):
            return False
    except UpError:
        return True
