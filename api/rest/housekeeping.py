"""What a server removes in the background: deleted jobs after the time for a restore, files without owner, old rows."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from api.rest import exports
from jobs import activity, expiry, search, weights
from jobs.database import Database
from jobs.fault_log import FaultLog
from jobs.purge import purge_due
from jobs.settings import Settings
from jobs.storage import Storage

log = logging.getLogger(__name__)

_PURGE_SECONDS = 60.0
_SWEEP_SECONDS = 600.0


def keep_clean(database: Database, storage: Storage, settings: Settings, stop: threading.Event) -> None:
    """Clean up at once and then at intervals, until `stop`; runs on a thread of its own."""
    purging = FaultLog(log, "the removal of deleted jobs")
    sweeping = FaultLog(log, "the removal of exports of deleted checkpoints")
    importing = FaultLog(log, "the removal of half imports of weights")
    expiring = FaultLog(log, "the removal of old entries of the activity log")
    logs = FaultLog(log, "the removal of old output of jobs")
    events = FaultLog(log, "the removal of old events of jobs")
    points = FaultLog(log, "the removal of old points of curves")
    workers = FaultLog(log, "the removal of workers that ended")
    indexing = FaultLog(log, "the building of the index of searches")
    next_sweep = 0.0
    is_over = False
    while not is_over:
        _try(lambda: purge_due(database, storage, settings.restore_days, stop), purging)
        if time.monotonic() >= next_sweep:
            next_sweep = time.monotonic() + _SWEEP_SECONDS
            _try(lambda: exports.sweep(database, settings.exports_dir, settings.export_days), sweeping)
            _try(lambda: weights.collect(database, storage), importing)
            _try(lambda: activity.expire(database, settings.activity_days), expiring)
            _try(lambda: expiry.expire_logs(database, settings.log_days, stop), logs)
            _try(lambda: expiry.expire_events(database, settings.event_days, stop), events)
            _try(lambda: expiry.thin_curves(database, settings.point_days, stop), points)
            _try(lambda: expiry.expire_workers(database, settings.worker_days), workers)
            _try(lambda: search.build(database), indexing)
        is_over = stop.wait(_PURGE_SECONDS)


def _try(work: Callable[[], object], faults: FaultLog) -> None:
    try:
        work()
        faults.succeeded()
    except Exception as error:  # nothing restarts the thread
        faults.failed(error)
