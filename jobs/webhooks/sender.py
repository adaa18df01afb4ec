"""The loop of a server that sends messages of webhooks, and that notices runs which report nothing.

Several servers share the work: a message is claimed by compare-and-set for a lease, so it is sent by one server in the
normal case, and by another one if the first dies.  A receiver that does not respond delays its own messages only: each
webhook has one request at a time.
"""

from __future__ import annotations

import email.utils
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import httpcore
from sqlalchemy import Select, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from jobs import verdicts
from jobs.database import Database, now_ms
from jobs.fault_log import FaultLog
from jobs.models import Attempt, Job, Webhook, WebhookDelivery
from jobs.settings import Settings
from jobs.webhooks import messages, outbox, subscriptions, targets
from wcl_core.text import visible

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_STALL_POLL_SECONDS = 5.0
_LEASE_MS = 90_000  # longer than a request
_PARALLEL = 8
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 3 * 3600.0
_LONGEST_RETRY_AFTER_SECONDS = 86_400.0
_ERROR_CHARACTERS = 300
_GONE = 410


@dataclass(frozen=True)
class Claimed:
    """A message that this server sends now."""

    id: str
    webhook_id: str
    attempt: int
    payload: dict[str, Any]
    job_id: str | None
    url: str
    format: str
    secret: str


@dataclass(frozen=True)
class Result:
    """What came of an attempt: the status of a response, or an error without one."""

    status: int | None
    error: str | None
    retry_after: float = 0.0

    @property
    def is_delivered(self) -> bool:
        return self.error is None


class Sender:
    """Sends what is due; `poll` is one pass.

    Args:
        database: where the messages are.
        settings: addresses that webhooks may reach.
        url: of this server, for links.
        resolver: of host names.
    """

    def __init__(
        self, database: Database, settings: Settings, url: str, *, resolver: targets.Resolver = targets.resolve
    ) -> None:
        self._database, self._settings, self._resolver = database, settings, resolver
        self._url = (settings.public_url or f"{url}{settings.root_path}").rstrip("/")
        self._free = threading.BoundedSemaphore(_PARALLEL)
        self._faults = FaultLog(log, "the sending of webhooks")
        self._changes = database.changes()
        self._may_have_pending = True

    def run(self, stop: threading.Event) -> None:
        """Send until `stop`; an outage of the database only makes a pass fail."""
        stalls = StallWatch(self._database)
        next_stalls = 0.0
        while not stop.wait(_POLL_SECONDS):
            try:
                self.poll()
                if time.monotonic() >= next_stalls:
                    next_stalls = time.monotonic() + _STALL_POLL_SECONDS
                    stalls.poll()
                self._faults.succeeded()
            except Exception as error:  # the thread is never restarted, so it has to survive every error
                self._faults.failed(error)

    def poll(self) -> list[threading.Thread]:
        """Start a request for each webhook that has a message due and none under way; return their threads."""
        threads = []
        for delivery_id in self._due() if self._may_have_due() else ():
            if not self._free.acquire(blocking=False):
                break
            try:
                claimed = self._database.write(partial(claim, delivery_id=delivery_id))
            except BaseException:
                self._free.release()
                raise
            if claimed is None:
                self._free.release()
                continue
            threads.append(threading.Thread(target=self._deliver, args=(claimed,), daemon=True, name="webhook"))
            threads[-1].start()
        return threads

    def _may_have_due(self) -> bool:
        """Return False while no message is pending and, on SQLite, no process has written since that was seen."""
        if self._changes is None:
            return True
        if self._changes() or self._changes.is_busy or self._may_have_pending:  # what is written later is seen later
            self._may_have_pending = self._database.read_once(
                lambda session: session.execute(_any_pending()).scalar_one()
            )
        return self._may_have_pending

    def _due(self) -> list[str]:
        """Return the oldest due message of each webhook."""
        return self._database.read_once(lambda session: list(session.execute(_oldest_due()).scalars()))

    def _deliver(self, claimed: Claimed) -> None:
        try:
            payload = self._completed(claimed)
            result = self._send(claimed, payload)
            self._database.write(partial(record, claimed=claimed, result=result))
        except Exception as error:  # the lease ends, and the message is sent again
            self._faults.failed(error)
        finally:
            self._free.release()

    def _completed(self, claimed: Claimed) -> dict[str, Any]:
        """Return the payload with link and verdict, and store it: every repeat has the same content."""
        data = claimed.payload["data"]
        if claimed.job_id is None or "url" in data:
            return claimed.payload
        more = {"url": f"{self._url}/jobs/{claimed.job_id}", "verdict": self._verdict(claimed.job_id)}
        payload = claimed.payload | {"data": data | more}
        stored = update(WebhookDelivery).where(WebhookDelivery.id == claimed.id).values(payload=payload)
        self._database.write(lambda session: session.execute(stored))
        return payload

    def _verdict(self, job_id: str) -> str | None:
        try:
            with self._database.read() as session:
                verdict = verdicts.verdict(session, session.get_one(Job, job_id))
            return None if verdict is None else verdict.sentence
        except Exception:  # a message without a verdict is better than none
            log.warning("the message about job %s has no verdict", job_id, exc_info=True)
            return None

    def _send(self, claimed: Claimed, payload: dict[str, Any]) -> Result:
        parts = (claimed.url, claimed.format, claimed.secret, claimed.id)
        url, headers, body = messages.request(*parts, payload, int(time.time()))
        try:
            response = targets.post(url, headers, body, self._settings, self._resolver)
        except (targets.Refused, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            return Result(None, _text(error) or type(error).__name__)
        except (ValueError, OSError) as error:  # of the libraries below, such as a port that is none
            return Result(None, f"{type(error).__name__}: {_text(error)}")
        if 200 <= response.status < 300:
            return Result(response.status, None)
        if 300 <= response.status < 400:
            return Result(
                response.status, f"the receiver redirects ({response.status}), and redirects are not followed"
            )
        text = f"the receiver responded with {response.status}"
        text += f": {_text(response.body)}" if response.body.strip() else ""
        return Result(response.status, text, _retry_after(response.retry_after))


def _text(error: object) -> str:
    return visible(" ".join(str(error).split()))[:_ERROR_CHARACTERS]


def _retry_after(value: str | None) -> float:
    """Return the seconds of a `Retry-After` header, which holds seconds or a date."""
    if value is None:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdigit() else _seconds_until(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)


def _seconds_until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


_BY = WebhookDelivery.webhook_id


def _is_due() -> tuple[Any, ...]:
    """Return the conditions of a message that may be sent now: its webhook has no other request under way."""
    other = aliased(WebhookDelivery)
    now = now_ms()
    busy = exists().where(other.webhook_id == _BY, other.state == "pending", other.leased_until > now)
    enabled = exists().where(Webhook.id == _BY, Webhook.disabled_at.is_(None))
    is_free = or_(WebhookDelivery.leased_until.is_(None), WebhookDelivery.leased_until <= now)
    return WebhookDelivery.state == "pending", WebhookDelivery.due_at <= now, is_free, ~busy, enabled


@cache
def _oldest_due() -> Select[str]:
    """Make the statement of each poll once, since its making takes as long as its execution."""
    return select(func.min(WebhookDelivery.id)).where(*_is_due()).group_by(_BY)


@cache
def _any_pending() -> Select[bool]:
    return select(exists().where(WebhookDelivery.state == "pending"))


def claim(session: Session, delivery_id: str) -> Claimed | None:
    """Claim a due message for a lease; return None if another server has it."""
    statement = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, *_is_due())
        .values(leased_until=now_ms() + _LEASE_MS, attempts=WebhookDelivery.attempts + 1)
        .returning(WebhookDelivery.id)
    )
    claimed = session.execute(statement, execution_options={"synchronize_session": False}).scalar_one_or_none()
    if claimed is None:
        return None
    row = session.get_one(WebhookDelivery, delivery_id)
    webhook = session.get_one(Webhook, row.webhook_id)
    secrets = (webhook.url, webhook.format, webhook.secret)
    return Claimed(row.id, webhook.id, row.attempts, row.payload, row.job_id, *secrets)


def record(session: Session, claimed: Claimed, result: Result) -> None:
    """Store the result of an attempt: delivered, due again after a backoff, or failed after three days."""
    mine = (WebhookDelivery.id == claimed.id, WebhookDelivery.attempts == claimed.attempt)
    pending = update(WebhookDelivery).where(*mine, WebhookDelivery.state == "pending")
    facts = {"leased_until": None, "last_status": result.status, "last_error": result.error}
    if result.is_delivered:
        session.execute(pending.values(**facts, state="delivered", ended_at=now_ms()))
        return
    due_at = now_ms() + int(1000 * max(wait_seconds(claimed.attempt), result.retry_after))
    if result.status == _GONE:
        subscriptions.disable(session, claimed.webhook_id, "the receiver responded with 410 Gone")
        log.warning("webhook %s is disabled: its receiver responded with 410 Gone", claimed.webhook_id)
        session.execute(pending.values(**facts, state="failed", ended_at=now_ms()))
        return
    is_late = WebhookDelivery.give_up_at <= due_at
    moved = session.execute(pending.where(is_late).values(**facts, state="failed", ended_at=now_ms()))
    if moved.rowcount == 0:  # type: ignore[attr-defined]
        session.execute(pending.values(**facts, due_at=due_at))


def wait_seconds(attempt: int) -> float:
    """Return the backoff after the n-th attempt: doubling, with jitter, up to three hours."""
    longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(attempt - 1, 30))
    return random.uniform(longest / 2, longest)


@cache
def _enabled() -> Select[str, int, Any]:
    return select(Webhook.id, Webhook.stalled_minutes, Webhook.events).where(Webhook.disabled_at.is_(None))


@cache
def _open() -> Select[str, int, int]:
    return select(Attempt.job_id, Attempt.number, Attempt.delivered_seq).where(Attempt.ended_at.is_(None))


class StallWatch:
    """Notices open attempts that report nothing; each server counts by its own monotonic clock.

    Args:
        database: where the attempts are.
        clock: monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._since: dict[tuple[str, int], tuple[int, float]] = {}  # by attempt: its last record, and since when
        self._reported: set[tuple[str, str, int, int]] = set()

    def poll(self) -> None:
        """Add a message for each webhook whose time has passed since the last record of an attempt."""
        enabled = self._database.read_once(lambda session: session.execute(_enabled()).all())
        webhooks = [each for each in enabled if outbox.STALLED in each.events]
        attempts = self._database.read_once(lambda session: session.execute(_open()).all()) if webhooks else []
        now = self._clock()
        last = self._since
        self._since = {
            (job_id, number): entry if (entry := last.get((job_id, number))) and entry[0] == seq else (seq, now)
            for job_id, number, seq in attempts
        }
        stalled = {
            (webhook.id, job_id, number, seq)
            for (job_id, number), (seq, since) in self._since.items()
            for webhook in webhooks
            if now - since >= 60 * webhook.stalled_minutes
        }
        for each in sorted(stalled - self._reported):
            self._database.write(lambda session, each=each: outbox.on_stalled(session, *each))  # type: ignore[misc]
        self._reported = stalled
