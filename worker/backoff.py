"""Exponential backoff with jitter and a cap."""

from __future__ import annotations

import random
import threading
import time

_FIRST_SECONDS = 1.0
_MAX_CAP_SECONDS = 10.0
_LAST_SECONDS = 4.0  # of retries once the worker drains


def renew_seconds(lease_seconds: float) -> float:
    """Return the pause between two renewals of an attempt; several fit into a lease, so one of them may fail.

    A renewal also brings the requests of users, which are to be heard within two seconds.
    """
    return min(1.0, lease_seconds / 6)


class KeepSpool(Exception):  # noqa: N818 (an instruction)
    """The worker drains before everything is delivered; the next worker of this host delivers the rest."""


class Backoff:
    """The pauses between retries.

    Args:
        lease_seconds: several retries fit into it, so an attempt survives an outage that is shorter.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._cap = min(_MAX_CAP_SECONDS, lease_seconds / 6)
        self._next = min(_FIRST_SECONDS, self._cap)

    def pause(self) -> float:
        """Return the seconds until the next retry, after a failure."""
        seconds = random.uniform(0.5, 1) * self._next
        self._next = min(self._cap, 2 * self._next)
        return seconds

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._next = min(_FIRST_SECONDS, self._cap)


class DrainableBackoff:
    """The sleeps between retries: without a limit, or for a few more seconds once the worker drains.

    Args:
        draining: set when the worker drains.
        lease_seconds: as for `Backoff`.
    """

    def __init__(self, draining: threading.Event, lease_seconds: float) -> None:
        self._draining = draining
        self._backoff = Backoff(lease_seconds)
        self._gives_up_at: float | None = None

    def wait(self) -> None:
        """Sleep until the next retry.

        Raises:
            KeepSpool: the worker drains, and no time is left for another retry.
        """
        seconds = self._backoff.pause()
        if not self._draining.wait(seconds):
            return
        self._gives_up_at = self._gives_up_at or time.monotonic() + _LAST_SECONDS
        if time.monotonic() > self._gives_up_at:
            raise KeepSpool
        time.sleep(min(seconds, _LAST_SECONDS / 4))
