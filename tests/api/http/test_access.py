"""Deny by default: every route against every kind of key; hosts, origins, cookies, headers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy import text, update

from api import app as application
from api.http.auth import Failures, classification
from api.http.hosts import is_loopback
from api.http.problems import TooMany
from jobs import keys
from jobs.database import Database, new_id, now_ms
from jobs.models import Key
from tests.api.route_cases import CASES, OF_SESSIONS, Member, roles_of
from tests.api.served import ALL, SPEC, Served, assert_problem
from tests.jobs import rows

JOB = {"kind": "pretrain", "spec": SPEC}
SHARED = {  # the secret of a link is in the address (tests/api/http/test_shares.py)
    "GET /shared/{secret}",
    "GET /shared/{secret}/jobs/{job_id}/metrics",
    "GET /shared/{secret}/curve.svg",
}
PUBLIC = {"GET /healthz", "GET /readyz", "GET /sign-in", "POST /sign-in", "ANY /static"} | SHARED
PUBLIC |= {"POST /v1/workers/join"}  # the token of an invitation is its key (tests/api/rest/test_joining.py)
ADMIN = {
    "GET /v1/keys",
    "POST /v1/keys",
    "PATCH /v1/keys/{key_id}",
    "DELETE /v1/keys/{key_id}",
    "POST /v1/keys/{key_id}/rotate",
    "GET /keys",
    "POST /keys",
    "POST /keys/{key_id}/limits",
    "POST /keys/{key_id}/rotate",
    "POST /keys/{key_id}/revoke",
    "POST /v1/datasets",
    "PATCH /v1/datasets/{name}",
    "DELETE /v1/datasets/{name}",
    "POST /datasets",
    "POST /datasets/{name}/remove",
    "GET /v1/workers/invitations",
    "POST /v1/workers/invitations",
    "DELETE /v1/workers/invitations/{invitation_id}",
    "POST /v1/workers/{worker_id}/cordon",
    "POST /v1/workers/{worker_id}/drain",
    "POST /v1/workers/{worker_id}/uncordon",
    "POST /workers/{worker_id}/cordon",
    "POST /workers/{worker_id}/drain",
    "POST /workers/{worker_id}/uncordon",
    "GET /v1/activity",
    "POST /v1/projects",
    "PATCH /v1/projects/{project_id}",
    "DELETE /v1/projects/{project_id}",
    "POST /projects",
    "POST /projects/{project_id}",
    "POST /projects/{project_id}/remove",
    "GET /activity",
    "GET /v1/audit",
    "GET /v1/deletions",
    "POST /v1/deletions/purge",
    "POST /v1/jobs/{job_id}/restore",
    "POST /deleted/{job_id}/restore",
    "GET /deleted",
}
OF_SERVICE = "admin of all projects"
# The rest of `ADMIN` is about the keys and the deleted jobs of the own project.
SERVICE = {route for route in ADMIN if not re.search("/(keys|deletions|deleted|restore)\\b", route)}
OF_ANY_KEY = {"GET /v1/whoami", "POST /v1/sign-in-links", "POST /sign-out"}


def guarded(served: Served) -> Iterator[tuple[str, str, str]]:
    """Yield (method, address, need) of every route that is not public."""
    for route, scope in classification(served.app).items():
        method, path = route.split(" ", 1)
        if scope != "public":
            address = re.sub(r"\{\w+\}", lambda _: new_id(), path.replace("{verb}", "cancel"))
            yield method, address, scope


def test_every_route_has_a_scope(small: Served) -> None:
    scopes = classification(small.app)

    assert all(scopes.values()), [route for route, scope in scopes.items() if not scope]
    assert {route for route, scope in scopes.items() if scope == "public"} == PUBLIC
    assert {route for route, scope in scopes.items() if scope in ("admin", OF_SERVICE)} == ADMIN
    assert {route for route, scope in scopes.items() if scope == OF_SERVICE} == SERVICE
    assert {route for route, scope in scopes.items() if scope == "any"} == OF_ANY_KEY
    changing = {route for route, scope in scopes.items() if scope == "read" and not route.startswith(("GET", "HEAD"))}
    assert changing == set()


def test_every_route_that_changes_something_has_a_case(small: Served) -> None:
    changing = {route for route in classification(small.app) if not route.startswith(("GET", "HEAD", "ANY"))}

    assert changing == CASES.keys() | OF_SESSIONS


def test_an_application_with_an_unclassified_route_does_not_start() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/forgotten", lambda: None)

    with pytest.raises(RuntimeError, match="GET /forgotten"):
        application._refuse_unclassified(app)


def test_no_route_answers_without_a_right_key(small: Served) -> None:
    revoked = small.key("read")
    with small.database.read() as session:
        principal = keys.find(session, revoked)
    assert principal is not None
    small.database.write(lambda session: keys.revoke(session, principal.key_id))
    headers = [
        {},
        {"Authorization": "Bearer wcl_wrong"},
        {"Authorization": f"Bearer {revoked}"},
        {"Authorization": f"Basic {small.key()}"},
        {"Authorization": ""},
        {"Cookie": f"{small.cookie}=wrong"},
        {"Cookie": f"{small.cookie}={small.key()}"},
    ]
    clients = [small.bare(header) for header in headers]
    for method, address, _ in [*guarded(small), ("GET", "/nowhere", ""), ("POST", "/v1/nowhere", "")]:
        for client in clients:
            small.forget_failures()
            answer = client.request(method, address)
            assert answer.status_code == 401, (method, address, client.headers, answer.text)
            assert "bearer" in answer.headers["www-authenticate"].lower()


ROLES = {"viewer": ("read",), "member": ("read", "submit"), "project administrator": ALL, "administrator": ALL}


def _opens(role: str, scopes: tuple[str, ...], need: str) -> bool:
    """Return whether a route with this need opens for a role that has the scopes."""
    return need.split()[0] in (*scopes, "any") and (role != "project administrator" or need != OF_SERVICE)


def test_the_table_in_security_has_what_each_route_declares(small: Served) -> None:
    roles, scopes = roles_of(small.app), classification(small.app)

    assert {route for route, of in roles.items() if "without a key" in of} == PUBLIC - SHARED
    assert {route for route, of in roles.items() if "a shared link" in of} == PUBLIC
    for route in scopes.keys() - PUBLIC:
        of_scopes = {role for role, of_role in ROLES.items() if _opens(role, of_role, scopes[route])}
        assert roles[route] - {"owner"} == of_scopes - (set() if "member" in roles[route] else {"member"}), route


def test_a_key_opens_the_routes_of_its_scopes_and_no_others(small: Served) -> None:
    held = ROLES | {"submit alone": ("submit",), "admin alone": ("admin",)}
    clients = {name: small.client(*scopes) for name, scopes in held.items()}
    clients["project administrator"] = Member.of(small, "of one project", *ALL, project="default").client
    for method, address, needed in guarded(small):
        for name, client in clients.items():
            if address.endswith("stream"):
                with client.stream(method, address) as answer:
                    status = answer.status_code
            else:
                status = client.request(method, address).status_code
            is_open = _opens(name, held[name], needed)
            assert (status != 403) == is_open, (method, address, needed, name, status)
            assert status != 401
            assert status < 500


def test_a_refusal_names_the_scope(small: Served) -> None:
    body = assert_problem(small.client("read").post("/v1/jobs", json=JOB), 403)

    assert "submit" in body["detail"]


def test_a_key_is_shown_once_and_stored_as_a_hash(served: Served) -> None:
    admin = served.client()

    created = admin.post("/v1/keys", json={"name": "laptop", "scopes": ["read"]}).json()
    listed = admin.get("/v1/keys").text

    assert re.fullmatch(r"wcl_[\w-]{43}", created["key"])
    assert created["key"] not in listed
    assert created["name"] in listed
    with served.database.read() as session:
        for table in ("keys", "sign_in_tokens"):
            stored = str(session.execute(text(f"SELECT * FROM {table}")).all())
            assert created["key"] not in stored
    client = served.bare({"Authorization": f"Bearer {created['key']}"})
    assert client.get("/v1/jobs").status_code == 200
    assert admin.delete(f"/v1/keys/{created['id']}").status_code == 204
    assert client.get("/v1/jobs").status_code == 401
    assert_problem(admin.delete(f"/v1/keys/{new_id()}"), 404)


def test_a_repeated_creation_makes_one_key_and_shows_no_secret_again(served: Served) -> None:
    admin, body = served.client(), {"name": "ci", "scopes": ["read"], "days": 90}
    headers = {"Idempotency-Key": "ci-2026"}

    first = admin.post("/v1/keys", json=body, headers=headers)
    again = admin.post("/v1/keys", json=body, headers=headers)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json() | {"key": None}
    assert sum(key["name"] == "ci" for key in admin.get("/v1/keys").json()["items"]) == 1
    assert_problem(admin.post("/v1/keys", json=body | {"days": 91}, headers=headers), 422)
    assert served.client().post("/v1/keys", json=body, headers=headers).json()["id"] != first.json()["id"]
    assert admin.post(f"/v1/keys/{first.json()['id']}/rotate").json()["key"] is not None
    admin.delete(f"/v1/keys/{first.json()['id']}")
    assert admin.post("/v1/keys", json=body, headers=headers).json()["is_active"] is False


def test_an_expired_key_is_refused_with_the_reason(served: Served) -> None:
    admin = served.client()
    created = admin.post("/v1/keys", json={"name": "night", "days": 1}).json()
    assert created["scopes"] == ["read", "submit"]
    client = served.bare({"Authorization": f"Bearer {created['key']}"})
    link = client.post("/v1/sign-in-links").json()["url"]
    browser, own = served.bare({"Accept": "text/html"}), {"Origin": served.url}
    browser.get(link)
    assert browser.get("/").status_code == client.get("/v1/jobs").status_code == 200

    expired = update(Key).where(Key.id == created["id"]).values(expires_at=now_ms())
    served.database.write(lambda session: session.execute(expired))

    for _ in range(25):  # more than wrong keys may be sent
        assert "the key night expired on 2" in assert_problem(client.get("/v1/jobs"), 401)["detail"]
    page = browser.get("/")
    assert page.status_code == 401
    assert "The key night expired on" in page.text
    typed = browser.post("/sign-in", data={"key": created["key"]}, headers=own)
    assert typed.status_code == 403
    assert "The key night expired on" in typed.text
    assert_problem(admin.post(f"/v1/keys/{created['id']}/rotate"), 422, "/days")
    rotated = admin.post(f"/v1/keys/{created['id']}/rotate", json={"days": 30}).json()
    assert client.get("/v1/jobs").status_code == 401
    assert served.bare({"Authorization": f"Bearer {rotated['key']}"}).get("/v1/jobs").status_code == 200
    assert [key["is_active"] for key in admin.get("/v1/keys").json()["items"]] == [True, True]


def test_pages_and_responses_warn_before_a_key_expires(small: Served) -> None:
    def shown(days: int | None, *scopes: str) -> tuple[str | None, str]:
        secret = small.database.write(lambda session: keys.create(session, "night", scopes, days))[1]
        client = small.bare({"Authorization": f"Bearer {secret}"})
        (banner,) = re.findall(r'id="key-expires">.*?</p>', client.get("/").text) or [""]
        return client.get("/v1/jobs").headers.get("x-key-expires"), banner

    assert shown(None, "read") == shown(8, "read") == (None, "")
    header, banner = shown(2, "read")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", header or "")
    assert "The key night expires on 20" in banner
    assert "An administrator can rotate it" in banner
    assert "Rotate it</a>" in shown(2, "read", "admin")[1]
    assert "x-key-expires" not in small.bare().get("/healthz").headers


def test_the_last_administrators_key_needs_a_word(small: Served) -> None:
    admin = small.client()
    (key,) = admin.get("/v1/keys").json()["items"]
    assert "last key with `admin`" in assert_problem(admin.delete(f"/v1/keys/{key['id']}"), 409)["detail"]
    assert admin.get("/v1/jobs").status_code == 200

    assert admin.delete(f"/v1/keys/{key['id']}", params={"last_administrator": True}).status_code == 204
    assert admin.get("/v1/jobs").status_code == 401


def test_the_page_of_keys_shows_a_secret_once(small: Served) -> None:
    browser, own = small.browser(), {"Origin": small.url}
    form = {"name": "night", "scopes": "read,submit", "days": "90", "key": "a"}
    created = browser.post("/keys", data=form, headers=own)
    (secret,) = set(re.findall(r"wcl_[\w-]{43}", created.text))
    assert browser.post("/keys", data=form, headers=own).headers["location"] == "/keys"
    page = browser.get("/keys").text
    assert page.count("night") == 2  # its row, and the name of its button
    assert secret not in page
    client = small.bare({"Authorization": f"Bearer {secret}"})
    key_id = next(key["id"] for key in small.client().get("/v1/keys").json()["items"] if key["name"] == "night")

    for button in ("Rotate key", "Revoke key"):
        assert button in browser.get(f"/keys?key={key_id}").text
    rotated = browser.post(f"/keys/{key_id}/rotate", data={"days": "keep", "rotated_at": ""}, headers=own)
    assert client.get("/v1/jobs").status_code == 401
    (new,) = set(re.findall(r"wcl_[\w-]{43}", rotated.text))
    again = browser.post(f"/keys/{key_id}/rotate", data={"days": "keep", "rotated_at": ""}, headers=own)
    assert again.status_code == 409
    client = small.bare({"Authorization": f"Bearer {new}"})
    assert client.get("/v1/jobs").status_code == 200
    assert browser.post(f"/keys/{key_id}/revoke", headers=own).headers["location"] == "/keys"
    assert client.get("/v1/jobs").status_code == 401
    assert "1 revoked and expired" in browser.get("/keys").text
    for wrong in ({"days": "x"}, {"scopes": "root"}, {"name": " "}):
        assert browser.post("/keys", data=form | {"key": "b"} | wrong, headers=own).status_code == 422


def test_a_sign_in_link_works_once(served: Served) -> None:
    link = served.client().post("/v1/sign-in-links").json()["url"]
    browser, other = served.bare(), served.bare()

    first, second = browser.get(link), other.get(link)

    cookie = first.headers["set-cookie"]
    assert first.status_code == 200
    for part in (f"{served.cookie}=", "HttpOnly", "SameSite=strict", "Path=/"):
        assert part.lower() in cookie.lower()
    assert 'http-equiv="refresh"' in first.text
    assert first.headers["referrer-policy"] == "no-referrer"
    assert second.status_code == 403
    assert "set-cookie" not in second.headers
    assert "sign-in-links" in second.text, "it does not say how to get a new one"
    assert browser.get("/v1/jobs").status_code == 200
    assert other.get("/v1/jobs").status_code == 401


def test_a_key_signs_a_browser_in(served: Served) -> None:
    browser, own = served.bare({"Accept": "text/html"}), {"Origin": served.url}

    wrong = browser.post("/sign-in", data={"key": "wcl_wrong"}, headers=own)
    elsewhere = browser.post("/sign-in", data={"key": served.key()}, headers={"Origin": "http://evil.example"})
    large = browser.post("/sign-in", data={"key": "x" * 10_000}, headers=own)
    assert (wrong.status_code, elsewhere.status_code, large.status_code) == (403, 403, 413)
    assert "unknown or revoked" in wrong.text
    assert "another site" in elsewhere.text.lower()
    assert not browser.cookies

    right = browser.post("/sign-in", data={"key": f" {served.key('read')}\n"}, headers=own)
    assert (right.status_code, right.headers["location"]) == (303, "/")
    for part in (f"{served.cookie}=", "HttpOnly", "SameSite=strict", "Path=/"):
        assert part.lower() in right.headers["set-cookie"].lower()
    assert browser.get("/v1/jobs").status_code == 200
    assert browser.get("/v1/keys").status_code == 403, "the session has more scopes than its key"


def test_signing_out_ends_the_session(served: Served) -> None:
    browser = served.browser()
    stolen = browser.cookies[served.cookie]

    answer = browser.post("/sign-out", headers={"Origin": served.url})

    assert answer.status_code == 303
    assert served.bare({"Cookie": f"{served.cookie}={stolen}"}).get("/v1/jobs").status_code == 401


def test_a_browser_without_a_session_sees_a_page(small: Served) -> None:
    answer = small.bare({"Accept": "text/html"}).get("/")

    assert answer.status_code == 401
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({"Origin": "{url}"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, True),
        ({}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "{url}.evil.example"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "http://]"}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Origin": "//"}, False),
        ({"Origin": "{url}/"}, False),
        ({"Origin": "http://user@{host}"}, False),
        ({"Origin": "file://{host}"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_a_cookie_changes_things_only_from_our_pages(shared: Served, headers: dict[str, str], is_ours: bool) -> None:
    browser = shared.browser()
    sent = {
        name: value.format(url=shared.url, host=shared.url.removeprefix("http://")) for name, value in headers.items()
    }

    answer = browser.post("/v1/jobs", json=JOB, headers=sent | {"Accept": "application/json"})

    assert answer.status_code == (201 if is_ours else 403)
    assert browser.get("/v1/jobs").status_code == 200


def test_every_changing_route_refuses_another_site(small: Served) -> None:
    browser = small.browser()
    for method, address, _ in guarded(small):
        if method not in ("GET", "HEAD"):
            answer = browser.request(method, address, headers={"Origin": "http://evil.example"})
            assert answer.status_code == 403, (method, address)


def test_a_key_needs_no_origin_and_is_not_mixed_with_a_cookie(small: Served) -> None:
    client = small.client()
    browser = small.browser()

    assert client.post("/v1/jobs", json=JOB, headers={"Origin": "http://evil.example"}).status_code == 201
    assert browser.get("/v1/jobs", headers={"Authorization": "Bearer wcl_wrong"}).status_code == 401


FOREIGN = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]", "[::1", "a b"]
TRICKY = ["127.0.0.1/static/?", "127.0.0.1:1/static/", "127.0.0.1#", "x@127.0.0.1", "127.0.0.1:x"]
SPELLINGS = [
    "/static/../v1/jobs",
    "/static/%2e%2e/v1/jobs",
    "//v1/jobs",
    "/healthz/../v1/jobs",
    "/V1/jobs",
    "/v1/jobs/",
    "/static/..;/v1/jobs",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_another_hosts_name_is_refused(shared: Served, host: str) -> None:
    answer = shared.client().get("/v1/jobs", headers={"Host": host})

    assert answer.status_code in (400, 421)
    assert shared.bare().get("/healthz", headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", TRICKY)
def test_the_host_header_makes_no_route_public(shared: Served, host: str) -> None:
    """An address built from the header would begin with a public path."""
    answer = shared.bare().get("/v1/jobs", headers={"Host": host})

    assert answer.status_code in (400, 401, 421)


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_gets_past_the_middleware(shared: Served, path: str) -> None:
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        status = int(connection.recv(4096).split()[1])

    assert status in (401, 404)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:80"])
def test_our_own_names_are_accepted(shared: Served, host: str) -> None:
    assert shared.bare().get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.server
def test_further_names_come_from_the_settings(sqlite_database: Database, tmp_path: Path) -> None:
    served = Served(sqlite_database, tmp_path / "data", allowed_hosts=["wcl.example"])
    served.start()

    assert served.bare().get("/healthz", headers={"Host": "WCL.example:443"}).status_code == 200
    served.stop()


def test_every_response_has_the_security_headers(small: Served) -> None:
    client, anonymous = small.client(), small.bare()
    answers = [
        client.get("/v1/jobs"),
        client.get("/v1/nowhere"),
        client.post("/v1/jobs", content=b"{"),
        anonymous.get("/v1/jobs"),
        anonymous.get("/healthz"),
        anonymous.get("/sign-in"),
        anonymous.get("/static/nothing.css"),
        anonymous.get("/healthz", headers={"Host": "evil.example"}),
        small.browser().get("/"),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] in ("same-origin", "no-referrer")
        assert "cache-control" in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_wrong_keys_are_slowed_down_and_right_ones_pass(small: Served) -> None:
    wrong, right = small.bare({"Authorization": "Bearer wcl_wrong"}), small.client()

    statuses = [wrong.get("/v1/jobs").status_code for _ in range(22)]

    assert statuses == [401] * 20 + [429] * 2
    assert small.bare().get("/sign-in?token=wrong").status_code == 429
    own = {"Origin": small.url}
    assert small.bare(own).post("/sign-in", data={"key": "wcl_wrong"}).status_code == 429
    assert small.bare(own).post("/sign-in", data={"key": small.key()}).status_code == 303
    assert right.get("/v1/jobs").status_code == 200
    link = right.post("/v1/sign-in-links").json()["url"]
    assert small.bare().get(link).status_code == 200, "wrong links of others lock out a right one"


def test_websockets_are_refused(small: Served) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    answer: httpx.Response = small.bare().get("/v1/jobs", headers=headers)

    assert answer.status_code in (400, 401, 403, 426)


def test_a_cookie_reads_no_job_after_its_key_is_deleted(served: Served) -> None:
    browser = served.browser()
    rows.submit(served.database)
    with served.database.read() as session:
        all_keys = [key.id for key in keys.list_keys(session)]
    for key_id in all_keys:
        served.database.write(lambda session, key_id=key_id: keys.revoke(session, key_id, last_administrator=True))

    assert browser.get("/v1/jobs").status_code == 401


def test_failures_are_forgotten_after_a_minute() -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    request = Request({"type": "http", "client": ("10.0.0.1", 1)})
    other = Request({"type": "http", "client": ("10.0.0.2", 1)})
    for _ in range(20):
        failures.note(request)

    with pytest.raises(TooMany):
        failures.check(request)
    failures.check(other)
    now[0] = 61.0
    failures.check(request)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "wcl.example", "")),
    ],
)
def test_loopback_addresses_are_recognised(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
