"""Names, tags, messages, metrics and log lines are shown as text on every page and in live updates."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from api.web.pages import PAGES
from jobs import deletions, keys, shares, submission, sweeps, views, workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.keys import Principal
from jobs.models import WebhookDelivery
from jobs.webhooks import subscriptions
from tests.api.http.test_hostile import ALL_PAGES
from tests.api.web.conftest import Visitor
from tests.api.web.payloads import PAYLOADS
from tests.api.web.served import Site, sheet
from tests.jobs import sweeping
from wcl_core.text import visible_lines

# The elements that a payload would create as markup.
TRACES = "script:not([src]), img:not([src^='/jobs/']), iframe, base, style, math, body[onload], [onerror], [onfocus]"
# The texts of a page, and those of its attributes, in which a reader would not see each character.
HIDDEN = r"""() => {
  const hidden = /(?![\n\t])[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/;
  const texts = [document.title];
  const walker = document.createTreeWalker(document, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.attributes) texts.push(node.parentElement.nodeName === "TEXTAREA" ? "" : node.nodeValue);
    else for (const name of ["title", "aria-label", "alt", "placeholder"]) texts.push(node.getAttribute(name) ?? "");
  }
  return texts.filter((text) => hidden.test(text));
}"""
SCRIPTS = Path(__file__).parents[3] / "api/web/static/js"


def assert_inert(page: Page, visitor: Visitor) -> None:
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.locator(TRACES).count() == 0
    assert page.locator("a[href^='javascript' i]").count() == 0
    assert page.evaluate(HIDDEN) == []
    assert visitor.complaints == []


def test_the_list_shows_names_and_tags_as_text(visitor: Visitor, site: Site) -> None:
    for payload in PAYLOADS:
        site.submit(payload, [payload[:64]])
    page = visitor.window()

    names = page.locator("td.name a.named").all_text_contents()
    page.goto(page.get_by_role("link", name="Older").get_attribute("href") or "")
    names += page.locator("td.name a.named").all_text_contents()
    assert sorted(names) == sorted(map(visible_lines, PAYLOADS))
    assert_inert(page, visitor)
    page.goto(page.locator("a.tag").first.get_attribute("href") or "")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    for payload in PAYLOADS[:4]:
        page.get_by_role("searchbox").fill(payload)
        page.wait_for_timeout(300)
    assert_inert(page, visitor)
    for payload in PAYLOADS:
        site.claim().end("failed", payload[:64], payload)
    page.goto("/?status=failed")
    expect(page.locator("#list tbody tr")).to_have_count(50)
    assert_inert(page, visitor)


def test_a_job_shows_everything_as_text_also_live(visitor: Visitor, site: Site) -> None:
    names = PAYLOADS[:33]  # a page draws sixty charts
    run = site.running("</h1><script>pwned=1</script>")
    run.report({"type": "started", "start_step": 0, "device": PAYLOADS[0], "torch": PAYLOADS[8]}, output=PAYLOADS)
    run.report({"type": "metrics", "step": 1, "values": dict.fromkeys((p[:100] for p in names), 1.0)})
    page = visitor.window(f"/jobs/{run.job_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator("figure.chart")).to_have_count(len(names))

    run.report({"type": "metrics", "step": 2, "values": {f"<img src=x onerror=pwned=1>{n}": 1.0 for n in range(3)}})
    warnings = [{"type": "warning", "reason": payload, "message": payload} for payload in PAYLOADS[-50:]]
    run.report(*warnings, output=[f"live {payload}" for payload in PAYLOADS])
    run.checkpoint(1, dict.fromkeys(PAYLOADS, 0.5))
    expect(page.locator("figure.chart")).to_have_count(len(names) + 3)
    expect(page.locator("#log-lines .line")).to_have_count(2 * len(PAYLOADS))
    expect(page.locator("#checkpoints tbody tr")).to_have_count(1)
    expect(page.locator("#timeline li.warning")).to_have_count(50)
    assert_inert(page, visitor)
    run.end("failed", PAYLOADS[0], "\n".join(PAYLOADS))

    expect(page.get_by_role("alert")).to_contain_text("<svg onload=pwned=1>")
    assert_inert(page, visitor)
    page.goto(f"/jobs/{run.job_id}")
    expect(page.locator("figure.chart")).to_have_count(len(names) + 3)
    assert {visible_lines(name) for name in names} <= set(page.locator("figure.chart h3").all_text_contents())
    assert_inert(page, visitor)


def test_workers_and_datasets_show_text(visitor: Visitor, site: Site) -> None:
    samples = sheet([(1, 2, 3)] * len(PAYLOADS), columns=1, side=8)
    for payload in PAYLOADS:
        counts = {"train": [3] * len(PAYLOADS)}
        facts = DatasetFacts(payload[:64], payload[:16], "ab" * 32, {payload: 3}, list(PAYLOADS), counts)
        if "/" not in payload:  # which no address of a dataset has
            facts = replace(facts, sheet=samples)
        worker = WorkerFacts(new_id(), payload, "default", (), {payload[:64]: "ab" * 32}, (1,))
        site.database.write(lambda session, w=worker, f=facts: workers.register(session, w, 1, [f]))  # type: ignore[misc]
    page = visitor.window()
    assert_inert(page, visitor)
    for path in ("/workers", "/datasets", f"/datasets/{quote('<svg onload=pwned=1>')}"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("<svg onload=pwned=1>")
        assert_inert(page, visitor)


def test_scripts_show_hidden_characters_as_python_does(visitor: Visitor) -> None:
    """Each character is compared for which the two could differ."""
    codes = [*range(0x3000), *range(0xD700, 0x10100), *range(0xDFF00, 0xE1100)]
    page = visitor.window()
    shown = page.evaluate(
        """async (codes) => {
          const { visible } = await import(new URL("/static/js/text.js", location.href));
          const shown = codes.map((code) => visible(String.fromCodePoint(code)));
          return shown.map((text) => text.isWellFormed() ? text : "");
        }""",
        codes,
    )
    assert dict(zip(codes, shown, strict=True)) == {code: visible_lines(chr(code)) for code in codes}
    # Two halves of one character are that character, and no half is hidden by the other one.
    assert page.evaluate(
        """async () => {
          const { visible } = await import(new URL("/static/js/text.js", location.href));
          return visible("\ud83c\udfc1 \udfc1\ud83c a\u202eb");
        }"""
    ) == visible_lines("\U0001f3c1 \udfc1\ud83c a\u202eb")


# What shows text, with what is written there.
SHOWS = re.compile(
    r"""(?:\.(?:textContent|title|alt|ariaLabel|placeholder|nodeValue|text)\s*\+?=(?!=)\s*
      |setAttribute\("(?:aria-label|aria-description|title|alt|placeholder)",\s*|fillText\()(?P<content>.+)""",
    re.VERBOSE,
)
# Visible, a literal, or (in morph.js) text of a page that the server has rendered.
VISIBLE = re.compile(r"""visible\(|"[^"]*"[;)]|to\.nodeValue;""")
AS_HTML = re.compile(
    r"innerHTML|outerHTML|insertAdjacent|createContextualFragment|document\.write|innerText|createTextNode"
)


def test_scripts_show_text_through_one_function() -> None:
    """A script assigns a text, a title or a label only from `visible`, or from a literal."""
    sources = {path.name: path.read_text().splitlines() for path in sorted(SCRIPTS.glob("*.js"))}
    lines = [(name, line.strip()) for name, source in sources.items() for line in source if "//" not in line[:4]]
    shows = [(name, line, match["content"]) for name, line in lines for match in SHOWS.finditer(line)]
    assert len(shows) > 20
    assert [(name, line) for name, line, content in shows if not VISIBLE.match(content)] == []
    assert [(name, line) for name, line in lines if AS_HTML.search(line)] == []


def test_a_form_keeps_what_was_typed(visitor: Visitor, site: Site) -> None:
    """A value is shown again as it was typed, while its error shows each hidden character."""
    typed = "b\u202ea\u200fb\u2066"
    page = visitor.window(f"/?q={quote(typed)}&tag={quote(typed)}")
    assert page.locator("input[name=q]").input_value() == typed
    assert page.locator("input[name=tag]").input_value() == typed
    page.goto("/submit?preset=wcl-digits")
    page.locator("#section-training > summary").click()
    box = page.locator("[name='spec.batch_size']")
    box.fill(typed)
    expect(page.locator("[id='message-spec.batch_size']")).to_contain_text("integer")
    page.locator("button[name=step][value=submit]").click()  # the browser gets a new page
    expect(page.locator("[id='message-spec.batch_size']")).to_contain_text("integer")
    assert box.input_value() == typed
    assert page.evaluate(HIDDEN) == []
    page.goto("/sweeps/new?preset=wcl-digits")
    values = page.locator("[name='row.0.values']")
    values.fill(typed)
    page.locator("button[name=step][value=submit]").click()
    assert values.input_value() == typed
    visitor.forget_failures()  # the browser logs each answer that is an error


def test_a_picture_of_a_curve_is_valid_whatever_its_metric_is_called(visitor: Visitor, site: Site) -> None:
    """XML holds fewer characters than HTML; a browser shows no picture that is not well-formed."""
    names = [name for payload in PAYLOADS if (name := payload[:100])]
    run = site.running("pictures")
    run.report({"type": "metrics", "step": 1, "values": dict.fromkeys(names, 1.0)})
    run.report({"type": "metrics", "step": 2, "values": dict.fromkeys(names, 2.0)})
    page = visitor.window()
    broken = page.evaluate(
        """async ([address, names]) => {
          const texts = names.map(async (name) => (await fetch(`${address}?${new URLSearchParams({ name })}`)).text());
          const parser = new DOMParser();
          const isBroken = (text) => parser.parseFromString(text, "image/svg+xml").querySelector("parsererror, script");
          return (await Promise.all(texts)).filter(isBroken);
        }""",
        [f"/jobs/{run.job_id}/curve.svg", names],
    )
    run.end()
    assert broken == []


@pytest.mark.parametrize("scripts", [True, False])
def test_addresses_are_text_too(visitor: Visitor, site: Site, scripts: bool) -> None:
    page = visitor.window(scripts=scripts)
    for parameter in ("q", "tag", "kind", "status", "cursor"):
        page.goto("/?" + parameter + "=%22%3E%3Cscript%3Epwned=1%3C/script%3E")
        assert page.locator(TRACES).count() == 0
    page.goto("/jobs/%3Cimg%20src=x%20onerror=pwned=1%3E")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()
    assert page.locator(TRACES).count() == 0
    visitor.forget_failures()  # the browser logs each answer that is an error


@pytest.fixture(scope="module")
def addresses(site: Site) -> dict[str, str]:
    """Return the address of every page, with hostile words in every text that a user can write."""
    longest, quote_mark = max(PAYLOADS, key=len), PAYLOADS[23]
    sweep_id = sweeping.submit(site.database, {sweeping.TEMPERATURE: [0.1, 0.2]}, name=quote_mark)
    site.database.write(lambda session: sweeps.cancel(session, sweep_id))
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    deleted = site.running(longest)
    deleted.end()
    site.database.write(
        lambda session: deletions.delete(session, [deleted.job_id], Principal(new_id(), longest, frozenset({"admin"})))
    )
    run = site.running(longest, [longest[:64], quote_mark])
    run.start()
    run.report({"type": "metrics", "step": 1, "values": {longest[:100]: 1.0, quote_mark: 2.0}}, output=PAYLOADS)
    run.report({"type": "warning", "reason": longest[:64], "message": longest * 20})
    run.checkpoint(1, {longest: 0.5})
    run.end("failed", longest[:64], longest * 20)
    evaluation = site.submit_evaluation(site.checkpoints(run.job_id)[0].id, longest)
    note = "\n\n".join(PAYLOADS)[:10_000]
    site.database.write(lambda session: submission.change(session, run.job_id, note=note, starred=True))
    key, _ = site.database.write(lambda session: keys.create(session, "ada", ["submit"]))
    author = Principal(key.id, longest, frozenset({"submit"}))
    manager = Principal(key.id, longest, frozenset({"admin"}))
    link = site.database.write(lambda session: shares.create(session, [run.job_id], 7, author))
    assert link is not None
    query = urlencode({"q": longest[:200], "group": "loss.temperature"})
    site.database.write(lambda session: views.save(session, author, quote_mark, query, is_shared=True))
    facts = {
        "url": "https://hooks.example/" + "x" * 1000,
        "format": "standard",
        "events": ["job.failed"],
        "rules": None,
    }
    hook, _ = site.database.write(
        lambda session: subscriptions.create(
            session, manager, site.settings, name=longest, tag=quote_mark, stalled_minutes=10, **facts
        )
    )
    site.database.write(lambda session: subscriptions.send_test(session, manager, hook.id))
    site.database.write(
        lambda session: session.execute(update(WebhookDelivery).values(last_error=longest, state="failed"))
    )
    ids = {"job_id": run.job_id, "sweep_id": sweep_id, "name": "digits", "verb": "archive"}
    return {page.address: page.address.format(**ids) for page in PAGES} | {
        "/jobs/{job_id}/map": f"/jobs/{evaluation}/map",
        "/change/{verb}": f"/change/archive?job={run.job_id}",
        "/delete": f"/delete?job={run.job_id}",
        "/deleted": "/deleted",
        "/shares": f"/shares?job={run.job_id}",
        "/webhooks": f"/webhooks?webhook={hook.id}",
        "/shared/{secret}": f"/shared/{link[1]}",
        "/compare": f"/compare?job={run.job_id}&job={evaluation}",
        "/submit": f"/submit?source={run.job_id}",
        "/sweeps/new": f"/sweeps/new?source={run.job_id}",
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_shows_hostile_text_as_text(
    visitor: Visitor, site: Site, addresses: dict[str, str], width: int
) -> None:
    """No text becomes markup, the console stays empty, and no page is wider than the screen."""
    assert set(addresses) == ALL_PAGES
    page = visitor.window(width=width)
    too_wide = {}
    for route, path in addresses.items():
        page.goto(path)
        page.wait_for_load_state("load")
        page.evaluate("() => { for (const part of document.querySelectorAll('details')) part.open = true; }")
        if page.locator("#charts").count():
            expect(page.locator("#charts figure").first).to_be_attached()
        if excess := page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"):
            too_wide[route] = excess
        assert_inert(page, visitor)
    assert too_wide == {}
