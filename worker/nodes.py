"""A further node of an attempt on several: it runs its ranks, renews its node, and delivers no records.

    wait for the rendezvous ──► prepare ──► running ──► its ranks end
                                               ├─ well: the first node ends the attempt
                                               ├─ they lost the others: another node ends the attempt, with the cause
                                               ├─ they failed: this node ends the attempt, for all
                                               └─ the attempt has ended: they are killed

Requests of users reach the run through the first node.  If this worker drains, it requests that the whole attempt does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from jobs import transitions
from jobs.database import is_outage
from jobs.gangs import Rendezvous
from jobs.settings import Settings
from jobs.status import Reason
from wcl_core.protocol import OUTCOME_OF, OUTPUT_FILE, PEER_LOST_EXIT, Request
from worker.backoff import renew_seconds
from worker.exit_reason import AttemptEnd, exit_reason
from worker.open_attempt import POLL_SECONDS, OpenAttempt
from worker.process import TrainingProcess
from worker.spool import Output

log = logging.getLogger(__name__)

_LEAVE_SECONDS = 6.0  # of a drain's time: to return the job if the first node has not


class OpenNode(OpenAttempt):
    """Writes of a further node of an open attempt: its renewal, and the end of the attempt.

    Attributes:
        rendezvous: where the ranks meet; None until the first node has announced it.
    """

    rendezvous: Rendezvous | None = None

    def renew(self) -> Request | None:
        """Renew the node; requests of users reach the run through the first node.

        Raises:
            Superseded: the attempt has ended.
        """
        with self._faults:
            state = self._database.write(lambda s: transitions.renew_node(s, self.attempt, self.node))
            self.rendezvous = state.rendezvous
        return None

    def wait_for_rendezvous(self) -> bool:
        """Renew the node until it is known where the ranks meet; return False if this worker drains first.

        Raises:
            Superseded: the attempt has ended.
        """
        self.renew()
        while self.rendezvous is None:
            if self._draining.wait(renew_seconds(self._settings.lease_seconds)):
                return False
            self.renew()
        return True

    def request_drain(self) -> bool:
        """Request that the attempt saves and ends; return False during an outage of the database.

        Raises:
            Superseded: the attempt has ended.
        """
        return self._try(lambda: self._database.write(lambda s: transitions.request_drain(s, self.attempt)))

    def end_node(self) -> bool:
        """Note that the ranks of this node have ended well; return False during an outage of the database."""
        return self._try(lambda: self._database.write(lambda s: transitions.end_node(s, self.attempt, self.node)))

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except DBAPIError as error:
            if not is_outage(error):
                raise
            self._faults.failed(error)
            return False
        return True


def wait_for_nodes(attempt: OpenAttempt, draining: threading.Event, seconds: float) -> AttemptEnd | None:
    """Renew an attempt until all its nodes have begun.

    Returns:
        None, or the end of the attempt: a request, or a worker that has not begun in time, as one that has just died.
        The latter is no failure of the job, which is tried again after a backoff.

    Raises:
        Superseded: the attempt has ended.
    """
    deadline = time.monotonic() + seconds
    while names := attempt.missing_workers():
        if (request := "drain" if draining.wait(POLL_SECONDS) else attempt.renew()) is not None:
            return AttemptEnd(OUTCOME_OF[request], None, None)
        if time.monotonic() > deadline:
            late = f"{', '.join(names)} did not begin within {seconds:g} s"
            return AttemptEnd("failed", Reason.NODE_LATE, f"all workers of the job start it together, and {late}")
    return None


def follow_node(
    node: OpenNode,
    settings: Settings,
    draining: threading.Event,
    process: TrainingProcess,
    folder: Path,
    is_oom_kill: Callable[[], bool] | None,
    broken: Callable[[], str | None],
) -> None:
    """Follow the ranks of a node to their end, and end the attempt if they have failed.

    Raises:
        Superseded: the attempt has ended; the caller kills the ranks.
    """
    output = Output(folder / OUTPUT_FILE)
    pause, next_renewal = renew_seconds(settings.lease_seconds), 0.0
    has_requested, leave_at, lost_at = False, float("inf"), float("inf")
    while True:
        now = time.monotonic()
        if (code := process.exit_code()) == 0 and node.end_node():
            return
        if code is not None and code not in (0, PEER_LOST_EXIT):
            node.end(_at_node(node.node, exit_reason(code, folder, is_oom_kill)))
            return
        if code == PEER_LOST_EXIT:
            lost_at = min(lost_at, now)
        if now - lost_at > settings.lease_seconds:
            node.end(_at_node(node.node, exit_reason(PEER_LOST_EXIT, folder, is_oom_kill)))
            return
        if code is None and (problem := broken()) is not None:
            process.kill(at_once=True)
            node.end(_at_node(node.node, AttemptEnd("failed", Reason.DEVICE_FAILED, f"the run was killed: {problem}")))
            return
        if draining.is_set() and not has_requested:
            leave_at = min(leave_at, now + settings.drain_seconds - _LEAVE_SECONDS)
            has_requested = node.request_drain()
        if now > leave_at:
            node.end(AttemptEnd("drained", None, "the worker of a node had to stop before the run had saved"))
            return
        if now >= next_renewal:
            next_renewal = now + pause
            node.renew()
        output.cap()
        process.wait(POLL_SECONDS)
        if code is not None:  # nothing is left to wait for but the end of the attempt
            time.sleep(POLL_SECONDS)


def _at_node(node: int, end: AttemptEnd) -> AttemptEnd:
    return end._replace(message=f"node {node}: {end.message}")
