"""Reading files that another process appends to."""

from __future__ import annotations

import json
import random
from pathlib import Path

from worker.spool import Output, Records, Tail


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_every_line_comes_once_however_the_writes_fall(tmp_path: Path) -> None:
    path, lines = tmp_path / "file", [f"line {number} é".encode() for number in range(300)]
    data = b"".join(line + b"\n" for line in lines)
    generator, tail, found, start = random.Random(1), Tail(path), [], 0
    while start < len(data):
        stop = start + generator.randint(1, 40)
        append(path, data[start:stop])
        start = stop
        found += tail.lines()

    assert found == lines
    assert tail.lines() == []


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    records = Records(path)
    assert records.new() == []

    append(path, b'{"seq": 1}\n{"se')
    assert records.new() == [{"seq": 1}]
    append(path, b'q": 2}\n')
    assert records.new() == [{"seq": 2}]


def test_more_than_one_read_is_taken_in_parts_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    rows = [{"seq": number, "filling": "x" * 5000} for number in range(1, 600)]
    append(path, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    records, found = Records(path), []
    while new := records.new():
        found += new

    assert found == rows


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"x" * (3 << 20))
    tail, found = Tail(path), []
    while lines := tail.lines():
        found += lines

    assert found
    assert all(len(line) <= 3 << 20 for line in found)


def test_output_is_numbered_and_a_progress_bar_leaves_its_last_state(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"first\n 10%\r 50%\r100%\r\n\xff broken\n")

    assert Output(path).new() == [(1, "first"), (2, "100%"), (3, "\ufffd broken")]


def test_output_is_capped_in_lines_and_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    output, found = Output(path, max_lines=5, max_bytes=1000), []
    for number in range(200):
        append(path, f"line {number:04} {'x' * 20}\n".encode())
        found += output.new()

    assert [number for number, _ in found] == [1, 2, 3, 4, 5, 6]
    assert "dropped" in found[-1][1]
    assert path.stat().st_size <= 1000


def test_a_last_line_without_its_newline_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append(path, b"first\nSegmentation fault")
    output = Output(path)

    assert output.new() == [(1, "first")]
    assert output.new() == []
    assert output.new(is_over=True) == [(2, "Segmentation fault")]
    assert output.new(is_over=True) == []
