"""The list of jobs: live updates, and filters in the address."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Route, expect

from jobs import submission, transitions
from jobs.new_job import NewJob
from tests.api.web.conftest import Visitor
from tests.api.web.served import SPEC, Site
from tests.waiting import eventually
from wcl_core.config import parse_spec


def test_an_empty_service_shows_how_to_submit(visitor: Visitor, site: Site) -> None:
    page = visitor.window()

    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    expect(page.get_by_text("wcl submit --preset digits-cpu")).to_be_visible()
    expect(page.get_by_role("link", name="Train a network")).to_have_attribute("href", "/submit")
    expect(page.get_by_role("link", name="Use your own photos")).to_have_attribute("href", "/datasets?add=true")


def test_a_new_job_and_its_changes_appear_by_themselves(visitor: Visitor, site: Site) -> None:
    page = visitor.window()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")

    job_id = site.submit("appears by itself", ["fresh"])
    row = page.locator(f"#job-{job_id}")
    expect(row).to_contain_text("appears by itself")
    expect(row).to_have_attribute("data-status", "queued")

    run = site.claim()
    run.start()
    run.report({"type": "metrics", "step": 0, "values": {"eval/knn_top1": 0.5}})
    run.losses([10, 20, 40])
    run.report({"type": "metrics", "step": 40, "values": {"eval/knn_top1": 0.75}})
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("epoch 4 / 10")
    expect(row).to_contain_text("1 min 35 s left")
    expect(row.locator("progress")).to_have_attribute("value", "0.4000")
    expect(row.locator("[data-label=kNN]")).to_have_text("50.0% → 75.0%")
    expect(page.locator("#summary")).to_contain_text("1 running")
    expect(page.locator(".worker")).to_contain_text("appears by itself")

    run.end("failed", "out_of_memory", "no room")
    expect(row).to_contain_text("out of memory")
    expect(page.locator("#summary")).to_contain_text("No job runs or waits")


def test_equal_names_have_short_ids_and_states_without_jobs_no_filter(visitor: Visitor, site: Site) -> None:
    twice = [site.submit("named twice") for _ in range(2)]
    once = site.submit("named once")
    page = visitor.window()
    for job_id in twice:
        expect(page.locator(f"#job-{job_id} .short-id")).to_have_text(job_id[-12:])
    expect(page.locator(f"#job-{once} .short-id")).to_have_count(0)
    chips = page.locator("#filters .choices")
    expect(chips.get_by_text("queued")).to_be_visible()
    expect(chips.get_by_text("blocked")).to_be_hidden()
    page.goto("/?status=blocked")
    expect(chips.get_by_text("blocked")).to_be_visible()  # it can be taken off
    for job_id in (*twice, once):
        site.database.write(lambda session, job_id=job_id: transitions.cancel(session, job_id))  # type: ignore[misc]
    page.goto("/")
    expect(chips.get_by_text("cancelled")).to_be_visible()
    expect(chips.get_by_text("queued")).to_be_hidden()


def test_filters_are_in_the_address(visitor: Visitor, site: Site) -> None:
    kept = site.submit("paused one", ["Größe & co"])
    site.database.write(lambda session: transitions.pause(session, kept))
    other = site.submit("another one")
    page = visitor.window()
    expect(page.locator(f"#job-{other}")).to_be_visible()

    page.get_by_role("checkbox", name="paused", exact=True).check(force=True)
    expect(page.locator(f"#job-{other}")).to_have_count(0)
    expect(page.locator(f"#job-{kept}")).to_be_visible()
    page.get_by_placeholder("Tag").fill("Größe & co")
    page.get_by_role("searchbox").fill("PAUSED")
    filters = {"status=paused", "tag=Gr%C3%B6%C3%9Fe+%26+co", "q=PAUSED"}
    page.wait_for_url(lambda url: set(url.partition("?")[2].split("&")) == filters)  # perhaps after one without `q`

    page.reload()
    expect(page.get_by_role("checkbox", name="paused", exact=True)).to_be_checked()
    expect(page.get_by_role("searchbox")).to_have_value("PAUSED")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    page.get_by_role("searchbox").fill("matches nothing")
    expect(page.get_by_role("heading", name="No matching jobs")).to_be_visible()
    page.get_by_role("link", name="Clear").click()
    expect(page.locator(f"#job-{other}")).to_be_visible()


def test_a_list_that_was_asked_for_before_the_filter_does_not_replace_the_filtered_one(
    visitor: Visitor, site: Site
) -> None:
    kept = site.submit("a paused one")
    site.database.write(lambda session: transitions.pause(session, kept))
    page = visitor.window()
    held: list[Route] = []
    page.route(re.compile(r"/live$"), lambda route: held.append(route))
    other = site.submit("a queued one")  # the stream announces it, and the page asks for the list
    eventually(lambda: held or page.wait_for_timeout(50), "the request for the list")
    with page.expect_response(re.compile(r"/live\?status=paused$")) as filtered:
        page.get_by_role("checkbox", name="paused", exact=True).check(force=True)
    filtered.value.finished()

    with page.expect_response(re.compile(r"/live$")) as late:
        held[0].continue_()
    late.value.finished()
    page.evaluate("() => new Promise(requestAnimationFrame)")

    expect(page.locator(f"#job-{other}")).to_have_count(0)


def test_a_filter_chosen_before_the_script_loads_is_applied(visitor: Visitor, site: Site) -> None:
    kept = site.submit("a paused one")
    site.database.write(lambda session: transitions.pause(session, kept))
    other = site.submit("a queued one")
    page = visitor.window()
    held: list[Route] = []
    page.route("**/js/jobs.js", lambda route: held.append(route))
    page.reload(wait_until="commit")
    expect(page.locator(f"#job-{other}")).to_be_visible()
    page.get_by_role("checkbox", name="paused", exact=True).check(force=True)
    eventually(lambda: held or page.wait_for_timeout(50), "the request for the script")
    held[0].continue_()

    expect(page.locator(f"#job-{other}")).to_have_count(0)
    assert "status=paused" in page.url
    page.unroute("**/js/jobs.js")
    page.go_back()
    expect(page.locator(f"#job-{other}")).to_be_visible()
    expect(page.get_by_role("checkbox", name="paused", exact=True)).not_to_be_checked()


def test_a_new_job_stays_out_of_a_filtered_list(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/?status=failed")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")

    hidden = site.submit("not failed")
    run = site.claim()
    while run.job_id != hidden:
        run = site.claim()
    expect(page.locator("#summary")).to_contain_text("running")

    expect(page.locator(f"#job-{hidden}")).to_have_count(0)
    run.end("failed", "bad_data", "two labels are missing")
    expect(page.locator(f"#job-{hidden}")).to_contain_text("bad data")


def test_a_line_opens_by_click_and_by_key_and_stays_open_in_the_address(visitor: Visitor, site: Site) -> None:
    run = site.running("has an evaluation")
    run.end()
    sent = {"data": SPEC["data"], "features": {"kind": "pixels"}}
    name = "measures it, step 1 of has an evaluation"
    new = NewJob("evaluate", sent, parse_spec("evaluate", sent), name=name, parent_id=run.job_id)
    evaluation = site.database.write(lambda session: submission.submit(session, new)).id
    page = visitor.window()
    row, below = page.locator(f"#job-{run.job_id}"), page.locator(f"#job-{evaluation}")
    expect(row).to_be_visible()
    expect(below).to_have_count(0)

    row.get_by_role("link", name="1 evaluation of has an evaluation").click()
    expect(below.locator(".named")).to_have_text("measures it, step 1")
    assert f"open={run.job_id}" in page.url
    page.reload()
    expect(below).to_be_visible()
    fold = row.locator(".fold")
    expect(fold).to_have_attribute("aria-expanded", "true")
    fold.focus()
    page.keyboard.press("Enter")
    expect(below).to_have_count(0)
    expect(fold).to_be_focused()
    page.go_back()
    expect(below).to_be_visible()
    page.get_by_role("searchbox").fill("measures")
    expect(row).to_have_count(0)
    expect(below.locator(".named")).to_have_text("measures it, step 1 of has an evaluation")
    site.claim().end()


def test_a_column_sorts_and_the_order_outlives_a_filter(visitor: Visitor, site: Site) -> None:
    site.submit("sorts second", ["sorted"])
    site.submit("sorts first", ["sorted"])
    page = visitor.window("/?tag=sorted")
    names = page.locator("#list .named")
    expect(names).to_have_text(["sorts first", "sorts second"])

    page.get_by_role("link", name="Job", exact=True).click()
    expect(page.locator("th.name")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("link", name="Job", exact=True).press("Enter")
    page.wait_for_url("**order=desc**")
    expect(names).to_have_text(["sorts second", "sorts first"])
    expect(page.locator("th.name")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("searchbox").fill("sorts")
    page.wait_for_url("**q=sorts**")
    assert "sort=name" in page.url
    assert "order=desc" in page.url


@pytest.mark.parametrize("scripts", [True, False])
def test_all_jobs_that_match_are_cancelled_at_once(visitor: Visitor, site: Site, scripts: bool) -> None:
    tag = f"cancelled {scripts}".lower()
    ids = [site.submit(f"one of many {number}", [tag]) for number in range(52)]
    kept = site.submit("another one")
    page = visitor.window(f"/?tag={tag}", scripts=scripts)
    if scripts:
        page.get_by_role("checkbox", name="Select all on this page").check()
        expect(page.locator("#selected")).to_have_text("50 selected")
    else:
        page.locator(".pick").first.check()
    page.get_by_role("checkbox", name="All that match the filter").check()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.locator("h1")).to_have_text("Cancel 52 jobs?")
    page.get_by_role("button", name="Cancel 52 jobs").click()
    page.wait_for_url(lambda address: "change" not in address)
    assert {site.status(job_id) for job_id in ids} == {"cancelled"}
    assert site.status(kept) == "queued"
    site.claim().end()


def test_older_pages_are_reached_by_a_cursor(visitor: Visitor, site: Site) -> None:
    for number in range(55):
        site.submit(f"many {number}", ["many"])
    page = visitor.window("/?tag=many")

    expect(page.locator("#list tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#list tbody tr")).to_have_count(5)
    assert "tag=many" in page.url
    page.get_by_role("link", name="Newest").click()
    expect(page.locator("#list tbody tr")).to_have_count(50)


def test_a_long_name_takes_two_lines_and_is_whole_on_its_page(visitor: Visitor, site: Site) -> None:
    name = " ".join(["a name that holds every setting"] * 6)
    job_id = site.submit(name)
    site.submit("short")
    page = visitor.window("/", width=390)
    link = page.locator(f"#job-{job_id} a.clamped")
    one = page.get_by_role("link", name="short", exact=True).bounding_box()
    several = link.bounding_box()
    assert one
    assert several
    assert several["height"] == pytest.approx(2 * one["height"], abs=1)
    expect(link).to_have_attribute("title", name)
    link.click()
    expect(page.locator("h1")).to_have_text(name)


def test_the_position_in_the_queue_is_shown(visitor: Visitor, site: Site) -> None:
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    running = site.running("takes the worker")
    first, second = site.submit("is next"), site.submit("comes after")
    page = visitor.window()

    expect(page.locator(f"#job-{first} .state")).to_contain_text("position 1")
    place = page.locator(f"#job-{second} .state .below")
    expect(place).to_have_text("position 2")
    expect(place).to_have_attribute("title", "1 job is ahead of it")
    running.end()
    for _ in range(2):
        site.claim().end()


@pytest.mark.parametrize("scripts", [True, False])
def test_selected_jobs_are_compared_or_cancelled(visitor: Visitor, site: Site, scripts: bool) -> None:
    ended = site.running("ended before")
    ended.end()
    ids = [site.submit("selected one"), site.submit("selected other", seed=3), ended.job_id]
    kept = site.submit("not selected")
    page = visitor.window(scripts=scripts)
    expect(page.get_by_role("button", name="Compare")).to_be_hidden()
    for job_id in ids:
        page.locator(f"#pick-{job_id}").check()
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**/compare?*")
    assert all(job_id in page.url for job_id in ids)
    assert kept not in page.url

    page.goto("/")
    for job_id in ids:
        page.locator(f"#pick-{job_id}").check()
    page.get_by_role("button", name="Cancel…").press("Enter")
    expect(page.locator("#refused")).to_contain_text("ended before: cannot cancel a job that is succeeded")
    page.get_by_role("button", name="Cancel 2 jobs").press("Enter")
    expect(page.locator(f"#job-{ids[0]}")).to_have_attribute("data-status", "cancelled")
    assert [site.status(job_id) for job_id in (*ids, kept)] == ["cancelled", "cancelled", "succeeded", "queued"]
    site.claim().end()


def test_a_view_is_saved_from_the_head_of_the_list(visitor: Visitor, site: Site) -> None:
    listed = site.submit("an empty list has no views")
    site.database.write(lambda session: transitions.cancel(session, listed))
    page = visitor.window("/?status=failed")
    name = page.locator("#views").get_by_label("Name")
    expect(name).to_be_hidden()
    page.locator("#views > summary").press("Enter")
    name.fill("failures")
    page.keyboard.press("Escape")
    expect(name).to_be_hidden()
    expect(page.locator("#views > summary")).to_be_focused()
    page.locator("#views > summary").press("Enter")
    page.get_by_role("button", name="Save view").click()
    saved = page.locator("#views a", has_text="failures")
    expect(saved).to_have_attribute("href", "/?status=failed")
    page.locator("#views > summary").click()
    page.get_by_role("button", name="Remove failures").click()
    expect(saved).to_have_count(0)


def test_the_newest_checkpoint_of_each_job_is_listed_with_older_ones_folded(visitor: Visitor, site: Site) -> None:
    run = site.running("has checkpoints")
    run.start()
    run.checkpoint(1)
    run.checkpoint(2, {"eval/knn_top1": 0.75})
    run.end()
    page = visitor.window("/checkpoints")

    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("has checkpoints")
    expect(rows.first).to_contain_text("75.0%")
    page.get_by_role("link", name="1 older of has checkpoints").press("Enter")
    expect(rows).to_have_count(2)
    page.reload()
    expect(rows).to_have_count(2)
    rows.last.get_by_role("button", name="Pinned: step 1").click()
    expect(rows.last.get_by_role("button", name="Pinned")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("link", name="Pinned", exact=True).click()
    expect(rows).to_have_count(1)
    rows.get_by_role("link", name="has checkpoints").click()
    page.wait_for_url(f"**/jobs/{run.job_id}")

    later = site.running("measured earlier")
    later.start()
    later.report({"type": "metrics", "step": 2, "values": {"eval/knn_top1": 0.625}})
    later.checkpoint(3)
    later.end()
    page.goto("/checkpoints")
    row = rows.filter(has=page.get_by_role("link", name="measured earlier"))
    expect(row.locator("[data-label=kNN]")).to_have_text("62.5% at step 2")

    site.submit_evaluation(site.checkpoints(later.job_id)[0].id, "features of it")
    measuring = site.claim()
    measuring.start()
    facts = {"step": 3, "epoch": 1, "path": "x/features", "sha256": "fe" * 32, "size": 2048, "metrics": {}}
    measuring.report({"type": "checkpoint", "kind": "embeddings"} | facts)
    measuring.end()
    page.reload()
    expect(rows.filter(has_text="measured earlier")).to_have_count(1)
    expect(rows.filter(has_text="features of it")).to_have_count(0)
    page.get_by_role("link", name="Features", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Features")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("2.0 KiB")
    expect(rows.get_by_role("link", name="measured earlier")).to_have_attribute("href", f"/jobs/{later.job_id}")
    expect(rows.locator(".downloads a")).to_have_text(["features"])
