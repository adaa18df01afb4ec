"""The last use of a key: stored once a minute for each key, after the response, and never at its cost."""

from __future__ import annotations

from sqlalchemy import event, select, update

from api.http.auth import KeyUses
from jobs import keys
from jobs.database import Database
from jobs.models import Key
from tests.api.served import Served
from tests.waiting import eventually


def last_used(database: Database, key_id: str) -> int | None:
    with database.read() as session:
        return session.get_one(Key, key_id).last_used_at


def uses(database: Database) -> list[int | None]:
    """Return the time of the last use of every key."""
    with database.read() as session:
        return list(session.execute(select(Key.last_used_at)).scalars())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def new_key(database: Database) -> str:
    return database.write(lambda session: keys.create(session, "laptop", ("read",))[0].id)


def set_back(database: Database, key_id: str, at: int) -> None:
    database.write(lambda session: session.execute(update(Key).where(Key.id == key_id).values(last_used_at=at)))


def test_a_use_is_shown_with_the_key(served: Served) -> None:
    admin, user = served.client(), served.client("read")
    admin.get("/v1/keys")

    user.get("/v1/jobs")
    eventually(lambda: all(uses(served.database)), "both uses")
    listed = admin.get("/v1/keys").json()["items"]
    assert all(key["last_used_at"].endswith("Z") for key in listed)
    assert all(key["last_used_at"] >= key["created_at"] for key in listed)


def test_a_request_of_a_browser_counts_for_its_key_and_a_wrong_key_for_none(small: Served) -> None:
    browser = small.browser("read")
    unused = new_key(small.database)

    assert browser.get("/").status_code == 200
    assert small.bare({"Authorization": "Bearer wcl_wrong"}).get("/v1/jobs").status_code == 401
    eventually(lambda: sum(map(bool, uses(small.database))) == 1, "its use")
    assert last_used(small.database, unused) is None


def test_a_use_is_stored_once_a_minute_for_each_key(database: Database) -> None:
    clock, key_id, other = Clock(), new_key(database), new_key(database)
    uses = KeyUses(database, clock)

    uses.note(key_id)
    assert last_used(database, key_id)
    assert last_used(database, other) is None
    set_back(database, key_id, 1)
    clock.now = 59.9
    assert not uses.is_due(key_id)
    uses.note(key_id)
    assert last_used(database, key_id) == 1
    uses.note(other)
    assert last_used(database, other)
    clock.now = 60.0
    uses.note(key_id)
    assert (last_used(database, key_id) or 0) > 1


def test_of_two_servers_the_first_one_writes(database: Database) -> None:
    key_id = new_key(database)
    KeyUses(database).note(key_id)
    first = last_used(database, key_id)

    KeyUses(database).note(key_id)

    assert last_used(database, key_id) == first


def test_reads_stay_reads(small: Served) -> None:
    client = small.client("read")
    client.get("/v1/jobs")
    eventually(lambda: all(uses(small.database)), "the first use")
    written: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        del connection, cursor, rest
        if not statement.lstrip().upper().startswith(("SELECT", "BEGIN", "PRAGMA")):
            written.append(statement)

    event.listen(small.database.engine, "before_cursor_execute", note)
    for _ in range(20):
        assert client.get("/v1/jobs").status_code == 200

    assert written == []


def test_a_database_that_is_away_costs_only_the_note(sqlite_database: Database) -> None:
    key_id = new_key(sqlite_database)
    sqlite_database.write(lambda session: session.connection().exec_driver_sql("ALTER TABLE keys RENAME TO away"))

    KeyUses(sqlite_database).note(key_id)
