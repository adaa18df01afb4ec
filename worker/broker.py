"""The guard between the broker and Celery: only wake-ups pass, and anything else is dropped and counted.

A broker is shared by whoever can write into it, and a message that Celery cannot read ends its consumer and comes
back to the next one.  So nothing of a message is used but its name, its id and its time of expiry.

    Redis ── Channel: reads the envelope ──► Consumer: reads the headers and the body ──► Celery's strategy
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import Any

from celery.utils.dispatch import Signal
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, memory, redis, virtual
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import make_url

from jobs import wake_up

log = logging.getLogger(__name__)

_LOG_SECONDS = 60.0
_RETRY_SECONDS = 5  # the longest pause between two tries to connect
TIMER_SECONDS = 0.2  # the longest wait until Celery's timer hears that the worker stops
_LONGEST_WAIT_SECONDS = 1.0  # of a consumer in memory that nothing wakes up
_FORGET_EVERY = 10  # of the times at which Celery looks for messages to restore
_BODY = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


class _WakeUp(BaseModel):
    """The headers of a wake-up that are used."""

    model_config = ConfigDict(strict=True, extra="ignore")

    task: str = Field(pattern=f"^{re.escape(wake_up.TASK)}$")
    id: str = Field(pattern="^[0-9a-f-]{36}$")
    expires: AwareDatetime | None = Field(default=None, strict=False)


class Dropped:
    """The number of messages that were dropped, and a line in the log for them, at most once a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._clock = clock
        self._next_line = clock()

    def add(self, error: Exception) -> None:
        """Count one message."""
        self.count += 1
        if self._clock() >= self._next_line:
            self._next_line = self._clock() + _LOG_SECONDS
            reason = type(error).__name__
            log.warning("dropped a message of the broker that is no wake-up (%s); %d so far", reason, self.count)


dropped = Dropped()
_is_awake = threading.Event()  # a message came into the queue in memory, or the worker stops
listening = Signal(name="listening")  # a consumer has a connection and waits for messages
_ERRORS_OF_REDIS = (
    OSError,
    Empty,
    ConnectionError,
    BusyLoadingError,
    AuthenticationError,
    RedisTimeoutError,
    ResponseError,
)


class Message(virtual.Message):
    """A message that is never decompressed: a few bytes could fill the memory."""

    def __init__(self, payload: Any, channel: Any = None, **fields: Any) -> None:
        if payload["headers"].get("compression"):
            raise ValueError("it is compressed")
        super().__init__(payload, channel, **fields)  # type: ignore[no-untyped-call]


class QoS(redis.QoS):
    """The record of unacknowledged messages, of which none is sent again.

    A wake-up that its worker did not take costs the time until the next poll.  What lies in the record may be anything.
    """

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Remove what earlier workers left, now and then."""
        self._vrestore_count += 1
        if self._vrestore_count % _FORGET_EVERY == 1:
            with self.channel.conn_or_acquire() as client:
                client.delete(self.unacked_key, self.unacked_index_key)


class Channel(redis.Channel):
    """A channel of Redis that drops an envelope that cannot be read."""

    Message, QoS = Message, QoS

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]
        except _ERRORS_OF_REDIS:
            raise
        except Exception as error:  # the message is in no queue any more
            dropped.add(error)
            return True


class Transport(redis.Transport):
    """Redis with the guarded channel."""

    Channel = Channel


class MemoryChannel(memory.Channel):
    """The channel in memory, which wakes up the consumer."""

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        super()._put(queue, message, **options)  # type: ignore[no-untyped-call]
        wake_consumer()


class MemoryTransport(memory.Transport):
    """The queue in memory, whose consumer sleeps until a message or a stop; kombu looks 50 times a second."""

    Channel = MemoryChannel

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> None:
        _is_awake.clear()  # before the look: a message that comes after it ends the wait
        try:
            super().drain_events(connection, timeout=0)  # type: ignore[no-untyped-call]
        except TimeoutError:
            if not _is_awake.wait(min(timeout or _LONGEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)):
                raise
            super().drain_events(connection, timeout=0)  # type: ignore[no-untyped-call]


def wake_consumer() -> None:
    """Let a consumer in memory look for messages, and for a stop, at once."""
    _is_awake.set()


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """A consumer that hands Celery only wake-ups, in the form in which the server sends them."""

    def create_task_handler(self, **options: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(**options)

        def on_message(message: Any) -> None:
            try:
                reduce(message)
            except Exception as error:  # a message may raise anything, a RecursionError among others
                dropped.add(error)
                message.ack()
            else:
                handle(message)

        return on_message

    def ensure_connected(self, conn: Any) -> Any:
        """Connect to the broker; after a long outage, listen again within seconds and not within half a minute."""
        conn.ensure_connection = partial(conn.ensure_connection, interval_max=_RETRY_SECONDS)
        return super().ensure_connected(conn)

    def on_ready(self) -> None:
        """Send `listening`; Celery's own `worker_ready` is not sent again after it has reconnected by itself."""
        super().on_ready()
        listening.send(sender=self)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message that kombu cannot read."""
        dropped.add(exc)
        message.ack()


def reduce(message: Any) -> None:
    """Reduce a message to what is used of a wake-up.

    Raises:
        ValueError: it is none.
    """
    headers = _WakeUp.model_validate(message.headers)
    if message.content_type != "application/json" or json.loads(message.body)[:2] != _BODY[:2]:
        raise ValueError("its body is not that of a wake-up")
    expires = None if headers.expires is None else headers.expires.isoformat()
    message.headers = {
        "lang": "py",
        "task": headers.task,
        "id": headers.id,
        "root_id": headers.id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": expires,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "()",
        "kwargsrepr": "{}",
        "ignore_result": True,
    }
    message.body, message.content_encoding = json.dumps(_BODY), "utf-8"
    message.delivery_info = {"exchange": "", "routing_key": ""}
    message.properties = {"correlation_id": headers.id, "reply_to": "", "delivery_info": message.delivery_info}


def problem(url: str) -> str | None:
    """Return why a broker does not respond; None if it does, or is in memory."""
    if url.startswith("memory"):
        return None
    try:
        options = wake_up.transport_options(url) | {"max_retries": 1, "interval_start": 0}
        with Connection(url, transport_options=options) as connection:  # type: ignore[no-untyped-call]
            connection.connect()
            connection.default_channel.client.ping()
    except (*_ERRORS_OF_REDIS, OperationalError) as error:
        return f"{make_url(url).host or 'the broker'} does not respond: {str(error).splitlines()[0]}"
    return None


def install() -> None:
    """Let every connection of this process use the transports of this module, whatever the form of its URL."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:{Transport.__name__}"))
    TRANSPORT_ALIASES["memory"] = f"{__name__}:{MemoryTransport.__name__}"
