"""`wcl share` against a real server."""

from __future__ import annotations

import httpx

from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import PATIENCE
from tests.wcl_client.test_operations import wcl


def test_a_link_is_created_listed_and_revoked(server: Served) -> None:
    job_id = rows.submit(server.database, name="shared")

    url = wcl("share", "create", job_id, "--days", "2").stdout.strip()
    assert httpx.get(url, timeout=PATIENCE).status_code == 200
    listed = wcl("share", "list").stdout
    assert "shared" in listed
    assert "open" in listed
    link_id = server.client().get("/v1/shares").json()["items"][0]["id"]
    assert wcl("share", "revoke", link_id[-12:]).stdout == f"{link_id} revoked\n"
    assert httpx.get(url, timeout=PATIENCE).status_code == 404
    assert "revoked by test" in wcl("share", "list").stdout
    assert wcl("share", "revoke", "absent").exit_code != 0
    assert wcl("share", "create", job_id, "--days", "91").exit_code != 0
