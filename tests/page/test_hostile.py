"""Names, tags, messages, metrics and log lines are text, whatever they contain, on every page and in live updates."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from jobs import registry
from jobs.database import new_id
from jobs.registry import DatasetFacts
from jobs.transitions import WorkerFacts
from tests.page.conftest import Visitor
from tests.page.served import Site, sheet

pytestmark = pytest.mark.timeout(120)

PAYLOADS = (
    "<script>pwned=1</script>",
    "</script><script>pwned=1</script>",
    "</title><script>pwned=1</script>",
    "</textarea><script>pwned=1</script>",
    "</style><script>pwned=1</script>",
    "<!--><script>pwned=1</script>-->",
    "<img src=x onerror=pwned=1>",
    "<img src=x onerror=pwned=1//",
    "<svg onload=pwned=1>",
    "<svg/onload=pwned=1//",
    "<svg><script>pwned=1</script></svg>",
    "<svg><animate onbegin=pwned=1 attributeName=x dur=1s>",
    "<body onload=pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<iframe src=javascript:parent.pwned=1>",
    "<details open ontoggle=pwned=1>",
    "<input autofocus onfocus=pwned=1>",
    "<a href=javascript:pwned=1>click</a>",
    "<base href=//evil.example/>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<style>*{display:none}</style>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=pwned=1>",
    '" onmouseover=pwned=1 autofocus onfocus=pwned=1 x="',
    "' onmouseover=pwned=1 autofocus onfocus=pwned=1 x='",
    '"><script>pwned=1</script>',
    "'-pwned=1-'",
    "javascript:pwned=1",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "{% raw %}{{ config }}",
    "&lt;script&gt;pwned=1&lt;/script&gt;",
    "\u202egnp.exe\u0007\u2028\ufeff",
    "__proto__",
)
# What a payload would have become had it been markup.
TRACES = "script:not([src]), img:not([src^='/jobs/']), iframe, base, style, math, body[onload], [onerror], [onfocus]"


def assert_inert(page: Page, visitor: Visitor) -> None:
    assert page.evaluate("typeof pwned") == "undefined"
    assert page.locator(TRACES).count() == 0
    assert page.locator("a[href^='javascript' i]").count() == 0
    assert visitor.complaints == []


def test_the_list_shows_names_and_tags_as_text(visitor: Visitor, site: Site) -> None:
    for payload in PAYLOADS:
        site.submit(payload, [payload[:64]])
    page = visitor.window()

    names = page.locator("td.job > a").all_text_contents()
    assert sorted(names) == sorted(PAYLOADS)
    page.goto(page.locator("a.tag").first.get_attribute("href") or "")
    expect(page.locator("#list tbody tr")).to_have_count(1)
    for payload in PAYLOADS[:4]:
        page.get_by_role("searchbox").fill(payload)
        page.wait_for_timeout(300)
    assert_inert(page, visitor)
    for payload in PAYLOADS:
        site.claim().end("failed", payload[:64], payload)
    page.goto("/?status=failed")
    expect(page.locator("#list tbody tr")).to_have_count(len(PAYLOADS))
    assert_inert(page, visitor)


def test_a_run_shows_everything_as_text_also_live(visitor: Visitor, site: Site) -> None:
    run = site.running("</h1><script>pwned=1</script>")
    run.tell({"type": "started", "start_step": 0, "device": PAYLOADS[0], "torch": PAYLOADS[8]}, output=PAYLOADS)
    run.tell({"type": "metrics", "step": 1, "values": dict.fromkeys((p[:100] for p in PAYLOADS), 1.0)})
    page = visitor.window()
    page.goto(f"/jobs/{run.job_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    expect(page.locator("figure.chart")).to_have_count(len(PAYLOADS))

    run.tell({"type": "metrics", "step": 2, "values": {f"<img src=x onerror=pwned=1>{n}": 1.0 for n in range(3)}})
    for payload in PAYLOADS:
        run.tell({"type": "warning", "reason": payload, "message": payload}, output=[f"live {payload}"])
    run.checkpoint(1, dict.fromkeys(PAYLOADS, 0.5))
    expect(page.locator("figure.chart")).to_have_count(len(PAYLOADS) + 3)
    expect(page.locator("#log-lines .line")).to_have_count(2 * len(PAYLOADS))
    expect(page.locator("#checkpoints tbody tr")).to_have_count(1)
    expect(page.locator("#timeline li.warning")).to_have_count(len(PAYLOADS))
    assert_inert(page, visitor)
    run.end("failed", PAYLOADS[0], "\n".join(PAYLOADS))

    expect(page.get_by_role("alert")).to_contain_text("<svg onload=pwned=1>")
    assert_inert(page, visitor)
    page.goto(f"/jobs/{run.job_id}")
    expect(page.locator("figure.chart")).to_have_count(len(PAYLOADS) + 3)
    assert set(PAYLOADS) <= set(page.locator("figure.chart h3").all_text_contents())
    assert_inert(page, visitor)


def test_workers_and_datasets_show_text(visitor: Visitor, site: Site) -> None:
    samples = sheet([(1, 2, 3)] * len(PAYLOADS), columns=1, side=8)
    for payload in PAYLOADS:
        counts = {"train": [3] * len(PAYLOADS)}
        facts = DatasetFacts(payload[:64], payload[:16], "ab" * 32, {payload: 3}, list(PAYLOADS), counts)
        if "/" not in payload:  # which no address of a dataset has
            facts = replace(facts, sheet=samples)
        worker = WorkerFacts(new_id(), payload, "default", 0, {payload[:64]: "ab" * 32}, (1,))
        site.database.write(lambda session, w=worker, f=facts: registry.register(session, w, 1, [f]))  # type: ignore[misc]
    page = visitor.window()
    assert_inert(page, visitor)
    for path in ("/workers", "/datasets", f"/datasets/{quote('<svg onload=pwned=1>')}"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("<svg onload=pwned=1>")
        assert_inert(page, visitor)


@pytest.mark.parametrize("scripts", [True, False])
def test_addresses_are_text_too(visitor: Visitor, site: Site, scripts: bool) -> None:
    page = visitor.window(scripts=scripts)
    for parameter in ("q", "tag", "kind", "status", "cursor"):
        page.goto("/?" + parameter + "=%22%3E%3Cscript%3Epwned=1%3C/script%3E")
        assert page.locator(TRACES).count() == 0
    page.goto("/jobs/%3Cimg%20src=x%20onerror=pwned=1%3E")
    expect(page.get_by_role("heading", name="There is nothing here")).to_be_visible()
    assert page.locator(TRACES).count() == 0
    visitor.complaints.clear()  # the browser logs each answer that is an error
