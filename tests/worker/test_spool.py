"""Readers of files that another process appends to."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from wcl_core.protocol import LogRecord, MetricsRecord, StartedRecord, WarningRecord
from worker.spool import Output, Records, Tail


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def line(seq: int, message: str = "x") -> bytes:
    return json.dumps({"seq": seq, "type": "log", "level": "info", "message": message}).encode() + b"\n"


def test_every_line_is_read_once_for_any_sizes_of_writes(tmp_path: Path) -> None:
    path, lines = tmp_path / "file", [f"line {number} é".encode() for number in range(300)]
    data = b"".join(line + b"\n" for line in lines)
    generator, tail, read, start = random.Random(1), Tail(path), [], 0
    while start < len(data):
        stop = start + generator.randint(1, 40)
        append(path, data[start:stop])
        start = stop
        read += tail.lines()

    assert read == lines
    assert tail.lines() == []


def test_an_incomplete_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    records = Records(path)
    assert records.new() == []

    append(path, line(1) + line(2)[:5])
    assert records.new() == [LogRecord(seq=1, level="info", message="x")]
    append(path, line(2)[5:])
    assert records.new() == [LogRecord(seq=2, level="info", message="x")]


def test_a_large_file_is_read_in_parts_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"".join(line(number, "x" * 5000) for number in range(1, 600)))
    records, read = Records(path), []
    while new := records.new():
        read += new

    assert read == [LogRecord(seq=number, level="info", message="x" * 5000) for number in range(1, 600)]


@pytest.mark.parametrize(
    "invalid",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"seq": 2, "type": "metrics", "step": 1}',
        b'{"seq": 2, "type": "metrics", "step": 18446744073709551616, "values": {}}',
        b'{"seq": 2, "type": "unknown"}',
        b'{"seq": 7, "type": "log", "level": "info", "message": "x"}',
        b"{\n{",
        b"[" * 100_000,
    ],
)
def test_an_invalid_record_becomes_a_warning_and_blocks_nothing(tmp_path: Path, invalid: bytes) -> None:
    path = tmp_path / "file"
    append(path, line(1) + invalid + b"\n" + line(3))
    records = Records(path).new()

    assert [record.seq for record in records] == [1, 2, 3]
    assert isinstance(records[1], WarningRecord)
    assert records[1].reason == "invalid_record"
    assert "record 2" in records[1].message


def test_invalid_records_at_the_end_are_reported_once_the_run_is_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, line(1) + b"{\n")
    records = Records(path)

    assert [record.seq for record in records.new()] == [1]
    assert records.new() == []
    assert [(record.seq, record.type) for record in records.new(is_over=True)] == [(2, "warning")]
    assert records.new(is_over=True) == []


def test_text_and_numbers_of_records_are_ones_that_every_database_takes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b'{"seq": 1, "type": "log", "level": "a\\u0000", "message": "b"}\n')
    append(path, b'{"seq": 2, "type": "metrics", "step": 1, "values": {"a": NaN, "b": 1e999, "c\\ud800": 1}}\n')
    append(path, b'{"seq": 3, "type": "started", "start_step": 0, "x": {"y\\u0000": [1e999, "\\udfff"]}}\n')
    append(path, b'{"seq": 4, "type": "log", "level": "a", "message": "b\\ud800"}\n')
    text, metrics, started, surrogate = Records(path).new()

    assert text == LogRecord(seq=1, level="a\ufffd", message="b")
    assert surrogate == LogRecord(seq=4, level="a", message="b\ufffd")
    assert metrics == MetricsRecord(seq=2, step=1, values={"a": None, "b": None, "c\ufffd": 1.0})
    assert isinstance(started, StartedRecord)
    assert started.environment == {"x": {"y\ufffd": [None, "\ufffd"]}}


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"x" * (3 << 20))
    tail, read = Tail(path), []
    while lines := tail.lines():
        read += lines

    assert read
    assert all(len(line) <= 3 << 20 for line in read)


def test_output_is_numbered_and_a_progress_bar_leaves_its_last_state(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"first\n 10%\r 50%\r100%\r\n\xff broken\n")

    assert Output(path).new() == [(1, "first"), (2, "100%"), (3, "\ufffd broken")]


def test_output_is_capped_in_lines_and_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    output, read = Output(path, max_lines=5, max_bytes=1000), []
    for number in range(200):
        append(path, f"line {number:04} {'x' * 20}\n".encode())
        read += output.new()

    assert [number for number, _ in read] == [1, 2, 3, 4, 5, 6]
    assert "dropped" in read[-1][1]
    assert path.stat().st_size <= 1000


def test_a_last_line_without_its_newline_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"first\nSegmentation fault")
    output = Output(path)

    assert output.new() == [(1, "first")]
    assert output.new() == []
    assert output.new(is_over=True) == [(2, "Segmentation fault")]
    assert output.new(is_over=True) == []
