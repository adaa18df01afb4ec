"""Links without a key: what one shows, and that it opens nothing else on any route."""

from __future__ import annotations

import re

import httpx
import pytest
from sqlalchemy import text, update

from api.http.auth import classification
from jobs.database import new_id
from jobs.models import Key, Share
from tests.api.http.test_access import SHARED
from tests.api.rest.test_compare import trained
from tests.api.served import Served, assert_problem
from tests.jobs import rows


def link(served: Served, client: httpx.Client, *job_ids: str, days: int = 7) -> str:
    """Return the path of a new link."""
    created = client.post("/v1/shares", json={"jobs": list(job_ids), "days": days})
    assert created.status_code == 201, created.text
    address: str = created.json()["url"]
    assert re.fullmatch(re.escape(served.url) + r"/shared/wcs_[\w-]{43}", address)
    return address.removeprefix(served.url)


def test_a_link_shows_its_job_and_nothing_of_others(small: Served) -> None:
    client, stranger = small.client(), small.bare()
    job_id = trained(small, 0.6, "the shared one")
    other = trained(small, 0.7, "the secret one", epochs=7)
    client.patch(f"/v1/jobs/{job_id}", json={"note": "**why**", "tags": ["internal"]})
    client.post(f"/v1/jobs/{other}/reference")
    path = link(small, client, job_id)

    shown = stranger.get(path)
    assert shown.status_code == 200
    assert shown.headers["referrer-policy"] == "no-referrer"
    assert shown.headers["cache-control"] == "no-store"
    for part in ("the shared one", "60.0%", "<strong>why</strong>", "succeeded"):
        assert part in shown.text
    for part in ("the secret one", other, "internal", 'method="post"', "/v1/", 'href="/jobs', "worker", "download"):
        assert part not in shown.text.replace("downloads.js", ""), part
    series = stranger.get(f"{path}/jobs/{job_id}/metrics?times=true").json()["series"]
    assert [each["name"] for each in series] == ["eval/knn_top1"]
    assert stranger.get(f"{path}/curve.svg?name=eval/knn_top1").headers["content-type"] == "image/svg+xml"
    assert_problem(stranger.get(f"{path}/jobs/{other}/metrics"), 404)
    assert_problem(stranger.get(f"{path}/curve.svg?name=system/gpu"), 404)

    both = stranger.get(link(small, client, job_id, other)).text
    assert "the secret one" in both
    assert "Comparison of 2 jobs" in both


def test_a_link_opens_no_other_route(small: Served) -> None:
    job_id = rows.submit(small.database)
    path = link(small, small.client(), job_id)
    secret = path.removeprefix("/shared/")
    bearers = (
        {"Authorization": f"Bearer {secret}"},
        {"Cookie": f"{small.cookie}={secret}"},
        {"Referer": small.url + path},
    )
    assert {route for route in classification(small.app) if "/shared" in route} == SHARED
    clients = [small.bare(headers) for headers in bearers]
    for route, scope in classification(small.app).items():
        method, address = route.split(" ", 1)
        if scope == "public":
            continue
        address = address.replace("{job_id}", job_id).replace("{verb}", "cancel")
        address = re.sub(r"\{\w+\}", lambda _: new_id(), address)
        for client in clients:
            small.forget_failures()
            answer = client.request(method, address, params={"secret": secret, "token": secret})
            assert answer.status_code == 401, (route, answer.status_code)
    stranger = small.bare()
    for further in ("", f"/jobs/{job_id}/metrics", "/curve.svg"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert stranger.request(method, path + further).status_code == 405, (method, further)
    for further in (
        "/../../v1/jobs",
        "/%2e%2e/%2e%2e/v1/jobs",
        "/jobs",
        f"/jobs/{job_id}",
        f"/jobs/{job_id}/logs",
        "//v1/jobs",
    ):
        answer = stranger.get(path + further)
        assert answer.status_code in (401, 404), further
        assert "items" not in answer.text


@pytest.mark.parametrize("end", ["expired", "revoked", "of a revoked key", "of an expired key", "of a deleted job"])
def test_a_link_ends(small: Served, end: str) -> None:
    client, admin, stranger = small.client("read", "submit"), small.client(), small.bare()
    job_id = trained(small, 0.6, "shared")
    path = link(small, client, job_id)
    assert stranger.get(path).status_code == 200
    (listed,) = client.get("/v1/shares").json()["items"]
    assert (listed["is_open"], [job["id"] for job in listed["jobs"]]) == (True, [job_id])

    if end == "expired":
        small.database.write(lambda session: session.execute(update(Share).values(expires_at=1)))
    elif end == "revoked":
        assert admin.delete(f"/v1/shares/{listed['id']}").status_code == 204
    elif end in ("of a revoked key", "of an expired key"):
        with small.database.read() as session:
            owner = session.get_one(Share, listed["id"]).created_by
        ended_at = {"revoked_at": 1} if end == "of a revoked key" else {"expires_at": 1}
        small.database.write(lambda session: session.execute(update(Key).where(Key.id == owner).values(**ended_at)))
    else:
        admin.delete(f"/v1/jobs/{job_id}")

    unknown = stranger.get("/shared/wcs_unknown")
    for further in ("", f"/jobs/{job_id}/metrics", "/curve.svg?name=eval/knn_top1"):
        ended = stranger.get(path + further)
        assert (ended.status_code, ended.json()["detail"]) == (404, unknown.json()["detail"])
    (listed,) = admin.get("/v1/shares").json()["items"]
    assert listed["is_open"] is (end == "of a deleted job")
    assert admin.get("/v1/audit").json()["findings"] == []


def test_a_key_manages_its_own_links_and_the_timeline_names_who_shared(small: Served) -> None:
    client, other, reader = small.client("read", "submit"), small.client("read", "submit"), small.client("read")
    job_id = rows.submit(small.database)
    path = link(small, client, job_id, days=3)
    (listed,) = client.get("/v1/shares").json()["items"]

    assert other.get("/v1/shares").json()["items"] == []
    assert_problem(other.delete(f"/v1/shares/{listed['id']}"), 404)
    assert_problem(reader.post("/v1/shares", json={"jobs": [job_id]}), 403)
    for _ in range(2):
        assert client.delete(f"/v1/shares/{listed['id']}").status_code == 204
    shared, ended = rows.events(small.database, job_id)[-2:]
    assert (shared.type, shared.data) == ("shared", {"link": listed["id"], "days": 3, "by": "test"})
    assert (ended.type, ended.data) == ("unshared", {"link": listed["id"], "by": "test"})
    secret = path.removeprefix("/shared/")
    with small.database.read() as session:
        assert secret not in str(session.execute(text("SELECT * FROM shares")).all())
    assert secret not in client.get("/v1/shares").text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"jobs": []}, 422),
        ({"jobs": ["absent"]}, 404),
        ({"jobs": ["a"], "days": 0}, 422),
        ({"jobs": ["a"], "days": 91}, 422),
    ],
)
def test_a_wrong_link_is_refused(shared: Served, body: dict[str, object], status: int) -> None:
    assert_problem(shared.client().post("/v1/shares", json=body), status)


def test_a_server_may_switch_links_off(small: Served) -> None:
    client, browser, stranger = small.client(), small.browser(), small.bare()
    job_id = trained(small, 0.6, "shared")
    path, unknown = link(small, client, job_id), stranger.get("/shared/wcs_unknown").json()["detail"]
    assert "Share…" in browser.get(f"/jobs/{job_id}").text

    small.app.state.settings = small.settings.model_copy(update={"shared_links": False})

    for further in ("", f"/jobs/{job_id}/metrics", "/curve.svg?name=eval/knn_top1"):
        assert assert_problem(stranger.get(path + further), 404)["detail"] == unknown
    assert "WCL_SHARED_LINKS" in assert_problem(client.post("/v1/shares", json={"jobs": [job_id]}), 403)["detail"]
    form = {"job": job_id, "days": "5", "key": "a"}
    assert browser.post("/shares", data=form, headers={"Origin": small.url}).status_code == 403
    page, listed = browser.get(f"/shares?job={job_id}").text, client.get("/v1/shares").json()
    assert "switched off on this server" in page
    assert "Create link" not in page
    assert (listed["allowed"], len(listed["items"])) == (False, 1)
    for address in (f"/jobs/{job_id}", f"/compare?job={job_id}"):
        assert "Share…" not in browser.get(address).text


def test_wrong_secrets_are_slowed_down_and_right_ones_pass(small: Served) -> None:
    stranger, path = small.bare(), link(small, small.client(), rows.submit(small.database))
    statuses = {stranger.get(f"/shared/wcs_{number}").status_code for number in range(25)}

    assert statuses == {404, 429}
    assert stranger.get(path).status_code == 200
    small.forget_failures()


def test_the_page_creates_a_link_once_and_revokes_it(small: Served) -> None:
    browser, headers = small.browser(), {"Origin": small.url}
    job_id = rows.submit(small.database, name="a & b")
    assert f'href="/shares?job={job_id}"' in browser.get(f"/jobs/{job_id}").text
    form = browser.get(f"/shares?job={job_id}").text
    key = re.search(r'name="key" value="(\w+)"', form)
    assert "Share a &amp; b" in form
    assert key

    body = {"job": job_id, "days": "5", "key": key[1]}
    created = browser.post("/shares", data=body, headers=headers).text
    address = re.search(r'data-copy="([^"]+)"', created)
    assert address
    assert small.bare().get(address[1]).status_code == 200
    assert browser.post("/shares", data=body, headers=headers).headers["location"] == "/shares"
    listed = browser.get("/shares").text
    assert listed.count(">Revoke</button>") == 1
    revoke = re.search(r'action="(/shares/[^"]+/revoke)"', listed)
    assert revoke
    assert browser.post(revoke[1], headers=headers).headers["location"] == "/shares"
    assert small.bare().get(address[1]).status_code == 404
    assert "revoked" in browser.get("/shares").text
    assert browser.post("/shares", data=body | {"days": "x", "key": "b"}, headers=headers).status_code == 422
