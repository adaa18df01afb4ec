"""The timeline, its sentences and its pages, and the link back from an error page."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from api.web.events import entries_of
from jobs.models import Event
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site


def test_a_long_timeline_has_pages(visitor: Visitor, site: Site) -> None:
    run = site.running("restless")
    run.start()
    run.report(*({"type": "warning", "reason": "slow", "message": f"number {n}."} for n in range(1, 601)))
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}", scripts=False)
    expect(page.locator("#timeline")).to_contain_text("Showing the newest 60 entries.")
    expect(page.locator("#timeline li")).to_have_count(60)
    page.get_by_role("link", name="All 604 events").click()
    expect(page.locator(".events li")).to_have_count(500)
    expect(page.locator("main")).to_contain_text("Events 105 to 604 of 604")
    expect(page.locator(".events li").first).to_contain_text("Succeeded")
    page.get_by_role("link", name="Older").click()
    expect(page.locator("main")).to_contain_text("Events 1 to 104 of 604")
    expect(page.locator(".events li").last).to_contain_text("Submitted")
    expect(page.get_by_text("number 101.")).to_be_visible()
    page.get_by_role("link", name="Newest").click()
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Timeline").click()
    expect(page.locator("h2#timeline-title")).to_be_visible()
    assert page.url.endswith(f"/jobs/{run.job_id}#timeline")


def test_an_error_page_links_back_to_its_job(visitor: Visitor, site: Site) -> None:
    run = site.running("a job with errors")
    page = visitor.window(scripts=False)
    back = page.get_by_role("link", name="Back to the job")
    for part in ("weak-labels?epoch=-1", "map?image=-1", "timeline?before=0", "curve.svg"):
        page.goto(f"/jobs/{run.job_id}/{part}")
        back.click()
        expect(page.locator("h1")).to_have_text("a job with errors")
    run.end()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("main")).to_contain_text("409")
    back.click()
    expect(page.locator("h1")).to_have_text("a job with errors")

    page.goto("/jobs/none/map")
    expect(page.locator("main")).to_contain_text("404")
    expect(page.locator("main")).to_contain_text("There is no job 'none'.")
    expect(back).to_have_count(0)
    page.goto("/datasets/none")
    page.get_by_role("link", name="All datasets").click()
    expect(page.locator("h1")).to_have_text("Datasets")
    assert all("Failed to load resource" in text for text in visitor.complaints)
    visitor.forget_failures()


@pytest.mark.parametrize(
    ("kind", "data", "title"),
    [
        ("cancel_requested", {}, "Cancel requested"),
        ("pause_requested", {}, "Pause requested"),
        ("preempt_requested", {"job": "another job"}, "Preemption requested"),
        ("queued", {}, "Queued: its dependencies are met"),
    ],
)
def test_requests_and_a_met_dependency_have_a_sentence(kind: str, data: dict[str, str], title: str) -> None:
    entry = entries_of([Event(job_id="a job", seq=1, type=kind, data=data, at=0)])[0]

    assert entry.title == title
    assert entry.job_id == data.get("job")


def test_a_change_is_described_in_words() -> None:
    data = {"name": "second", "tags": ["a", "b"], "reference": True, "by": "anna"}
    entry = entries_of([Event(job_id="a job", seq=1, type="changed", data=data, at=0)])[0]

    assert (entry.title, entry.detail) == ("Changed by anna", "name second, tags a, b, reference yes")


def test_a_choice_filters_the_activity_at_once_and_the_address_is_short(visitor: Visitor) -> None:
    page = visitor.window("/activity")
    page.get_by_label("Action").select_option("key")
    page.wait_for_url("**/activity?action=key")
    expect(page.get_by_label("Action")).to_have_value("key")
    expect(page.locator("tbody tr").first).to_contain_text("key")
    page.reload()
    expect(page.get_by_label("Action")).to_have_value("key")
    page.get_by_label("By").fill("nobody of this name")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**/activity?actor=*&action=key")
    page.get_by_role("link", name="Show all").click()
    page.wait_for_url("**/activity")
    expect(page.get_by_label("By")).to_have_value("")
