"""The Celery app: one queue, one task, one slot.  A message is only a wake-up."""

from __future__ import annotations

import signal
import threading
from typing import Any

from celery import Celery, signals
from celery.worker import state

from jobs import wake_up
from jobs.settings import Settings
from worker.slot import Slot


def make_app(settings: Settings, slot: Slot, draining: threading.Event) -> Celery:
    """Return the Celery app of this worker; its stop signal sets `draining` at once.

    Messages are acknowledged early and carry no result.  The database alone decides which job runs where, so a lost,
    doubled or forged wake-up changes nothing.
    """
    app = Celery("wcl", broker=settings.broker_url, set_as_current=False)
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
        broker_connection_max_retries=None,
        broker_transport_options=wake_up.transport_options(settings.broker_url),
    )

    @app.task(name=wake_up.TASK)  # type: ignore[untyped-decorator]
    def work() -> None:
        slot.work()

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**facts: Any) -> None:
        del facts
        draining.set()

    return app


def run(app: Celery, settings: Settings) -> None:
    """Consume messages until SIGTERM, SIGINT or `stop`; return when the slot is empty."""
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


def stop() -> None:
    """End `run` in order, as Celery's own handler of SIGTERM does, even before it has started."""
    state.should_stop = 0  # the exit code
