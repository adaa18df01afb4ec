"""Two people of two projects and the holder of a link, each in a browser: what each sees and may do, at one time."""

from __future__ import annotations

import re
from functools import partial

import httpx
from playwright.sync_api import expect

from jobs import keys, projects
from jobs.database import new_id
from tests.api.web.conftest import Visitor
from tests.api.web.served import SPEC, PlayedRun, Site
from tests.waiting import PATIENCE

OF_A_JOB = ("/jobs/{}", "/jobs/{}/timeline", "/jobs/{}/live", "/compare?job={}", "/submit?source={}", "/v1/jobs/{}")
CANCEL = """async (id) => (await fetch(`/v1/jobs/${id}/cancel`, { method: "POST" })).status"""
STATUS = "performance.getEntriesByType('navigation')[0].responseStatus"
SOURCE = """async (path) => (await (await fetch(path)).text())"""
_ID = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}")


class Person:
    """A person with a key of one project."""

    def __init__(self, site: Site, name: str, project: str, *scopes: str) -> None:
        self._site = site
        site.database.write(partial(projects.create, name=project))
        key = site.database.write(partial(keys.create, name=name, scopes=scopes, project=project))[1]
        self._headers = {"Authorization": f"Bearer {key}"}
        self.cookie = site.signed_in(key)

    def post(self, path: str, **body: object) -> httpx.Response:
        address = self._site.url + path
        response = httpx.post(address, json=body, headers=self._headers, trust_env=False, timeout=PATIENCE)
        return response.raise_for_status()

    def runs(self, name: str) -> PlayedRun:
        """Submit a job, and start its run."""
        job_id = self.post("/v1/jobs", kind="pretrain", spec=SPEC, name=name).json()["id"]
        run = self._site.claim()
        assert run.job_id == job_id
        run.start()
        run.losses([10, 20])
        return run


def status_of(site: Site, cookie: str, path: str) -> tuple[int, str]:
    """Return what a direct address shows to a browser with this cookie: the status, and a 404 without ids.

    Each request has a connection of its own, since the server may close an idle one just then.
    """
    headers = {"Accept": "text/html", "Cookie": f"{site.cookie}={cookie}"}
    response = httpx.get(site.url + path, headers=headers, trust_env=False, timeout=PATIENCE)
    return response.status_code, _ID.sub("", response.text) if response.status_code == 404 else ""


def test_two_people_and_the_holder_of_a_link_see_and_do_what_is_theirs(visitor: Visitor, site: Site) -> None:
    """Anna is a member of one project, Ben an administrator of another one; a stranger holds a link of Anna's."""
    anna = Person(site, "anna", "alpha", "read", "submit")
    ben = Person(site, "ben", "beta", "read", "submit", "admin")
    run = {"anna": anna.runs("the digits of anna"), "ben": ben.runs("the digits of ben")}
    own, foreign = run["anna"].job_id, run["ben"].job_id
    link = anna.post("/v1/shares", jobs=[own]).json()["url"].removeprefix(site.url)

    # the lists, and what they offer
    lists = {"anna": visitor.window("/", session=anna.cookie), "ben": visitor.window("/", session=ben.cookie)}
    for name, page in lists.items():
        expect(page.locator("#connection")).to_have_attribute("data-state", "live")
        expect(page.locator("#list tbody tr")).to_have_count(1)
        expect(page.locator("#list tbody tr")).to_contain_text(f"the digits of {name}")
        expect(page.locator("#summary")).to_contain_text("1 running")
        assert page.get_by_role("link", name="Keys").count() == (name == "ben")
        assert page.get_by_role("link", name="Activity").count() == 0, "the log of all projects"
    shown = visitor.window(link, session="")
    expect(shown.locator("h1")).to_have_text("the digits of anna")
    expect(shown.get_by_text("shared, read-only")).to_be_visible()
    assert shown.locator("form[method=post], a[href^='/jobs'], a[href='/submit']").count() == 0

    # the page of the job, for its owner; for all others its addresses show nothing
    job = visitor.window(f"/jobs/{own}", session=anna.cookie)
    expect(job.get_by_text("Cancel…")).to_be_visible()
    for address in OF_A_JOB:
        absent = address.format(new_id())
        assert status_of(site, anna.cookie, address.format(own))[0] == 200, address
        for person, others in ((ben, own), (anna, foreign)):
            refused = status_of(site, person.cookie, address.format(others))
            assert refused == status_of(site, person.cookie, absent), address
            assert "the digits of" not in refused[1]
        assert status_of(site, "", address.format(own))[0] == 401, address
    visitor.forget_failures()  # of the requests that are refused
    stray = visitor.window(f"/jobs/{own}", session=ben.cookie)
    assert stray.evaluate(STATUS) == 404
    assert "the digits of" not in stray.content()
    assert lists["ben"].evaluate(CANCEL, own) == 404
    assert lists["anna"].evaluate(CANCEL, foreign) == 404
    assert shown.evaluate(CANCEL, own) == 401
    assert [site.status(each) for each in (own, foreign)] == ["running", "running"]

    # Anna cancels; then something of Ben's own changes on his open page, and nothing of hers has
    job.get_by_text("Cancel…").click()
    job.get_by_role("button", name="Cancel this job").click()
    expect(job.locator("#run-summary")).to_contain_text("cancelling: stopping the run…")
    run["anna"].end("cancelled")
    expect(job.locator("#run-summary .status.pill")).to_have_text("cancelled")
    expect(lists["anna"].locator(f"#job-{own}")).to_have_attribute("data-status", "cancelled")
    run["ben"].end("succeeded")
    expect(lists["ben"].locator(f"#job-{foreign}")).to_have_attribute("data-status", "succeeded")
    expect(lists["ben"].locator("#list tbody tr")).to_have_count(1)
    for page, others in ((lists["ben"], "anna"), (lists["anna"], "ben"), (shown, "ben")):
        for text in (page.content(), page.evaluate(SOURCE, page.url)):
            assert f"the digits of {others}" not in text
            place = text.find(run[others].job_id)
            assert place < 0, (page.url, others, text[max(place - 300, 0) : place + 100])

    # the link shows the new state, and ends with the word of its owner
    shown.reload()
    expect(shown.locator("h1 + .status.pill")).to_have_text("cancelled")
    lists["anna"].goto("/shares")
    lists["anna"].get_by_role("button", name="Revoke").click()
    expect(lists["anna"].get_by_text("revoked").first).to_be_visible()
    assert status_of(site, "", link)[0] == 404
    lists["ben"].goto("/shares")
    assert "the digits of anna" not in lists["ben"].content()
