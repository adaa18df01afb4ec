"""The log of an activity that fails for a while stays short."""

from __future__ import annotations

import errno
import logging

import pytest
from sqlalchemy.exc import OperationalError

from jobs.fault_log import FaultLog

log = logging.getLogger(__name__)


def outage(text: str) -> OperationalError:
    return OperationalError("SELECT 1", None, ConnectionError(text))


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_failure_that_repeats_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    faults = FaultLog(log, "the poll")

    for outside_port in range(5):
        faults.failed(outage(f"no answer on port {outside_port}\nand a second line"))
    faults.succeeded()
    faults.succeeded()
    faults.failed(outage("again"))

    assert lines(caplog) == [
        "the poll fails and is repeated: the database does not respond (no answer on port 0)",
        "the poll works again",
        "the poll fails and is repeated: the database does not respond (again)",
    ]


def test_another_cause_is_logged_and_only_an_unexpected_error_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    faults = FaultLog(log, "the poll")

    for _ in range(2):
        faults.failed(OSError(errno.ENOSPC, "No space left on device"))
    for _ in range(2):
        faults.failed(OSError(errno.EMFILE, "Too many open files"))
    for _ in range(2):
        faults.failed(raised(KeyError("a bug")))

    assert lines(caplog) == [
        "the poll fails and is repeated: [Errno 28] No space left on device",
        "the poll fails and is repeated: [Errno 24] Too many open files",
        "the poll fails and is repeated",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True]
