"""A wrong wall clock in one process, for all Python code; C code and the kernel keep the correct time."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable
from typing import Any


def set_wrong(seconds: float) -> None:
    """Set this process's wall clock wrong, in every module that is loaded, also where a name was imported from one."""
    wrong = {id(right): other for right, other in _replacements(seconds)}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if id(value) in wrong:
                setattr(module, name, wrong[id(value)])


def _replacements(seconds: float) -> list[tuple[Any, Any]]:
    now, now_ns = time.time, time.time_ns
    nanoseconds = int(seconds * 1e9)
    return [
        (now, lambda: now() + seconds),
        (now_ns, lambda: now_ns() + nanoseconds),
        (datetime.datetime, _wrong_datetime(seconds)),
        (datetime.date, _wrong_date(seconds)),
        (time.strftime, _strftime(time.strftime, now, seconds)),
        *((each, _of_now(each, now, seconds)) for each in (time.localtime, time.gmtime, time.ctime)),
    ]


def _of_now(convert: Callable[..., Any], now: Callable[[], float], seconds: float) -> Callable[..., Any]:
    """Wrap a function of the time whose default is now."""
    return lambda at=None: convert(now() + seconds if at is None else at)


def _strftime(strftime: Callable[..., str], now: Callable[[], float], seconds: float) -> Callable[..., str]:
    localtime = time.localtime
    return lambda layout, at=None: strftime(layout, localtime(now() + seconds) if at is None else at)


def _passing_for(right: type) -> type:
    """Return a metaclass that lets instances of the right class, made by C code, pass as instances of the wrong one."""

    class Passing(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, right)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, right)

    return Passing


def _wrong_datetime(seconds: float) -> type:
    right, shift = datetime.datetime, datetime.timedelta(seconds=seconds)

    class Wrong(right, metaclass=_passing_for(right)):  # type: ignore[misc, valid-type, metaclass]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return right.now(tz) + shift

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return right.now(datetime.UTC).replace(tzinfo=None) + shift

        today = now

    return Wrong


def _wrong_date(seconds: float) -> type:
    right, now, shift = datetime.date, datetime.datetime.now, datetime.timedelta(seconds=seconds)

    class Wrong(right, metaclass=_passing_for(right)):  # type: ignore[misc, valid-type, metaclass]
        @classmethod
        def today(cls) -> datetime.date:
            return (now() + shift).date()

    return Wrong
