"""`python -m api`: one server, configured by the environment variables `WCL_*` that docs/operating.md lists."""

from __future__ import annotations

import gc

if __name__ == "__main__":
    gc.disable()  # the imports make a million objects that stay; collecting meanwhile takes a fifth of the start

import asyncio
import contextlib
import fcntl
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from api.app import create_app
from api.http import connections, descriptors, hosts
from api.rest.housekeeping import keep_clean
from jobs import keys, policies, schema, storage_id
from jobs.database import Database, Signal
from jobs.fault_log import FaultLog
from jobs.faults import describe, fault_of, refused_login
from jobs.logs import log_error, log_to_stderr
from jobs.reconciler import Reconciler
from jobs.settings import InvalidSettings, Settings, read_settings
from jobs.storage import ForeignStorage, Storage, StorageUnavailable, open_storage
from jobs.wake_up import WakeUpSender
from jobs.webhooks.sender import Sender
from wcl_core import failpoints
from wcl_core.files import PRIVATE_UMASK, write_bytes
from wcl_core.text import Arguments, write_error, write_line
from wcl_core.version import VERSION

_GRACE_SECONDS = 5
_LONGEST_WAIT_SECONDS = 8.0  # between two tries to reach the database
_TICK_SECONDS = 1.0
_BACKLOG = 128  # connections that wait; without descriptors asyncio reports an error for each, every second

log = logging.getLogger("api")


class StartError(Exception):
    """The server cannot start now; the message names the reason, which may be over at the next try."""


class Misconfigured(StartError):  # noqa: N818 (named as the state of the settings)
    """The server cannot start until a user has changed something; the message names it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Returns:
        0 after an orderly end.  After an error, with a line on stderr: 1 if a later start may succeed, `EX_CONFIG` if
        only a user can fix it.
    """
    parser = Arguments(prog="python -m api", description=__doc__)
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="end with 1 while PostgreSQL does not respond, in place of waiting; for supervisors that start it again",
    )
    options = parser.parse_args(arguments)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # /readyz uses it at every request
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a closed terminal ends the server in order
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        settings = read_settings()
        log_to_stderr(settings.log_format)
        serve(settings, waits=not options.no_wait)
    except InvalidSettings as error:
        for problem in error.problems:
            write_error(problem)
        return os.EX_CONFIG
    except StartError as error:
        log_error(log, str(error), settings.log_format)
        return os.EX_CONFIG if isinstance(error, Misconfigured) else 1
    return 0


def serve(settings: Settings, *, waits: bool = True) -> None:
    """Migrate, bind, announce, and serve.

    Args:
        settings: of the server.
        waits: whether it waits for PostgreSQL, until a signal ends it.

    Raises:
        StartError: there is no key, the database or the data folder cannot be used, the storage is not the database's,
            or the address is in use.
    """
    if failpoints.is_armed() and not hosts.is_loopback(settings.host):
        raise Misconfigured(f"FAILPOINTS is set, and {settings.host} is reachable from other machines")
    descriptors.raise_limit()
    database = Database(settings.resolved_database_url, settings.database_connections)
    storage = open_storage(settings)
    _ensure_folder(settings.data_dir)
    try:
        storage_id.refuse_new_database(settings)
        if not _prepare(settings, database, storage, waits=waits and not settings.is_sqlite):
            return
    except ForeignStorage as error:
        raise Misconfigured(str(error)) from error
    except StorageUnavailable as error:
        raise StartError(str(error)) from error
    listener = _listener(settings)
    url = hosts.url_of(listener)
    is_first = _is_first(settings.data_dir)
    _announce(settings, database, url, is_first=is_first)
    stop = threading.Event()
    reconciler = Reconciler(database, settings, sends_wake_ups=True)
    database.on(Signal.DUE, WakeUpSender(database, settings).start)
    database.on(Signal.MET, reconciler.nudge)
    thread = threading.Thread(target=reconciler.run, args=(stop,), daemon=True, name="reconciler")
    thread.start()
    threading.Thread(target=reconciler.run_nudged, args=(stop,), daemon=True, name="nudged").start()
    threading.Thread(target=Sender(database, settings, url).run, args=(stop,), daemon=True, name="webhooks").start()
    cleaning = (database, storage, settings, stop)
    threading.Thread(target=keep_clean, args=cleaning, daemon=True, name="housekeeping").start()
    try:
        _run(create_app(settings, database, storage), listener, stop)
    finally:
        stop.set()
        if is_first:
            _withdraw(settings.data_dir / "server.json")
        thread.join(timeout=2)
        database.dispose()


class _Server(uvicorn.Server):
    """A server that ends open streams at the first signal; uvicorn would wait for them and raise the signal again."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._starvation = descriptors.Starvation()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._starvation.handle)
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Tick once a second until the exit, which ends the wait at once; uvicorn ticks ten times a second."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):  # the time of the `Date` header is set at each
            self._starvation.check()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._is_ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopping.set()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._is_ending.set)


def _run(app: FastAPI, listener: socket.socket, stop: threading.Event) -> None:
    for name, watch in (("storage", app.state.storage_watch), ("broker", app.state.broker_watch)):
        threading.Thread(target=watch.run, args=[stop], daemon=True, name=name).start()
    # No access log: the address of a sign-in link holds its token.
    config = connections.config(app, timeout_graceful_shutdown=_GRACE_SECONDS, backlog=_BACKLOG)
    importlib.import_module("anyio._backends._asyncio")  # the first request would load it: too late without descriptors
    # Imported objects live for ever; scanning them at each collection would dominate large responses.  A collection
    # before the freeze would take a sixth of the start, to free a thousand objects.
    gc.freeze()
    gc.enable()
    _Server(config, app.state.stopping).run(sockets=[listener])


def _ensure_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if data_dir.is_file():
            raise Misconfigured(f"the data folder {data_dir} is a file, expected a folder (WCL_DATA_DIR)") from error
        raise _unusable(data_dir, error) from error


def _unusable(data_dir: Path, error: OSError) -> StartError:
    return StartError(f"the data folder {data_dir} cannot be used: {error.strerror or error} (WCL_DATA_DIR)")


def _prepare(settings: Settings, database: Database, storage: Storage, *, waits: bool) -> bool:
    """Bring the database to this version's state; return False if a signal ends the server first.

    Raises:
        StartError: the database or the storage cannot be used, or there is no key.
    """
    stop, faults, backoff = threading.Event(), FaultLog(log, "the connection to the database"), 1.0
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not stop.is_set():
            try:
                database.migrate(lambda text: log.info("%s", text))
                storage_id.connect(database, storage)
                database.write(lambda session: policies.store(session, settings))
                _ensure_keys(settings, database)
                faults.succeeded()
                return True
            except schema.Unusable as error:
                raise Misconfigured(str(error)) from error
            except DBAPIError as error:
                if (fault := fault_of(error)) is None:
                    raise
                if refused := refused_login(error):
                    raise Misconfigured(f"WCL_DATABASE_URL: {refused}") from error
                if not (waits and fault.is_passing):
                    raise StartError(describe(error)) from error
                faults.failed(error)
            stop.wait(backoff)
            backoff = min(2 * backoff, _LONGEST_WAIT_SECONDS)
        return False
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ensure_keys(settings: Settings, database: Database) -> None:
    if hosts.is_loopback(settings.host):
        try:
            secret = keys.ensure_local(database, settings.data_dir / "key")
        except OSError as error:
            raise _unusable(settings.data_dir, error) from error
        if secret is None:
            log.warning(
                "the key of this machine, in the file `key` of the data folder, is revoked or has expired, and stays "
                "so; a server that starts without that file makes another one"
            )
        return
    with database.read() as session:
        if not keys.has_keys(session):
            raise Misconfigured(
                f"{settings.host} is reachable from other machines, and there is no key that is neither revoked nor "
                f"expired; make one with `python -m jobs create-key NAME --scopes {','.join(keys.ADMINISTRATOR)}`"
            )
        if (notice := keys.notice(session)) is not None:
            log.warning("%s", notice)


def _listener(settings: Settings) -> socket.socket:
    try:
        return hosts.listen(settings.host, settings.port)
    except (UnicodeError, TypeError) as error:
        raise Misconfigured("WCL_HOST is no host name") from error
    except OSError as error:
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from error


def _is_first(data_dir: Path) -> bool:
    """Return whether no other server announces itself in the folder; none does then while this process lives."""
    folder = os.open(data_dir, os.O_RDONLY)  # open until the process ends, however it ends
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _announce(settings: Settings, database: Database, url: str, *, is_first: bool = True) -> None:
    announcement = json.dumps({"url": url, "pid": os.getpid()}) + "\n"
    if not is_first:
        log.warning("another server runs on this data folder; commands without WCL_URL use that one")
    else:
        try:
            write_bytes(settings.data_dir / "server.json", announcement.encode())
        except OSError as error:  # a full disk does not end the service
            log.warning("clients cannot find this server by its data folder: %s", error.strerror)
    if settings.log_format == "lines":
        with contextlib.suppress(OSError):  # the log file may be on the full disk
            write_line(f"Serving {url}")
    log.info("version %s serves %s", VERSION, url)
    if sys.stdout.isatty() and hosts.is_loopback(settings.host):
        # Only on a terminal: a file with the output would keep the token.
        write_line(f"Open    {_sign_in_link(settings, database, url)}")


def _sign_in_link(settings: Settings, database: Database, url: str) -> str:
    secret = (settings.data_dir / "key").read_text(encoding="utf-8").strip()
    with database.read() as session:
        principal = keys.find(session, secret)
    assert principal is not None
    key_id = principal.key_id
    return f"{url}/sign-in?token={database.write(lambda session: keys.new_link(session, key_id))}"


def _withdraw(path: Path) -> None:
    """Remove this server's announcement, unless another server has replaced it; its address stays in another file."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text(encoding="utf-8")).get("pid") == os.getpid():
            path.replace(path.with_name("last-server.json"))


if __name__ == "__main__":
    os.umask(PRIVATE_UMASK)
    sys.exit(main())
