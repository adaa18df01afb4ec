"""A wrong wall clock in one process, for all Python code; C code and the kernel keep the correct time."""

from __future__ import annotations

import datetime
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

Offset = Callable[[], float]
_UNIX_EPOCH_AS_JULIAN_DAY = 2440587.5


def read_from(path: Path) -> Offset:
    """Return an offset that a file holds, in seconds, so that a test can step the clock of another process."""
    return lambda: float(path.read_text())


def step(path: Path, seconds: float) -> None:
    """Write the file of `read_from`."""
    beside = path.with_suffix(".part")
    beside.write_text(str(seconds))
    beside.replace(path)


def set_wrong(seconds: Offset) -> None:
    """Set this process's wall clock wrong, in every module that is loaded, also where a name was imported from one."""
    wrong = {id(right): other for right, other in _replacements(seconds)}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if id(value) in wrong:
                setattr(module, name, wrong[id(value)])


def set_machine_wrong(seconds: Offset) -> None:
    """Set this process's wall clock wrong, and the clock that SQLite reads in this process, which is the machine's."""
    now = time.time

    @event.listens_for(Engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        del record
        if isinstance(connection, sqlite3.Connection):
            wrong = lambda _: (now() + seconds()) / 86_400 + _UNIX_EPOCH_AS_JULIAN_DAY  # noqa: E731
            connection.create_function("julianday", 1, wrong)

    set_wrong(seconds)


def _replacements(seconds: Offset) -> list[tuple[Any, Any]]:
    now, now_ns = time.time, time.time_ns
    return [
        (now, lambda: now() + seconds()),
        (now_ns, lambda: now_ns() + int(seconds() * 1e9)),
        (datetime.datetime, _wrong_datetime(seconds)),
        (datetime.date, _wrong_date(seconds)),
        (time.strftime, _strftime(time.strftime, now, seconds)),
        *((each, _of_now(each, now, seconds)) for each in (time.localtime, time.gmtime, time.ctime)),
    ]


def _of_now(convert: Callable[..., Any], now: Callable[[], float], seconds: Offset) -> Callable[..., Any]:
    """Wrap a function of the time whose default is now."""
    return lambda at=None: convert(now() + seconds() if at is None else at)


def _strftime(strftime: Callable[..., str], now: Callable[[], float], seconds: Offset) -> Callable[..., str]:
    localtime = time.localtime
    return lambda layout, at=None: strftime(layout, localtime(now() + seconds()) if at is None else at)


def _passing_for(right: type) -> type:
    """Return a metaclass that lets instances of the right class, made by C code, pass as instances of the wrong one."""

    class Passing(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, right)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, right)

    return Passing


def _wrong_datetime(seconds: Offset) -> type:
    right, delta = datetime.datetime, datetime.timedelta

    class Wrong(right, metaclass=_passing_for(right)):  # type: ignore[misc, valid-type, metaclass]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return right.now(tz) + delta(seconds=seconds())

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return right.now(datetime.UTC).replace(tzinfo=None) + delta(seconds=seconds())

        today = now

    return Wrong


def _wrong_date(seconds: Offset) -> type:
    right, now, delta = datetime.date, datetime.datetime.now, datetime.timedelta

    class Wrong(right, metaclass=_passing_for(right)):  # type: ignore[misc, valid-type, metaclass]
        @classmethod
        def today(cls) -> datetime.date:
            return (now() + delta(seconds=seconds())).date()

    return Wrong
