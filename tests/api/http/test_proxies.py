"""The public address behind a reverse proxy, and the root path; `tests/api/web/test_nginx.py` uses a real proxy."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import Scope

from api.app import create_app
from api.http.auth import session_cookie
from api.http.proxies import Proxies, route_path
from jobs import keys
from jobs.database import Database
from jobs.errors import Forbidden
from jobs.settings import InvalidSettings, Settings
from tests import servers
from tests.api.served import SPEC, Served, assert_problem
from tests.docs.pages import ROOT, blocks
from tests.jobs import rows
from tests.jobs.rows import at_once
from tests.waiting import PATIENCE
from wcl_client.api import WclClient

JOB = {"kind": "pretrain", "spec": SPEC}
HOST = "wcl.example"


def scope_of(peer: str, path: str = "/", **headers: str) -> Scope:
    sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "path": path, "scheme": "http", "client": (peer, 1), "headers": [(b"host", b"a"), *sent]}


def public(scope: Scope, **settings: Any) -> Scope:
    return Proxies(Settings(**settings)).public(scope)


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.0.0.9", "::1"])
def test_headers_of_an_unnamed_client_do_not_count(peer: str) -> None:
    scope = scope_of(peer, x_forwarded_for="1.2.3.4", x_forwarded_proto="https", x_forwarded_host=HOST)

    result = public(scope, trusted_proxies=["10.0.0.1", "192.168.0.0/16"])

    assert {name: result[name] for name in scope} == scope


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),  # the client wrote the first one
        ("203.0.113.9, 10.0.0.7", "203.0.113.9"),  # two proxies
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("unknown", "10.0.0.1"),
        ("203.0.113.9, \xff[", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_the_client_is_the_one_before_the_last_named_proxy(forwarded: str, client: str) -> None:
    result = public(scope_of("10.0.0.1", x_forwarded_for=forwarded), trusted_proxies=["10.0.0.0/8"])

    assert result["client"][0] == client


@pytest.mark.parametrize("proto", ["HTTPS", "http, https"])
def test_scheme_and_host_are_those_that_the_nearest_proxy_adds(proto: str) -> None:
    scope = scope_of("::1", x_forwarded_proto=proto, x_forwarded_host=f"evil.example, {HOST}:8443")

    result = public(scope, trusted_proxies=["::1"])

    assert result["scheme"] == "https"
    assert [value for name, value in result["headers"] if name == b"host"] == [b"wcl.example:8443"]


@pytest.mark.parametrize("proto", ["", "javascript", "ws"])
def test_another_scheme_is_ignored(proto: str) -> None:
    assert public(scope_of("::1", x_forwarded_proto=proto), trusted_proxies=["::1"])["scheme"] == "http"


@pytest.mark.parametrize(
    ("path", "route"),
    [("/wcl/jobs", "/jobs"), ("/jobs", "/jobs"), ("/wcl", "/"), ("/wcl/", "/"), ("/", "/"), ("/wcl2", "/wcl2")],
)
def test_a_proxy_may_remove_the_root_path_or_pass_it_on(path: str, route: str) -> None:
    result = public(scope_of("::1", path), root_path="/wcl/")

    assert (route_path(result), result["path"], result["root_path"]) == (route, f"/wcl{route}", "/wcl")


@pytest.mark.parametrize("root_path", ["wcl", "//wcl", "/a?b", "/a b", "/a#", "/\u202e", "https://a"])
def test_a_malformed_root_path_is_refused(root_path: str) -> None:
    with pytest.raises(ValidationError):
        Settings(root_path=root_path)


@pytest.mark.parametrize("root_path", ["/jobs", "/v1", "/static/a"])
def test_a_root_path_that_begins_as_the_service_does_is_refused(
    root_path: str, sqlite_database: Database, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettings, match="WCL_ROOT_PATH"):
        create_app(Settings(data_dir=tmp_path, root_path=root_path), sqlite_database)


def test_each_instance_has_a_cookie_name_of_its_own() -> None:
    names = {
        session_cookie("a", None),
        session_cookie("b", None),
        session_cookie("a", "1 /x"),
        session_cookie("a", "2 /y"),
    }

    assert len(names) == 4
    assert all(re.fullmatch(r"wcl_session_[0-9a-f]{12}", name) for name in names)


# --- a server below a root path, behind this machine's proxy ----------------------------------------------------------


@pytest.fixture
def proxied(sqlite_database: Database, tmp_path: Path) -> Iterator[Served]:
    rows.add_dataset(sqlite_database)
    settings = {"allowed_hosts": [HOST], "trusted_proxies": ["127.0.0.1"], "root_path": "/wcl"}
    served = Served(sqlite_database, tmp_path / "data", **settings)
    served.start()
    yield served
    served.stop()


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": HOST, "X-Forwarded-For": "203.0.113.9"}


@pytest.mark.server
def test_links_and_cookies_are_those_of_the_public_address(proxied: Served) -> None:
    client = proxied.client()

    link = client.post("/v1/sign-in-links", headers=FORWARDED).json()["url"]
    signed_in = proxied.bare(FORWARDED).get(link.replace(f"https://{HOST}/wcl", ""))
    cookie = signed_in.headers["set-cookie"].lower()

    assert link.startswith(f"https://{HOST}/wcl/sign-in?token=")
    assert "; secure" in cookie
    assert "; path=/wcl;" in cookie
    assert 'content="0;url=/wcl/"' in signed_in.text


@pytest.mark.server
def test_a_cookie_is_not_secure_where_the_public_address_is_http(proxied: Served) -> None:
    answer = proxied.bare().get(proxied.client().post("/v1/sign-in-links").json()["url"])

    assert "secure" not in answer.headers["set-cookie"].lower()


@pytest.mark.server
@pytest.mark.parametrize(
    ("origin", "is_ours"),
    [
        (f"https://{HOST}", True),
        (f"https://{HOST}:443", True),
        (f"HTTPS://{HOST.upper()}", True),
        (f"http://{HOST}", False),
        (f"https://{HOST}:8443", False),
        ("https://127.0.0.1", False),
        ("https://evil.example", False),
    ],
)
def test_a_change_comes_from_the_public_address(proxied: Served, origin: str, is_ours: bool) -> None:
    link = proxied.client().post("/v1/sign-in-links").json()["url"]
    token = proxied.bare().get(link).cookies[proxied.cookie]
    headers = {
        "Cookie": f"{proxied.cookie}={token}",
        "Origin": origin,
        "Host": f"127.0.0.1:{proxied.listener.getsockname()[1]}",
    }

    answer = proxied.bare(FORWARDED | headers).post("/wcl/v1/jobs", json=JOB)

    assert answer.status_code == (201 if is_ours else 403), answer.text
    assert is_ours or "WCL_TRUSTED_PROXIES" in answer.text


@pytest.mark.server
def test_a_forwarded_host_of_another_site_is_refused(proxied: Served) -> None:
    answer = proxied.bare(FORWARDED | {"X-Forwarded-Host": "evil.example"}).get("/healthz")

    assert answer.status_code == 421


@pytest.mark.server
def test_wrong_keys_are_counted_for_the_client_behind_the_proxy(proxied: Served) -> None:
    wrong = proxied.bare(FORWARDED | {"Authorization": "Bearer wcl_wrong"})
    other = proxied.bare({"X-Forwarded-For": "203.0.113.10", "Authorization": "Bearer wcl_wrong"})

    assert [wrong.get("/v1/jobs").status_code for _ in range(21)][-1] == 429
    assert other.get("/v1/jobs").status_code == 401


@pytest.mark.server
def test_a_client_that_no_setting_names_cannot_choose_its_address(small: Served) -> None:
    statuses = [
        small.bare({"X-Forwarded-For": f"203.0.113.{number}", "Authorization": "Bearer x"}).get("/v1/jobs").status_code
        for number in range(21)
    ]

    assert statuses[-1] == 429
    small.forget_failures()
    link = small.client().post("/v1/sign-in-links", headers=FORWARDED).json()["url"]
    assert link.startswith(small.url)


@pytest.mark.server
@pytest.mark.parametrize("prefix", ["", "/wcl"])
def test_every_address_has_the_root_path(proxied: Served, prefix: str) -> None:
    job_id = rows.submit(proxied.database)
    link = proxied.client().post("/v1/sign-in-links").json()["url"]
    token = proxied.bare().get(link).cookies[proxied.cookie]
    browser = proxied.bare({"Accept": "text/html", "Cookie": f"{proxied.cookie}={token}", "Origin": proxied.url})

    for path in ("/", f"/jobs/{job_id}", "/submit", "/sweeps", "/workers", "/datasets", "/docs", "/nowhere"):
        text = browser.get(f"{prefix}{path}").text
        addresses = re.findall(r'(?:href|src|action|formaction)="(/[^"]*)"|data-request="[A-Z]+ (/[^"]*)"', text)
        rooted = {one or other for one, other in addresses}
        assert len(rooted) > 10
        assert {address for address in rooted if not address.startswith("/wcl/")} == set(), path
        for address in rooted:
            if address.startswith("/wcl/static/"):
                assert browser.get(address).status_code == 200, address
    submitted = browser.post(f"{prefix}/v1/jobs", json=JOB)
    assert (
        submitted.headers["location"] == submitted.json()["links"]["self"] == f"/wcl/v1/jobs/{submitted.json()['id']}"
    )
    assert browser.post(f"{prefix}/sign-out").headers["location"] == "/wcl/sign-in"
    assert browser.get(f"{prefix}/openapi.json", headers={"Cookie": ""}).status_code == 401


@pytest.mark.server
def test_the_client_works_below_the_root_path(proxied: Served, tmp_path: Path) -> None:
    content = b"bytes" * 1000
    checkpoint_id = proxied.checkpoint(content)
    with WclClient(f"{proxied.url}/wcl", proxied.key()) as client:
        assert len(client.jobs()) == 1
        assert client.sign_in_link().startswith(f"{proxied.url}/wcl/sign-in?token=")
        assert client.download(checkpoint_id, tmp_path / "file").path.read_bytes() == content


# --- people whom a proxy signs in ------------------------------------------------------------------------------------

USER, GROUPS = "X-Auth-Request-Email", "X-Auth-Request-Groups"


@pytest.fixture
def signing(sqlite_database: Database, tmp_path: Path) -> Iterator[Served]:
    """Yield a server that trusts the proxy at 127.0.0.1 to name people."""
    rows.add_dataset(sqlite_database)
    groups = {"vision": ["read", "submit"], "leads": ["submit", "admin"]}
    served = Served(
        sqlite_database,
        tmp_path / "data",
        trusted_proxies=["127.0.0.1"],
        proxy_user_header=USER,
        proxy_groups_header=GROUPS,
        proxy_group_scopes=groups,
    )
    served.start()
    yield served
    served.stop()


def person(served: Served, name: str, groups: str = "") -> httpx.Client:
    client = served.bare()
    client.headers = httpx.Headers({USER: name, GROUPS: groups, "Origin": served.url}, encoding="utf-8")
    return client


def people(database: Database) -> list[str | None]:
    """Return the names of people, newest first; None for a key."""
    with database.read() as session:
        return [key.proxy_user for key in keys.list_keys(session)]


@pytest.mark.server
def test_a_person_of_a_proxy_owns_jobs_and_stands_in_the_activity_log(signing: Served) -> None:
    anna, ben = person(signing, "anna@lab.example", "vision, other"), person(signing, "b\u00e9n", "vision")
    viewer, lead = person(signing, "carl"), person(signing, "dora", "leads")

    job = anna.post("/v1/jobs", json=JOB).json()

    assert (job["owner"], anna.get("/v1/keys").status_code) == ("anna@lab.example", 403)
    for other, status in ((viewer, 403), (ben, 403), (anna, 200)):
        assert other.post(f"/v1/jobs/{job['id']}/pause").status_code == status
        assert other.get("/v1/jobs").status_code == 200
    assert "signed in by the proxy" in ben.get("/", headers={"Accept": "text/html"}).text
    entries = lead.get("/v1/activity").json()["items"]
    assert [(each["actor"], each["action"]) for each in entries] == [
        ("dora", "key.create"),
        ("anna@lab.example", "job.pause"),
        ("b\u00e9n", "key.create"),
        ("carl", "key.create"),
        ("anna@lab.example", "job.submit"),
        ("anna@lab.example", "key.create"),
    ]
    rows_of = {key["proxy_user"]: key for key in lead.get("/v1/keys").json()["items"]}
    assert rows_of["dora"]["scopes"] == ["read", "submit", "admin"]
    assert rows_of["anna@lab.example"]["id"] == entries[1]["actor_id"]


@pytest.mark.server
def test_only_a_named_proxy_signs_people_in(signing: Served) -> None:
    """The same header from an address that no setting names, here 127.0.0.2."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(
        base_url=signing.url, transport=transport, headers={USER: "dora", GROUPS: "leads"}, timeout=PATIENCE
    ) as stranger:
        refused = stranger.get("/v1/jobs")
        assert "WCL_TRUSTED_PROXIES" in assert_problem(refused, 401)["detail"]
        forwarded = stranger.get("/v1/jobs", headers={"X-Forwarded-For": "127.0.0.1"})
        assert forwarded.status_code == 401
        with_key = stranger.get("/v1/keys", headers={"Authorization": f"Bearer {signing.key('read')}"})
        assert with_key.status_code == 403, "the key counts, and no group"
    assert people(signing.database) == [None]


@pytest.mark.server
@pytest.mark.parametrize(
    "headers",
    [
        [(USER, "anna"), (USER, "dora")],
        [(USER, "dora"), (USER.lower(), "dora")],
        [(USER, "anna, dora")],
        [(USER, "an\u202ena")],
        [(USER, b"\xff")],
        [(USER, "x" * 201)],
        [(USER, "")],
        [(USER.replace("-", "_"), "dora")],
        [("X-Forwarded-Email", "dora")],
    ],
)
def test_a_header_that_names_no_one_person_signs_nobody_in(
    signing: Served, headers: list[tuple[str, str | bytes]]
) -> None:
    sent = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers]

    assert httpx.get(f"{signing.url}/v1/jobs", headers=sent, timeout=PATIENCE).status_code == 401
    assert people(signing.database) == []


@pytest.mark.server
def test_two_headers_of_groups_give_no_group(signing: Served) -> None:
    both = [(USER.encode(), b"eve"), (GROUPS.encode(), b"leads"), (GROUPS.encode(), b"vision")]

    assert httpx.get(f"{signing.url}/v1/jobs", headers=both, timeout=PATIENCE).status_code == 200
    assert httpx.get(f"{signing.url}/v1/keys", headers=both, timeout=PATIENCE).status_code == 403


@pytest.mark.server
def test_a_person_changes_things_only_from_our_pages_and_a_key_comes_first(signing: Served) -> None:
    anna = person(signing, "anna", "vision")
    for origin in ("http://evil.example", "null", ""):
        assert anna.post("/v1/jobs", json=JOB, headers={"Origin": origin}).status_code == 403
    assert anna.post("/v1/jobs", json=JOB, headers={"Authorization": "Basic YW5uYTo="}).status_code == 201
    key = {"Authorization": f"Bearer {signing.key('read')}", "Origin": ""}
    assert anna.post("/v1/jobs", json=JOB, headers=key).status_code == 403
    assert anna.get("/v1/jobs", headers={"Authorization": "Bearer wcl_wrong"}).status_code == 401
    cookie = {"Cookie": f"{signing.cookie}={signing.browser().cookies[signing.cookie]}"}
    assert anna.get("/v1/keys", headers=cookie).status_code == 403, "the header comes before a session"


@pytest.mark.server
def test_a_revoked_person_has_no_access_and_scopes_follow_the_groups(signing: Served) -> None:
    admin, anna = signing.client(), person(signing, "anna", "leads")
    assert anna.get("/v1/keys").status_code == 200
    assert person(signing, "anna", "vision").get("/v1/keys").status_code == 403
    (row,) = (key for key in admin.get("/v1/keys").json()["items"] if key["proxy_user"] == "anna")
    assert (row["scopes"], row["project"]) == (["read", "submit"], "default")
    leads = person(signing, "anna", "leads").get("/v1/keys").json()["items"]
    assert [key["project"] for key in leads if key["proxy_user"] == "anna"] == [None]
    person(signing, "anna", "vision").get("/v1/jobs")
    secret = admin.post(f"/v1/keys/{row['id']}/rotate").json()["key"]
    program = signing.bare({"Authorization": f"Bearer {secret}"})
    assert program.post("/v1/jobs", json=JOB).json()["owner"] == "anna"

    admin.delete(f"/v1/keys/{row['id']}")

    assert "is revoked" in assert_problem(anna.get("/v1/jobs"), 403)["detail"]
    assert program.get("/v1/jobs").status_code == 401


def test_a_person_without_a_scope_gets_no_row(database: Database) -> None:
    with pytest.raises(Forbidden, match="no setting gives anna a scope"):
        keys.of_person(database, "anna", ())
    assert people(database) == []

    principals = at_once(6, lambda _: keys.of_person(database, "anna", ("submit", "read")))

    assert people(database) == ["anna"]
    assert {each.scopes for each in principals} == {frozenset({"read", "submit"})}
    assert keys.of_person(database, "anna", ()).scopes == frozenset()
    with database.read() as session:
        assert [key.scopes for key in keys.list_keys(session)] == [[]]


def test_a_header_without_proxies_is_refused() -> None:
    with pytest.raises(ValidationError, match="WCL_TRUSTED_PROXIES"):
        Settings(proxy_user_header=USER)


# --- nginx as docs/sign-in.md shows it --------------------------------------------------------------------------------


class _Gate(BaseHTTPRequestHandler):
    """The place of oauth2-proxy: the cookie `who` names the person."""

    def do_GET(self) -> None:
        who = self.headers.get("Cookie", "").partition("who=")[2]
        is_question = self.path == "/oauth2/auth"
        self.send_response(202 if who and is_question else 401 if is_question else 403)
        if who:
            self.send_header("X-Auth-Request-Email", who)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.mark.process
def test_the_documented_nginx_names_people_and_drops_what_clients_send(
    sqlite_database: Database, tmp_path: Path
) -> None:
    gate = ThreadingHTTPServer(("127.0.0.1", 0), _Gate)
    threading.Thread(target=gate.serve_forever, daemon=True).start()
    port = servers.free_port()
    settings = {"proxy_user_header": USER, "proxy_groups_header": GROUPS, "proxy_group_scopes": {"leads": ["admin"]}}
    served = Served(sqlite_database, tmp_path / "data", allowed_hosts=[HOST], trusted_proxies=["127.0.0.1"], **settings)
    served.start()
    (block,) = (block for block in blocks(ROOT / "docs" / "sign-in.md") if block.language == "nginx")
    lines = [line for line in block.text.splitlines() if "ssl_certificate" not in line]
    text = "\n".join(lines).replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    text = text.replace("127.0.0.1:4180", f"127.0.0.1:{gate.server_port}")
    text = text.replace("127.0.0.1:8000", served.url.removeprefix("http://"))
    forged = {USER: "dora", USER.replace("-", "_"): "dora", GROUPS: "leads", "Host": HOST}
    try:
        with (
            servers.nginx(text, port),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=forged, timeout=PATIENCE) as client,
        ):
            assert client.get("/v1/jobs").status_code == 403, "the gate's page"
            assert client.get("/v1/jobs", headers={"Cookie": "who=anna"}).status_code == 200
            assert client.get("/v1/keys", headers={"Cookie": "who=anna"}).status_code == 403
            key = {"Authorization": f"Bearer {served.key('read')}"}
            assert client.get("/v1/jobs", headers=key).status_code == 200
            assert client.get("/v1/jobs", headers={"Authorization": "Bearer wcl_wrong"}).status_code == 401
        assert people(sqlite_database) == [None, "anna"]
    finally:
        served.stop()
        gate.shutdown()
        gate.server_close()
