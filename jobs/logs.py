"""The log of server and workers: lines or JSON, with the request and the job that a line is about.

A request's id goes from the server's log to the job that it submits, and from there to the log of the worker that runs
the job, so that one search finds the whole way.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import uuid4

from wcl_core.text import VisibleFormatter, write_error

Format = Literal["lines", "json"]
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039 (it is never changed in place)


def log_to_stderr(form: Format) -> None:
    """Write the log of this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if form == "json" else _LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def log_error(log: logging.Logger, text: str, form: Format) -> None:
    """Write why this process ends: a line `error: …`, or as JSON where the log is."""
    if form == "json":
        log.error("%s", text)
    else:
        write_error(text)


@contextmanager
def about(**facts: str | int | None) -> Iterator[None]:
    """Add facts, such as the id of a job, to each line that this thread or task logs within the block."""
    token = _about.set(_about.get() | {name: value for name, value in facts.items() if value is not None})
    try:
        yield
    finally:
        _about.reset(token)


def request_id() -> str | None:
    """Return the id of the request that this thread or task works for; None if it works for none."""
    value = _about.get().get("request_id")
    return None if value is None else str(value)


def request_id_of(sent: str) -> str:
    """Return the id that a client or a proxy has sent; a new one where that is none."""
    return sent if _REQUEST_ID.fullmatch(sent) else uuid4().hex


class _LineFormatter(VisibleFormatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(about)s")

    def format(self, record: logging.LogRecord) -> str:
        request = request_id()
        record.about = f" [{request}]" if request else ""
        return super().format(record)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII, so that no text can split or forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= _about.get() | getattr(record, "facts", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
