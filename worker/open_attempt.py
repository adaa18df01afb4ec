"""Writes of an open attempt that carry no records: its renewal and its end."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import DBAPIError

from jobs import gangs, transitions
from jobs.database import Database, is_outage
from jobs.errors import Superseded
from jobs.fault_log import FaultLog
from jobs.gangs import Rendezvous
from jobs.settings import Settings
from jobs.transitions import Claim, Requests
from wcl_core.protocol import Request
from worker.background import BackgroundWork, check_not_stalled
from worker.backoff import DrainableBackoff, renew_seconds
from worker.exit_reason import AttemptEnd, log_end

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25


class OpenAttempt:
    """Writes of an attempt that carry no records: its renewal and its end."""

    def __init__(self, database: Database, settings: Settings, draining: threading.Event, claim: Claim) -> None:
        self._database, self._settings, self._draining = database, settings, draining
        self.job_id, self.attempt = claim.job_id, claim.attempt
        self._faults = FaultLog(log, f"job {claim.job_id}: the renewal or end of its attempt")
        self._read_faults = FaultLog(log, f"job {claim.job_id}: the look at its requests")
        self.node = claim.node
        self._began = time.monotonic()

    def ran_ms(self) -> int:
        """Return the running time of the attempt so far."""
        return int(1000 * (time.monotonic() - self._began))

    def renew_during(self, work: BackgroundWork[Any]) -> Request | None:
        """Renew the attempt until the work is done; return early when a request ends the attempt.

        A renewal brings the requests only after a message for each of its statements: beside one that a slow database
        holds up, and after it, requests are read by themselves.

        Raises:
            Superseded: the attempt has ended.
            StorageUnavailable: the work takes too long.
        """
        pause = renew_seconds(self._settings.lease_seconds)
        next_renewal = time.monotonic() + pause
        is_slow = False
        renewing: BackgroundWork[Request | None] | None = None
        reading: BackgroundWork[Request | None] | None = None
        while not work.is_done(POLL_SECONDS):
            check_not_stalled(work, self._settings)
            request: Request | None = "drain" if self._draining.is_set() else None
            if renewing is None and time.monotonic() >= next_renewal:
                renewing, is_slow = BackgroundWork(self.renew), False
            elif renewing is not None and renewing.is_done():
                request = request or renewing.result()
                renewing, next_renewal = None, time.monotonic() + pause
            elif renewing is not None:
                is_slow = True
            if reading is not None and reading.is_done():
                request, reading = request or reading.result(), None
            if request is not None:
                return request
            if is_slow and reading is None:
                reading = BackgroundWork(self.read_request)
        return None

    def renew(self) -> Request | None:
        """Renew the attempt without records, and return a request that ends it.

        Raises:
            Superseded: the attempt has ended.
        """
        requests: Requests | None = None
        with self._faults:
            requests = self._database.write(lambda s: transitions.deliver(s, self.attempt, [], ran_ms=self.ran_ms()))
        return None if requests is None else request_of(requests)

    def read_request(self) -> Request | None:
        """Return a request that ends the attempt, by one message to the database; None also during an outage of it."""
        request: Request | None = None
        with self._read_faults:
            row = self._database.read_row(transitions.requests_query(self.attempt))
            request = None if row is None else request_of(transitions.requests_of(row))
        return request

    def missing_workers(self) -> list[str]:
        """Return the workers that have not begun their node; none during an outage of the database."""
        names: list[str] = []
        with self._faults, self._database.read() as session:
            names = gangs.missing(session, self.attempt)
        return names

    def announce(self, rendezvous: Rendezvous) -> None:
        """Announce to the other nodes where the ranks meet.

        Raises:
            Superseded: the attempt has ended.
        """
        self._database.write(lambda s: transitions.announce_rendezvous(s, self.attempt, rendezvous))

    def end(self, end: AttemptEnd) -> None:
        """End the attempt as soon as the database takes it.

        Raises:
            KeepSpool: the worker must stop first.
        """
        backoff = DrainableBackoff(self._draining, self._settings.lease_seconds)
        limit = self._settings.max_failures
        while True:
            try:
                self._database.write(
                    lambda s: transitions.end_attempt(s, self.attempt, *end, max_failures=limit, ran_ms=self.ran_ms())
                )
                log_end(self.attempt, *end)
                return
            except Superseded:
                return
            except DBAPIError as error:
                if not is_outage(error):
                    raise
                self._faults.failed(error)
            backoff.wait()


def request_of(requests: Requests) -> Request | None:
    """Return the request to pass on to the run; a cancel comes first."""
    if requests.cancel:
        return "cancel"
    if requests.pause:
        return "pause"
    return "drain" if requests.preempt or requests.timeout or requests.drain else None
