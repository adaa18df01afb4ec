"""Devices of the machine, with a stand-in for `nvidia-smi`."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from worker.devices import device_bytes, num_gpus

pytestmark = pytest.mark.process

_DRIVER = """#!/bin/sh
case "$*" in
  -L) echo "GPU 0: A"; echo "GPU 1: B" ;;
  *--id=1*) echo 40000 ;;
  *--query-gpu=memory.total*) echo 80000; echo 40000 ;;
esac
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program on the path that answers as the driver of two GPUs does."""
    program = tmp_path / "nvidia-smi"
    program.write_text(_DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_the_driver_lists_the_gpus_and_their_memory(driver: Path) -> None:
    assert (num_gpus(), device_bytes(2)) == (2, 80000 << 20)


@pytest.mark.parametrize(("visible", "count"), [("1", 1), ("0,1", 2), ("", 0), ("-1", 0)])
def test_only_visible_gpus_count(driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert num_gpus() == count


def test_the_memory_is_that_of_a_visible_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert device_bytes(1) == 40000 << 20


@pytest.mark.parametrize("answer", ["exit 9", "echo no number"])
def test_without_a_driver_there_is_no_gpu_and_no_memory_of_one(driver: Path, answer: str) -> None:
    driver.write_text(f"#!/bin/sh\n{answer}\n")

    assert device_bytes(1) is None
    assert num_gpus() == (0 if "exit" in answer else 1)


def test_without_gpus_the_memory_is_the_machines(driver: Path) -> None:
    assert device_bytes(0) == psutil.virtual_memory().total
