"""Invitations of machines: one use, a short life, and what a machine gets for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update

from jobs.database import Database
from jobs.models import SignInToken
from tests.api.served import Served, assert_problem
from tests.jobs.rows import at_once
from wcl_core.text import assignments, written_assignments
from wcl_core.version import RELEASE, VERSION

SETTINGS = {
    "WCL_DATABASE_URL": "postgresql://wcl_worker:p%40ss@db.example/wcl",
    "WCL_BROKER_URL": "rediss://:redis's@redis.example:6379/0",
    "WCL_DATA_DIR": "/shared/wcl",
    "WCL_DATASETS": '{"flowers": "/data/flowers"}',
}
Join = Callable[..., httpx.Response]


@pytest.fixture
def served(postgres_database: Database, tmp_path: Path) -> Iterator[Served]:
    """Yield a server on PostgreSQL with settings for workers."""
    file = tmp_path / "workers"
    file.write_text(f"# as workers see it\n\n{written_assignments(SETTINGS)}")
    server = Served(postgres_database, tmp_path / "data", worker_settings=file)
    server.start()
    yield server
    server.stop()


def invited(served: Served, client: httpx.Client | None = None) -> str:
    created = (client or served.client()).post("/v1/workers/invitations")
    assert created.status_code == 201, created.text
    token: str = created.json()["token"]
    return token


def join(served: Served, token: str, **machine: Any) -> httpx.Response:
    body = {"host": "node1", "version": VERSION} | machine
    return served.bare({"Authorization": f"Bearer {token}"}).post("/v1/workers/join", json=body)


@pytest.mark.postgres
def test_a_token_gives_the_settings_once(served: Served) -> None:
    admin = served.client()
    token = invited(served, admin)

    assert join(served, token).json() == {"settings": SETTINGS}
    assert "used" in assert_problem(join(served, token), 401)["detail"]
    entries = admin.get("/v1/activity?action=worker").json()["items"]
    assert [(each["action"], each["object_name"], each["actor"]) for each in entries] == [
        ("worker.join", "node1", "test"),
        ("worker.invite", "", "test"),
    ]
    assert len({each["object_id"] for each in entries}) == 1
    with served.database.read() as session:
        stored = [
            str(session.execute(text(f"SELECT * FROM {name}")).all()) for name in ("sign_in_tokens", "activities")
        ]
    assert token not in str(stored)


@pytest.mark.postgres
def test_an_invitation_is_listed_and_revoked_alone(served: Served) -> None:
    admin = served.client()
    path = "/v1/workers/invitations"
    created = [admin.post(path).json() for _ in range(2)]
    first, second = (each["token"] for each in created)

    newest, oldest = admin.get(path).json()["items"]
    assert {newest["id"], oldest["id"]} == {each["id"] for each in created}
    assert newest["by"] == oldest["by"] == "test"
    assert first not in str(newest) + str(oldest)
    assert admin.delete(f"{path}/{oldest['id']}").status_code == 204

    assert [each["id"] for each in admin.get(path).json()["items"]] == [newest["id"]]
    assert_problem(admin.delete(f"{path}/{oldest['id']}"), 404)
    statuses = sorted(join(served, token).status_code for token in (first, second))
    assert statuses == [200, 401]
    assert admin.get(path).json()["items"] == []
    entries = admin.get("/v1/activity?action=worker.revoke").json()["items"]
    assert [each["object_id"] for each in entries] == [oldest["id"]]


@pytest.mark.postgres
def test_of_machines_that_join_at_once_with_one_token_one_gets_the_settings(served: Served) -> None:
    token = invited(served)

    statuses = at_once(6, lambda _: join(served, token).status_code)

    assert sorted(statuses) == [200, *[401] * 5]


@pytest.mark.postgres
@pytest.mark.parametrize("end", ["late", "revoked", "without admin", "wrong", "a key", "a link"])
def test_a_token_that_has_ended_gives_nothing(served: Served, end: str) -> None:
    admin, other = served.client(), served.client()
    key_id = other.get("/v1/whoami").json()["id"]
    token = invited(served, other)
    if end == "late":
        served.database.write(lambda session: session.execute(update(SignInToken).values(expires_at=1)))
    elif end == "revoked":
        assert admin.delete(f"/v1/keys/{key_id}").status_code == 204
    elif end == "without admin":
        assert admin.patch(f"/v1/keys/{key_id}", json={"scopes": ["read"]}).status_code == 200
    elif end == "a link":
        token = other.post("/v1/sign-in-links").json()["url"].partition("token=")[2]
    else:
        token = "wrong" if end == "wrong" else served.key()

    refused = assert_problem(join(served, token), 401)

    assert "wcl worker invite" in refused["detail"]
    assert "settings" not in refused


@pytest.mark.postgres
def test_a_token_opens_nothing_else_and_wrong_ones_are_slowed_down(served: Served) -> None:
    token = invited(served)
    for path in ("/v1/jobs", "/v1/whoami", f"/sign-in?token={token}"):
        assert served.bare({"Authorization": f"Bearer {token}"}).get(path).status_code in (401, 403), path
    served.forget_failures()

    assert {join(served, "wrong").status_code for _ in range(25)} == {401, 429}
    assert join(served, token).status_code == 200, "a right one passes"
    served.forget_failures()


@pytest.mark.postgres
def test_a_machine_of_another_version_is_refused_and_its_token_stays(served: Served) -> None:
    token = invited(served)

    assert VERSION in assert_problem(join(served, token, version="0.0.1"), 409)["detail"]
    assert join(served, token, version=f"{RELEASE}+0f1e2d3c").status_code == 200, "another commit of this release"


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "No such file"),
        ("", "lacks WCL_DATABASE_URL"),
        ("WCL_DATABASE_URL=sqlite:///x", "lacks WCL_DATABASE_URL"),
        ("WCL_DATABASE_URL=postgresql://a:secret@b/c", "lacks WCL_DATA_DIR"),
        ("WCL_DATA_DIR=/a\nWCL_DATABASE_URL", "line 2"),
        ("WCL_DATASETS={'a': 'secret'}", "line 1"),
        ("WCL_DATABASE_URL='postgresql://a:secret@b/c", "line 1"),
        ("WCL_DATABASE=secret", "WCL_DATABASE, which is no setting"),
    ],
)
def test_wrong_settings_for_workers_are_named_before_a_token_is_used(
    served: Served, content: str | None, named: str
) -> None:
    token, file = invited(served), served.settings.worker_settings
    assert file is not None
    right = file.read_text()
    file.write_text(content) if content is not None else file.unlink()

    for refused in (served.client().post("/v1/workers/invitations"), join(served, token)):
        detail = assert_problem(refused, 409)["detail"]
        assert named in detail
        assert "secret" not in detail
    file.write_text(right)
    assert join(served, token).status_code == 200


def test_a_server_on_sqlite_or_without_settings_for_workers_invites_none(small: Served) -> None:
    assert "SQLite" in assert_problem(small.client().post("/v1/workers/invitations"), 409)["detail"]


@pytest.mark.parametrize("value", ["a b", "", "it's", '{"a": "b"}', "$HOME `x` \\", "ü"])
def test_a_written_setting_is_read_as_it_was(value: str) -> None:
    assert assignments(written_assignments({"WCL_A": value})) == {"WCL_A": value}


def test_a_setting_of_two_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="WCL_A has a character"):
        written_assignments({"WCL_A": "a\nWCL_B=c"})
