"""`python -m worker`: registers itself, then works until SIGTERM; a running job is saved and returned to the queue.

With `--once` it takes one job, or none when none waits, and ends: so a batch system can start it.  With `--max-seconds`
it stops by itself, in the same order, before that time is over.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence

from celery.platforms import SecurityWarning
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from jobs import workers
from jobs.database import Database, new_id
from jobs.eligibility import WorkerFacts
from jobs.models import Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from jobs.storage import LocalStorage
from wcl_core.config import SPEC_VERSIONS
from worker import app, datasets, process, recovery
from worker.devices import device_bytes
from worker.garbage import sweep
from worker.slot import Slot
from worker.supervisor import Supervisor
from worker.ticker import Ticker

log = logging.getLogger("worker")

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; 0 after a stop that was asked for, whatever became of its jobs."""
    settings = Settings()
    options = _options(arguments, settings)
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT)
    # What Celery warns of is code in pickled messages; ours are JSON and name no more than the one task.
    warnings.filterwarnings("ignore", category=SecurityWarning)
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
    process.adopt_orphans()
    _wait_for_tables(database)
    announced = [source.facts for source in sources.values()]
    memory = device_bytes(facts.gpus)
    database.write(lambda session: workers.register(session, facts, os.getpid(), announced, memory))
    draining, stop = threading.Event(), threading.Event()
    supervisor = Supervisor(database, storage, settings, sources, draining)
    slot = Slot(database, facts, supervisor, draining)

    def drain() -> None:
        draining.set()
        app.stop()

    for number in (signal.SIGTERM, signal.SIGINT):  # until Celery takes them over; with `--once` it never does
        signal.signal(number, lambda *_: drain())
    ticker = Ticker(database, settings, facts.id, slot, drain, looks=not options.once)
    reconciler = Reconciler(database, settings, rings=False)
    # They do not wait for the broker: an absent one must not keep a worker from its work.
    _start("reconciler", lambda: reconciler.run(stop))
    _start("ticker", lambda: ticker.run(stop))
    # Beside the work: the more an earlier worker left, and the longer the history, the longer it takes.
    _start("leftovers", lambda: recovery.settle_all(database, storage, settings, slot.open))
    _start("sweep", lambda: sweep(database, storage, storage.job_ids()))
    if options.max_seconds is not None:
        _after(options.max_seconds - settings.drain_seconds, drain)
    log.info("worker %s in pool %s with %s", facts.name, facts.pool, ", ".join(sources) or "no datasets")
    try:
        if options.once:
            _work_once(slot)
        else:
            app.run(app.make_app(settings, slot, draining), settings)
        was_asked = options.once or draining.is_set()
    finally:
        draining.set()
        slot.wait(settings.drain_seconds)
        stop.set()
        _say_goodbye(database, facts.id)
    return 0 if was_asked else 1  # whoever watches starts another one in place of one that nobody ended


def _options(arguments: Sequence[str] | None, settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--once", action="store_true", help="take one job, or none, and end")
    parser.add_argument("--max-seconds", type=float, help="stop in order before so much time is over")
    options = parser.parse_args(arguments)
    if options.max_seconds is not None and not options.max_seconds > settings.drain_seconds:
        expected = f"expected more than the {settings.drain_seconds:g} s that an orderly stop may take"
        parser.error(f"argument --max-seconds: {options.max_seconds:g} is too short; {expected} (WCL_DRAIN_SECONDS)")
    return options


def _work_once(slot: Slot) -> None:
    if not slot.work_once():
        log.info("no job waits that fits this worker")


def _start(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _after(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


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
        database.write(lambda session: workers.stop(session, worker_id))
    except DBAPIError as error:
        log.warning("the database does not take the goodbye: %s", error.orig)


if __name__ == "__main__":
    sys.exit(main())
