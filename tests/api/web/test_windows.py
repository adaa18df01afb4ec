"""Many windows of one browser, and several services in one browser."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.api.web.conftest import Visitor
from tests.api.web.served import Site
from tests.waiting import PATIENCE, eventually

NUM_WINDOWS = 8
LIVE = "#connection[data-state=live]"


def open_streams(site: Site) -> int:
    key = (site.settings.data_dir / "key").read_text().strip()
    answer = httpx.get(
        f"{site.url}/metrics", headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=PATIENCE
    )
    match = re.search(r"^wcl_streams\S* (\d+)", answer.text, re.MULTILINE)
    assert match, answer.text
    return int(match.group(1))


def steps(page: Page) -> list[int]:
    script = "() => document.getElementById('charts')?.curves?.byName.get('train/loss')?.steps ?? []"
    return list(page.evaluate(script))


def test_eight_windows_share_one_stream(visitor: Visitor, site: Site) -> None:
    runs = [site.running(f"run {number}") for number in range(3)]
    for run in runs:
        run.start()
        run.losses([1])
    first = visitor.window()
    pages = [first, *(first.context.new_page() for _ in range(NUM_WINDOWS - 1))]
    shown = [runs[number % 3] for number in range(NUM_WINDOWS - 1)]

    for page, run in zip(pages[1:], shown, strict=True):
        page.goto(f"/jobs/{run.job_id}", wait_until="domcontentloaded")
    for page in pages:
        page.wait_for_selector(LIVE, state="attached")
    eventually(lambda: open_streams(site) == 1, "one stream for all windows")

    for run in runs:
        run.losses([2, 3])
    for page in pages[1:]:
        eventually(lambda page=page: steps(page) == [1, 2, 3], "all points in every window")
    site.submit("a job of another window", pool="idle")
    expect(first.get_by_text("a job of another window").first).to_be_visible()

    for page in pages[:5]:  # the windows that stay go on without a gap
        page.close()
    for run in runs:
        run.losses([4])
    for page in pages[5:]:
        eventually(lambda page=page: steps(page) == [1, 2, 3, 4], "the next point in the windows that stay")
    for page in pages[5:]:
        page.close()
    eventually(lambda: open_streams(site) == 0, "no stream without windows")
    for run in runs:
        run.end()


def test_a_browser_without_shared_workers_has_live_pages(visitor: Visitor, site: Site) -> None:
    run = site.running("without a shared worker")
    run.start()
    run.losses([1])
    page = visitor.window()
    page.add_init_script("delete window.SharedWorker")

    page.goto(f"/jobs/{run.job_id}")
    page.wait_for_selector(LIVE, state="attached")
    run.losses([2])
    eventually(lambda: steps(page) == [1, 2], "the new point")
    run.end()
    page.wait_for_selector("#connection[data-state=over]", state="attached")


def test_signing_out_in_one_window_signs_all_windows_out(browser: Browser, site: Site) -> None:
    context = browser.new_context(base_url=site.url)
    first = context.new_page()
    first.goto(site.sign_in_link())
    first.wait_for_url(f"{site.url}/")
    second = context.new_page()
    second.goto("/")
    for page in (first, second):
        page.wait_for_selector(LIVE, state="attached")

    first.get_by_role("button", name="Sign out").click()

    for page in (first, second):
        expect(page.get_by_role("heading", name="Sign in", exact=True)).to_be_visible()
    context.close()


def test_two_services_of_one_host_keep_their_own_sessions(browser: Browser, site: Site, tmp_path: Path) -> None:
    other = Site(tmp_path)
    other.database.migrate()
    other.start()
    context = browser.new_context()
    try:
        page = context.new_page()
        for each in (site, other):
            page.goto(each.sign_in_link())
            page.wait_for_url(f"{each.url}/")

        for each in (site, other, site):
            page.goto(f"{each.url}/")
            expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    finally:
        context.close()
        other.stop()
