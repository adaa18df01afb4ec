"""Reporters: every record is whole, numbered without a gap, and JSON, also when the disk is full."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from wcl_core import reporter as reporter_module
from wcl_core.reporter import ConsoleReporter, MemoryReporter, NullReporter, Reporter, SpoolReporter

RESULT: dict[str, Any] = {
    "protocol": "knn",
    "protocol_version": 1,
    "dataset_digest": "d1",
    "split_digest": "e1",
    "params": {"k": 20},
    "seed": 0,
    "metric": "top1",
    "value": 0.5,
    "stderr": None,
    "n": 100,
    "details": None,
}


def report_everything(reporter: Reporter) -> None:
    reporter.started(device="cpu", start_step=3)
    reporter.metrics(4, {"train/loss": 1.5, "train/lr": 0.1})
    reporter.progress(
        step=4,
        total_steps=10,
        epoch=1.33333333,
        total_epochs=3,
        phase="train",
        images_per_second=9.87654,
        eta_seconds=1,
    )
    reporter.progress(step=5, total_steps=10, epoch=2, total_epochs=3, phase="save")
    reporter.checkpoint(step=5, epoch=2, file="checkpoints/x", sha256="ab", size=7, metrics={"train/loss": 1.5})
    reporter.artifact(name="probe.png", file="artifacts/x", sha256="cd", size=8, media_type="image/png")
    reporter.weak_labels(epoch=2, step=5, labels=[0, 1, 0])
    reporter.evaluation(RESULT)
    reporter.warning("corrupt_image", "a/1.png: cut")
    reporter.log("hello", "debug")
    reporter.end("failed", "bad_data", "no image")


EVERYTHING: list[dict[str, Any]] = [
    {"type": "started", "device": "cpu", "start_step": 3},
    {"type": "metrics", "step": 4, "values": {"train/loss": 1.5, "train/lr": 0.1}},
    {
        "type": "progress",
        "step": 4,
        "total_steps": 10,
        "epoch": 1.3333,
        "total_epochs": 3,
        "images_per_second": 9.88,
        "eta_seconds": 1,
        "phase": "train",
    },
    {
        "type": "progress",
        "step": 5,
        "total_steps": 10,
        "epoch": 2,
        "total_epochs": 3,
        "images_per_second": None,
        "eta_seconds": None,
        "phase": "save",
    },
    {
        "type": "checkpoint",
        "step": 5,
        "epoch": 2,
        "path": "checkpoints/x",
        "sha256": "ab",
        "size": 7,
        "metrics": {"train/loss": 1.5},
    },
    {
        "type": "artifact",
        "name": "probe.png",
        "path": "artifacts/x",
        "sha256": "cd",
        "size": 8,
        "media_type": "image/png",
    },
    {"type": "groups", "epoch": 2, "step": 5, "labels": [0, 1, 0]},
    {"type": "evaluation", **RESULT},
    {"type": "warning", "reason": "corrupt_image", "message": "a/1.png: cut"},
    {"type": "log", "level": "debug", "message": "hello"},
    {"type": "end", "outcome": "failed", "reason": "bad_data", "message": "no image"},
]


def spooled(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[SpoolReporter]:
    """Yield a reporter that ends with its test."""
    reporter = SpoolReporter(tmp_path / "report.jsonl")
    yield reporter
    reporter.end("cancelled")


def test_every_method_makes_one_record_of_its_type() -> None:
    memory = MemoryReporter()
    report_everything(memory)
    assert memory.records == EVERYTHING
    assert memory.of("end") == EVERYTHING[-1:]
    report_everything(NullReporter())


def test_the_spool_numbers_its_lines_from_one(tmp_path: Path) -> None:
    report_everything(SpoolReporter(tmp_path / "report.jsonl"))
    expected = [{"seq": number, **record} for number, record in enumerate(EVERYTHING, start=1)]
    assert spooled(tmp_path / "report.jsonl") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["report.jsonl"]


def test_a_line_can_be_read_as_soon_as_it_is_reported(spool: SpoolReporter, tmp_path: Path) -> None:
    for number in range(1, 4):
        spool.log("x" * 10_000)
        assert [line["seq"] for line in spooled(tmp_path / "report.jsonl")] == list(range(1, number + 1))


def test_an_existing_spool_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "report.jsonl").write_text("theirs\n")
    with pytest.raises(FileExistsError):
        SpoolReporter(tmp_path / "report.jsonl")
    assert (tmp_path / "report.jsonl").read_text() == "theirs\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_becomes_null_with_a_warning(
    spool: SpoolReporter, tmp_path: Path, value: float
) -> None:
    spool.metrics(7, {"train/loss": value, "train/lr": 0.5})
    metrics, warning = spooled(tmp_path / "report.jsonl")
    assert metrics["values"] == {"train/loss": None, "train/lr": 0.5}
    assert (warning["type"], warning["reason"]) == ("warning", "non_finite_metric")
    assert "train/loss" in warning["message"]
    assert "train/lr" not in warning["message"]


def test_an_invalid_record_leaves_no_gap(spool: SpoolReporter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        spool.evaluation(RESULT | {"value": math.nan})
    with pytest.raises(TypeError):
        spool.evaluation(RESULT | {"params": {"k": object()}})
    spool.end("failed")
    assert [line["seq"] for line in spooled(tmp_path / "report.jsonl")] == [1]


@pytest.mark.parametrize("method", ["warning", "log", "end"])
def test_text_is_text_that_every_database_takes(spool: SpoolReporter, tmp_path: Path, method: str) -> None:
    text = os.fsdecode(b"caf\xff\0.png") + " é 中 \u2028 \n"
    methods: dict[str, Callable[[], None]] = {
        "warning": lambda: spool.warning("corrupt_image", text),
        "log": lambda: spool.log(text),
        "end": lambda: spool.end("failed", "bad_data", text),
    }
    methods[method]()
    (line,) = spooled(tmp_path / "report.jsonl")
    assert line["message"] == "caf\ufffd\ufffd.png é 中 \u2028 \n"
    line["message"].encode()


def test_checkpoints_and_the_end_are_forced_to_the_disk(
    spool: SpoolReporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each after its line was written."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(spooled(tmp_path / "report.jsonl")[-1]["type"]))
    report_everything(spool)
    assert synced == ["checkpoint", "end"]


class Disk:
    """A replacement of `os.write` that takes `room` bytes and then raises ENOSPC."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.write(descriptor, data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_tears_no_line_and_loses_none(
    spool: SpoolReporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    spool.log("first")
    disk = Disk(room)
    monkeypatch.setattr(os, "write", disk)
    with pytest.raises(OSError, match="No space"):
        spool.metrics(1, {"train/loss": 2.5})
    disk.room = 10_000
    spool.end("failed", "disk_full")
    first, metrics, end = spooled(tmp_path / "report.jsonl")
    assert [first["seq"], metrics["seq"], end["seq"]] == [1, 2, 3]
    assert metrics["values"] == {"train/loss": 2.5}
    assert end["reason"] == "disk_full"


def fill(file: BinaryIO) -> None:
    while file.write(b"x" * 4096):
        pass


def test_the_end_is_written_on_a_disk_that_stays_full(small_disk: Path) -> None:
    """A real file system, filled to the last byte by another process."""
    spool = SpoolReporter(small_disk / "report.jsonl")

    def report_much() -> None:
        for step in range(1000):
            spool.metrics(step, {"train/loss": 1.0})

    with (small_disk / "other").open("wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
        fill(other)
    with pytest.raises(OSError, match="No space"):
        report_much()
    spool.end("failed", "disk_full", "x" * 2000)
    lines = spooled(small_disk / "report.jsonl")
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["reason"] == "disk_full"


def test_an_end_that_the_disk_refuses_is_still_owed(
    spool: SpoolReporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(0)
    monkeypatch.setattr(os, "write", disk)
    with pytest.raises(OSError, match="No space"):
        spool.end("failed", "disk_full")
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)

    disk.room = 10_000
    spool.abandon("drained", 7)

    assert codes == [7], "a request ends the run, and its end is written"
    assert spooled(tmp_path / "report.jsonl")[0]["reason"] == "disk_full", "the first end counts"


@pytest.mark.process
def test_reported_records_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from wcl_core.reporter import SpoolReporter\n"
        "spool = SpoolReporter(Path(sys.argv[1]))\n"
        "for step in range(100): spool.metrics(step, {'train/loss': 1.0})\n"
        "print('reported', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(reporter_module.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "report.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reported\n"
        process.send_signal(signal.SIGKILL)
    assert [line["seq"] for line in spooled(tmp_path / "report.jsonl")] == list(range(1, 101))


def test_requests_come_from_outside(spool: SpoolReporter, tmp_path: Path) -> None:
    assert NullReporter().request() is None
    assert spool.request() is None
    other = SpoolReporter(tmp_path / "b", lambda: "pause")
    assert other.request() == "pause"
    other.end("paused")
    memory = MemoryReporter(lambda records: "cancel" if len(records) > 1 else None)
    memory.log("one")
    assert memory.request() is None
    memory.log("two")
    assert memory.request() == "cancel"


def test_the_console_shows_records_for_people() -> None:
    stream = io.StringIO()
    report_everything(ConsoleReporter(stream=stream))
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [
        record["type"] for record in EVERYTHING if record["type"] not in ("progress", "groups")
    ]
    assert "step=4  train/loss=1.5  train/lr=0.1" in lines[1]
    assert "stderr" not in lines[4]
