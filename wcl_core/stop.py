"""Cancellation points: a long loop calls `check`, which ends it when there is a request to end the run.

    with interruptible(reporter.request):    a loop below ends at a request, because nothing of its work is worth saving
        ...
            check()                          each second or more often; free of effects anywhere else

A training step is no such loop: training reads the request itself, after the step, and saves first.  Only a cancel ends
a step in its middle (`wcl_core.attempt.Control`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from wcl_core.protocol import Request


class Interrupted(Exception):  # noqa: N818 (the effect of a request, no error)
    """A request has stopped work that is not worth saving."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request: Request = request


_request: ContextVar[Callable[[], Request | None]] = ContextVar("request", default=lambda: None)


@contextmanager
def interruptible(request: Callable[[], Request | None]) -> Iterator[None]:
    """Let `check` raise for a request; on this thread, until the block ends.

    Args:
        request: returns the latest request, if any.
    """
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


def check() -> None:
    """Raise if there is a request to end the run.

    Raises:
        Interrupted: there is one, and this thread is in an `interruptible` block.
    """
    if (request := _request.get()()) is not None:
        raise Interrupted(request)
