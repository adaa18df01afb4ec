"""Who tried wrong keys or links lately: after some of them within a minute the answer is 429.

A right key always passes, so nobody can lock another one out; a secret of 256 bits needs no more than this.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from fastapi import Request

from api.http.problems import TooMany

_MAX_FAILURES = 20
_WINDOW_SECONDS = 60.0
_MAX_CLIENTS = 1_000


class Failures:
    """Times of failed attempts by client address; `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MAX_FAILURES))

    def note(self, request: Request) -> None:
        """One more failure of this client.

        Raises:
            TooMany: it has had enough of them.
        """
        self.check(request)
        if len(self._times) >= _MAX_CLIENTS:
            self._times.clear()
        self._times[_address(request)].append(self._clock())

    def check(self, request: Request) -> None:
        """Refuse a client that has failed too often, before its next attempt costs anything."""
        times: Sequence[float] = self._times.get(_address(request), ())
        if len(times) == _MAX_FAILURES and self._clock() - times[0] < _WINDOW_SECONDS:
            raise TooMany("too many wrong keys or links from this address; wait a minute")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
