"""The public address behind a reverse proxy, and the root path; `tests/api/web/test_nginx.py` uses a real proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.types import Scope

from api.app import create_app
from api.http.auth import session_cookie
from api.http.proxies import Proxies, route_path
from jobs.database import Database
from jobs.settings import InvalidSettings, Settings
from tests.api.served import SPEC, Served
from tests.jobs import rows
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
