"""`python -m api`: one server, configured by environment variables (jobs.settings)."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from types import FrameType

import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError
from sqlalchemy.exc import DBAPIError

from api.app import create_app
from api.http import hosts
from api.rest import exports
from jobs import keys
from jobs.database import Database, is_outage
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from wcl_core import failpoints
from wcl_core.files import write_bytes

_GRACE_SECONDS = 5


class StartError(Exception):
    """The server cannot start; the message names the remedy."""


def main() -> int:
    """Serve until SIGINT or SIGTERM; return 0 after an orderly end, 1 with a line on stderr after an error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # /readyz uses it at every request
    try:
        serve(Settings())
    except (StartError, SettingsError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def serve(settings: Settings) -> None:
    """Migrate, bind, announce, and serve.

    Raises:
        StartError: there is no key, the database does not respond, or the address is in use.
    """
    if failpoints.is_armed() and not hosts.is_loopback(settings.host):
        raise StartError(f"FAILPOINTS is set, and {settings.host} is reachable from other machines")
    database = Database(settings.resolved_database_url)
    _migrate(database)
    _ensure_keys(settings, database)
    listener = _listener(settings)
    url = hosts.url_of(listener)
    _announce(settings, database, url)
    stop = threading.Event()
    reconciler = Reconciler(database, settings, sends_wake_ups=True)
    thread = threading.Thread(target=reconciler.run, args=(stop,), daemon=True, name="reconciler")
    thread.start()
    sweeping = (database, settings.exports_dir, stop)
    threading.Thread(target=exports.keep_swept, args=sweeping, daemon=True, name="exports").start()
    try:
        _run(settings, database, listener)
    finally:
        stop.set()
        _withdraw(settings.data_dir / "server.json")
        thread.join(timeout=2)
        database.dispose()


class _Server(uvicorn.Server):
    """A server that ends open streams at the first signal; uvicorn would wait for them and raise the signal again."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopping.set()


def _run(settings: Settings, database: Database, listener: socket.socket) -> None:
    app = create_app(settings, database)
    # No access log: the address of a sign-in link holds its token.
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_SECONDS
    )
    gc.collect()
    gc.freeze()  # imported objects live for ever; scanning them at each collection would dominate large responses
    _Server(config, app.state.stopping).run(sockets=[listener])


def _migrate(database: Database) -> None:
    try:
        database.migrate()
    except DBAPIError as error:
        if not is_outage(error):
            raise
        raise StartError(f"the database does not respond: {error.orig}") from error


def _ensure_keys(settings: Settings, database: Database) -> None:
    if hosts.is_loopback(settings.host):
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        keys.ensure_local(database, settings.data_dir / "key")
        return
    with database.read() as session:
        if not keys.has_keys(session):
            raise StartError(
                f"{settings.host} is reachable from other machines, and there is no key yet; "
                "make one with `python -m jobs create-key NAME`"
            )


def _listener(settings: Settings) -> socket.socket:
    try:
        return hosts.listen(settings.host, settings.port)
    except OSError as error:
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from error


def _announce(settings: Settings, database: Database, url: str) -> None:
    announcement = json.dumps({"url": url, "pid": os.getpid()}) + "\n"
    write_bytes(settings.data_dir / "server.json", announcement.encode())
    print(f"Serving {url}", flush=True)
    if sys.stdout.isatty() and hosts.is_loopback(settings.host):
        # Only on a terminal: a file with the output would keep the token.
        print(f"Open    {_sign_in_link(settings, database, url)}", flush=True)


def _sign_in_link(settings: Settings, database: Database, url: str) -> str:
    secret = (settings.data_dir / "key").read_text(encoding="utf-8").strip()
    with database.read() as session:
        principal = keys.find(session, secret)
    assert principal is not None
    key_id = principal.key_id
    return f"{url}/sign-in?token={database.write(lambda session: keys.new_link(session, key_id))}"


def _withdraw(path: Path) -> None:
    """Remove this server's announcement, unless another server has replaced it."""
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text(encoding="utf-8")).get("pid") == os.getpid():
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
