"""The ticker: a thread that sends heartbeats, reads a request to drain, and polls for work."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from jobs import wake_up, workers
from jobs.database import Database
from jobs.fault_log import FaultLog
from jobs.settings import Settings
from worker.slots import Slots

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.05
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
        self._has_sent_wake_up = False

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop`; an outage of the database only makes a tick fail."""
        has_changed = self._database.changes() or (lambda: False)
        heartbeats, polls = FaultLog(log, "the heartbeat of the worker"), FaultLog(log, "the poll for work")
        while not stop.wait(_TICK_SECONDS):
            now = time.monotonic()
            if now >= self._next_heartbeat:
                self._next_heartbeat = now + self._settings.look_seconds
                _try(self._heartbeat, heartbeats)
            is_due = has_changed() or now >= self._next_poll
            if self._polls and self._slots.is_open() and is_due:
                # Jitter, so that a hundred workers that started together do not poll together.
                self._next_poll = now + self._poll_seconds * random.uniform(0.75, 1.25)
                _try(self._poll, polls)

    @property
    def _poll_seconds(self) -> float:
        seconds = self._settings.poll_seconds
        return seconds if self._settings.node_address is None else min(seconds, _NODE_SECONDS)

    def heartbeat_soon(self) -> None:
        """Send a heartbeat with the next tick."""
        self._next_heartbeat = 0.0

    def poll_soon(self) -> None:
        """Poll for work with the next tick."""
        self._next_poll = 0.0

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


def _try(act: Callable[[], None], faults: FaultLog) -> None:
    """Act; the thread must survive every error, since nothing restarts it."""
    try:
        act()
        faults.succeeded()
    except Exception as error:
        faults.failed(error)
