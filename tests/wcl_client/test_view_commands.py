"""`wcl views` against a real server."""

from __future__ import annotations

import json

from tests.api.served import Served
from tests.wcl_client.test_operations import wcl


def test_a_view_is_saved_listed_and_removed(server: Served) -> None:
    saved = wcl("views", "save", "running ones", "status=running&group=method", "--shared").stdout
    assert saved == f"{server.url}/?status=running&group=method\n"
    (view,) = json.loads(wcl("views", "list", "--json").stdout)
    assert (view["name"], view["is_shared"]) == ("running ones", True)
    assert "everyone" in wcl("views", "list").stdout

    assert "no field 'colour'" in str(wcl("views", "save", "odd", "colour=red").exception)
    absent = wcl("views", "remove", "absent")
    assert absent.exit_code == 2
    assert wcl("views", "remove", "running ones").stdout == "running ones removed\n"
    assert json.loads(wcl("views", "list", "--json").stdout) == []
