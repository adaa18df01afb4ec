"""A database that this version cannot use is refused in one sentence that says what to do, and is left as it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs import __main__ as command
from jobs import schema
from jobs.database import Database
from jobs.schema import Unusable

DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2 // 4096 * 4096],
    "cut within a page": lambda content: content[:5000],
    "a few bytes flipped": lambda content: (
        content[:8192] + bytes(b ^ 0xFF for b in content[8192:8232]) + content[8232:]
    ),
    "header zeroed": lambda content: bytes(100) + content[100:],
    "another kind of file": lambda content: b"PK\x03\x04" + bytes(5000),
    "one byte": lambda content: b"x",
    "less than a page": lambda content: content[:511],
}


@pytest.fixture
def copy(sqlite_template: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "wcl.sqlite3"
    path.parent.mkdir()
    path.write_bytes(sqlite_template.read_bytes())
    return path


def refusal(path: Path) -> str:
    """Why a migration of the file is refused; the file stays as it is."""
    before = path.read_bytes() if path.exists() else None
    database = Database(f"sqlite:///{path}")
    with pytest.raises(Unusable) as raised:
        database.migrate()
    database.dispose()
    assert (path.read_bytes() if path.exists() else None) == before
    assert raised.value.status_code == 503
    assert str(path) in raised.value.detail
    assert "\n" not in raised.value.detail
    return raised.value.detail


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(copy: Path, damage: str) -> None:
    copy.write_bytes(DAMAGES[damage](copy.read_bytes()))

    assert "restore a backup" in refusal(copy)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wcl.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE songs (title)")
    other.close()

    assert "another program" in refusal(path)


def test_a_file_of_another_program_that_uses_alembic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wcl.sqlite3"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE alembic_version (version_num)")
        other.execute("INSERT INTO alembic_version VALUES ('f00')")
        other.execute("CREATE TABLE songs (title)")
    other.close()

    assert "another program" in refusal(path)


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_a_newer_schema_is_refused(database: Database) -> None:
    database.write(lambda session: session.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    try:
        with pytest.raises(Unusable, match=r"newer version.*9999.*Install the newer version"):
            database.migrate()
        assert "newer version" in (schema.problem(database) or "")
        assert not database.is_migrated()
    finally:
        newest = schema.newest()
        database.write(lambda s: s.execute(text("UPDATE alembic_version SET version_num = :n"), {"n": newest}) and None)
    assert schema.problem(database) is None


def test_an_older_and_an_empty_schema_are_upgraded(empty_url: str) -> None:
    database = Database(empty_url)
    if database.engine.dialect.name == "sqlite":
        Path(str(database.engine.url.database)).parent.mkdir()
    assert "python -m jobs migrate" in (schema.problem(database) or "")
    database.migrate()
    assert schema.problem(database) is None
    database.migrate()
    database.dispose()


def test_the_command_checks_without_a_change(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(copy.parent))
    assert command.main(["check"]) == 0
    assert capsys.readouterr().out == "ok\n"

    copy.write_bytes(copy.read_bytes()[:5000])
    assert command.main(["check"]) == 1
    assert "restore a backup" in capsys.readouterr().err

    copy.unlink()
    assert command.main(["check"]) == 1
    assert "python -m jobs migrate" in capsys.readouterr().err
    assert not copy.exists()
