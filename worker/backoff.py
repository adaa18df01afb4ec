"""Trying again: pauses that double up to a cap, jittered, so that many that wait for one thing do not return as one."""

from __future__ import annotations

import random
import threading
import time

_FIRST_SECONDS = 1.0
_MAX_CAP_SECONDS = 10.0
_LAST_SECONDS = 4.0  # of trying once the worker has to stop


def renew_seconds(lease_seconds: float) -> float:
    """Pause between two renewals of an attempt: several fit into a lease, so one that fails costs nothing."""
    return min(3.0, lease_seconds / 6)


class KeepSpool(Exception):  # noqa: N818 (an instruction)
    """The worker stops before everything could be delivered: the folder stays for the next worker of this host."""


class Backoff:
    """The pauses between tries at one thing.

    Args:
        lease_seconds: several tries fit into it, so whoever comes back in time keeps its attempt.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._cap = min(_MAX_CAP_SECONDS, lease_seconds / 6)
        self._next = min(_FIRST_SECONDS, self._cap)

    def pause(self) -> float:
        """Seconds until the next try; each call is a try that failed."""
        seconds = random.uniform(0.5, 1) * self._next
        self._next = min(self._cap, 2 * self._next)
        return seconds

    def reset(self) -> None:
        """A try succeeded."""
        self._next = min(_FIRST_SECONDS, self._cap)


class Patience:
    """Waits between tries for as long as it takes, but not for long once the worker has to stop.

    Args:
        draining: set when it has to.
        lease_seconds: as for `Backoff`.
    """

    def __init__(self, draining: threading.Event, lease_seconds: float) -> None:
        self._draining = draining
        self._backoff = Backoff(lease_seconds)
        self._gives_up_at: float | None = None

    def wait(self) -> None:
        """Sleep until the next try.

        Raises:
            KeepSpool: the worker has to stop and there is no time left for another one.
        """
        seconds = self._backoff.pause()
        if not self._draining.wait(seconds):
            return
        self._gives_up_at = self._gives_up_at or time.monotonic() + _LAST_SECONDS
        if time.monotonic() > self._gives_up_at:
            raise KeepSpool
        time.sleep(min(seconds, _LAST_SECONDS / 4))
