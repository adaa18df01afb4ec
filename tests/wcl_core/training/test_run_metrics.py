"""Hardware metrics: correct numbers at intervals, and no failure when a library is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.waiting import patch_clock
from tests.wcl_core import small
from tests.wcl_core.small import few_digits
from wcl_core.reporter import MemoryReporter
from wcl_core.training import run_metrics
from wcl_core.training.pretrain import pretrain
from wcl_core.training.run_metrics import HARDWARE_SECONDS, Hardware

CPU = torch.device("cpu")


class Time:
    """Clocks that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.used = 100.0, 7.0
        patch_clock(monkeypatch, run_metrics, monotonic=lambda: self.now, process_time=lambda: self.used)


def test_the_processor_is_measured_between_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time(monkeypatch)
    hardware = Hardware(CPU)
    clock.now, clock.used = 102.0, 10.0
    assert hardware.due()["system/cpu_percent"] == 150
    clock.now = 102.0 + HARDWARE_SECONDS - 0.1
    assert hardware.due() == {}
    clock.now, clock.used = 112.0, 11.0
    assert hardware.due()["system/cpu_percent"] == 10


@pytest.mark.process
def test_memory_is_the_resident_memory_of_the_process() -> None:
    """In a process of its own: other tests leave free memory behind, which the allocator would reuse."""
    code = (
        "import torch\n"
        "from wcl_core.training.run_metrics import Hardware\n"
        "memory = lambda: Hardware(torch.device('cpu')).due()['system/process_memory_mib']\n"
        "before = memory()\n"
        "held = torch.ones(64 << 18)  # 64 MiB\n"
        "print(memory() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert 60 < float(done.stdout) < 100


def test_a_system_without_proc_leaves_memory_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert set(Hardware(CPU).due()) == {"system/cpu_percent"}


@pytest.mark.parametrize("error", [ModuleNotFoundError("pynvml"), RuntimeError("MIG does not tell")])
def test_gpu_memory_needs_no_library_and_a_failing_utilisation_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls: list[Any] = []

    def utilization(device: torch.device) -> int:
        calls.append(device)
        raise error

    clock = Time(monkeypatch)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    hardware = Hardware(torch.device("cuda", 0))
    for _ in range(3):
        clock.now += HARDWARE_SECONDS
        values = hardware.due()
        assert values["system/gpu_memory_mib"] == 3072
        assert "system/gpu_percent" not in values
    assert len(calls) == 1

    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    assert Hardware(torch.device("cuda", 0)).due()["system/gpu_percent"] == 87


@pytest.mark.skipif("not torch.cuda.is_available()", reason="no GPU here")  # a query at the import would break forks
def test_a_real_gpu_reports_its_memory() -> None:
    device = torch.device("cuda")
    held = torch.ones(64 << 18, device=device)
    assert Hardware(device).due()["system/gpu_memory_mib"] >= held.nbytes >> 20


def test_a_run_reports_hardware_metrics_with_its_first_log(tmp_path: Path) -> None:
    reporter = MemoryReporter(lambda records: "cancel" if "metrics" in {each["type"] for each in records} else None)
    pretrain(small.spec(log_every_steps=2, knn_every_epochs=0), reporter, dataset=few_digits(), output_dir=tmp_path)

    (first,) = reporter.of("metrics")
    assert first["step"] == 2
    assert first["values"]["system/cpu_percent"] > 0
    assert first["values"]["system/process_memory_mib"] > 50
    assert {name for name in first["values"] if "gpu" in name} == set()
