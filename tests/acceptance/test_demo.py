"""The demo as a newcomer runs it, made short."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Forked, fork_children, outside

pytestmark = pytest.mark.timeout(600)


def test_the_demo_ends_by_itself_with_table_weak_labels_and_checkpoint(tmp_path: Path) -> None:
    output, errors = tmp_path / "output.log", tmp_path / "errors.log"
    arguments = ["demo", "--epochs", "2", "--data-dir", "data"]
    demo = Forked("wcl_client", outside() | {"COLUMNS": "160"}, output, arguments, partial(_prepare, tmp_path), errors)
    assert demo.wait(400) == 0, output.read_text() + errors.read_text()

    printed = output.read_text()
    for words in ("raw pixels", "untrained", "SimCLR", "WCL", "kNN, k = 20", "chance", "/weak-labels", "sign-in"):
        assert words in printed, words
    assert "token=" not in printed, "a file with this output would keep the secret of a sign-in link"
    assert "±" in printed
    assert len(list((tmp_path / "data" / "demo").glob("wcl-*-last.safetensors"))) == 1
    assert not _is_served(tmp_path / "data"), "the service was left running"


def _is_served(data_dir: Path) -> bool:
    from wcl_client.up import UpError, locked

    try:
        with locked(data_dir):
            return False
    except UpError:
        return True


def _prepare(folder: Path) -> None:
    os.chdir(folder)
    fork_children()
