"""`wcl keys` against a real server."""

from __future__ import annotations

from tests.api.served import Served
from tests.wcl_client.test_operations import wcl


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


def test_wrong_requests_name_what_to_do(server: Served) -> None:
    assert "--expires 90: expected days such as 90d" in wcl("keys", "create", "x", "--expires", "90").output
    assert "no scope 'root'" in wcl("keys", "create", "x", "--scopes", "read,root").output
    assert "--max-devices 0: expected a number from 1" in wcl("keys", "change", "x", "--max-devices", "0").output
    assert "at least one of --max-waiting" in wcl("keys", "change", "x").output
    assert "no key matches absent" in str(wcl("keys", "rotate", "absent").exception)
    assert "--last-administrator" in str(wcl("keys", "revoke", "test").exception)
    assert wcl("keys", "revoke", "test", "--last-administrator").exit_code == 0
