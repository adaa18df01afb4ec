"""Every argument of `python -m jobs` with odd values: one line, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from jobs import keys
from jobs.__main__ import main
from jobs.database import Database
from tests.odd import ODD, check_odd_values
from tests.waiting import eventually


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
