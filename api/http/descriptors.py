"""File descriptors of the server: as many as the system allows, and one log line while none is left."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import Any

log = logging.getLogger(__name__)

_ENOUGH = 65_536
_QUIET_SECONDS = 3.0  # asyncio tries to accept again after 1 s


def limit() -> int:
    """Return the number of file descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard one; systems start with 1,024 or 256, and each stream needs a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


class Starvation:
    """The handler of errors of the event loop: it logs when connections cannot be accepted, and when they can again."""

    def __init__(self) -> None:
        self._last_at: float | None = None

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error of the loop; asyncio reports a failed accept up to 128 times a second."""
        if "out of system resource" not in context.get("message", ""):
            loop.default_exception_handler(context)
            return
        if self._last_at is None:
            log.warning("no connection can be accepted (%s); new ones wait", context.get("exception"))
        self._last_at = time.monotonic()

    def check(self) -> None:
        """Log the recovery, once no accept has failed for some seconds."""
        if self._last_at is not None and time.monotonic() - self._last_at > _QUIET_SECONDS:
            self._last_at = None
            log.warning("connections are accepted again")
