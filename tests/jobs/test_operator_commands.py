"""Every argument of `python -m jobs` with odd values: one line, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs import keys
from jobs.__main__ import main
from jobs.database import Database
from tests.odd import ODD, check_odd_values
from tests.processes import outside
from tests.waiting import PATIENCE, eventually


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["create-key", "VALUE"],
        ["create-key", "name", "--scopes=VALUE"],
        ["create-key", "name", "--expires=VALUE"],
        ["VALUE"],
    ],
)
def test_each_argument_takes_an_odd_value_or_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WCL_DATABASE_URL", raising=False)
    check_odd_values(main, command, ODD, capsys)


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1/x", "sqlite:////dev/null/x", "sqlite:////dev/null", "x", "sqlite:////"]
)
@pytest.mark.parametrize("command", ["migrate", "check", "audit", "create-key"])
def test_a_database_that_cannot_be_used_is_one_line(
    command: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_DATABASE_URL", url)

    assert main([command, *(["name"] if command == "create-key" else [])]) == 1

    printed = capsys.readouterr()
    assert len((printed.out + printed.err).splitlines()) == 1


@pytest.mark.parametrize("command", ["audit", "check", "check --worker", "backup DIR", "restore DIR --files"])
def test_a_command_that_reads_makes_no_database(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that has lost its environment would find nothing wrong in an empty database for ever."""
    backups, folder = tmp_path / "backups", tmp_path / "empty"
    folder.mkdir()
    with monkeypatch.context() as original:
        original.setenv("WCL_DATA_DIR", str(tmp_path / "service"))
        original.delenv("WCL_DATABASE_URL", raising=False)
        assert (main(["migrate"]), main(["audit"]), main(["backup", str(backups)])) == (0, 0, 0)
    monkeypatch.chdir(folder)
    words = command.replace("DIR", str(backups)).split()

    def refusal() -> str:
        capsys.readouterr()
        assert main(words) == 1
        return capsys.readouterr().err.removeprefix("error: ")

    monkeypatch.delenv("WCL_DATABASE_URL", raising=False)
    monkeypatch.delenv("WCL_DATA_DIR", raising=False)
    text = "there is no database in ./wcl-data; WCL_DATABASE_URL and WCL_DATA_DIR are not set: set them as the service"
    assert refusal().startswith(text)
    assert list(folder.iterdir()) == []
    monkeypatch.setenv("WCL_DATA_DIR", str(folder))
    assert refusal().startswith(f"there is no database in {folder}; WCL_DATA_DIR names that folder, and WCL_DATABASE")
    monkeypatch.setenv("WCL_DATABASE_URL", f"sqlite:///{folder}/other.sqlite3")
    assert refusal().startswith(f"there is no database {folder}/other.sqlite3, which WCL_DATABASE_URL names")
    assert list(folder.iterdir()) == []
    (folder / "other.sqlite3").touch()  # as a former version has left it
    assert refusal().startswith(f"there is no database {folder}/other.sqlite3, which WCL_DATABASE_URL names")


@pytest.mark.process
def test_the_check_of_a_worker_makes_no_database(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker", "--check"]
    environment = outside() | {"WCL_DATA_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"WCL_DATABASE_URL: there is no database in {tmp_path}; " in done.stderr
    assert list(tmp_path.glob("*.sqlite3")) == []


@pytest.mark.postgres
def test_an_audit_leaves_a_database_without_tables_as_it_is(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_DATABASE_URL", postgres_url)
    for _ in range(2):
        assert main(["audit"]) == 1
        assert "the database has no tables, and this version needs" in capsys.readouterr().err


def test_a_new_key_has_no_admin_by_default(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_DATABASE_URL", database.url)

    assert main(["create-key", "anna", "--expires", "90d"]) == 0
    assert "no key has the scope `admin`" in capsys.readouterr().err
    assert main(["create-key", "root", "--scopes", "read,submit,admin"]) == 0
    assert capsys.readouterr().err == ""

    with database.read() as session:
        root, anna = keys.list_keys(session)
    assert anna.scopes == ["read", "submit"]
    assert root.expires_at is None
    assert anna.expires_at is not None


def test_a_command_closes_its_connections(
    postgres_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_DATABASE_URL", postgres_database.url)
    others = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

    def num_connections() -> int:
        with postgres_database.read() as session:
            return int(session.execute(others).scalar_one())

    before = num_connections()

    assert main(["create-key", "anna"]) == 0

    eventually(lambda: num_connections() == before, "the end of the command's connections", 10)
