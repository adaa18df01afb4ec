"""When each key was last used, told to the database at most once a minute and key, and never before an answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from jobs import keys
from jobs.database import Database

log = logging.getLogger(__name__)

PAUSE_SECONDS = 60.0


class KeyUses:
    """What this process has told.

    Args:
        database: where it is kept.
        clock: monotonic seconds; no wall clock decides.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        """The key was used just now; a database that does not answer costs only the note."""
        if not self._is_due(key_id):
            return
        try:
            self._database.write(lambda session: keys.note_use(session, key_id))
        except SQLAlchemyError as error:
            log.debug("the use of key %s was not noted: %s", key_id, error)

    def is_due(self, key_id: str) -> bool:
        """Whether a note would be told."""
        told = self._told.get(key_id)
        return told is None or self._clock() - told >= PAUSE_SECONDS

    def _is_due(self, key_id: str) -> bool:
        with self._lock:
            if not self.is_due(key_id):
                return False
            self._told[key_id] = self._clock()
            return True
