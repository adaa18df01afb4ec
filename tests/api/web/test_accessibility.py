"""axe-core finds no problem on any page in either theme, and Tab reaches every control."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from api.web.pages import PAGES
from jobs import keys, shares
from jobs.keys import Principal
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site, sheet
from tests.jobs import sweeping

pytestmark = pytest.mark.timeout(300)

HERE = Path(__file__).parent
AXE = HERE / "vendor" / "axe"
STATIC = HERE.parents[2] / "api" / "web" / "static"
# Contrast takes a millisecond for each element, and a page of 10,000 elements has few that look differently.
_RUN = """async ([options, isOfLooks]) => {
    const of = ["color", "backgroundColor", "backgroundImage", "opacity", "filter", "mixBlendMode", "position",
                "fontSize", "fontWeight", "textShadow", "visibility"];
    const looks = new Map([[null, ""]]);
    const look = (node) => {
        if (!looks.has(node)) {
            const style = getComputedStyle(node);
            looks.set(node, `${look(node.parentElement)} > ${node.localName} ${of.map((name) => style[name])}`);
        }
        return looks.get(node);
    };
    const hasText = (node) => node.matches("input, select, textarea")
        || [...node.childNodes].some(({ nodeType, data }) => nodeType === Node.TEXT_NODE && data.trim());
    const shown = [...document.querySelectorAll("body *")].filter((node) => hasText(node) && node.checkVisibility());
    const ofLooks = [...new Map(shown.map((node) => [look(node), node])).values()];
    const context = isOfLooks && ofLooks.length ? { include: ofLooks } : document;
    return (await axe.run(context, { resultTypes: ["violations"], ...options })).violations
        .flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => [id, html.slice(0, 160), failureSummary]));
}"""
_ALL_ELSE = [{"rules": {"color-contrast": {"enabled": False}}}, False]
_LINKS, _CONTRAST = [{"runOnly": ["link-in-text-block"]}, False], [{"runOnly": ["color-contrast"]}, True]

_CONTROLS = """a[href], button, input:not([type="hidden"]), select, textarea, summary, [tabindex="0"]"""
_WATCH = """() => {
    window.reached = new Set();
    window.unmarked = [];
    document.addEventListener("focusin", ({ target }) => {
        window.reached.add(target);
        const label = target.closest("label");
        const marks = [target, ...(label ? [label, ...label.querySelectorAll("*")] : [])];
        const isMarked = marks.some((mark) => getComputedStyle(mark).outlineStyle !== "none");
        if (!isMarked) window.unmarked.push(target.outerHTML);
    });
}"""
# Of radio buttons with one name, Tab reaches one; arrow keys reach the others.
_UNREACHED = """(controls) => {
    const names = new Set([...window.reached].filter(({ type }) => type === "radio").map(({ name }) => name));
    return [...document.querySelectorAll(controls)]
        .filter((control) => !control.disabled && control.tabIndex >= 0)
        .filter((control) => control.checkVisibility({ visibilityProperty: true }))
        .filter((control) => !window.reached.has(control) && !(control.type === "radio" && names.has(control.name)))
        .map(({ outerHTML }) => outerHTML.slice(0, 160));
}"""


@pytest.fixture(scope="module")
def paths(site: Site) -> list[str]:
    """Return the address of every page, with content in each of its parts."""
    failed = site.running("failed", ["a tag"])
    failed.start()
    failed.losses([1, 2])
    failed.end("failed", "non_finite_loss", "the loss is nan after step 5")
    done = site.running("done", ["a tag"])
    done.start()
    done.losses(range(1, 51))
    done.checkpoint(50)
    done.monitor_batch([(20 * place, 90, 200) for place in range(6)], [0, 0, 1, 1, 1, 0], ["cat", "dog"])
    done.groups(1, [0, 0, 0, 3, 3, 3])
    done.groups(2, [0, 0, 2, 2, 2, 0])
    done.end()
    evaluation = site.submit_evaluation(site.checkpoints(done.job_id)[0].id, "measured")
    measuring = site.claim()
    measuring.start()
    measuring.evaluation("few_labels", 0.8, 0.01, labels_per_class=1)
    measuring.map()
    measuring.end()
    running = site.running("running")
    running.start()
    running.report({"type": "log", "level": "info", "message": "loaded"}, output=["printed"])
    running.losses(range(1, 30))
    waiting = site.submit("waits")
    sweep_id = sweeping.submit(site.database, {sweeping.TEMPERATURE: [0.1, 0.2]})
    site.register(samples=sheet([(20, 90, 200), (200, 90, 20)], columns=4, side=16))
    key, _ = site.database.write(lambda session: keys.create(session, "ada", ["submit"]))
    author = Principal(key.id, "ada", frozenset({"submit"}))
    link = site.database.write(lambda session: shares.create(session, [done.job_id, running.job_id], 7, author))
    assert link is not None
    ids = {"job_id": done.job_id, "sweep_id": sweep_id, "name": "digits", "verb": "cancel"}
    return [
        *(page.address.format(**ids) for page in PAGES),
        *(f"/jobs/{job_id}" for job_id in (running.job_id, failed.job_id, evaluation, waiting)),
        "/?q=nothing-like-this",
        "/compare?q=nothing-like-this",
        "/deleted",
        f"/change/cancel?job={waiting}&job={done.job_id}",
        f"/shares?job={done.job_id}",
        "/webhooks",
        f"/shared/{link[1]}",
        f"/?sort=name&open={done.job_id}&open={sweep_id}",
        f"/jobs/{done.job_id}/weak-labels?epoch=1&image=102",
        f"/jobs/{evaluation}/map?image=7",
        f"/compare?job={done.job_id}&job={running.job_id}",
        f"/submit?source={done.job_id}",
        f"/sweeps/new?source={done.job_id}",
    ]


@pytest.mark.timeout(900)  # all pages in both themes
def test_axe_finds_nothing(visitor: Visitor, paths: list[str]) -> None:
    page = visitor.window()
    problems_by_path = {}
    for path in paths:
        page.goto(path)
        page.wait_for_load_state("load")
        if problems := violations(page):
            problems_by_path[path] = problems
    page.set_viewport_size({"width": 390, "height": 844})
    run = next(path for path in paths if path.startswith("/jobs/"))
    for path in ("/", run, paths[-3], "/checkpoints"):  # list, run, comparison; a table that becomes cards
        page.goto(path)
        page.locator("#menu > summary").click()
        if problems := violations(page):
            problems_by_path[f"{path} on a phone"] = problems
    page.goto("/absent")
    if problems := violations(page):
        problems_by_path["error"] = problems
    assert [text for text in visitor.complaints if "404" not in text] == []
    visitor.forget_failures()  # the browser reports the absent page

    assert problems_by_path == {}


def violations(page: Page) -> list[Any]:
    """Return rule, element and axe's message of each violation in the light theme, then of those in the dark one."""
    if page.locator("#charts").is_visible():  # a job that waits has none
        expect(page.locator("#charts figure").first).to_be_visible()
    page.evaluate("() => { for (const part of document.querySelectorAll('details')) part.open = true; }")
    page.evaluate((AXE / "axe.min.js").read_text(encoding="utf-8"))
    problems: list[Any] = page.evaluate(_RUN, _ALL_ELSE) + page.evaluate(_RUN, _CONTRAST)
    page.emulate_media(color_scheme="dark")  # the two themes of a page differ in colours alone
    problems += page.evaluate(_RUN, _LINKS) + page.evaluate(_RUN, _CONTRAST)
    page.emulate_media(color_scheme="light")
    return problems


def test_tab_reaches_every_control_and_shows_where_it_is(visitor: Visitor, paths: list[str]) -> None:
    page = visitor.window()
    run = next(path for path in paths if path.startswith("/jobs/"))
    for path in ("/", run, paths[-3], "/compare", "/submit", next(path for path in paths if "/map" in path)):
        page.goto(path)
        page.wait_for_load_state("load")
        if path == "/submit":
            expect(page.locator("#command")).to_be_visible()  # what the check of a new form adds
        page.evaluate(_WATCH)
        for _ in range(page.locator(_CONTROLS).count() + 2):
            page.keyboard.press("Tab")
        unreached, unmarked = page.evaluate(_UNREACHED, _CONTROLS), page.evaluate("window.unmarked")
        assert (path, unreached, unmarked) == (path, [], [])


def test_axe_would_find_something(visitor: Visitor, site: Site) -> None:
    page = visitor.window()
    page.evaluate("""() => {
        for (const color of ["#ddd", "#333"]) {
            const dim = document.createElement("p");
            dim.textContent = `hardly seen ${color}`;
            dim.style.color = color;
            document.querySelector("main").append(dim);
        }
        document.querySelector("main").append(document.createElement("input"));
    }""")

    problems = [(rule, re.findall("seen (#...)", html)) for rule, html, _ in violations(page)]

    assert problems == [("label", []), ("color-contrast", ["#ddd"]), ("color-contrast", ["#333"])]


@pytest.mark.parametrize("folder", [AXE, STATIC / "vendor" / "uplot"], ids=lambda folder: folder.name)
def test_vendored_files_are_the_published_ones(folder: Path) -> None:
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())

    assert set(listed) == {path.name for path in folder.iterdir()} - {"SHA256SUMS", "README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
