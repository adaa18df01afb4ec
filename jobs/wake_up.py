"""Wake-ups: Celery messages that tell a pool there is work.

A wake-up is only a hint: idle workers also poll the database, so a lost or doubled one changes nothing.  The
worker's Celery app is addressed by the name of its task alone, so this module imports nothing of the worker.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.devices import free_of
from jobs.eligibility import takers
from jobs.fault_log import FaultLog
from jobs.models import Job
from jobs.queue import job_queue
from jobs.settings import Settings
from wcl_core.failpoints import failpoint

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

TASK = "wcl.work"
EXPIRES_SECONDS = 30
_CONNECT_SECONDS = 2
_THREAD_NAME = "wake-up"


def queue_of(pool: str) -> str:
    """Return the name of the Celery queue that the workers of a pool consume."""
    return f"wcl.{pool}"


def transport_options(broker_url: str) -> dict[str, Any]:
    """Return the broker options that server and worker share."""
    if broker_url.startswith("memory"):
        return {}
    return {
        "global_keyprefix": "wcl:",
        "socket_timeout": 10,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "visibility_timeout": 3600,
    }


@lru_cache(maxsize=4)
def _producer(broker_url: str) -> Celery:
    from celery import Celery  # a server without a broker needs none of it

    app = Celery("wcl", broker=broker_url, set_as_current=False)
    # Without a limit of retries kombu would wait for an absent broker for ever.
    few_retries = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    app.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        broker_transport_options=transport_options(broker_url) | few_retries,
        broker_connection_timeout=_CONNECT_SECONDS,
    )
    return app


def send(settings: Settings, pool: str) -> None:
    app = _producer(settings.resolved_broker_url)
    failpoint("wake_up.before_publish", error=ConnectionError)
    app.send_task(TASK, queue=queue_of(pool), expires=EXPIRES_SECONDS, retry=False, ignore_result=True)
    failpoint("wake_up.after_publish", error=ConnectionError)


def problem(settings: Settings) -> str | None:
    """Return why the broker cannot be reached, a sentence without a full stop; None if it can."""
    if settings.is_memory_broker:
        return None
    try:
        with _producer(settings.resolved_broker_url).connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
    except Exception as error:  # brokers raise what their clients raise
        log.debug("the broker does not respond: %s", error)
        return "the broker does not respond; workers poll for jobs meanwhile, so jobs start some seconds later"
    return None


def send_where_needed(database: Database, settings: Settings, faults: FaultLog | None = None) -> None:
    """Send wake-ups to pools that have a due job and a worker with room for it, at most one for each such worker.

    A broker that does not respond only costs time: idle workers poll the database themselves.
    """
    if settings.is_memory_broker:
        return
    with database.read() as session:
        counts = _counts_by_pool(session)
    for pool, count in counts.items():
        try:
            for _ in range(count):
                send(settings, pool)
        except Exception as error:  # brokers raise what their clients raise
            (faults or _faults()).failed(error, f"the broker refused a wake-up: {error}")
            return
    if faults is not None:
        faults.succeeded()


def _faults() -> FaultLog:
    return FaultLog(log, "the sending of wake-ups")


class WakeUpSender:
    """The sender of wake-ups on a thread of its own, so that a broker that never responds delays no caller.

    Args:
        database: where due jobs and idle workers are read.
        settings: the broker.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._is_needed = threading.Event()
        self._is_sending = threading.Lock()
        self._faults = _faults()

    def start(self) -> None:
        """Start `send_where_needed` on a thread; while an earlier call waits for the broker, it runs after that."""
        if not self._settings.is_memory_broker:
            self._is_needed.set()
            self._start_thread()

    def _start_thread(self) -> None:
        if self._is_sending.acquire(blocking=False):
            threading.Thread(target=self._send, daemon=True, name=_THREAD_NAME).start()

    def _send(self) -> None:
        try:
            while self._is_needed.is_set():
                self._is_needed.clear()
                send_where_needed(self._database, self._settings, self._faults)
        except Exception as error:  # the next poll sends again
            self._faults.failed(error)
        finally:
            self._is_sending.release()
        if self._is_needed.is_set():  # set after the last look at it
            self._start_thread()


def _counts_by_pool(session: Session) -> dict[str, int]:
    """Return the number of wake-ups for each pool: workers with room for one of its due jobs, but no more than jobs.

    The queue is read only for pools with a worker that has room: each submission leads here, and most find all workers
    busy.
    """
    every = takers(session)
    free = free_of(session, every)
    workers = [worker for worker in every if not free[worker.id].is_empty]
    if not workers:
        return {}
    # Numbers of nodes of the waiting jobs by pool, by the GPUs that they need on a worker, and by the job's nodes.
    waiting: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    kinds = (Job.pool, Job.gpus, Job.nodes)
    is_ready = job_queue(session).is_ready(), Job.pool.in_({worker.pool for worker in workers})
    for pool, gpus, nodes, count in session.execute(select(*kinds, func.count()).where(*is_ready).group_by(*kinds)):
        waiting[pool][gpus, nodes] = count * nodes
    able: dict[str, set[str]] = defaultdict(set)
    for pool, needs in waiting.items():
        for gpus, nodes in needs:
            of_pool = [each for each in workers if each.pool == pool and (nodes == 1 or each.address is not None)]
            with_room = {each.id for each in of_pool if free[each.id].holds(gpus)}
            able[pool] |= with_room if len(with_room) >= nodes else set()
    return {pool: min(len(ids), waiting[pool].total()) for pool, ids in able.items() if ids}
