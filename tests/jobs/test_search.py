"""The search for a part of a name, an id or a dataset: its results, and the index that makes it fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import make_url, select, text, update

from jobs import queries, search
from jobs.database import Database
from jobs.models import Job
from jobs.queries import Filters
from tests.jobs import rows

NAMES = (
    *("Weak-Label 100%", "weak_label 1000", "Ärger mit Äpfeln", "Größe", 'a "quoted" name', "run 123", "RUN 124"),
    *("x", "yz", "emoji 🙂🙂🙂 end", "ba/ckslash\\", "AND OR NOT", "''", "run*"),
)
MATCHES = {
    **{"weak": ["Weak-Label 100%", "weak_label 1000"], "WEAK-l": ["Weak-Label 100%"], "100%": ["Weak-Label 100%"]},
    **{"k_l": ["weak_label 1000"], "Äpf": ["Ärger mit Äpfeln"], "röß": ["Größe"], '"quoted"': ['a "quoted" name']},
    **{"run 12": ["RUN 124", "run 123"], "n 123": ["run 123"], "run*": ["run*"], "🙂🙂🙂": ["emoji 🙂🙂🙂 end"]},
    **{"a/ckslash\\": ["ba/ckslash\\"], "and or": ["AND OR NOT"], "''": ["''"], "x": ["x"], "yz": ["yz"]},
    **{"igit": sorted(NAMES), "i": sorted(NAMES)},  # the dataset
    **{term: [] for term in ("zebra", "run 123 and more", "%%%", "___", "🙂" * 200, "a\0b", "nul\ud800")},
}


@pytest.fixture
def indexed(database: Database) -> Iterator[Database]:
    """Yield a database with a dataset and the index of the search."""
    rows.add_dataset(database)
    if is_postgres(database) and (problem := search.problem(database)) is not None:
        pytest.skip(f"NOT TESTED HERE: {problem}")
    search.build(database)
    yield database
    if is_postgres(database):  # other tests use it, too
        database.write(lambda session: session.execute(text("DROP EXTENSION pg_trgm CASCADE")))


def is_postgres(database: Database) -> bool:
    return database.engine.dialect.name == "postgresql"


def names_of(database: Database, term: str) -> list[str]:
    with database.read() as session:
        return sorted(job.name for job in queries.list_jobs(session, q=term, limit=100).items)


def plan_of(database: Database, term: str) -> str:
    """Return how the database reads the jobs of a term, if it has to avoid reading every job."""
    with database.read() as session:
        statement = queries.matching(session, select(Job.id), Filters(q=term)).order_by(Job.id.desc()).limit(50)
        if is_postgres(database):  # which reads few jobs one after the other
            session.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off"))
        connection = session.connection()
        compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
        explain = "EXPLAIN " if is_postgres(database) else "EXPLAIN QUERY PLAN "
        values = (
            compiled.params if is_postgres(database) else tuple(compiled.params[key] for key in compiled.positiontup)
        )
        return str(connection.exec_driver_sql(explain + str(compiled), values).all())


def test_a_term_is_a_part_of_a_name_or_a_dataset_in_either_case(indexed: Database) -> None:
    for name in NAMES:
        rows.submit(indexed, name=name)

    assert {term: names_of(indexed, term) for term in MATCHES} == MATCHES


def test_a_search_without_a_result_reads_no_job(indexed: Database) -> None:
    rows.submit(indexed, name="a run")
    plan = plan_of(indexed, "zebra")
    assert search.INDEX in plan if is_postgres(indexed) else "job_search VIRTUAL TABLE INDEX" in plan, plan


def test_a_term_of_most_jobs_is_not_read_from_the_index(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs would all be read before they are ordered."""
    monkeypatch.setattr(search, "_MOST_INDEXED", 2)
    rows.add_dataset(sqlite_database)
    for number in range(3):
        rows.submit(sqlite_database, name=f"run {number}")
    assert "job_search" not in plan_of(sqlite_database, "run")
    assert names_of(sqlite_database, "run") == ["run 0", "run 1", "run 2"]


def test_a_term_of_two_characters_is_looked_for_in_the_newest_jobs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_NEWEST", 2)
    rows.add_dataset(database)  # ids have no letter after f
    for name in ("run-x", "run-y", "run-z"):
        rows.submit(database, name=name)

    assert names_of(database, "ru") == names_of(database, "r") == ["run-y", "run-z"]
    assert names_of(database, "-x") == []
    assert names_of(database, "n-x") == ["run-x"]


def test_the_index_follows_every_change(indexed: Database) -> None:
    first, other = rows.submit(indexed, name="first run"), rows.submit(indexed, name="other run")
    assert names_of(indexed, first[4:-4]) == ["first run"]

    def rename(session: Any, name: str, fails: bool = False) -> None:
        session.execute(update(Job).where(Job.id == first).values(name=name))
        if fails:
            raise RuntimeError

    indexed.write(lambda session: rename(session, "renamed"))
    with pytest.raises(RuntimeError):
        indexed.write(lambda session: rename(session, "undone", fails=True))
    assert [names_of(indexed, term) for term in ("first", "undone", "renam")] == [[], [], ["renamed"]]

    for table, column in (("events", "job_id"), ("activities", "object_id"), ("jobs", "id")):
        removal = text(f"DELETE FROM {table} WHERE {column} = :id").bindparams(id=first)
        indexed.write(lambda session, removal=removal: session.execute(removal))
    assert names_of(indexed, "renam") == []
    if not is_postgres(indexed):
        with indexed.read() as session:
            assert session.execute(text("SELECT id FROM job_search")).scalars().all() == [other]


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_an_interrupted_index_is_built_again(indexed: Database) -> None:
    def is_valid() -> bool:
        with indexed.read() as session:
            named = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
            return bool(session.execute(named, {"name": search.INDEX}).scalar_one())

    interrupt = text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)")
    indexed.write(lambda session: session.execute(interrupt, {"name": search.INDEX}))
    assert not is_valid()

    search.build(indexed)

    assert is_valid()
    assert search.problem(indexed) is None


def test_a_search_works_where_the_account_may_not_build_the_index(postgres_database: Database) -> None:
    def execute(statement: str) -> None:
        postgres_database.write(lambda session: session.execute(text(statement)))

    execute("CREATE ROLE searcher LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO searcher")
    rows.add_dataset(postgres_database)
    rows.submit(postgres_database, name="a run")
    url = make_url(postgres_database.url).set(username="searcher")
    limited = Database(url.render_as_string(hide_password=False))
    try:
        search.build(limited)
        assert "let an administrator run `CREATE EXTENSION" in str(search.problem(limited))
        execute("CREATE EXTENSION pg_trgm")
        search.build(limited)
        assert "only the owner of the table jobs" in str(search.problem(limited))
        assert names_of(limited, "run") == ["a run"]
        search.build(postgres_database)
        assert search.problem(limited) is None
    finally:
        limited.dispose()
        execute("DROP EXTENSION IF EXISTS pg_trgm CASCADE; DROP OWNED BY searcher; DROP ROLE searcher")
