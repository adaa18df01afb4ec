"""The ticker: a thread that sends heartbeats, reads a request to drain, and polls for work."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs import wake_up, workers
from jobs.database import Database
from jobs.fault_log import FaultLog
from jobs.settings import Settings
from worker.slots import Slots

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
_ALERT_SECONDS = 0.25  # of ticks after a write to the folder of the database, whose commit may come later
_LONGEST_SLEEP_SECONDS = 0.5  # until the ticker hears that the worker stops
_IN_MODIFY = 0x2
_EVENT_BYTES = 1 << 14
_NODE_SECONDS = 1.0  # between two polls of a worker for jobs of several nodes: the first node waits for it


class Ticker:
    """One thread for the life of the worker.

    Args:
        database, settings: the service.
        worker_id: the worker that the heartbeats are of.
        slots: where jobs run.
        drain: called once, when a user has requested that this worker drains.
        polls: whether to poll for work.

    Attributes:
        has_drained: whether a user has requested that this worker drains.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        worker_id: str,
        slots: Slots,
        drain: Callable[[], None],
        *,
        polls: bool = True,
    ) -> None:
        self._database, self._settings, self._worker_id, self._slots = database, settings, worker_id, slots
        self._drain, self._polls = drain, polls
        self.has_drained = False
        self._next_heartbeat = 0.0
        self._next_poll = 0.0
        self._ticks_until = 0.0  # before, a change may be seen at any moment
        self._is_awake = threading.Event()
        self._has_sent_wake_up = False

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop`; an outage of the database only makes a tick fail."""
        heartbeats, polls = FaultLog(log, "the heartbeat of the worker"), FaultLog(log, "the poll for work")
        if (changes := self._database.changes()) is not None:
            threading.Thread(target=self._notice_writes, daemon=True, name="writes").start()
        while not stop.is_set():
            self._sleep()
            now = time.monotonic()
            if now >= self._next_heartbeat:
                self._next_heartbeat = now + self._settings.look_seconds
                _try(self._heartbeat, heartbeats)
            is_due = (changes is not None and changes()) or now >= self._next_poll
            if changes is not None and changes.is_busy:
                self._ticks_until = max(self._ticks_until, now + _ALERT_SECONDS)
            if self._polls and self._slots.is_open() and is_due:
                # Jitter, so that a hundred workers that started together do not poll together.
                self._next_poll = now + self._poll_seconds * random.uniform(0.75, 1.25)
                _try(self._poll, polls)

    def _sleep(self) -> None:
        """Sleep until something is due, or for a tick while a change may come."""
        now = time.monotonic()
        due_at = min(self._next_heartbeat, self._next_poll if self._polls and self._slots.is_open() else math.inf)
        seconds = 0.0 if now < self._ticks_until else min(due_at - now, _LONGEST_SLEEP_SECONDS)
        self._is_awake.wait(max(_TICK_SECONDS, seconds))
        self._is_awake.clear()

    def _notice_writes(self) -> None:
        """Tick for a while after each write to the folder of the database, or always where none is noticed."""
        file = self._settings.sqlite_file
        try:
            for _ in _writes_in(Path() if file is None else file.parent):
                self._ticks_until = time.monotonic() + _ALERT_SECONDS
                self._is_awake.set()
                time.sleep(_TICK_SECONDS)
        except (OSError, AttributeError) as error:  # no watch is left, or the system is no Linux
            log.debug("writes to the folder of the database are not noticed: %s", error)
            self._ticks_until = math.inf
            self._is_awake.set()

    @property
    def _poll_seconds(self) -> float:
        seconds = self._settings.poll_seconds
        return seconds if self._settings.node_address is None else min(seconds, _NODE_SECONDS)

    def heartbeat_soon(self) -> None:
        """Send a heartbeat with the next tick."""
        self._next_heartbeat = 0.0
        self._is_awake.set()

    def poll_soon(self) -> None:
        """Poll for work with the next tick."""
        self._next_poll = 0.0
        self._is_awake.set()

    def _heartbeat(self) -> None:
        unable, devices = self._slots.ability.check(), self._slots.machine.read()
        must_drain = self._database.write(
            lambda session: workers.heartbeat(
                session,
                self._worker_id,
                self._slots.job_id,
                unable,
                devices,
                self._slots.address,
                self._slots.disk_free_bytes,
                self._slots.lag_ms,
            )
        )
        if must_drain and not self.has_drained:
            log.info("a user has requested that this worker drains")
            self.has_drained = True
            self._drain()

    def _poll(self) -> None:
        if not self._slots.has_work():
            self._has_sent_wake_up = False
        elif self._settings.is_memory_broker and not self._has_sent_wake_up:
            self._has_sent_wake_up = True
            wake_up.send(self._settings, self._settings.pool)
        else:
            # No wake-up has started the job since the last poll: the broker is away, or its consumer sleeps.
            threading.Thread(target=self._slots.work, name="slots", daemon=True).start()


def _writes_in(folder: Path) -> Iterator[None]:
    """Wait for writes to the files of a folder, and yield after some.

    Raises:
        OSError: the kernel gives no watch; each user has 128 of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_MODIFY) < 0:
        raise OSError(ctypes.get_errno(), "no watch")
    yield  # for what was written before
    while os.read(descriptor, _EVENT_BYTES):
        yield


def _try(act: Callable[[], None], faults: FaultLog) -> None:
    """Act; the thread must survive every error, since nothing restarts it."""
    try:
        act()
        faults.succeeded()
    except Exception as error:
        faults.failed(error)
