"""Keys, sign-in links and browser sessions; no stored value grants access."""

from __future__ import annotations

import hashlib
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from jobs import activity, keys
from jobs.database import DEFAULT_PROJECT, Database, new_id, now_ms
from jobs.errors import Conflict, Invalid, NotFound
from jobs.keys import Principal
from jobs.models import Key, SignInToken
from tests.jobs import rows
from tests.jobs.rows import at_once


def create(database: Database, *scopes: str, name: str = "colleague") -> tuple[str, str]:
    """Create a key and return (id, secret)."""
    key, secret = database.write(lambda session: keys.create(session, name, scopes or ("read",)))
    return key.id, secret


def find(database: Database, secret: str) -> Principal | None:
    with database.read() as session:
        return keys.find(session, secret)


def by_session(database: Database, token: str) -> Principal | None:
    with database.read() as session:
        return keys.by_session(session, token)


def signed_in(database: Database, key_id: str) -> str:
    token = database.write(lambda session: keys.new_link(session, key_id))
    result = database.write(lambda session: keys.redeem(session, token))
    assert result is not None
    return result


def test_a_key_is_found_by_its_secret_alone(database: Database) -> None:
    key_id, secret = create(database, "submit", "read", "read")

    assert find(database, secret) == Principal(
        key_id, "colleague", frozenset({"read", "submit"}), project_id=DEFAULT_PROJECT
    )
    for wrong in ("", "wcl_", secret + "x", secret[:-1], secret.upper(), hashlib.sha256(secret.encode()).hexdigest()):
        assert find(database, wrong) is None


def test_secrets_are_256_bits_and_never_the_same(database: Database) -> None:
    secrets = {create(database)[1] for _ in range(20)}

    assert len(secrets) == 20
    assert all(len(secret.removeprefix("wcl_")) >= 43 for secret in secrets)


def test_no_secret_is_stored(database: Database) -> None:
    key_id, secret = create(database)
    link = database.write(lambda session: keys.new_link(session, key_id))
    session_token = signed_in(database, key_id)

    stored = repr([rows.rows_of(database, table) for table in (Key, SignInToken)])
    for word in (secret, link, session_token):
        assert word not in stored
        assert word.removeprefix("wcl_")[:20] not in stored


@pytest.mark.parametrize("scopes", [[], ["root"], ["read", "ADMIN"], [""]])
def test_unknown_scopes_are_refused(database: Database, scopes: list[str]) -> None:
    with pytest.raises(Invalid, match="/scopes"):
        database.write(lambda session: keys.create(session, "x", scopes))
    assert rows.rows_of(database, Key) == []


def test_a_revoked_key_is_refused_at_once(database: Database) -> None:
    key_id, secret = create(database)
    _, other = create(database)
    link = database.write(lambda session: keys.new_link(session, key_id))
    browser = signed_in(database, key_id)
    database.write(lambda session: keys.revoke(session, key_id))
    database.write(lambda session: keys.revoke(session, key_id))

    assert find(database, secret) is None
    assert by_session(database, browser) is None
    assert database.write(lambda session: keys.redeem(session, link)) is None
    assert find(database, other) is not None
    with pytest.raises(NotFound):
        database.write(lambda session: keys.revoke(session, new_id()))
    with database.read() as session:
        assert [key.revoked_at is not None for key in keys.list_keys(session)] == [False, True]
        assert keys.has_keys(session)
        others = (key_id, keys.list_keys(session)[0].id)
        owners = [Principal(key, "colleague", frozenset(), project_id=DEFAULT_PROJECT) for key in others]
        assert keys.ended(session, owners) == {owners[0]}


def end(database: Database, key_id: str) -> None:
    """Let a key expire."""
    expired = update(Key).where(Key.id == key_id).values(expires_at=now_ms())
    database.write(lambda session: session.execute(expired))


def test_an_expired_key_ends_with_its_sessions_links_and_streams(database: Database) -> None:
    key, secret = database.write(lambda session: keys.create(session, "night", ("read",), 90))
    browser, link = signed_in(database, key.id), database.write(lambda session: keys.new_link(session, key.id))
    principal, of_browser = find(database, secret), by_session(database, browser)
    assert principal is not None
    assert of_browser is not None
    assert key.expires_at is not None
    assert key.expires_at - key.created_at == pytest.approx(90 * 86_400_000, abs=60_000)
    with database.read() as session:
        assert keys.ended(session, [principal, of_browser]) == set()
        assert keys.expiry(session, secret) is None

    end(database, key.id)

    assert find(database, secret) is None
    assert by_session(database, browser) is None
    assert database.write(lambda session: keys.sign_in(session, secret)) is None
    assert database.write(lambda session: keys.redeem(session, link)) is None
    with database.read() as session:
        assert keys.ended(session, [principal, of_browser]) == {principal, of_browser}
        assert not keys.has_keys(session)
        for word in (secret, browser):
            assert "the key night expired on" in (keys.expiry(session, word) or "")
        assert keys.expiry(session, "wcl_wrong") is None


@pytest.mark.parametrize("days", [0, -1, keys.MAX_DAYS + 1])
def test_a_lifetime_is_in_range(database: Database, days: int) -> None:
    with pytest.raises(Invalid, match="/days"):
        database.write(lambda session: keys.create(session, "x", ("read",), days))
    assert rows.rows_of(database, Key) == []


def test_a_rotated_key_has_a_new_secret_and_ends_all_that_used_the_former_one(database: Database) -> None:
    key_id, secret = create(database, "read", "submit")
    browser, link = signed_in(database, key_id), database.write(lambda session: keys.new_link(session, key_id))
    principal = find(database, secret)
    assert principal is not None

    row, new, _ = database.write(lambda session: keys.rotate(session, key_id))

    assert find(database, secret) is by_session(database, browser) is None
    assert database.write(lambda session: keys.redeem(session, link)) is None
    rotated = find(database, new)
    assert rotated is not None
    assert (rotated.key_id, rotated.scopes) == (principal.key_id, principal.scopes)
    with database.read() as session:
        assert keys.ended(session, [principal, rotated]) == {principal}, "streams of the former secret go on"
    with pytest.raises(Conflict, match="has been rotated"):
        database.write(lambda session: keys.rotate(session, key_id, seen=None))
    assert find(database, new) is not None, "a form that is sent again rotates the key again"
    database.write(lambda session: keys.rotate(session, key_id, seen=row.rotated_at))
    assert find(database, new) is None


def test_a_rotation_keeps_the_time_of_the_end_or_sets_a_new_one(database: Database) -> None:
    key, _ = database.write(lambda session: keys.create(session, "night", ("read",), 90))

    assert database.write(lambda session: keys.rotate(session, key.id))[0].expires_at == key.expires_at
    assert (database.write(lambda session: keys.rotate(session, key.id, 91))[0].expires_at or 0) > (key.expires_at or 0)
    assert database.write(lambda session: keys.rotate(session, key.id, None))[0].expires_at is None
    end(database, key.id)
    with pytest.raises(Invalid, match="/days"):
        database.write(lambda session: keys.rotate(session, key.id))
    _, secret, _ = database.write(lambda session: keys.rotate(session, key.id, 1))
    assert find(database, secret) is not None
    database.write(lambda session: keys.revoke(session, key.id))
    with pytest.raises(Conflict, match="revoked"):
        database.write(lambda session: keys.rotate(session, key.id))


def test_a_changed_key_keeps_its_secret_and_has_its_new_rights_at_once(database: Database) -> None:
    key_id, secret = create(database, "read", "submit")
    browser, before = signed_in(database, key_id), find(database, secret)
    assert before is not None

    own = database.acting_for(activity.OPERATOR)

    def change(**facts: Any) -> Key:
        return own.write(lambda session: keys.change(session, key_id, {}, **facts))

    changed = change(name="anna", scopes=["priority", "read", "read"], days=30)
    assert (changed.name, changed.scopes, changed.expires_at is None) == ("anna", ["read", "priority"], False)
    for now in (find(database, secret), by_session(database, browser)):
        assert now is not None
        assert (now.name, now.scopes) == ("anna", {"read", "priority"})
    with database.read() as session:
        assert keys.ended(session, [before]) == {before}, "a stream keeps a right that its key has lost"
        assert keys.ended(session, [now]) == set()
        (entry,) = activity.entries(session, action="key.change")
    assert entry.object_name == "colleague"
    details = entry.details or {}
    assert details.keys() == {"renamed_to", "scopes", "expires", "former"}
    assert details["former"] == {"scopes": ["read", "submit"], "expires": "never"}
    assert change(days=None).expires_at is None
    for wrong in ({"scopes": ["root"]}, {"scopes": []}, {"name": ""}, {"days": 0}):
        with pytest.raises(Invalid):
            change(**wrong)
    assert find(database, secret) is not None


def test_the_last_administrator_keeps_this_scope_and_a_person_of_a_proxy_its_own_ones(database: Database) -> None:
    key_id, _ = create(database, "read", "admin", name="anna")
    person = keys.of_person(database, "ben@example", ["read"])

    with pytest.raises(Conflict, match="anna is the last key with `admin`"):
        database.write(lambda session: keys.change(session, key_id, {}, scopes=["read"]))
    with pytest.raises(Conflict, match="the proxy gives"):
        database.write(lambda session: keys.change(session, person.key_id, {}, scopes=["read", "admin"]))
    create(database, "admin", name="carl")
    assert database.write(lambda session: keys.change(session, key_id, {}, scopes=["read"])).scopes == ["read"]


def test_a_name_that_other_active_keys_have_is_a_warning(database: Database) -> None:
    def warning(key_id: str) -> str | None:
        with database.read() as session:
            return keys.namesakes(session, session.get_one(Key, key_id))

    first, second, _ = (create(database, name=name)[0] for name in ("anna", "anna", "ben"))
    assert f"another key has the name anna, too; commands that name it need the id, {second}" in (warning(second) or "")
    database.write(lambda session: keys.revoke(session, first))
    assert warning(second) is None


def test_the_last_administrators_key_is_revoked_on_an_explicit_word_only(database: Database) -> None:
    first, second = (create(database, "read", "admin", name=name)[0] for name in ("anna", "ben"))
    create(database, "read", "submit")
    end(database, second)
    with pytest.raises(Conflict, match="anna is the last key with `admin`"):
        database.write(lambda session: keys.revoke(session, first))
    database.write(lambda session: keys.revoke(session, second))  # it has expired, so the number stays

    database.write(lambda session: keys.revoke(session, first, last_administrator=True))

    with database.read() as session:
        assert "no key has the scope `admin`" in (keys.notice(session) or "")


def test_administrators_who_revoke_each_other_leave_one_key(database: Database) -> None:
    ids = [create(database, "admin", name=name)[0] for name in ("anna", "ben", "carl")]

    def revoke(number: int) -> bool:
        with suppress(Conflict):
            database.write(lambda session: keys.revoke(session, ids[number]))
            return True
        return False

    assert sorted(at_once(3, revoke)) == [False, True, True]


def test_the_notice_names_the_end_of_the_last_administrators_key(database: Database) -> None:
    def notice() -> str:
        with database.read() as session:
            return keys.notice(session) or ""

    assert "no key has the scope `admin`" in notice()
    database.write(lambda session: keys.create(session, "anna", keys.ADMINISTRATOR, 30))
    database.write(lambda session: keys.create(session, "ben", keys.ADMINISTRATOR, 60))
    assert "the last key with `admin`, ben, expires on" in notice()
    database.write(lambda session: keys.create(session, "carl", keys.ADMINISTRATOR))
    assert notice() == ""


def test_sign_in_needs_an_active_key(database: Database) -> None:
    with database.read() as session:
        assert not keys.has_keys(session)
    key_id, _ = create(database)
    database.write(lambda session: keys.revoke(session, key_id))
    with database.read() as session:
        assert not keys.has_keys(session)


def test_a_link_works_once(database: Database) -> None:
    key_id, _ = create(database, "read", "admin")
    link = database.write(lambda session: keys.new_link(session, key_id))

    answers = at_once(6, lambda _: database.write(lambda session: keys.redeem(session, link)))

    (token,) = [answer for answer in answers if answer is not None]
    principal = by_session(database, token)
    assert principal is not None
    assert replace(principal, session="") == Principal(key_id, "colleague", frozenset({"read", "admin"}))
    assert principal.session
    assert token not in principal.session
    assert by_session(database, link) is None


def test_a_sessions_token_is_no_link_and_a_link_no_session(database: Database) -> None:
    key_id, secret = create(database)
    link = database.write(lambda session: keys.new_link(session, key_id))
    token = signed_in(database, key_id)

    assert by_session(database, link) is None
    assert database.write(lambda session: keys.redeem(session, token)) is None
    for word in (link, token):
        assert find(database, word) is None
    assert by_session(database, secret) is None


@pytest.mark.parametrize("kind", ["link", "session"])
def test_expired_links_and_sessions_are_refused(database: Database, kind: str) -> None:
    key_id, _ = create(database)
    token = signed_in(database, key_id) if kind == "session" else database.write(lambda s: keys.new_link(s, key_id))
    database.write(lambda session: session.execute(update(SignInToken).values(expires_at=now_ms() - 1)))

    assert by_session(database, token) is None
    assert database.write(lambda session: keys.redeem(session, token)) is None
    database.write(keys.expire)
    assert rows.rows_of(database, SignInToken) == []


def test_a_session_ends_when_the_browser_signs_out(database: Database) -> None:
    key_id, _ = create(database)
    token, other = signed_in(database, key_id), signed_in(database, key_id)
    database.write(lambda session: keys.end_session(session, token))

    assert by_session(database, token) is None
    assert by_session(database, other) is not None


def test_a_link_needs_a_key(database: Database) -> None:
    with pytest.raises(IntegrityError):
        database.write(lambda session: keys.new_link(session, new_id()))


def test_the_local_key_is_kept_in_a_file_for_its_owner(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "key"
    secret = keys.ensure_local(database, path)

    assert secret is not None
    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    result = find(database, secret)
    assert result is not None
    assert result.scopes == {"read", "submit", "admin"}
    assert keys.ensure_local(database, path) == secret
    assert len(rows.rows_of(database, Key)) == 1


def test_a_rotation_of_the_local_key_is_stored_in_its_file(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "key"
    principal = find(database, keys.ensure_local(database, path) or "")
    assert principal is not None
    key_id = principal.key_id
    _, secret, former_hash = database.write(lambda session: keys.rotate(session, key_id))

    keys.keep_local(path, former_hash, secret)
    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys.keep_local(path, "hash of another key", "wcl_other")
    keys.keep_local(tmp_path / "absent", former_hash, secret)
    assert path.read_text().strip() == secret
    assert keys.ensure_local(database, path) == secret


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
def test_a_local_key_that_has_ended_stays_so_until_its_file_is_removed(
    database: Database, tmp_path: Path, end: str
) -> None:
    path = tmp_path / "key"
    secret = keys.ensure_local(database, path)
    database.write(lambda session: session.execute(update(Key).values({end: 1})))

    assert keys.ensure_local(database, path) is None
    assert path.read_text().strip() == secret
    assert len(rows.rows_of(database, Key)) == 1
    path.unlink()
    assert keys.ensure_local(database, path) not in (None, secret)


@pytest.mark.parametrize("content", ["", "\n", "wcl_of-another-database\n"])
def test_a_local_key_of_another_database_is_replaced(database: Database, tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o644)
    secret = keys.ensure_local(database, path)

    assert secret is not None
    assert find(database, secret) is not None
    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
