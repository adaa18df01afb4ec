"""`wcl keys` against a real server."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from jobs import keys, policies
from jobs.database import now_ms
from jobs.models import Activity, DeviceUse
from jobs.settings import Settings
from tests.api.served import Served
from tests.wcl_client.test_operations import wcl
from wcl_client import cli
from wcl_client.api import WclClient
from wcl_client.connection import Answers
from wcl_client.doctor import _server
from wcl_core.version import VERSION


def test_a_key_is_created_listed_rotated_and_revoked(server: Served) -> None:
    def status(secret: str) -> int:
        return server.bare({"Authorization": f"Bearer {secret}"}).get("/v1/jobs").status_code

    created = wcl("keys", "create", "anna", "--expires", "90d")
    secret = created.stdout.strip()
    assert "anna: read, submit; expires 2" in created.stderr
    assert status(secret) == 200
    assert "anna" in wcl("keys", "list").stdout

    changed = wcl("keys", "change", "anna", "--max-waiting", "200", "--max-devices", "2")
    assert changed.stdout == "anna: 200 waiting jobs, 2 devices at once\n"
    assert "200 waiting" in wcl("keys", "list").stdout
    assert (
        "limits of the service"
        in wcl("keys", "change", "anna", "--max-waiting", "default", "--max-devices", "default").stdout
    )

    rotated = wcl("keys", "rotate", "anna", "--expires", "never")
    assert "does not expire" in rotated.stderr
    assert (status(secret), status(rotated.stdout.strip())) == (401, 200)
    assert wcl("keys", "revoke", "anna").stdout == "anna revoked\n"
    assert status(rotated.stdout.strip()) == 401
    assert "anna" not in wcl("keys", "list").stdout
    assert "revoked 2" in wcl("keys", "list", "--all").stdout


def test_a_key_is_renamed_and_gets_other_scopes_and_another_expiry(server: Served) -> None:
    secret = wcl("keys", "create", "anna").stdout.strip()
    twin = wcl("keys", "create", "anna")
    assert "warning: another key has the name anna, too" in twin.stderr
    annas = [each for each in server.client().get("/v1/keys").json()["items"] if each["name"] == "anna"]
    own = min(annas, key=lambda each: each["id"])

    changed = wcl("keys", "change", own["id"], "--name", "anna2", "--scopes", "read,priority", "--expires", "30d")
    assert changed.stdout.startswith("anna2: read, priority; expires 2")
    assert "warning" not in changed.stderr
    assert "another key has the name anna" in wcl("keys", "change", own["id"], "--name", "anna").stderr

    page = server.client().post(f"/keys/{own['id']}/limits", data={"name": "ben", "scopes": "read", "days": "never"})
    assert page.status_code in (200, 303)
    key = server.bare({"Authorization": f"Bearer {secret}"}).get("/v1/whoami").json()
    facts = ("ben", ["read"], None, "viewer", VERSION)
    assert (key["name"], key["scopes"], key["expires_at"], key["role"], key["version"]) == facts


def test_keys_of_one_name_have_their_ids_in_the_table_of_usage(server: Served) -> None:
    names = ("ben", "ben", "cy")
    ids = server.database.write(lambda session: [keys.create(session, name)[0].id for name in names])
    day = {"day": 20_000, "gpu_ms": 0, "cpu_ms": 3_600_000, "jobs": 1, "attempts": 1, "updated_at": 1}

    def use(session: Session) -> None:
        session.add_all(DeviceUse(owner_id=key, **day) for key in ids)

    server.database.write(use)

    table = wcl("usage").stdout
    assert all(f"ben {key[-12:]}" in table for key in ids[:2])
    assert ids[2][-12:] not in table


def test_whoami_names_role_project_limits_and_server(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "administrator (read, submit, admin)" in " ".join(wcl("whoami").stdout.split())
    secret = wcl("keys", "create", "ben", "--max-waiting", "3", "--expires", "9d").stdout.strip()
    server.database.write(lambda session: policies.store(session, Settings(key_devices=2)))
    monkeypatch.setenv("WCL_KEY", secret)

    lines = " ".join(wcl("whoami").stdout.split())

    assert "role member (read, submit) project default expiry expires 2" in lines
    assert "waiting jobs 3 devices at once 2 (of the service) jobs a minute no limit" in lines
    assert f"server {os.environ['WCL_URL']}, version {VERSION}" in lines


def test_a_project_is_removed_once_it_is_empty(server: Served) -> None:
    wcl("projects", "create", "vision")
    wcl("keys", "create", "ben", "--project", "vision")

    refused = wcl("projects", "remove", "vision")
    assert "the project vision has 1 key (move or revoke" in str(refused.exception)
    wcl("keys", "change", "ben", "--project", "default")
    assert wcl("projects", "remove", "vision").stdout == "vision removed\n"
    assert "vision" not in wcl("projects", "list").stdout
    assert "there is no project 'vision'" in wcl("projects", "remove", "vision").output


def test_the_activity_of_a_time_before_now(server: Served) -> None:
    entries = [wcl("keys", "create", name) and name for name in ("old", "new")]
    database_now = server.database.write(lambda session: session.execute(select(now_ms())).scalar_one())
    moved = update(Activity).where(Activity.object_name == "old").values(at=database_now - 3 * 3_600_000)
    server.database.write(lambda session: session.execute(moved))

    def names(*options: str) -> list[str]:
        done = wcl("activity", "--action", "key.create", *options, "--json")
        return [each["object_name"] for each in json.loads(done.stdout) if each["object_name"] in entries]

    assert names("--since", "2h") == ["new"]
    assert names("--since", "1d") == ["new", "old"]
    assert names("--until", "120m") == ["old"]
    iso = datetime.fromtimestamp(database_now / 1000 - 7_200, timezone(timedelta(hours=5))).isoformat()
    assert names("--since", iso) == ["new"]
    wrong = wcl("activity", "--since", "yesterday")
    assert "--since yesterday: expected 30m, 2h or 3d, or a time such as" in " ".join(wrong.output.split())


def test_wrong_requests_name_what_to_do(server: Served) -> None:
    assert "--expires 90: expected days such as 90d" in wcl("keys", "create", "x", "--expires", "90").output
    assert "no scope 'root'" in wcl("keys", "create", "x", "--scopes", "read,root").output
    assert "--max-devices 0: expected a number from 1" in wcl("keys", "change", "x", "--max-devices", "0").output
    assert "at least one of --name" in wcl("keys", "change", "x").output
    assert "no key matches absent" in str(wcl("keys", "rotate", "absent").exception)
    assert "--last-administrator" in str(wcl("keys", "revoke", "test").exception)
    assert wcl("keys", "revoke", "test", "--last-administrator").exit_code == 0


def test_a_key_that_expires_soon_is_a_warning_once_a_day(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def warned(days: int | None = 3) -> bool:
        if days != 3:
            secret = server.database.write(lambda session: keys.create(session, "night", ("read",), days))[1]
            monkeypatch.setenv("WCL_KEY", secret)
        assert cli.run(["keys", "list", "--json"] if days is None else ["jobs", "--json"]) in (0, 5)
        printed = capsys.readouterr()
        assert "expires on" not in printed.out
        return "the key of this command expires on 2" in printed.err

    assert [warned(days) for days in (30, 2, 3, 3)] == [False, True, False, False]
    note = tmp_path / "state" / "wcl" / "key-expires"
    os.utime(note, (1, 1))
    assert [warned(), warned()] == [True, False]
    note.unlink()
    note.mkdir()  # nothing can be noted
    assert [warned(), warned()] == [True, True]

    Answers.forget()
    with WclClient.connect() as client:
        (finding,) = (each for each in _server(client) if each.name == "Key")
    assert (finding.is_ok, "expires on 2" in finding.detail) == (False, True)
