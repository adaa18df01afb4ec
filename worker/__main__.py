"""`python -m worker`: runs jobs until SIGTERM; then it saves the running job and returns it to the queue.

With `--once` the worker runs at most one job and exits; it exits at once if no job waits.  With `--max-seconds` it
drains by itself before that time is over.  Both are for batch systems.
"""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # the imports make a million objects that stay; collecting meanwhile takes a fifth of the start

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

from celery.platforms import SecurityWarning
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from jobs import joining, schema, storage_id, transitions, workers
from jobs.database import Database, Signal, new_id
from jobs.eligibility import WorkerFacts
from jobs.fault_log import FaultLog
from jobs.faults import describe, refused_login
from jobs.logs import log_error, log_to_stderr
from jobs.reconciler import Reconciler
from jobs.settings import InvalidSettings, Settings, read_settings
from jobs.storage import StorageUnavailable, open_storage
from jobs.wake_up import WakeUpSender
from wcl_core import addresses, orphans
from wcl_core.config import SPEC_VERSIONS
from wcl_core.files import PRIVATE_UMASK
from wcl_core.limits import memory_bytes
from wcl_core.text import Arguments, write_error, write_line
from wcl_core.version import VERSION
from worker import app, broker, datasets, devices, process, recovery
from worker.ability import Ability, StorageCheck
from worker.datasets import DatasetCheck
from worker.garbage import collect_all_garbage
from worker.registration import Registration
from worker.room import RoomCheck
from worker.scrub import Scrub
from worker.slots import Slots
from worker.standby import Standby
from worker.supervisor import Supervisor
from worker.ticker import Ticker

log = logging.getLogger("worker")

_SCHEMA_SECONDS = 0.25  # between two looks at a schema that is about to be upgraded
_END_SECONDS = 15.0  # of an attempt that drains, beside the time of its run: to kill it, and to remove its folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; return 0 after a requested stop, also when jobs have failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = read_settings()
    except InvalidSettings as error:
        for line in error.problems:
            write_error(line)
        return os.EX_CONFIG
    if problem := _time_problem(options.max_seconds, settings):
        parser.error(problem)
    if options.wait_for_stdin:
        while os.read(0, 1024):
            pass
    log_to_stderr(settings.log_format)
    # Runs and the standby process inherit it; a second run of the same network is compiled within seconds.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.resolved_cache_dir / "compiler"))
    orphans.adopt()
    # Celery warns of code in pickled messages; ours are JSON and name only the one task.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    database = Database(settings.resolved_database_url, settings.database_connections)
    try:
        return _check(database, settings) if options.check else _run(database, settings, options)
    finally:
        database.dispose()


def _run(database: Database, settings: Settings, options: argparse.Namespace) -> int:
    """Run one worker until its requested stop, and return its exit code."""
    storage = open_storage(settings)
    try:
        storage_id.refuse_new_database(settings)
    except StorageUnavailable as error:
        log_error(log, str(error), settings.log_format)
        return os.EX_CONFIG
    try:
        machine = devices.find(settings)
    except devices.TooFewDevices as error:
        log_error(log, str(error), settings.log_format)
        return os.EX_CONFIG
    try:
        network = None if settings.node_address is None else addresses.resolve(settings.node_address)
    except ValueError as error:
        log_error(log, f"WCL_NODE_ADDRESS: {error}", settings.log_format)
        return os.EX_CONFIG
    sources: dict[str, datasets.Source] = {}
    facts = WorkerFacts(
        id=new_id(),
        name=settings.worker_name,
        pool=settings.pool,
        devices=machine.devices,
        datasets={},
        spec_versions=SPEC_VERSIONS,
        cpu_slots=machine.cpu_slots,
        address=network and network[0],
        takes_one=options.once,
        own_datasets=tuple(datasets.names(settings)),
    )
    memory, compiles = memory_bytes(), devices.has_compiler(machine)
    draining, stop = threading.Event(), threading.Event()
    room = RoomCheck(settings)
    registration = Registration(database, settings, facts, sources, draining)
    dataset_check = DatasetCheck(sources, registration.note_changed)
    ability = Ability(room, StorageCheck(database, storage), dataset_check)

    def register() -> None:
        unable, names = ability.check(), registration.names()
        database.write(
            lambda session: workers.register(session, facts, os.getpid(), (), memory, unable, names, compiles)
        )

    def drain() -> None:
        draining.set()
        app.stop()

    for number in (signal.SIGTERM, signal.SIGINT):  # until Celery takes them over; with `--once` it never does
        signal.signal(number, lambda *_: drain())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under `nohup` the worker outlives its terminal
        signal.signal(signal.SIGHUP, lambda *_: drain())
    try:
        _wait_for_schema(database, settings, draining)
    except schema.Unusable as error:
        log_error(log, str(error), settings.log_format)
        return os.EX_CONFIG
    _repeat(register, FaultLog(log, "the registration of this worker"), draining)
    if draining.is_set():
        return 0
    log.info("worker %s of version %s is registered", facts.name, VERSION)
    with FaultLog(log, "the look for workers of the same name"), database.read() as session:
        if (warning := workers.namesakes(session, facts)) is not None:
            log.warning("%s", warning)
    standby = _standby(settings, options)  # its imports delay neither the registration nor the start of the server
    supervisor = Supervisor(database, storage, settings, sources, draining, machine, standby, network)
    slots = Slots(
        database,
        facts,
        supervisor,
        draining,
        ability,
        room,
        machine,
        settings.hold_seconds,
        on_bad_data=registration.note_changed,
        node_wait_seconds=settings.node_wait_seconds,
        absent=lambda: dataset_check.absent,
    )

    def open_slots() -> None:
        slots.open()
        ticker.heartbeat_soon()

    ticker = Ticker(database, settings, facts.id, slots, drain, polls=not options.once)
    reconciler = Reconciler(database, settings, sends_wake_ups=False)
    database.on(Signal.DUE, ticker.poll_soon)
    database.on(Signal.DUE, WakeUpSender(database, settings).start)
    database.on(Signal.MET, reconciler.nudge)
    # These threads do not wait for the broker, so the worker works without one.
    _start("reconciler", lambda: reconciler.run(stop))
    _start("nudged", lambda: reconciler.run_nudged(stop))
    _start("ticker", lambda: ticker.run(stop))
    # On threads of their own: their time grows with the history and with the attempts of an earlier worker.
    _start("datasets", registration.run)
    _start("recovery", lambda: recovery.recover_all(database, storage, settings, open_slots))
    _start("garbage", lambda: collect_all_garbage(database, storage))
    _start("scrub", lambda: Scrub(database, storage, settings).run(stop))
    if options.max_seconds is not None:
        _after(options.max_seconds - settings.drain_seconds, drain)
    try:
        if not options.once:
            app.run(app.make_app(settings, slots, draining), settings, draining)
        elif not slots.work_once(registration.is_awaited) and ability.unable is None:
            log.info("no waiting job fits this worker")
        was_requested = options.once or draining.is_set()
    finally:
        draining.set()
        slots.wait(settings.drain_seconds + _END_SECONDS)
        stop.set()
        if standby is not None:
            standby.stop()
        _mark_stopped(database, facts.id, settings.max_failures)
    if ticker.has_drained:
        if options.drained_wait:
            _wait_for_signal()
        return int(options.drained_exit)
    return 0 if was_requested else 1  # `wcl up` and service managers restart a worker that ends with 1


def _check(database: Database, settings: Settings) -> int:
    """Print what keeps a worker from running here, by setting, or `ok`; return 1 if anything does."""
    problems: list[str] = []
    storage = open_storage(settings)
    try:
        if (reason := schema.absence(settings) or schema.awaited(database)) is not None:
            problems.append(f"WCL_DATABASE_URL: {reason}")
        elif (lacking := database.read_once(joining.rights_problem)) is not None:
            problems.append(f"WCL_DATABASE_URL: {lacking}")
        elif (unable := StorageCheck(database, storage)()) is not None:
            problems.append(f"{storage.setting}: {unable.message}")
    except schema.Unusable as error:
        problems.append(f"WCL_DATABASE_URL: {error}")
    except DBAPIError as error:
        problems.append(f"WCL_DATABASE_URL: {make_url(settings.resolved_database_url).host}: {describe(error)}")
    if (problem := broker.problem(settings.resolved_broker_url)) is not None:
        problems.append(f"WCL_BROKER_URL: {problem}")
    try:
        devices.find(settings)
    except devices.TooFewDevices as error:
        problems.append(str(error))
    for problem in problems:
        write_error(problem)
    if not problems:
        write_line("ok")
    return int(bool(problems))


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="python -m worker", description=__doc__)
    parser.add_argument(
        "--once", action="store_true", help="run at most one job, then exit; exit at once if no job waits"
    )
    parser.add_argument(
        "--check", action="store_true", help="check database, storage, broker and GPUs with these settings, and exit"
    )
    parser.add_argument("--max-seconds", type=float, help="stop in an orderly way before this time is over")
    parser.add_argument(
        "--drained-exit", type=int, default=0, metavar="CODE", help="exit code after a drain that a user requested"
    )
    parser.add_argument(
        "--drained-wait",
        action="store_true",
        help="after a drain that a user requested, wait for SIGTERM instead of exiting; for supervisors that restart "
        "each process that ends, such as Docker",
    )
    parser.add_argument(
        "--wait-for-stdin", action="store_true", help="import, then wait for the end of stdin before anything else"
    )
    return parser


def _time_problem(max_seconds: float | None, settings: Settings) -> str | None:
    """Return why a worker cannot stop within this time; None if it can."""
    if max_seconds is None or settings.drain_seconds < max_seconds <= threading.TIMEOUT_MAX:
        return None
    expected = f"expected more than the {settings.drain_seconds:g} s that an orderly stop may take"
    problem = "too short" if max_seconds <= settings.drain_seconds else "no time that can be waited for"
    return f"argument --max-seconds: {max_seconds:g} is {problem}; {expected} (WCL_DRAIN_SECONDS)"


def _standby(settings: Settings, options: argparse.Namespace) -> Standby | None:
    """Return the standby process, unless a setting switches it off or at most one run would use it."""
    if not settings.standby or options.once or not orphans.are_adopted():
        return None
    return Standby(process.module_environment(settings.run_environment))


def _wait_for_signal() -> None:
    """Wait for SIGTERM or SIGINT; other processes take the jobs meanwhile."""
    log.info("the worker is drained and waits to be stopped or restarted")
    requested = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: requested.set())
    requested.wait()


def _start(name: str, work: Callable[[], None]) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


def _after(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _wait_for_schema(database: Database, settings: Settings, stop: threading.Event) -> None:
    """Wait until the schema of the database is this version's, unless `stop` is set.

    Raises:
        Unusable: it is of a newer version, or of another program, or it refuses the user or the password.
    """
    faults, logged = FaultLog(log, "the look at the schema of the database"), ""
    while not stop.is_set():
        with faults:
            try:
                reason = schema.absence(settings) or schema.awaited(database)
            except DBAPIError as error:
                if refused := refused_login(error):
                    raise schema.Unusable(f"WCL_DATABASE_URL: {refused}") from error
                raise
            if reason is None:
                return
            if reason != logged:
                log.warning("this worker waits: %s", reason)
            logged = reason
        stop.wait(_SCHEMA_SECONDS)


def _repeat(act: Callable[[], None], faults: FaultLog, stop: threading.Event) -> None:
    """Act as soon as the database takes it, unless `stop` is set: it may be down or read-only."""
    is_done = False
    while not is_done and not stop.is_set():
        with faults:
            act()
            is_done = True
        if not is_done:
            stop.wait(1)


def _mark_stopped(database: Database, worker_id: str, max_failures: int) -> None:
    def stop(session: Session) -> None:
        workers.stop(session, worker_id)  # first: after it, no claim gives this worker a node
        transitions.leave_nodes(session, worker_id, max_failures=max_failures)

    try:
        database.write(stop)
    except DBAPIError as error:
        log.warning("cannot store that the worker has stopped: %s", describe(error))


if __name__ == "__main__":
    gc.freeze()
    gc.enable()
    os.umask(PRIVATE_UMASK)
    sys.exit(main())
