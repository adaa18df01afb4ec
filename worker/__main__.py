"""`python -m worker`: registers itself, then works until SIGTERM; a running job is saved and returned to the queue."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import warnings

from celery.platforms import SecurityWarning
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from jobs import registry
from jobs.database import Database, new_id
from jobs.models import Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from jobs.storage import LocalStorage
from jobs.transitions import WorkerFacts
from wcl_core.config import SPEC_VERSIONS
from worker import app, datasets, leftovers
from worker.slot import Slot
from worker.supervisor import Supervisor
from worker.ticker import Ticker

log = logging.getLogger("worker")

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main() -> int:
    """Run one worker; 0 after an orderly stop."""
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    # What Celery warns of is code in pickled messages; ours are JSON and name no more than the one task.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    settings = Settings()
    database = Database(settings.resolved_database_url)
    storage = LocalStorage(settings.checkpoints_dir)
    sources = datasets.find(settings)
    facts = WorkerFacts(
        id=new_id(),
        name=settings.worker_name,
        pool=settings.pool,
        gpus=_num_gpus() if settings.gpus is None else settings.gpus,
        datasets={name: source.facts.digest for name, source in sources.items()},
        spec_versions=SPEC_VERSIONS,
    )
    _wait_for_tables(database)
    leftovers.settle(database, storage, settings)
    announced = [source.facts for source in sources.values()]
    database.write(lambda session: registry.register(session, facts, os.getpid(), announced))
    draining, stop = threading.Event(), threading.Event()
    supervisor = Supervisor(database, storage, settings, sources, draining)
    slot = Slot(database, facts, supervisor, draining)
    # They do not wait for the broker: an absent one must not keep a worker from its work.
    for thread in (Reconciler(database, settings, rings=False), Ticker(database, settings, facts.id, slot)):
        threading.Thread(target=thread.run, args=(stop,), name=type(thread).__name__, daemon=True).start()
    log.info("worker %s in pool %s with %s", facts.name, facts.pool, ", ".join(sources) or "no datasets")
    try:
        app.run(app.make_app(settings, slot, draining), settings)
    finally:
        draining.set()
        slot.wait(settings.drain_seconds)
        stop.set()
        _say_goodbye(database, facts.id)
    return 0


def _num_gpus() -> int:
    """The GPUs this process may use, asked of the driver: loading torch for it would take a GPU's memory for good."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listing.stdout.splitlines())


def _wait_for_tables(database: Database) -> None:
    """The server or `python -m jobs migrate` makes them; until then there is nothing to do."""
    is_waiting = False
    while True:
        try:
            with database.read() as session:
                session.execute(select(Worker.id).limit(1)).first()
            return
        except DBAPIError as error:
            if not is_waiting:
                log.warning("waiting for the database and its tables: %s", error.orig)
            is_waiting = True
            time.sleep(1)


def _say_goodbye(database: Database, worker_id: str) -> None:
    try:
        database.write(lambda session: registry.stop(session, worker_id))
    except DBAPIError as error:
        log.warning("the database does not take the goodbye: %s", error.orig)


if __name__ == "__main__":
    sys.exit(main())
