"""Keys, sign-in links and browser sessions; no stored value grants access."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from jobs import keys
from jobs.database import Database, new_id, now_ms
from jobs.errors import Invalid, NotFound
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

    assert find(database, secret) == Principal(key_id, "colleague", frozenset({"read", "submit"}))
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
        owners = [Principal(key, "colleague", frozenset()) for key in (key_id, keys.list_keys(session)[0].id)]
        assert keys.ended(session, owners) == {owners[0]}


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

    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    result = find(database, secret)
    assert result is not None
    assert result.scopes == {"read", "submit", "admin"}
    assert keys.ensure_local(database, path) == secret
    assert len(rows.rows_of(database, Key)) == 1


@pytest.mark.parametrize("content", ["", "\n", "wcl_of-another-database\n"])
def test_a_revoked_local_key_is_replaced(database: Database, tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o644)
    secret = keys.ensure_local(database, path)

    assert find(database, secret) is not None
    assert path.read_text().strip() == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
