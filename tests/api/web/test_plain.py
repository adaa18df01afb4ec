"""Every page works without scripts, in both themes, on narrow screens and with the keyboard; signing in."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from jobs import transitions
from tests.api.web.conftest import Visitor
from tests.api.web.served import PlayedRun, Site
from tests.waiting import PATIENCE

STATIC = Path(__file__).parents[3] / "api" / "web" / "static"


_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth)
    .filter((e) => !e.parentElement.closest(".scrolls, .code, .sections"))
    .map((e) => `${e.nodeName} ${e.className} ${e.textContent.slice(0, 40)}`).slice(0, 8)"""


_UNNAMED = """() => [...document.querySelectorAll("button, input, select, summary, nav, a[href], [tabindex='0']")]
    .filter((e) => e.type !== "hidden")
    .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length))
    .map((e) => e.outerHTML)"""


@pytest.fixture(scope="module")
def run(site: Site) -> PlayedRun:
    """Return a running job with content in every section."""
    run = site.running("WCL with a rather long name for a narrow screen, " + "w" * 60, ["a-tag-that-is-long" * 3])
    run.start()
    run.report({"type": "log", "level": "info", "message": "x" * 300}, output=["printed " + "y" * 300])
    run.losses(range(1, 60))
    run.report({"type": "metrics", "step": 60, "values": {"eval/knn_top1": 0.9, "z" * 90: 1.0}})
    for step in range(1, 11):
        run.checkpoint(step, {"train/loss": 1.5, "eval/knn_top1": 0.9})
    run.map()
    return run


def paths(run: PlayedRun) -> list[str]:
    return [
        "/",
        f"/jobs/{run.job_id}",
        f"/jobs/{run.job_id}/map?image=7",
        "/datasets",
        "/datasets/digits",
        "/workers",
        "/?q=nothing-like-this",
        "/sign-in",
        *analysis(run),
    ]


def analysis(run: PlayedRun) -> list[str]:
    return [
        "/compare",
        f"/compare?job={run.job_id}",
        "/leaderboard",
        "/checkpoints",
        "/submit",
        f"/submit?source={run.job_id}",
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(visitor: Visitor, run: PlayedRun, theme: str, width: int) -> None:
    page = visitor.window(width=width, theme=theme)
    for path in paths(run):
        page.goto(path)
        page.wait_for_load_state("load")
        if path == f"/jobs/{run.job_id}":
            expect(page.locator("figure.chart")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, page.evaluate(_WIDE))
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) < 60) == (theme == "dark")


@pytest.mark.parametrize(("width", "scripts"), [(390, True), (390, False), (768, True)])
def test_a_narrow_screen_has_a_menu_that_names_the_current_page(
    visitor: Visitor, run: PlayedRun, width: int, scripts: bool
) -> None:
    page = visitor.window("/workers", width=width, scripts=scripts)
    links = page.get_by_role("navigation", name="Main").get_by_role("link")
    expect(links).to_have_count(0)  # that can be seen
    menu = page.locator("#menu > summary")
    expect(menu).to_have_text("Workers")
    menu.press("Enter")
    expect(links).to_have_count(7)
    for place in range(7):
        expect(links.nth(place)).to_be_in_viewport(ratio=1)
    links.filter(has_text="Datasets").click()
    page.wait_for_url("**/datasets")
    expect(links).to_have_count(0)
    page.goto("/submit")
    expect(menu).to_have_text("Menu")
    expect(page.get_by_role("button", name="Submit")).to_be_in_viewport(ratio=1)


def test_a_phone_shows_the_current_section_and_two_charts_a_row(visitor: Visitor, run: PlayedRun) -> None:
    page = visitor.window(f"/jobs/{run.job_id}", width=390)
    charts = page.locator("#charts figure")
    expect(charts.nth(1)).to_be_attached()
    first, second = (charts.nth(place).bounding_box() for place in range(2))
    assert first
    assert second
    assert (first["y"], first["x"] < second["x"]) == (second["y"], True)
    page.goto(f"/jobs/{run.job_id}/weak-labels")
    expect(page.locator(".sections [aria-current]")).to_be_in_viewport(ratio=1)


def test_a_phone_folds_the_sections_after_the_curves(visitor: Visitor, run: PlayedRun) -> None:
    page = visitor.window(f"/jobs/{run.job_id}", width=390)
    expect(page.locator("#timeline .events")).to_be_hidden()
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Timeline").click()
    expect(page.locator("#timeline .events")).to_be_visible()
    page.locator("#timeline summary").press("Enter")
    expect(page.locator("#timeline .events")).to_be_hidden()
    expect(page.locator("#evaluations, #curves")).to_have_count(2)


def test_the_theme_can_be_switched_and_is_kept(visitor: Visitor, site: Site) -> None:
    page = visitor.window(theme="light")
    switch = page.get_by_role("button", name="Dark theme")
    expect(switch).to_have_attribute("aria-pressed", "false")

    switch.click()
    expect(switch).to_have_attribute("aria-pressed", "true")
    page.goto("/workers")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    page.get_by_role("button", name="Dark theme").click()
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light"


def test_everything_is_readable_without_scripts(visitor: Visitor, site: Site, run: PlayedRun) -> None:
    page = visitor.window(scripts=False)
    expect(page.locator(f"#job-{run.job_id}")).to_contain_text("running")
    page.get_by_role("searchbox").fill("rather long")
    page.get_by_role("button", name="Apply").click()
    assert "q=rather+long" in page.url
    page.goto(f"/jobs/{run.job_id}")

    for words in ("59 / 100", "8 older", "printed", "Attempt 1 started", '"batch_size": 256', "on cpu"):
        expected = {"8 older": "2 older checkpoints"}.get(words, words)
        expect(page.locator("#run")).to_contain_text(expected)
    picture = page.get_by_role("img", name="Curve of Loss")
    picture.scroll_into_view_if_needed()
    drawn = page.request.get(picture.get_attribute("src") or "")
    assert drawn.headers["content-type"].startswith("image/svg+xml")
    assert "<polyline" in drawn.text()
    assert page.locator(".needs-js:visible").count() == 0


def test_buttons_work_without_scripts(visitor: Visitor, site: Site) -> None:
    job_id = site.submit("waits")
    page = visitor.window(f"/jobs/{job_id}", scripts=False)

    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("queued")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("cancelled")
    assert site.status(job_id) == "cancelled"
    assert page.url.endswith(f"/jobs/{job_id}")


def test_a_form_of_another_site_changes_nothing(visitor: Visitor, site: Site) -> None:
    job_id = site.submit("stays")
    page = visitor.window()
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}

    headers = {"Origin": "http://evil.example", "Accept": "text/html"}
    answer = httpx.post(
        f"{site.url}/jobs/{job_id}/cancel", cookies=cookies, headers=headers, trust_env=False, timeout=PATIENCE
    )

    assert answer.status_code == 403
    assert "Not allowed" in answer.text
    assert site.status(job_id) == "queued"
    site.database.write(lambda session: transitions.cancel(session, job_id))


def test_keyboards_reach_the_content(visitor: Visitor, site: Site) -> None:
    page = visitor.window()

    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.keyboard.press("Tab")
    assert focus(page) == {"inside": True, "outline": "solid"}
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("checkbox", name="running", exact=True)).to_be_focused()
    page.keyboard.press("Space")
    page.wait_for_url("**status=running")


def focus(page: Page) -> dict[str, object]:
    """Return whether the focus is inside the content, and the outline of its element."""
    script = """() => {
        const { activeElement } = document;
        const inside = document.getElementById("content").contains(activeElement);
        return { inside, outline: getComputedStyle(activeElement).outlineStyle };
    }"""
    state: dict[str, object] = page.evaluate(script)
    return state


def test_controls_and_landmarks_have_names(visitor: Visitor, run: PlayedRun) -> None:
    page = visitor.window()
    for path in paths(run):
        page.goto(path)
        assert page.evaluate(_UNNAMED) == []
        assert page.locator("main").count() == page.locator("h1").count() == 1


def test_visitors_without_a_session_see_how_to_sign_in(browser: Browser, site: Site) -> None:
    context = browser.new_context(base_url=site.url)
    page = context.new_page()
    used = site.sign_in_link()

    answer = page.goto("/jobs/anything")
    assert answer
    assert answer.status == 401
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_text("wcl open")).to_be_visible()
    page.get_by_label("API key").fill("wcl_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#message-key")).to_contain_text("unknown or revoked")
    page.get_by_label("API key").fill((site.settings.data_dir / "key").read_text())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{site.url}/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(used)
    page.wait_for_url(f"{site.url}/")
    cookie = next(cookie for cookie in context.cookies() if "session" in cookie["name"])
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(used)
    expect(page.get_by_role("heading", name="This link is no longer valid")).to_be_visible()
    context.close()


def test_a_page_shows_that_its_session_ended(visitor: Visitor, site: Site) -> None:
    page = visitor.window()
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")

    page.context.clear_cookies()
    site.submit("a change")

    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    visitor.forget_failures()  # the browser logs the refused requests


# A token, or a class that sets --mark, with its colours in both themes.
COLOUR = r"(?:--|\.)(\w[\w-]*)(?: \{ --mark)?: light-dark\((#\w{6}), (#\w{6})\)"


def test_colours_differ_in_both_themes() -> None:
    css = (STATIC / "style" / "tokens.css").read_text()
    tokens = {name: pair for name, *pair in re.findall(COLOUR, css)}
    texts = ("text", "text-2", "text-3", "accent", "good", "bad", "warn")
    pairs = [(text, ground) for text in texts for ground in ("ground", "surface", "sunken")]
    pairs += [("on-accent", "accent"), ("on-accent", "accent-strong"), ("accent-strong", "accent-soft")]
    pairs += [("accent", "accent-soft"), ("good", "good-soft"), ("bad", "bad-soft"), ("warn", "warn-soft")]
    pairs += [("text", "bad-soft"), ("text-2", "bad-soft"), ("ground", "text")]
    shapes = [(line, "surface") for line in ("curve-1", "curve-2", "curve-3", "line-strong")]
    shapes += [(f"configuration-{number}", "surface") for number in range(1, 9)]

    for theme in (0, 1):
        for front, back in pairs:
            assert contrast(tokens[front][theme], tokens[back][theme]) >= 4.5, (front, back, theme)
        for front, back in [*shapes, ("line-strong", "ground")]:
            assert contrast(tokens[front][theme], tokens[back][theme]) >= 3, (front, back, theme)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
