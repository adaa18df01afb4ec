"""A real nginx with TLS and a path in front of a real server, as docs/operating.md shows it, and a real browser."""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests import parallel, servers
from tests.api.web.served import Site
from tests.docs.pages import ROOT, blocks
from tests.waiting import PATIENCE, eventually
from wcl_client.api import WclClient

pytestmark = pytest.mark.process
HOST = "localhost"
_VARIANTS = {
    "as documented": {},
    "removes the path": {"proxy_pass http://127.0.0.1:8000;": "proxy_pass http://127.0.0.1:8000/;"},
    "HTTP/1.0, gzip, weak ETags": {
        "proxy_http_version 1.1;": "proxy_http_version 1.0; gzip on; gzip_types *; gzip_min_length 1;"
    },
    "passes the host on": {"proxy_http_version 1.1;": "proxy_http_version 1.1; proxy_set_header Host $host;"},
}
DOCUMENTED = pytest.mark.parametrize("proxied", ["as documented"], indirect=True)
ALL = pytest.mark.parametrize("proxied", _VARIANTS, indirect=True)


@dataclass(frozen=True)
class Proxied:
    """A server behind nginx, at a public URL."""

    site: Site
    url: str
    certificate: Path

    def http(self, local_address: str = "127.0.0.1", **headers: str) -> httpx.Client:
        """Return a client that connects from an address of the loopback network."""
        tls = ssl.create_default_context(cafile=str(self.certificate))
        transport = httpx.HTTPTransport(verify=tls, local_address=local_address)
        return httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=20)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a user on another machine, with the certificate as a private authority."""
        key = (self.site.settings.data_dir / "key").read_text().strip()
        return {"WCL_URL": self.url, "WCL_KEY": key, "SSL_CERT_FILE": str(self.certificate)}

    @contextmanager
    def client(self) -> Iterator[WclClient]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            client = WclClient.connect()
        with client:
            yield client

    def wcl(self, *arguments: str, folder: Path) -> str:
        """Return the output of a command."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
        command = [*parallel.wcl(), *arguments]
        environment = clean | self.environment | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextmanager
def behind_nginx(folder: Path, changes: dict[str, str], **environment: str) -> Iterator[Proxied]:
    """Yield a server behind nginx with the documented configuration, changed in the given places."""
    port = servers.free_port()
    site = Site(folder, WCL_ALLOWED_HOSTS=f'["{HOST}"]', WCL_ROOT_PATH="/wcl", **environment)
    certificate, key = servers.certificate(folder, HOST)
    site.database.migrate()
    site.register()
    site.start()
    places = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "wcl.example;": f"{HOST};",
        "/etc/ssl/wcl.example.pem": str(certificate),
        "/etc/ssl/wcl.example.key": str(key),
        "127.0.0.1:8000": f"127.0.0.1:{site.settings.port}",
        "/var/lib/wcl/": f"{site.settings.data_dir}/",
    }
    text = documented()
    for before, after in (changes | places).items():
        assert before in text, before
        text = text.replace(before, after)
    try:
        with servers.nginx(text, port):
            yield Proxied(site, f"https://{HOST}:{port}/wcl", certificate)
    finally:
        site.stop()


def documented() -> str:
    """Return the configuration of docs/operating.md."""
    (block,) = (block for block in blocks(ROOT / "docs" / "operating.md") if block.language == "nginx")
    return block.text


@pytest.fixture(scope="module")
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    settings = {"WCL_TRUSTED_PROXIES": '["127.0.0.1"]'}
    if request.param != "removes the path":
        settings["WCL_NGINX_FILES"] = "/wcl-files"
    with behind_nginx(tmp_path_factory.mktemp("nginx"), _VARIANTS[request.param], **settings) as server:
        yield server


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(ignore_https_errors=True, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    yield context
    context.close()


def signed_in(context: BrowserContext, proxied: Proxied) -> tuple[Page, list[str]]:
    """Return a window on the list of jobs, and what its console complains about."""
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda failed: complaints.append(f"{failed.url}: {failed.failure}"))
    with proxied.client() as client:
        link = client.sign_in_link()
    assert link.startswith(f"{proxied.url}/sign-in?token=")
    page.goto(link)
    page.wait_for_url(f"{proxied.url}/")
    return page, complaints


@ALL
def test_a_browser_uses_every_page_through_nginx(proxied: Proxied, context: BrowserContext) -> None:
    site = proxied.site
    run = site.running("behind a proxy")
    run.start()
    run.losses([1, 2])
    run.checkpoint(2)
    page, complaints = signed_in(context, proxied)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    (cookie,) = context.cookies()
    assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, True, "Strict", "/wcl")

    for name in ("Sweeps", "Compare", "Leaderboard", "Checkpoints", "Datasets", "Workers", "Jobs"):
        page.get_by_role("navigation", name="Main").get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.url.startswith(f"{proxied.url}/"), page.url
    page.get_by_role("link", name="behind a proxy").first.click()
    page.wait_for_url(f"{proxied.url}/jobs/{run.job_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    run.losses([3])
    script = "() => document.getElementById('charts').curves?.byName.get('train/loss')?.steps"
    eventually(lambda: page.evaluate(script) == [1, 2, 3], "the curve with the new point")

    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator("#run-summary")).to_contain_text("cancelling")
    run.end("cancelled")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: "/wcl/jobs/" in url and run.job_id not in url)
    site.claim().end()
    page.go_back()
    with page.expect_download() as download:
        page.get_by_role("link", name="full checkpoint").first.click()
    assert b"checkpoint" in download.value.path().read_bytes()
    complaints = [text for text in complaints if "ERR_ABORTED" not in text]  # the download, and pages that were left
    assert complaints == []

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()
    assert page.url == f"{proxied.url}/sign-in"
    assert context.cookies() == []


@DOCUMENTED
def test_eight_windows_work_through_nginx(proxied: Proxied, context: BrowserContext) -> None:
    run = proxied.site.running("in eight windows")
    run.start()
    run.losses([1])
    first, _ = signed_in(context, proxied)
    pages = [first, *(context.new_page() for _ in range(7))]
    for page in pages:
        page.goto(f"{proxied.url}/jobs/{run.job_id}")
    for page in pages:
        expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    run.end()


@ALL
def test_the_client_works_through_nginx(proxied: Proxied, tmp_path: Path) -> None:
    run = proxied.site.running("for the client")
    run.start()
    run.losses([1, 2])
    digest = run.checkpoint(2)
    with proxied.client() as client:
        checkpoint = client.checkpoints(run.job_id)[0]
        done = client.download(checkpoint["id"], tmp_path / "whole")
        (tmp_path / "half.part").write_bytes((tmp_path / "whole").read_bytes()[:1000])
        (tmp_path / "half.part.etag").write_text(f'"{digest}"')
        began = time.monotonic()
        messages = client.follow(run.job_id)
        next(message for message in messages if message is not None)
        run.end()
        last = list(messages)[-1]
    assert done.sha256 == digest
    assert last is not None
    assert last.event == "end"
    assert time.monotonic() - began < 10, "nginx holds events back"


@DOCUMENTED
def test_nginx_sends_checkpoints_and_nothing_without_the_server(proxied: Proxied) -> None:
    run = proxied.site.running("for nginx")
    run.start()
    digest = run.checkpoint(1)
    key = {"Authorization": f"Bearer {proxied.environment['WCL_KEY']}"}
    with proxied.client() as client:
        path = f"/v1/checkpoints/{client.checkpoints(run.job_id)[0]['id']}/download"
    direct = f"{proxied.site.url}/wcl{path}"

    place = httpx.get(direct, headers=key | {"X-Forwarded-For": "192.0.2.1"}, trust_env=False, timeout=PATIENCE)
    of_server = httpx.get(direct, headers=key, trust_env=False, timeout=PATIENCE)
    with proxied.http(**key) as http:
        whole = http.get(path)
        rest = http.get(path, headers={"Range": "bytes=1000-", "If-Range": f'"{digest}"'})
        other = http.get(path, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
        several = http.get(path, headers={"Range": "bytes=0-1,5-6"})
        beyond = http.get(path, headers={"Range": "bytes=100000-"})
        unchanged = http.get(path, headers={"If-None-Match": f'"{digest}"'})
        answers = [http.get(path, headers={"Authorization": "Bearer wrong"}).status_code]
        answers.append(http.get(proxied.url.removesuffix("/wcl") + place.headers["X-Accel-Redirect"]).status_code)

    assert (place.status_code, place.content) == (200, b"")
    assert hashlib.sha256(of_server.content).hexdigest() == hashlib.sha256(whole.content).hexdigest() == digest
    assert "X-Accel-Redirect" not in whole.headers
    same = ("ETag", "Content-Type", "Content-Disposition", "Content-Length", "Cache-Control", "X-Content-Type-Options")
    assert {name: whole.headers[name] for name in same} == {name: of_server.headers[name] for name in same}
    assert (rest.status_code, rest.content) == (206, whole.content[1000:])
    assert (other.status_code, other.content) == (200, whole.content)
    assert (several.status_code, several.content) == (200, whole.content)
    assert beyond.status_code == 416
    assert unchanged.status_code == 304
    assert answers == [401, 404]


@DOCUMENTED
def test_the_command_line_works_through_nginx(proxied: Proxied, tmp_path: Path) -> None:
    run = proxied.site.running("for the command line")
    run.start()
    run.losses([1, 2])
    digest = run.checkpoint(2)
    run.end()

    listed = json.loads(proxied.wcl("jobs", "--json", folder=tmp_path))
    downloaded = json.loads(proxied.wcl("download", run.job_id, "-o", "file", "--json", folder=tmp_path))
    shown = proxied.wcl("show", run.job_id, folder=tmp_path)

    assert run.job_id in [job["id"] for job in listed]
    assert downloaded["sha256"] == digest
    assert f"/wcl/jobs/{run.job_id}" in shown
    assert proxied.wcl("watch", run.job_id, folder=tmp_path)


@DOCUMENTED
def test_addresses_of_clients_that_lie_do_not_count(proxied: Proxied) -> None:
    """The proxy of this machine is named, so the client uses another address of the loopback network."""
    with proxied.http(Authorization="Bearer wcl_wrong", local_address="127.0.0.2") as http:
        answers = [http.get("/v1/jobs", headers={"X-Forwarded-For": f"203.0.113.{n}"}).status_code for n in range(22)]
        redirect = http.get(
            "https://" + proxied.url.split("/")[2] + "/wcl", headers={"X-Forwarded-Host": "evil.example"}
        )

    assert answers[-1] == 429
    assert redirect.status_code == 301
    assert "evil" not in redirect.headers["location"]


def test_a_browser_behind_an_unnamed_proxy_is_told_the_setting(tmp_path: Path) -> None:
    with behind_nginx(tmp_path, {}) as proxied, proxied.client() as client, proxied.http(Accept="text/html") as http:
        token = re.sub(".*token=", "", client.sign_in_link())
        assert "secure" not in http.get(f"/sign-in?token={token}").headers["set-cookie"].lower()
        answer: Any = http.post("/submit", headers={"Origin": proxied.url.removesuffix("/wcl")})

    assert answer.status_code == 403
    assert "WCL_TRUSTED_PROXIES" in answer.text
