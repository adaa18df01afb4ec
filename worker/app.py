"""The Celery app: one queue, one task.  A message is only a wake-up.

The broker decides about nothing: whatever it does to Celery's consumer, the worker and its run live, and the ticker
polls the database.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from typing import Any, TextIO

from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.worker import state

from jobs import wake_up
from jobs.settings import Settings
from worker import broker
from worker.backoff import Backoff
from worker.slots import Slots

log = logging.getLogger(__name__)

_STEADY_SECONDS = 15.0  # of a consumer, before wake-ups count as arriving again


def make_app(settings: Settings, slots: Slots, draining: threading.Event) -> Celery:
    """Return the Celery app of this worker; its stop signal sets `draining` at once.

    Messages are acknowledged early and carry no result.  The database alone decides which job runs where, so a lost,
    doubled or forged wake-up changes nothing.
    """
    broker.install()
    app = Celery("wcl", broker=settings.resolved_broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=wake_up.queue_of(settings.pool),
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not settings.is_memory_broker,  # only the Redis transport has it
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        worker_consumer=broker.Consumer,
        worker_timer_precision=broker.TIMER_SECONDS,
        broker_connection_max_retries=None,
        broker_transport_options=wake_up.transport_options(settings.resolved_broker_url),
    )

    @app.task(name=wake_up.TASK)  # type: ignore[untyped-decorator]
    def work() -> None:
        slots.work()

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**facts: Any) -> None:
        del facts
        draining.set()
        broker.wake_consumer()

    return app


def run(app: Celery, settings: Settings, draining: threading.Event) -> None:
    """Consume wake-ups until SIGTERM, SIGINT or `stop`; return when the consumer has ended.

    An error of the broker, or a message that Celery cannot read, ends the consumer.  Another one starts after a pause.
    """
    celery_worker.safe_say = _say
    consumer_log = _ConsumerLog()
    for handler in logging.getLogger().handlers:
        handler.addFilter(consumer_log)
    broker.listening.connect(consumer_log.note_ready, weak=False)
    backoff = Backoff(settings.lease_seconds)
    while not draining.is_set():
        _consume(app, settings)
        if not draining.is_set():
            _discard_wake_ups(app, settings)
            draining.wait(backoff.pause())


def _consume(app: Celery, settings: Settings) -> None:
    worker = _worker_class(app)(
        hostname=f"{settings.worker_name}@wcl",
        pool="threads",
        concurrency=1,
        queues=[wake_up.queue_of(settings.pool)],
        loglevel="INFO",
        quiet=True,  # no banner in the log
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
    )
    worker.start()


def _worker_class(app: Celery) -> type[Any]:
    """Return Celery's worker without its own handler of SIGHUP, which would replace the process by another one."""

    class Worker(app.Worker):  # type: ignore[misc]
        def install_platform_tweaks(self, worker: Any) -> None:
            handler = signal.getsignal(signal.SIGHUP)
            super().install_platform_tweaks(worker)
            signal.signal(signal.SIGHUP, handler)

    return Worker


def _say(message: str, file: TextIO | None = None) -> None:
    """Write what Celery's handlers of signals print as a line of the log, in its form.

    It takes no lock of the log: the signal may have interrupted a thread that holds it.
    """
    del file
    record = logging.LogRecord("celery.apps.worker", logging.INFO, "", 0, message, (), None)
    for handler in logging.getLogger().handlers:
        with suppress(OSError):
            os.write(2, f"{handler.format(record)}\n".encode())


def _discard_wake_ups(app: Celery, settings: Settings) -> None:
    """Empty the queue: a message that has ended the consumer would end it again, and wake-ups are only hints."""
    with suppress(Exception), app.connection_for_write() as connection:
        connection.channel().queue_purge(wake_up.queue_of(settings.pool))


class _ConsumerLog(logging.Filter):
    """A filter that logs one line when wake-ups stop arriving, and one when they arrive again.

    It drops Celery's own lines for each retry.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_lost = False
        self._steady: threading.Timer | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(("celery.worker", "celery.apps", "kombu")):
            return True
        args = record.args if isinstance(record.args, tuple) else ()
        error = next((value for value in args if isinstance(value, BaseException)), None)
        if error is not None and record.levelno >= logging.WARNING:
            self._note_lost(error)
        return not self._is_lost

    def note_ready(self, **facts: Any) -> None:
        """Note that a consumer listens; a broken broker may accept it, and then refuse its first request."""
        del facts
        if self._is_lost:
            self._steady = threading.Timer(_STEADY_SECONDS, self._note_back)
            self._steady.daemon = True
            self._steady.start()

    def _note_lost(self, error: BaseException) -> None:
        if self._steady is not None:
            self._steady.cancel()
        if not self._is_lost:
            self._is_lost = True
            log.warning("wake-ups do not arrive (%s: %s); this worker polls the database", type(error).__name__, error)

    def _note_back(self) -> None:
        self._is_lost = False
        log.info("wake-ups arrive again")


def stop() -> None:
    """End `run` in order, as Celery's own handler of SIGTERM does, even before it has started."""
    state.should_stop = 0  # the exit code
    broker.wake_consumer()
