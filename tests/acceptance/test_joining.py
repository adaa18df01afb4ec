"""A machine joins a server on PostgreSQL by one command, with the account for workers of docs/operating.md."""

from __future__ import annotations

import io
import re
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import ProgrammingError

from jobs import joining, keys
from jobs.database import Database
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.acceptance.service import ROOT, SHORT_SPEC, submit_when_ready
from tests.jobs import rows, sweeping
from tests.processes import outside
from tests.servers import free_port
from tests.waiting import PATIENCE, eventually
from wcl_client import cli
from wcl_client.api import WclClient
from wcl_core.text import assignments, written_assignments

pytestmark = [pytest.mark.timeout(600), pytest.mark.postgres]
GRANTS = re.findall(r"```text\n(CREATE ROLE wcl_worker .*?)```", (ROOT / "docs/operating.md").read_text(), re.S)
PASSWORD = "PASSWORD"  # noqa: S105 (that of the documentation)
TOO_MUCH = (
    "INSERT INTO keys (id, name, hash, scopes) VALUES ('1', 'x', 'x', '[]')",
    "UPDATE keys SET scopes = '[\"admin\"]'",
    "UPDATE projects SET name = 'mine'",
    "SELECT key_id FROM sign_in_tokens",
    "INSERT INTO sign_in_tokens (hash, kind, key_id, expires_at) VALUES ('1', 'session', '1', 1)",
    "SELECT * FROM shares",
    "DELETE FROM activities",
    "UPDATE alembic_version SET version_num = 'x'",
    "CREATE TABLE mine (id integer)",
    "DROP TABLE jobs",
)


@pytest.fixture
def worker_url(postgres_url: str) -> str:
    """Return the URL of a migrated database for an account of workers, as the documentation makes it."""
    database = Database(postgres_url)
    database.migrate()
    database.dispose()
    role = f"worker_{secrets.token_hex(4)}"  # accounts are of the whole PostgreSQL, which tests share
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(GRANTS[0].replace("wcl_worker", role).encode())
    return make_url(postgres_url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)


class Servers:
    """A server on PostgreSQL and Redis, and machines of other folders that join it."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, worker_url: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.data_dir, self._folder = folder / "shared", folder
        self.data_dir.mkdir()
        shared = {"WCL_BROKER_URL": redis_url, "WCL_DATA_DIR": str(self.data_dir)}
        self.settings = {"WCL_DATABASE_URL": worker_url} | shared
        self.write(self.settings)
        own = {"WCL_DATABASE_URL": database_url, "WCL_PORT": str(port), "WCL_LOOK_SECONDS": "0.5"} | shared
        own |= {"WCL_WORKER_SETTINGS": str(folder / "workers")}
        self._machines: list[subprocess.Popen[str]] = []
        with (folder / "server.log").open("w") as log:
            command = [sys.executable, "-m", "api"]
            self._server = subprocess.Popen(command, cwd=ROOT, env=outside() | own, stdout=log, stderr=log)

    def write(self, settings: dict[str, str]) -> None:
        """Write the settings of workers, as an operator does."""
        (self._folder / "workers").write_text(written_assignments(settings))

    def client(self) -> WclClient:
        eventually(lambda: (self.data_dir / "key").exists(), "the key of the server")
        return WclClient(self.url, (self.data_dir / "key").read_text().strip())

    def join(self, token: str, *options: str, url: str = "", **settings: str) -> subprocess.Popen[str]:
        """Start `wcl worker join` in a folder of its own, with the token in a pipe."""
        machine = self._folder / f"machine-{len(self._machines)}"
        machine.mkdir()
        environment = outside() | {"XDG_CONFIG_HOME": str(machine), "PYTHONPATH": str(ROOT), "WCL_STANDBY": "off"}
        process = subprocess.Popen(
            [sys.executable, "-m", "wcl_client", "worker", "join", url or self.url, *options],
            cwd=machine,
            env=environment | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._machines.append(process)
        assert process.stdin
        process.stdin.write(f"{token}\n")
        process.stdin.close()
        return process

    def refused(self, token: str, *options: str, url: str = "", **settings: str) -> str:
        """Return what a machine prints that cannot join."""
        process = self.join(token, "--no-start", *options, url=url, **settings)
        assert process.stdout
        printed = process.stdout.read()
        assert process.wait(PATIENCE) == 1, printed
        assert "Traceback" not in printed
        return " ".join(printed.split())

    def file(self) -> Path:
        """Return where the newest machine keeps its settings."""
        return self._folder / f"machine-{len(self._machines) - 1}" / "wcl" / "worker"

    def stop(self) -> None:
        for process in (*self._machines, self._server):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (*self._machines, self._server):
            process.wait(PATIENCE)
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def servers(tmp_path: Path, postgres_url: str, worker_url: str, redis_url: str) -> Iterator[Servers]:
    started = Servers(tmp_path, postgres_url, redis_url, worker_url)
    yield started
    started.stop()
    print((tmp_path / "server.log").read_text()[-3000:])


def test_a_machine_joins_by_one_command_and_finishes_a_job(servers: Servers) -> None:
    with servers.client() as client:
        eventually(client.is_ready, "the server")
        token = client.invite_worker()["token"]
        machine = servers.join(token, WCL_WORKER_NAME="node1", WCL_CLAIM_SECONDS="0.5")
        job = submit_when_ready(client, SHORT_SPEC)
        assert token not in " ".join(psutil.Process(machine.pid).cmdline())

        ended = client.wait(job["id"], timeout_seconds=PATIENCE)

        assert (ended["status"], ended["attempt"], ended["failures"]) == ("succeeded", 1, 0)
        assert [each["name"] for each in client.workers() if each["is_live"]] == ["node1"]
        joined = [(each["action"], each["object_name"]) for each in client.activity(action="worker")]
        assert joined == [("worker.join", "node1"), ("worker.invite", "")]
    kept = assignments(servers.file().read_text())
    assert kept == servers.settings | {"WCL_WORKER_NAME": "node1", "WCL_CLAIM_SECONDS": "0.5", "WCL_STANDBY": "off"}
    assert stat.S_IMODE(servers.file().stat().st_mode) == 0o600
    machine.send_signal(signal.SIGTERM)
    assert machine.wait(PATIENCE) == 0
    assert machine.stdout
    assert "permission denied" not in machine.stdout.read()


def test_a_machine_that_cannot_work_says_what_to_set(servers: Servers) -> None:
    with servers.client() as client:
        eventually(client.is_ready, "the server")
        closed, right = free_port(), servers.settings
        far = {
            "WCL_DATABASE_URL": re.sub(r":\d+/", f":{closed}/", right["WCL_DATABASE_URL"]),
            "WCL_BROKER_URL": f"redis://127.0.0.1:{closed}/0",
            "WCL_DATA_DIR": str(servers.data_dir.parent / "elsewhere"),
        }
        servers.write(far)
        printed = servers.refused(client.invite_worker()["token"])
        assert "WCL_DATABASE_URL: 127.0.0.1" in printed
        assert "WCL_BROKER_URL: 127.0.0.1 does not respond" in printed
        assert PASSWORD not in printed
        assert f"wcl worker --settings {servers.file()}" in printed

        # A variable of the machine corrects a setting, and is kept.
        corrected = {name: right[name] for name in ("WCL_DATABASE_URL", "WCL_BROKER_URL")}
        printed = servers.refused(client.invite_worker()["token"], **corrected)
        assert "WCL_DATA_DIR: " in printed
        assert "WCL_DATABASE_URL" not in printed
        assert assignments(servers.file().read_text())["WCL_BROKER_URL"] == right["WCL_BROKER_URL"]


@pytest.mark.parametrize(
    ("typed", "arguments", "part"),
    [
        ("token\n", ["http://wcl.example:8000"], "has no TLS"),
        ("token\n", ["ftp://wcl.example"], "expected one such as https://"),
        ("token\n", ["https://wcl.example", "--file", "/dev/null/x"], "cannot be written"),
        ("\n", ["https://wcl.example"], "there is no token"),
    ],
)
def test_settings_do_not_travel_without_tls(
    typed: str,
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is sent where it could be read, or where what comes back could not be kept: the token works once."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    monkeypatch.setattr("wcl_client.commands.workers.WclClient", None)  # a request would fail otherwise

    assert cli.run(["worker", "join", *arguments]) != 0

    assert part in " ".join(capsys.readouterr().err.split())


def test_the_account_for_workers_does_what_workers_do_and_gives_no_access(
    postgres_url: str, worker_url: str, tmp_path: Path
) -> None:
    owner, account = Database(postgres_url), Database(worker_url)
    rows.add_dataset(owner)
    key = owner.write(lambda session: keys.create(session, "anna", ("read", "submit"))[0])
    owner.write(lambda session: keys.new_link(session, key.id))
    owner.write(lambda session: session.execute(text("UPDATE sign_in_tokens SET expires_at = 1")))

    sweep_id = sweeping.halving(owner, 3)
    sweeping.play_out(account, sweep_id, lambda _: 0.5)
    plans = {"epochs": 10, "evaluations": [{"protocols": ["linear"]}]}
    job_id = rows.submit(owner, spec=plans, created_by=key.id)
    run = rows.Run(account, rows.claim(account))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(100))
    run.end("succeeded")
    Reconciler(account, Settings(data_dir=tmp_path), sends_wake_ups=False).poll()

    assert account.read_once(joining.rights_problem) is None
    assert sweeping.sweep(owner, sweep_id).status == "succeeded"
    assert rows.status(owner, job_id) == "succeeded"
    with owner.read() as session:
        assert session.execute(text("SELECT count(*) FROM jobs WHERE parent_id = :id"), {"id": job_id}).scalar() == 1
        assert session.execute(text("SELECT count(*) FROM sign_in_tokens")).scalar() == 0, "expired ones are removed"
    role = make_url(worker_url).username
    for right in ("DELETE ON points", "SELECT ON keys"):
        owner.write(lambda session, right=right: session.execute(text(f"REVOKE {right} FROM {role}")))  # type: ignore[misc]
    lacking = account.read_once(joining.rights_problem)
    assert lacking is not None
    assert lacking.startswith("its account lacks SELECT on keys and 1 further right; ")
    for statement in TOO_MUCH:
        with pytest.raises(ProgrammingError, match="permission denied|must be owner"):
            account.write(lambda session, each=statement: session.execute(text(each)))  # type: ignore[misc]
    owner.dispose()
    account.dispose()
