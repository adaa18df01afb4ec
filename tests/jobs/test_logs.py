"""The log of server and workers, as lines and as JSON."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from jobs import logs

LOGGER = logging.getLogger("of this test")


@pytest.fixture(params=["lines", "json"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, io.StringIO]]:
    """The form, and what is written in it to a logger."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    monkeypatch.setattr("sys.stderr", stream)
    logs.log_to_stderr(request.param)
    yield request.param, stream
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_names_the_request_and_the_job_that_it_is_about(log: tuple[str, io.StringIO]) -> None:
    form, stream = log
    LOGGER.info("before")
    with logs.about(request_id="r-1", job_id="j-1", attempt=2, other=None):
        LOGGER.warning("caf\u00e9 %s", "line\nbreak")
        thread = threading.Thread(target=lambda: LOGGER.info("of another thread"))
        thread.start()
        thread.join()
    LOGGER.info("after")
    lines = stream.getvalue().splitlines()

    assert len(lines) == 4
    if form == "lines":
        assert lines[1].endswith("WARNING of this test: caf\u00e9 line\\nbreak [r-1]")
        assert not any("[r-1]" in line for line in (lines[0], lines[2], lines[3]))
        return
    entries = [json.loads(line) for line in lines]
    facts = {"request_id": "r-1", "job_id": "j-1", "attempt": 2}
    time = entries[1].pop("time")
    assert entries[1] == {"level": "WARNING", "logger": "of this test", "message": "caf\u00e9 line\nbreak"} | facts
    assert (len(time), time[-1]) == (24, "Z")
    assert not any(facts.keys() & entry.keys() for entry in (entries[0], entries[2], entries[3]))


def test_an_exception_is_part_of_its_line(log: tuple[str, io.StringIO]) -> None:
    form, stream = log
    try:
        raise ValueError("a secret \u202e text")
    except ValueError:
        LOGGER.exception("it failed")

    text = stream.getvalue()
    assert "\u202e" not in text
    assert "ValueError: a secret" in text
    if form == "json":
        assert "Traceback" in json.loads(text)["exception"]


@pytest.mark.parametrize("sent", ["", "two words", "x" * 65, "a\nb", "caf\u00e9"])
def test_an_id_that_is_none_is_replaced(sent: str) -> None:
    first, second = logs.request_id_of(sent), logs.request_id_of(sent)

    assert len({first, second, sent}) == 3
    assert logs.request_id_of(first) == first
