"""`python -m api` as a real process: keys, addresses, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from api import __main__ as program
from api.http import hosts
from jobs import keys
from jobs.database import Database
from jobs.models import Attempt
from jobs.status import Status
from tests import parallel
from tests.api.served import SPEC
from tests.chaos.proxy import Proxy
from tests.jobs import rows
from tests.processes import Forked, outside
from tests.waiting import PATIENCE, eventually
from wcl_client.address import find_address
from wcl_core.text import Secret

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SECRET = re.compile(r"wcl_[\w-]{20,}|token=")


class Server:
    """A server process and its output."""

    def __init__(
        self, data_dir: Path, output: int | None = None, arguments: Sequence[str] = (), **settings: str
    ) -> None:
        environment = outside() | {"WCL_DATA_DIR": str(data_dir), "WCL_PORT": "0", "PYTHONUNBUFFERED": "1"} | settings
        self.data_dir = data_dir
        self.log_path = data_dir.with_suffix(f".{time.monotonic_ns()}.log")
        self.process: Forked | subprocess.Popen[bytes]
        if output is None:
            self.process = Forked("api", environment, self.log_path, arguments)
            return
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )

    @property
    def words(self) -> str:
        return self.log_path.read_text()

    @property
    def announced(self) -> dict[str, object]:
        try:
            content: dict[str, object] = json.loads((self.data_dir / "server.json").read_text())
        except OSError:
            return {}
        return content

    @property
    def url(self) -> str:
        return str(self.announced["url"])

    def ready(self) -> Server:
        def answers() -> bool:
            assert self.process.poll() is None, self.words
            if self.announced.get("pid") != self.process.pid:
                return False
            try:
                return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=PATIENCE).is_success
            except httpx.TransportError:
                return False

        eventually(answers, f"the start of the server\n{self.words}", 60)
        return self

    def client(self) -> httpx.Client:
        key = (self.data_dir / "key").read_text().strip()
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=PATIENCE
        )

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Stop the process; return the seconds until its end."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE)
        return time.monotonic() - began


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def start(name: str = "data", output: int | None = None, arguments: Sequence[str] = (), **settings: str) -> Server:
        started.append(Server(tmp_path / name, output, arguments, **settings))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        print(server.words)


IMPORTS = """
import sys
import api.__main__
names = {"celery.app", "alembic", "markdown_it", "yaml", "psycopg", "torch", "numpy", "PIL"}
assert names.isdisjoint(sys.modules), names & set(sys.modules)
import worker.__main__
used = names - {"celery.app", "yaml"}  # Celery imports yaml
assert used.isdisjoint(sys.modules), used & set(sys.modules)
"""


def test_server_and_worker_import_no_library_before_its_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 0, done.stderr


def test_a_local_server_makes_a_key_that_only_its_owner_reads(start: Start) -> None:
    server = start().ready()
    path = server.data_dir / "key"
    address_ = find_address(server.data_dir)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (address_.url, address_.key) == (server.url, Secret(path.read_text().strip()))
    with server.client() as client:
        assert client.get("/v1/keys").status_code == 200
        assert client.get(client.post("/v1/sign-in-links").json()["url"]).status_code == 200
    assert httpx.get(f"{server.url}/v1/jobs", trust_env=False, timeout=PATIENCE).status_code == 401
    assert "127.0.0.1" in server.url
    assert not SECRET.search(server.words), "a secret is in the log"


def test_a_server_removes_exports_of_deleted_checkpoints(start: Start, tmp_path: Path) -> None:
    orphan = tmp_path / "data" / "exports" / f"{'5' * 64}.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"of a checkpoint that is gone")

    start()

    eventually(lambda: not orphan.exists(), "the sweep")


def test_a_revoked_local_key_stays_so_until_its_file_is_removed(start: Start) -> None:
    first = start().ready()
    key = (first.data_dir / "key").read_text()
    first.stop()
    second = start().ready()
    assert (second.data_dir / "key").read_text() == key
    with second.client() as client:
        for entry in client.get("/v1/keys").json()["items"]:
            client.delete(f"/v1/keys/{entry['id']}", params={"last_administrator": True}).raise_for_status()
    second.stop()

    third = start().ready()
    assert (third.data_dir / "key").read_text() == key
    third.stop()
    (third.data_dir / "key").unlink()
    fourth = start().ready()

    assert (fourth.data_dir / "key").read_text() != key
    with fourth.client() as client:
        assert client.get("/v1/jobs").status_code == 200


def test_a_forgotten_database_url_makes_no_database_beside_files(start: Start, tmp_path: Path) -> None:
    """The folder belongs to a database elsewhere; server, worker and commands name the setting and make nothing."""
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.sqlite3'}"
    first = start(WCL_DATABASE_URL=elsewhere).ready()
    first.stop()
    (first.data_dir / "checkpoints" / "some-job" / "1").mkdir(parents=True)
    (first.data_dir / "checkpoints" / "some-job" / "1" / "step-1.safetensors").write_bytes(b"state")
    (first.data_dir / "key").unlink()

    second = start()
    assert second.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    for arguments in (("worker", "--once"), ("jobs", "migrate"), ("jobs", "create-key", "x")):
        done = subprocess.run(
            [parallel.python(), "-m", *arguments],
            cwd=ROOT,
            env=clean | {"WCL_DATA_DIR": str(first.data_dir), "WCL_BUILTIN_DATASETS": "[]"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == (os.EX_CONFIG if arguments[0] == "worker" else 1)
        assert "WCL_DATABASE_URL" in done.stderr
        assert "Traceback" not in done.stderr

    assert second.words.count("\n") == 1, second.words
    assert "WCL_DATABASE_URL" in second.words
    assert not (first.data_dir / "wcl.sqlite3").exists()
    assert not (first.data_dir / "key").exists()
    start(WCL_DATABASE_URL=elsewhere).ready()


def test_a_server_with_another_folder_does_not_start(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.sqlite3'}"
    start(WCL_DATABASE_URL=url).ready()

    other = start("other", WCL_DATABASE_URL=url)

    assert other.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    assert "storage-id" in other.words
    assert "adopt-storage" in other.words
    assert "Traceback" not in other.words
    adopted = subprocess.run(
        [parallel.python(), "-m", "jobs", "adopt-storage"],
        cwd=ROOT,
        env=os.environ | {"WCL_DATA_DIR": str(other.data_dir), "WCL_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    assert adopted.stdout.strip() == (other.data_dir / "checkpoints" / "storage-id").read_text().strip()
    start("other", WCL_DATABASE_URL=url).ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_soon_although_streams_and_downloads_are_open(start: Start, number: int) -> None:
    server = start().ready()
    database = Database(f"sqlite:///{server.data_dir / 'wcl.sqlite3'}")
    rows.add_dataset(database)
    client = server.client()
    job_id = client.post("/v1/jobs", json={"kind": "pretrain", "spec": SPEC}).json()["id"]

    with (
        client.stream("GET", f"/v1/jobs/{job_id}/stream") as one,
        client.stream("GET", "/v1/stream") as other,
    ):
        assert next(one.iter_lines()) == next(other.iter_lines()) == ": open"
        seconds = server.stop(number)

    assert seconds < 5
    assert server.process.poll() == 0
    assert server.announced == {}
    assert "Traceback" not in server.words
    client.close()
    database.dispose()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_without_a_key_is_refused(start: Start, host: str) -> None:
    server = start(WCL_HOST=host)

    assert server.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    assert "python -m jobs create-key" in server.words
    assert "Traceback" not in server.words
    assert server.announced == {}
    assert not (server.data_dir / "key").exists()


def test_an_open_address_with_a_key_is_served_also_by_its_number(start: Start, tmp_path: Path) -> None:
    created = subprocess.run(
        [parallel.python(), "-m", "jobs", "create-key", "first"],
        cwd=ROOT,
        env=os.environ | {"WCL_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    )
    server = start(WCL_HOST="0.0.0.0").ready()
    headers = {"Authorization": f"Bearer {created.stdout.strip()}"}

    def status(host: str) -> int:
        return httpx.get(
            f"{server.url}/v1/jobs", headers=headers | {"Host": host}, trust_env=False, timeout=PATIENCE
        ).status_code

    assert status("10.1.2.3:8000") == 200
    assert status("evil.example") == 421
    assert not (server.data_dir / "key").exists(), "the server made a local key"


def test_a_port_in_use_is_reported(start: Start) -> None:
    listener = hosts.listen("127.0.0.1", 0)
    server = start(WCL_PORT=str(listener.getsockname()[1]))

    assert server.process.wait(timeout=PATIENCE) == 1
    assert "cannot listen on 127.0.0.1" in server.words
    assert "Traceback" not in server.words
    listener.close()


@pytest.mark.parametrize("settings", [{"WCL_PORT": "many"}, {"WCL_LEASE_SECONDS": "-1"}, {"WCL_ALLOWED_HOSTS": "x"}])
def test_a_wrong_setting_is_reported(start: Start, settings: dict[str, str]) -> None:
    server = start(**settings)

    assert server.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    assert len(server.words.splitlines()) == 1
    assert server.words.startswith(f"error: {next(iter(settings))}: ")


@pytest.mark.parametrize("log_format", ["lines", "json"])
def test_a_server_waits_for_the_database_and_says_so(start: Start, postgres_url: str, log_format: str) -> None:
    proxy = Proxy(int(postgres_url.rpartition(":")[2].partition("/")[0]))
    proxy.cut()
    place = postgres_url.partition("@")[2].partition("/")[0]
    server = start(WCL_DATABASE_URL=postgres_url.replace(place, f"127.0.0.1:{proxy.port}"), WCL_LOG_FORMAT=log_format)
    try:
        reason = "the connection to the database fails and is repeated: the database does not respond"
        eventually(lambda: reason in server.words, "the reason")
        if log_format == "json":
            assert [json.loads(line)["level"] for line in server.words.splitlines()] == ["WARNING"]
        assert server.process.poll() is None
        proxy.mend()
        server.ready()
        assert server.words.count(reason) == 1
        assert "the connection to the database works again" in server.words
    finally:
        server.stop()
        proxy.close()


def test_each_line_of_a_json_log_is_an_object(start: Start) -> None:
    server = start(WCL_LOG_FORMAT="json").ready()
    server.stop()

    messages = [json.loads(line)["message"] for line in server.words.splitlines()]
    assert any(" serves http://127.0.0.1:" in message for message in messages)


def test_a_server_whose_user_the_database_refuses_ends_and_says_so(start: Start, postgres_url: str) -> None:
    place = postgres_url.partition("@")[2]
    server = start(WCL_DATABASE_URL=f"postgresql://stranger:hidden@{place}")
    assert server.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    (line,) = server.words.splitlines()
    assert line.startswith("error: WCL_DATABASE_URL: ")
    assert 'role "stranger" does not exist' in line
    assert "hidden" not in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_waits_for_the_database_ends_at_a_signal(start: Start, number: int) -> None:
    server = start(WCL_DATABASE_URL="postgresql://wcl:hidden@127.0.0.1:1/wcl")
    eventually(lambda: "the database does not respond" in server.words, "the reason")

    server.process.send_signal(number)

    assert server.process.wait(timeout=PATIENCE) == 0
    assert "Traceback" not in server.words
    assert "hidden" not in server.words


@pytest.mark.parametrize("log_format", ["lines", "json"])
def test_an_unreachable_database_is_reported(start: Start, log_format: str) -> None:
    url = "postgresql://wcl:hidden@127.0.0.1:1/wcl"
    server = start(arguments=("--no-wait",), WCL_DATABASE_URL=url, WCL_LOG_FORMAT=log_format)

    assert server.process.wait(timeout=PATIENCE) == 1
    (line,) = server.words.splitlines()
    message = json.loads(line)["message"] if log_format == "json" else line.removeprefix("error: ")
    assert message.startswith("the database does not respond")
    assert "hidden" not in line


def test_a_data_folder_that_is_a_file_is_said(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    server = start()

    assert server.process.wait(timeout=PATIENCE) == os.EX_CONFIG
    assert server.words == f"error: the data folder {tmp_path / 'data'} is a file, expected a folder (WCL_DATA_DIR)\n"


def test_without_file_descriptors_it_logs_one_line_and_recovers(start: Start) -> None:
    server = start().ready()
    process = psutil.Process(server.process.pid)
    before = len(server.words.splitlines())
    limit = process.num_fds() + 20
    process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
    port = int(server.url.rpartition(":")[2])

    with contextlib.ExitStack() as held:
        for _ in range(100):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
        eventually(lambda: "no connection can be accepted" in server.words, "the line")
        time.sleep(4)  # asyncio tries again each second

    eventually(lambda: "connections are accepted again" in server.words, "the recovery")
    server.ready()
    lines = server.words.splitlines()[before:]
    assert len(lines) < 10, server.words
    assert sum("accept" in line for line in lines) == 2


def test_it_has_as_many_descriptors_as_the_system_allows(start: Start) -> None:
    process = psutil.Process(start().ready().process.pid)

    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    assert soft == min(hard, 65_536)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM alembic_version; DROP TABLE alembic_version; CREATE TABLE songs (title)", "another program"),
        ("UPDATE alembic_version SET version_num = '9999'", "newer version"),
        ("", "restore a backup"),
    ],
)
def test_a_database_that_cannot_be_used_is_named(
    start: Start, sqlite_template: Path, tmp_path: Path, change: str, words: str
) -> None:
    path = tmp_path / "data" / "wcl.sqlite3"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sqlite_template.read_bytes())
    if change:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.executescript(change)
    else:
        path.write_bytes(path.read_bytes()[:10_000])
    before = path.read_bytes()

    server = start()

    assert server.process.wait(timeout=180) == os.EX_CONFIG
    assert words in server.words
    assert str(path) in server.words
    assert len(server.words.splitlines()) == 1, server.words
    assert path.read_bytes() == before


def test_it_ends_although_a_download_stands_still(start: Start) -> None:
    server = start().ready()
    database = Database(f"sqlite:///{server.data_dir / 'wcl.sqlite3'}")
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    place = server.data_dir / "checkpoints" / "large.safetensors"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(bytes(50_000_000))
    run.deliver(rows.checkpoint(1) | {"path": place.name, "size": 50_000_000})
    client = server.client()
    (checkpoint,) = client.get(f"/v1/jobs/{run.job_id}/checkpoints").json()["items"]

    with client.stream("GET", f"/v1/checkpoints/{checkpoint['id']}/download") as download:
        next(download.iter_raw(1000))
        seconds = server.stop()

    assert seconds < 10
    assert server.process.poll() == 0
    client.close()
    database.dispose()


def test_a_killed_servers_announcement_is_replaced(start: Start) -> None:
    first = start().ready()
    first.process.kill()
    first.process.wait()
    assert first.announced["pid"] == first.process.pid

    second = start().ready()

    assert second.announced["pid"] == second.process.pid


def test_a_second_server_on_a_data_folder_leaves_the_first_one_announced(start: Start) -> None:
    first = start().ready()
    second = start()
    eventually(lambda: "Serving" in second.words, f"the start of the second server\n{second.words}")

    assert "another server runs on this data folder" in second.words
    assert first.announced["pid"] == first.process.pid
    second.stop()
    assert first.announced["pid"] == first.process.pid
    first.stop()
    assert first.announced == {}
    assert start().ready().announced


def test_two_servers_may_start_on_one_database(start: Start, postgres_url: str, tmp_path: Path) -> None:
    (tmp_path / "storage").mkdir()
    for name in ("one", "two"):  # servers of one database share the storage
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "storage")
    url = postgres_url.replace("postgresql+psycopg://", "postgresql://")
    servers = [start(name, WCL_DATABASE_URL=url) for name in ("one", "two")]

    for server in servers:
        server.ready()


def test_a_server_reconciles_jobs(start: Start) -> None:
    server = start(WCL_LOOK_SECONDS="0.2", WCL_LEASE_SECONDS="1").ready()
    database = Database(f"sqlite:///{server.data_dir / 'wcl.sqlite3'}")
    rows.add_dataset(database)
    lost = rows.running(database)

    eventually(lambda: rows.status(database, lost.job_id) == Status.QUEUED, "the end of the lost attempt")

    with database.read() as session:
        assert session.get_one(Attempt, (lost.job_id, 1)).end_reason == "worker_lost"
    database.dispose()


def test_a_person_at_a_terminal_gets_a_link(start: Start) -> None:
    ours, theirs = pty.openpty()
    printed = bytearray()

    def listen() -> None:
        while True:
            try:
                printed.extend(os.read(ours, 1000))
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    server = start(output=theirs).ready()
    os.close(theirs)
    link = eventually(lambda: re.search(rb"http://\S+/sign-in\?token=\S+", bytes(printed)), "the link").group().decode()

    assert httpx.get(link, trust_env=False, timeout=PATIENCE).status_code == 200
    assert not SECRET.search(server.words)
    server.stop()
    os.close(ours)


def test_the_secret_of_a_key_is_in_no_file_but_its_own(start: Start) -> None:
    server = start().ready()
    with server.client() as client:
        link = client.post("/v1/sign-in-links").json()["url"]
        client.get(link)
        created = client.post("/v1/keys", json={"name": "x", "scopes": ["read"]}).json()["key"]
    key = (server.data_dir / "key").read_text().strip()
    server.stop()

    secrets = [key, created, link.partition("token=")[2]]
    places = [path for path in server.data_dir.rglob("*") if path.is_file() and path.name != "key"]
    for path in [*places, server.log_path]:
        content = path.read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == [], path


def test_a_local_key_file_of_another_database_is_replaced(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "key").write_text("wcl_of_another_database\n")

    server = start().ready()

    database = Database(f"sqlite:///{server.data_dir / 'wcl.sqlite3'}")
    with database.read() as session:
        assert keys.find(session, (server.data_dir / "key").read_text().strip()) is not None
    database.dispose()


def test_a_signal_ends_the_wait_for_the_next_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_TICK_SECONDS", 3600.0)

    async def serve() -> None:
        config = uvicorn.Config("")
        config.encoded_headers = []
        server = program._Server(config, threading.Event())
        serving = asyncio.create_task(server.main_loop())
        await asyncio.sleep(0)
        assert server.server_state.default_headers, "it has ticked, and waits"
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(serving, PATIENCE)

    asyncio.run(serve())
