"""The worker's own clock: it says that the worker is there, hears that it has to drain, and looks for work."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from jobs import wake_up, workers
from jobs.database import Database, is_outage
from jobs.settings import Settings
from worker.slot import Slot

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.2


class Ticker:
    """One thread for the life of the worker.

    Args:
        database, settings: the service.
        worker_id: whose heart beats.
        slot: where the work is done.
        drain: called once, when the worker was asked to drain.
        looks: whether it looks for work that no bell told of.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        worker_id: str,
        slot: Slot,
        drain: Callable[[], None],
        *,
        looks: bool = True,
    ) -> None:
        self._database, self._settings, self._worker_id, self._slot = database, settings, worker_id, slot
        self._drain, self._looks = drain, looks
        self._has_drained = False
        self._next_beat = 0.0
        self._next_look = 0.0
        self._has_rung = False

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop`; an outage of the database only makes a tick fail."""
        while not stop.wait(_TICK_SECONDS):
            try:
                self._tick(time.monotonic())
            except Exception as error:  # nobody would start it again: it has to survive whatever comes
                if is_outage(error):
                    log.warning("the database does not answer")
                else:
                    log.exception("a tick failed")

    def _tick(self, now: float) -> None:
        if now >= self._next_beat:
            self._next_beat = now + self._settings.look_seconds
            asked = self._database.write(lambda s: workers.beat(s, self._worker_id, self._slot.job_id))
            if asked and not self._has_drained:
                log.info("this worker was asked to drain")
                self._has_drained = True
                self._drain()
        if self._looks and self._slot.is_open() and now >= self._next_look:
            # Jitter, so that a hundred workers that started together do not look together.
            self._next_look = now + self._settings.poll_seconds * random.uniform(0.75, 1.25)
            self._look()

    def _look(self) -> None:
        if self._slot.is_busy() or not self._slot.has_work():
            self._has_rung = False
        elif self._settings.is_memory_broker and not self._has_rung:
            self._has_rung = True
            wake_up.ring(self._settings, self._settings.pool)
        else:
            # No bell has brought the job here since the last look: the broker is away, or its consumer sleeps.
            threading.Thread(target=self._slot.work, name="slot", daemon=True).start()
