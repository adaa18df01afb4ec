"""The Celery producer: a bell tells a pool that there is work.  It carries no authority and may be lost or doubled.

The worker's app is named by its task alone, so nothing of the worker is imported here.
"""

from __future__ import annotations

import logging
import threading
from functools import lru_cache
from typing import Any

from celery import Celery
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.database import Database, is_outage
from jobs.eligibility import is_due, takes_jobs
from jobs.models import Job, Worker
from jobs.settings import Settings
from wcl_core.failpoints import failpoint

log = logging.getLogger(__name__)

TASK = "wcl.work"
EXPIRES_SECONDS = 30
_CONNECT_SECONDS = 2


def queue_of(pool: str) -> str:
    """The Celery queue that the workers of a pool listen to."""
    return f"wcl.{pool}"


def transport_options(broker_url: str) -> dict[str, Any]:
    """Broker options that producer and worker share; a memory broker has none."""
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
    app = Celery("wcl", broker=broker_url)
    # Without a limit of retries kombu would wait for an absent broker for ever.
    few_retries = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    app.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        broker_transport_options=transport_options(broker_url) | few_retries,
        broker_connection_timeout=_CONNECT_SECONDS,
    )
    return app


def ring_for_waiting(database: Database, settings: Settings) -> None:
    """Ring pools that have both a claimable job and a free worker, at most once per free worker.

    A broker that does not answer costs nothing but time: idle workers look by themselves.
    """
    if settings.is_memory_broker:
        return
    with database.read() as session:
        bells = _bells(session)
    for pool, count in bells.items():
        try:
            for _ in range(count):
                ring(settings, pool)
        except Exception as error:  # brokers raise what their clients raise
            log.warning("the broker does not take a doorbell: %s", error)
            return


class Ringer:
    """Rings for whoever must not wait: a broker that accepts and never answers would hold up its thread.

    Args:
        database, settings: the service.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._is_ringing = threading.Lock()

    def ring(self) -> None:
        """`ring_for_waiting` on a thread of its own; nothing while the call before still waits for the broker."""
        if not self._settings.is_memory_broker and self._is_ringing.acquire(blocking=False):
            threading.Thread(target=self._ring, daemon=True, name="doorbell").start()

    def _ring(self) -> None:
        try:
            ring_for_waiting(self._database, self._settings)
        except Exception as error:  # the next look rings again
            if is_outage(error):
                log.warning("nobody rings while the database does not answer")
            else:
                log.exception("ringing failed")
        finally:
            self._is_ringing.release()


def ring(settings: Settings, pool: str) -> None:
    """One bell for one pool."""
    app = _producer(settings.broker_url)
    failpoint("doorbell.before_publish", error=ConnectionError)
    app.send_task(TASK, queue=queue_of(pool), expires=EXPIRES_SECONDS, retry=False, ignore_result=True)
    failpoint("doorbell.after_publish", error=ConnectionError)


def _bells(session: Session) -> dict[str, int]:
    waiting = select(Job.pool, func.count()).where(is_due()).group_by(Job.pool)
    idle = select(Worker.pool, func.count()).where(takes_jobs(), Worker.state == "idle").group_by(Worker.pool)
    free = dict(session.execute(idle).all())
    jobs = session.execute(waiting).all()
    return {pool: min(count, free[pool]) for pool, count in jobs if free.get(pool)}
