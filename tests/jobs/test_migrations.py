"""The migrations create the schema of the models, on both databases, with any number of processes."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, create_engine, event, inspect, select, text, type_coerce

from jobs import backups, schema, search
from jobs.audit import audit
from jobs.database import Database
from jobs.models import DEFAULT_PROJECT, Base, Job, Project
from tests import parallel, releases
from tests.jobs import rows
from wcl_core.config import parse_spec, resolve_spec, stored_spec

ROOT = Path(__file__).parents[2]
SEARCH = search.TABLE  # the beginning of the names of the tables of SQLite's index
DESCENDING = "ix_jobs_claim"  # the beginning of the names of indexes with a descending column


def _make_folder(url: str) -> None:
    """Make the folder of a SQLite database."""
    path = url.removeprefix("sqlite:///")
    if path != url:
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def test_upgrade_of_nothing_makes_every_table(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()

    names = {name for name in inspect(database.engine).get_table_names() if not name.startswith(SEARCH)}
    assert names == set(Base.metadata.tables) | {"alembic_version"}
    with database.read() as session:
        assert session.get_one(Project, DEFAULT_PROJECT).name == "default"
    database.dispose()


def test_models_and_migrations_agree(database: Database) -> None:
    options: dict[str, Any] = {"compare_type": True, "compare_server_default": True}
    if database.engine.dialect.name == "sqlite":
        options["include_object"] = lambda _, name, *__: not (name or "").startswith((DESCENDING, SEARCH))
    with database.engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)

    assert difference == []


def test_descending_indexes_are_those_of_the_models(sqlite_database: Database) -> None:
    """Alembic cannot compare them on SQLite."""
    created = create_engine("sqlite://")
    Base.metadata.create_all(created)
    query = text("SELECT sql FROM sqlite_master WHERE type = 'index' AND name LIKE :name || '%' ORDER BY name")
    with created.connect() as of_models, sqlite_database.engine.connect() as of_migrations:
        expected, migrated = (each.execute(query, {"name": DESCENDING}).all() for each in (of_models, of_migrations))
    created.dispose()

    assert len(expected) == 2
    assert migrated == expected


def test_indexes_and_unique_constraints_are_there(database: Database) -> None:
    result = inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        indexes = {tuple(index["column_names"]) for index in result.get_indexes(table.name)}
        expected = {
            tuple(re.sub(r"^.*\.| DESC$", "", str(each)) for each in index.expressions) for index in table.indexes
        }
        assert expected <= indexes, table.name
        assert tuple(result.get_pk_constraint(table.name)["constrained_columns"]) == tuple(
            column.name for column in table.primary_key.columns
        )


def test_migrating_again_changes_nothing(database: Database) -> None:
    database.migrate()

    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM projects")).scalar_one() == 1


@pytest.mark.process
def test_processes_that_migrate_at_once_take_turns(empty_url: str) -> None:
    code = "import sys; from jobs.database import Database; Database(sys.argv[1]).migrate()"
    processes = [
        subprocess.Popen([parallel.python(), "-c", code, empty_url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    words = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [0] * 3, words
    database = Database(empty_url)
    assert database.is_migrated()
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM alembic_version")).scalar_one() == 1
        assert session.execute(text("SELECT count(*) FROM projects")).scalar_one() == 1
    database.dispose()


def test_all_migrations_are_one_transaction(empty_url: str) -> None:
    """Otherwise another process could start between two migrations."""
    _make_folder(empty_url)
    database = Database(empty_url)
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)

    database.migrate()

    assert database.is_migrated()
    assert len(commits) == 1
    database.dispose()


def test_an_interrupted_migration_leaves_nothing_behind(empty_url: str) -> None:
    """This holds on SQLite, too, where the driver commits every statement by default."""
    database = Database(empty_url)
    _make_folder(empty_url)
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE rollups (id INTEGER)"))  # the last table of the migration
    failed = False
    try:
        database.migrate()
    except Exception:
        failed = True

    assert failed
    assert inspect(database.engine).get_table_names() == ["rollups"]
    database.dispose()


@pytest.mark.process
@pytest.mark.parametrize("last", [12])
def test_a_migration_that_is_killed_leaves_the_old_schema(empty_url: str, last: int) -> None:
    """The process is killed at one of its changes of the schema; the next one migrates."""
    database = Database(empty_url)
    _make_folder(empty_url)
    migrate_to(database, "0028_kept_devices")
    before = tables_of(database)
    database.dispose()
    if not (child := os.fork()):
        killed, changes = Database(empty_url), itertools.count(1)

        @event.listens_for(killed.engine, "after_cursor_execute")
        def kill(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.lstrip().startswith(("ALTER", "CREATE")) and next(changes) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            killed.migrate()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)

    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert "0028_kept_devices" in (schema.problem(database) or "")
    assert tables_of(database) == before
    database.migrate()
    assert schema.problem(database) is None
    database.dispose()


def tables_of(database: Database) -> dict[str, list[str]]:
    """Return the columns of each table."""
    inspector = inspect(database.engine)
    return {name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_table_names()}


@pytest.mark.process
def test_migrates_from_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    """In Alembic's settings `%` starts a substitution."""
    here = tmp_path / "100%"
    here.mkdir()
    for name in ("jobs", "migrations", "wcl_core"):
        (here / name).symlink_to(ROOT / name)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import migrations; assert migrations.__file__.startswith(sys.argv[1])\n"
        "from jobs.database import Database; Database('sqlite:///' + sys.argv[1] + '/wcl.sqlite3').migrate()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(here)], cwd=here, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr


def test_rows_of_the_first_version_survive_all_migrations(empty_url: str) -> None:
    """An upgrade in place: every later column has a default or is nullable."""
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, "0001")
    run = (
        "INSERT INTO jobs (id, project_id, kind, name, status, spec_version, spec_sent, spec, priority, pool, gpus,"
        " dataset_name, dataset_digest, attempt, failures, event_seq, created_at, updated_at) VALUES"
        " (:id, 'p', 'pretrain', 'old', 'queued', 1, '{}', '{}', 0, 'default', 0, 'digits', :digest, 0, 0, 1, 1, 1)"
    )
    facts = {"id": "00000000-0000-7000-8000-000000000001", "digest": rows.DIGEST}
    with database.engine.begin() as connection:
        connection.execute(text(run), facts)
        first = "INSERT INTO events (job_id, seq, type, at, data) VALUES (:id, 1, 'submitted', 1, :data)"
        connection.execute(text(first), {"id": facts["id"], "data": '{"status": "queued"}'})

    database.migrate()

    assert rows.claim(database).job_id == facts["id"]
    result = rows.job(database, facts["id"])
    assert (result.preemptible, result.max_seconds) == (False, None)
    assert audit(database).findings == []
    database.dispose()


def test_specs_of_the_versions_between_two_releases_get_their_versions(empty_url: str) -> None:
    """Those versions stored new fields in specs of version 1, which older workers refuse."""
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, "0019_own_datasets")
    sent: dict[str, Any] = {"batch_size": 240, "data": {"name": "digits"}}
    full = {name: resolve_spec(parse_spec("pretrain", sent | new)) for name, new in (("1", {}), ("2", {"nodes": 2}))}
    insert = (
        "INSERT INTO jobs (id, project_id, kind, name, status, spec_version, spec_sent, spec, priority, pool, gpus,"
        " dataset_name, dataset_digest, attempt, failures, event_seq, created_at, updated_at) VALUES"
        " (:id, 'p', 'pretrain', 'old', 'queued', 1, '{}', :spec, 0, 'default', 0, 'digits', 'd', 0, 0, 1, 1, 1)"
    )
    with database.engine.begin() as connection:
        for name, spec in full.items():
            then = {field: value for field, value in spec.items() if field not in ("weights", "restarts")}
            connection.execute(text(insert), {"id": name, "spec": json.dumps(then | {"spec_version": 1})})

    database.migrate()

    with database.read() as session:
        stored = session.execute(select(Job.id, Job.spec_version, type_coerce(Job.spec, JSON))).all()
        assert all(session.get_one(Job, name).spec == spec for name, spec in full.items())
    assert {name: (version, spec) for name, version, spec in stored} == {
        name: (int(name), stored_spec(spec)) for name, spec in full.items()
    }
    database.dispose()


def test_use_before_projects_counts_for_the_project_of_its_key(empty_url: str) -> None:
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, "0050_projects")
    key = "INSERT INTO keys (id, name, hash, scopes, created_at, project_id) VALUES (:id, :id, :id, '[]', 1, :project)"
    use = (
        "INSERT INTO device_use (owner_id, day, gpu_ms, cpu_ms, jobs, attempts, updated_at) VALUES"
        " (:owner, 7, 1, 2, 3, 4, 5)"
    )
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO projects (id, name) VALUES ('vision', 'vision')"))
        connection.execute(text(key), [{"id": "anna", "project": "vision"}, {"id": "root", "project": None}])
        connection.execute(text(use), [{"owner": owner} for owner in ("anna", "root", "of no row", "")])

    database.migrate()

    with database.engine.begin() as connection:
        stored = connection.execute(text("SELECT * FROM project_use")).mappings().all()
        of_keys = connection.execute(text("SELECT * FROM device_use")).mappings().all()
    projects = {row["owner_id"]: row["project_id"] for row in stored}
    others = dict.fromkeys(("root", "of no row", ""), DEFAULT_PROJECT)
    assert projects == others | {"anna": "vision"}
    numbers = ("day", "gpu_ms", "cpu_ms", "jobs", "attempts", "updated_at")
    assert {tuple(row[name] for name in numbers) for row in [*stored, *of_keys]} == {(7, 1, 2, 3, 4, 5)}
    assert {row["owner_id"] for row in of_keys} == set(projects)
    database.dispose()


def test_use_in_several_projects_is_one_row_of_its_key_again(empty_url: str) -> None:
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, "0052_use_by_project")
    use = "INSERT INTO device_use VALUES ('anna', :day, :project, 10, 20, 1, 2, :at)"
    with database.engine.begin() as connection:
        parts = [(7, "a", 3), (7, "b", 4), (8, "a", 5)]
        connection.execute(text(use), [{"day": day, "project": project, "at": at} for day, project, at in parts])

    database.migrate()

    with database.engine.begin() as connection:
        of_key = connection.execute(text("SELECT * FROM device_use ORDER BY day")).all()
        by_project = connection.execute(text("SELECT day, project_id, gpu_ms FROM project_use ORDER BY 1, 2")).all()
    assert of_key == [("anna", 7, 20, 40, 2, 4, 4), ("anna", 8, 10, 20, 1, 2, 5)]
    assert by_project == [(7, "a", 10), (7, "b", 10), (8, "a", 10)]
    database.dispose()


def test_what_former_versions_read_and_write_stays_possible(empty_url: str) -> None:
    """Servers and workers of before go on while the database is upgraded, and until they are replaced."""
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, releases.SCHEMA)
    of_release = _shape(database)
    migrate_to(database, "0051_project_limits")
    of_before = _shape(database)
    migrate_to(database, "0052_use_by_project")
    assert _losses(of_before, _shape(database)) == [
        "device_use.project_id: expected a default, since former versions do not write it",
        "device_use: (day, owner_id) is unique no more, and former versions name it in ON CONFLICT",
    ]

    database.migrate()

    now = _shape(database)
    assert (_losses(of_release, now), _losses(of_before, now)) == ([], [])
    database.dispose()


@dataclass(frozen=True)
class Shape:
    """Of a table: whether each column may be left out, the type of each, and the sets of columns that are unique."""

    columns: dict[str, bool]
    types: dict[str, str]
    unique: set[tuple[str, ...]]


def _shape(database: Database) -> dict[str, Shape]:
    inspector = inspect(database.engine)
    result = {}
    for name in inspector.get_table_names():
        if not name.startswith(SEARCH):
            columns = inspector.get_columns(name)
            keys = [inspector.get_pk_constraint(name)["constrained_columns"]]
            keys += [each["column_names"] for each in inspector.get_unique_constraints(name)]
            keys += [each["column_names"] for each in inspector.get_indexes(name) if each["unique"]]
            result[name] = Shape(
                {each["name"]: bool(each["nullable"] or each["default"] is not None) for each in columns},
                {each["name"]: str(each["type"]) for each in columns},
                {tuple(sorted(map(str, key))) for key in keys if key},
            )
    return result


def _losses(before: dict[str, Shape], after: dict[str, Shape]) -> list[str]:
    """Return what statements of the schema before need and the later schema lacks."""
    lines = []
    for table, old in before.items():
        if (new := after.get(table)) is None:
            lines.append(f"{table}: the table is gone")
            continue
        for name, may_be_absent in new.columns.items():
            if name not in old.columns and not may_be_absent:
                lines.append(f"{table}.{name}: expected a default, since former versions do not write it")
            elif old.columns.get(name) and not may_be_absent:
                lines.append(f"{table}.{name}: former versions may leave it out")
        lines += [f"{table}.{name}: the column is gone" for name in old.columns if name not in new.columns]
        for name, kind in old.types.items():
            if new.types.get(name, kind) != kind:
                lines.append(f"{table}.{name}: {kind} before, {new.types[name]} now")
        for key in sorted(old.unique - new.unique):
            lines.append(f"{table}: ({', '.join(key)}) is unique no more, and former versions name it in ON CONFLICT")
    return lines


def files_of(folder: Path) -> list[str]:
    """Return the names in a folder without SQLite's journals, which stay empty."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("-journal"))


@pytest.mark.slow
def test_an_upgrade_by_one_migration_says_so(empty_url: str) -> None:
    newest = ScriptDirectory.from_config(schema._alembic_config()).get_revision("head")
    assert newest is not None
    _make_folder(empty_url)
    database = Database(empty_url)
    migrate_to(database, str(newest.down_revision))
    lines: list[str] = []

    database.migrate(lines.append)

    assert lines[0].endswith(f"; 1 migration follows: {newest.revision}")
    expected = (
        "kept: " if empty_url.startswith("sqlite") else "no copy is made here; `wcl backup` of the former version"
    )
    assert lines[1].startswith(expected)
    database.dispose()


@pytest.mark.slow
def test_an_upgrade_says_when_processes_of_the_former_version_must_restart(tmp_path: Path) -> None:
    lines: list[str] = []
    for revision in ("0051_project_limits", "0052_use_by_project"):
        database = Database(f"sqlite:///{tmp_path / revision}")
        migrate_to(database, revision)
        database.migrate(lines.append)
        database.dispose()

    assert ["restart servers" in line for line in lines] == [False, False, False, False, True]


@pytest.mark.slow
def test_an_upgrade_of_a_file_says_what_it_does_and_keeps_a_copy(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'wcl.sqlite3'}")
    migrate_to(database, "0028_kept_devices")
    before = tables_of(database)
    database.dispose()
    (tmp_path / "wcl.sqlite3.0001_tables").write_bytes(b"the copy of an earlier upgrade")
    lines: list[str] = []

    database.migrate(lines.append)

    kept = tmp_path / "wcl.sqlite3.0028_kept_devices"
    assert "schema 0028_kept_devices; " in lines[0]
    assert "migrations follow: 0029_notes, 0030_references" in lines[0]
    assert lines[1:] == [f"kept: {kept}"]
    assert files_of(tmp_path) == ["wcl.sqlite3", kept.name]
    assert schema.problem(database) is None
    database.migrate(lines.append)
    assert len(lines) == 2, "nothing is left to do"
    newest = tables_of(database)
    database.dispose()

    # The way back of docs/operating.md: the copy takes the file's place, and can be upgraded again.
    (tmp_path / "wcl.sqlite3").rename(tmp_path / "wcl.sqlite3.newer")
    kept.rename(tmp_path / "wcl.sqlite3")
    former = Database(database.url)
    assert "0028_kept_devices" in (schema.problem(former) or "")
    assert tables_of(former) == before
    former.migrate()
    assert tables_of(former) == newest
    former.dispose()


def test_without_room_for_the_copy_nothing_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{tmp_path / 'wcl.sqlite3'}")
    migrate_to(database, "0028_kept_devices")
    database.dispose()
    before = (tmp_path / "wcl.sqlite3").read_bytes()

    def fail(_source: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(backups, "copy_sqlite", fail)
        with pytest.raises(schema.Unusable, match=r"not upgraded.*No space left"):
            database.migrate()

    assert (tmp_path / "wcl.sqlite3").read_bytes() == before
    assert files_of(tmp_path) == ["wcl.sqlite3"]
    database.dispose()


def migrate_to(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["database"] = database
    command.upgrade(config, revision)
