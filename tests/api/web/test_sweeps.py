"""The pages of sweeps: without scripts, with live updates, and with hostile text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from jobs import sweeps
from tests.api.served import Served
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site
from tests.api.web.test_accessibility import violations
from tests.jobs import sweeping
from tests.jobs.rows import job
from tests.waiting import eventually

HOSTILE = "<img src=x onerror=alert(1)>"


def begin(site: Site, parameters: dict[str, Any], **changes: Any) -> str:
    base = {"data": {"name": "digits", "image_size": 8, "held_out_share": 0.2}, "epochs": 18}
    return sweeping.submit(site.database, parameters, **{"base": base} | changes)


def value(spec: dict[str, Any]) -> float:
    return 1 - abs(float(spec["loss"]["temperature"]) - 0.5)


@pytest.fixture(scope="module")
def ended(site: Site) -> str:
    """Return the id of an ended sweep by halving: nine draws, and hostile words in every text that a user can write."""
    parameters = {sweeping.TEMPERATURE: {"min": 0.1, "max": 1, "log": True}, sweeping.RATE: [0.1, 0.05]}
    sweep_id = begin(
        site, parameters, search="halving", trials=9, min_epochs=2, name=HOSTILE, options={"tags": (HOSTILE,)}
    )
    play_out(site, sweep_id)
    return sweep_id


def play_out(site: Site, sweep_id: str) -> None:
    while sweeping.sweep(site.database, sweep_id).status == "running":
        while run := site.try_claim():
            run.start()
            measured = job(site.database, run.job_id)
            if measured.kind == "pretrain":
                run.checkpoint(10)
            else:
                run.evaluation("knn", value(job(site.database, measured.parent_id or "").spec))
            run.end()
        site.database.write(lambda session: sweeps.advance(session, sweep_id))


def test_a_sweep_is_read_without_scripts(visitor: Visitor, site: Site, ended: str) -> None:
    page = visitor.window("/sweeps", scripts=False)
    expect(page.locator("nav[aria-label=Main] [aria-current=page]")).to_have_text("Sweeps")
    page.get_by_role("link", name=HOSTILE).click()

    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    expect(page.locator("#sweep-summary .status")).to_have_text("succeeded")
    expect(page.locator("#selection")).to_contain_text(
        "Selected on 20% of each class's train images, which are held out"
    )
    expect(page.locator("#sweep-best")).to_contain_text("trains from scratch")
    expect(page.locator(".rungs li")).to_have_count(3)
    expect(page.locator(".trials tbody tr")).to_have_count(9)
    best = sweeping.sweep(site.database, ended).best_trial
    expect(page.locator(".trials tbody tr").first).to_have_attribute("data-trial", str(best))
    expect(page.locator("path.trial")).to_have_count(9)
    expect(page.locator(f"path.trial.best[data-trial='{best}']")).to_have_count(1)


def test_the_list_is_filtered_by_state(visitor: Visitor, site: Site, ended: str) -> None:
    page = visitor.window("/sweeps", scripts=False)
    states = page.get_by_role("navigation", name="State")
    states.get_by_role("link", name="succeeded").click()
    expect(page).to_have_url(re.compile("status=succeeded$"))
    expect(states.locator("[aria-current]")).to_have_text("succeeded")
    expect(page.locator(f"#sweep-{ended}")).to_be_visible()
    states.get_by_role("link", name="failed").click()
    expect(page.locator("#sweeps")).to_contain_text("No sweep is failed.")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(f"#sweep-{ended}")).to_be_visible()


def test_a_list_without_any_sweep_has_no_filters(small: Served) -> None:
    page = small.browser().get("/sweeps?status=failed").text
    assert "No sweeps yet" in page
    assert 'aria-label="State"' not in page


def test_order_rung_and_trial_are_in_the_address(visitor: Visitor, ended: str) -> None:
    page = visitor.window(f"/sweeps/{ended}", scripts=False)

    page.get_by_role("link", name="Temperature", exact=True).click()
    ascending = temperatures(page)
    assert ascending == sorted(ascending)
    page.get_by_role("link", name="Temperature", exact=True).click()
    assert temperatures(page) == ascending[::-1]
    expect(page.locator("th[aria-sort]")).to_have_attribute("aria-sort", "descending")

    page.get_by_label("Rungs").get_by_role("link", name="6 epochs").click()
    expect(page.locator("path.trial")).to_have_count(3)
    compared = page.get_by_role("link", name="Compare the top trials").get_attribute("href") or ""
    assert compared.count("job=") == 8
    best = page.locator("#sweep-best a").first.inner_text().removeprefix("trial ")
    rungs = page.get_by_label(f"Compare trial {best}", exact=True).get_attribute("href") or ""
    assert rungs.count("job=") == 3
    page.get_by_label("Compare trial 4", exact=True).click()
    expect(page.locator("main")).to_contain_text("trial 4, 2 epochs")
    expect(page.locator("main")).to_contain_text(f"trial {best}, 2 epochs")
    page.go_back()
    page.locator("#trial-4").get_by_role("link", name="4", exact=True).click()
    expect(page.locator("tr.selected")).to_have_attribute("data-trial", "4")
    page.goto(page.url)
    expect(page.locator("tr.selected")).to_have_attribute("data-trial", "4")
    expect(page.locator("path.trial")).to_have_count(3)
    assert temperatures(page) == ascending[::-1]


def temperatures(page: Page) -> list[float]:
    cells = page.locator(".trials tbody tr td:nth-child(2)").all_text_contents()
    return [float(cell) for cell in cells]


def test_lines_and_rows_highlight_each_other_and_an_axis_filters_trials(visitor: Visitor, ended: str) -> None:
    page = visitor.window(f"/sweeps/{ended}")
    page.locator("#trial-3").hover()
    expect(page.locator("path.trial.pointed")).to_have_attribute("data-trial", "3")
    expect(page.locator("#readout")).to_contain_text("trial 3: loss.temperature")

    plot = page.locator(".parallel")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    right = box["x"] + 0.98 * box["width"]
    page.mouse.move(right, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(right, box["y"] + 120, steps=4)
    page.mouse.up()
    kept = page.locator("path.trial:not(.out)").count()
    assert 0 < kept < 9
    expect(page.locator(".trials tbody tr:visible")).to_have_count(kept)
    expect(page.locator("#readout")).to_contain_text(f"{kept} of 9 trials")
    page.keyboard.press("Escape")
    expect(page.locator(".trials tbody tr:visible")).to_have_count(9)


def test_a_running_sweep_is_kept_fresh_and_cancelled(visitor: Visitor, site: Site) -> None:
    sweep_id = begin(site, {sweeping.TEMPERATURE: [0.2, 0.4]}, name="live", max_parallel=1)
    page = visitor.window(f"/sweeps/{sweep_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator("#trial-0 .trial-state")).to_have_text("queued")
    expect(page.locator("#trial-1 .trial-state")).to_have_text("waiting")

    for _ in range(2):
        run = site.claim()
        run.start()
        run.evaluation("knn", 0.75) if job(site.database, run.job_id).kind == "evaluate" else run.checkpoint(10)
        run.end()
    # The server's own reconciler polls too seldom here.
    sweeping.advance(site.database, sweep_id)
    expect(page.locator("#trial-0 .trial-state")).to_have_text("finished")
    expect(page.locator("#trial-1 .trial-state")).to_have_text("queued")
    expect(page.locator("#sweep-best .figure")).to_contain_text("75.0%")

    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this sweep").click()
    expect(page.locator("#sweep-summary .status")).to_have_text("cancelled")
    expect(page.locator("#sweep-best")).to_contain_text("75.0%")
    assert sweeping.sweep(site.database, sweep_id).status == "cancelled"
    eventually(lambda: site.try_claim() is None, "an empty queue")


def test_the_page_shows_the_end_of_a_sweep_by_itself(visitor: Visitor, site: Site) -> None:
    """Only the row of the sweep changes."""
    sweep_id = begin(site, {sweeping.TEMPERATURE: [0.2]}, name="ends")
    for _ in range(2):
        run = site.claim()
        run.start()
        run.evaluation("knn", 0.75) if job(site.database, run.job_id).kind == "evaluate" else run.checkpoint(10)
        run.end()
    page = visitor.window(f"/sweeps/{sweep_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator("#trial-0 .trial-state")).to_have_text("finished")

    sweeping.advance(site.database, sweep_id)

    expect(page.locator("#sweep-summary .status")).to_have_text("succeeded")
    expect(page.locator("#connection")).to_have_attribute("data-state", "over")


def test_cancel_works_without_scripts_and_a_reader_has_no_button(visitor: Visitor, site: Site) -> None:
    sweep_id = begin(site, {sweeping.TEMPERATURE: [0.2]}, base={"data": {"name": "digits", "image_size": 8}})
    reader = visitor.window(f"/sweeps/{sweep_id}", scopes=("read",))
    expect(reader.get_by_text("Cancel…")).to_have_count(0)
    expect(reader.locator("#selection")).to_contain_text("The best trial was selected on the test split")

    page = visitor.window(f"/sweeps/{sweep_id}", scripts=False)
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this sweep").click()
    expect(page).to_have_url(re.compile(f"/sweeps/{sweep_id}$"))
    expect(page.locator("#sweep-summary .status")).to_have_text("cancelled")


def test_a_job_names_its_sweep(visitor: Visitor, site: Site, ended: str) -> None:
    page = visitor.window(f"/sweeps/{ended}", scripts=False)
    page.locator("#trial-3 .runs a").first.click()

    page.locator(".facts").get_by_role("link", name=HOSTILE).first.click()
    expect(page).to_have_url(re.compile(f"/sweeps/{ended}\\?trial=3"))
    page.goto("/?kind=evaluate")
    page.get_by_role("link", name="evaluate checkpoint on digits").first.click()
    expect(page.locator(".facts")).to_contain_text("sweep")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_sweeps(visitor: Visitor, ended: str, theme: str) -> None:
    page = visitor.window(theme=theme)
    for address in ("/sweeps", f"/sweeps/{ended}?trial=3", f"/sweeps/{ended}?rung=2"):
        page.goto(address)
        assert violations(page) == [], address


def test_nothing_is_wider_than_a_phone(visitor: Visitor, ended: str) -> None:
    page = visitor.window(width=390)
    for address in ("/sweeps", f"/sweeps/{ended}"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
