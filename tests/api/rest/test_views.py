"""The list of jobs by the value of a field, and saved views of it."""

from __future__ import annotations

import re

import pytest

from tests.api.http.test_access import JOB
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows


def headings(page: str) -> list[str]:
    """Return the headings of a list, as text."""
    matches = re.findall(r'<tr class="heading">(.*?)</tr>', page, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", "", text).split()) for text in matches]


def test_the_list_stands_by_the_value_of_a_field(served: Served) -> None:
    database, browser = served.database, served.browser()
    for epochs, name in ((10, "a"), (9, "b"), (10, "c")):
        rows.submit(database, spec=SPEC | {"epochs": epochs}, name=name)
    rows.submit(database, "evaluate", {"features": {"kind": "pixels"}, "data": SPEC["data"]}, name="d")

    def shown(query: str) -> tuple[list[str], list[str]]:
        page = browser.get(f"/?{query}").text
        names = re.findall(r'clamped named" href="/jobs/[^"]+" title="([^"]*)"', page)
        return headings(page), names

    assert shown("group=epochs") == (["epochs 9 1 job", "epochs 10 2 jobs", "epochs none 1 job"], ["b", "c", "a", "d"])
    assert shown("group=epochs&sort=name&kind=pretrain")[1] == ["b", "a", "c"]
    assert shown("group=status") == (["status queued 4 jobs"], ["d", "c", "b", "a"])
    assert shown("group=data.name")[0] == ["data.name digits 4 jobs"]
    assert shown("group=data.name.further")[0] == ["data.name.further none 4 jobs"]
    for wrong in ("", "A", "a b", "a..b", "$", "a.b.c.d.e.f", "x" * 300):
        assert shown(f"group={wrong}")[0] == []
    assert browser.get("/live?group=epochs").status_code == 200
    assert browser.get("/?group=epochs&cursor=x").status_code == 422


def test_a_view_is_saved_for_one_key_or_shared(served: Served) -> None:
    anna, ben, viewer = served.client("read", "submit"), served.client("read", "submit"), served.client("read")

    query = "status=running&status=queued&group=loss.temperature"
    own = anna.post("/v1/views", json={"name": "mine", "query": f"/?{query}"})
    shared = anna.post("/v1/views", json={"name": "ours", "query": "q=a%26b", "shared": True}).json()

    assert own.json()["query"] == query
    assert [view["name"] for view in anna.get("/v1/views").json()["items"]] == ["mine", "ours"]
    for other in (ben, viewer):
        assert [view["name"] for view in other.get("/v1/views").json()["items"]] == ["ours"]
    assert_problem(ben.delete(f"/v1/views/{own.json()['id']}"), 404)
    assert_problem(ben.delete(f"/v1/views/{shared['id']}"), 403)
    again = anna.post("/v1/views", json={"name": "mine", "query": "starred=true"}).json()
    assert (again["id"], again["query"]) == (own.json()["id"], "starred=true")
    assert served.client().delete(f"/v1/views/{shared['id']}").status_code == 204
    assert viewer.get("/v1/views").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": " ", "query": ""}, "/name"),
        ({"name": "a\u202eb"}, "/name"),
        ({"name": "a", "query": "evil=1"}, "/query"),
        ({"name": "a", "query": "x" * 2000}, "/query"),
    ],
)
def test_a_wrong_view_is_refused(shared: Served, body: dict[str, object], pointer: str) -> None:
    assert_problem(shared.client().post("/v1/views", json=body), 422, pointer)


def test_the_page_saves_opens_and_removes_a_view(small: Served) -> None:
    browser, own = small.browser(), {"Origin": small.url}
    small.client().post("/v1/jobs", json=JOB)
    query = re.search(r'name="query" value="([^"]*)"', browser.get("/?group=method&sort=age&open=x").text)
    assert query
    assert query[1] == "group=method&amp;sort=age"

    form = {"name": "by <b>method</b>", "query": "group=method&sort=age", "shared": "true"}
    saved = browser.post("/views", data=form, headers=own)

    assert saved.headers["location"] == "/?group=method&sort=age"
    page = browser.get("/").text
    assert "by &lt;b&gt;method&lt;/b&gt;" in page
    assert "shared by test" in page
    assert "Remove by" not in small.client("read").get("/").text
    (address,) = re.findall(r'action="(/views/[^"]+/remove)"', page)
    assert browser.post(address, headers=own).headers["location"] == "/"
    assert "/remove" not in browser.get("/").text
