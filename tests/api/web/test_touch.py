"""Touch on charts and maps: two fingers zoom, one moves the visible part or scrolls the page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.api.web.conftest import Visitor
from tests.api.web.served import PlayedRun, Site

Point = tuple[float, float]


@pytest.fixture(scope="module")
def run(site: Site) -> PlayedRun:
    """Return a run of a thousand steps whose checkpoint has a map."""
    run = site.running("touched")
    run.start()
    run.losses(range(1, 1001))
    run.checkpoint(1000)
    run.map()
    run.end()
    return run


class Fingers:
    """Real touches, sent by the browser's own protocol."""

    def __init__(self, page: Page) -> None:
        self._session = page.context.new_cdp_session(page)

    def _send(self, kind: str, points: list[Point]) -> None:
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def go(self, *paths: tuple[Point, Point]) -> None:
        """Move all fingers at once, in ten steps."""
        self._send("touchStart", [start for start, _ in paths])
        for step in range(1, 11):
            self._send("touchMove", [_between(start, end, step / 10) for start, end in paths])
        self._send("touchEnd", [])


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _place(locator: Locator, x: float, y: float) -> Point:
    """Return a place in an element, given by shares of its sides."""
    box = locator.bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def _shown(page: Page) -> tuple[float, float]:
    first, last = (page.get_by_label(name, exact=True).input_value() for name in ("From", "to"))
    return float(first or 1), float(last or 1000)


def test_two_fingers_zoom_a_chart_and_one_moves_it_or_scrolls_the_page(visitor: Visitor, run: PlayedRun) -> None:
    page = visitor.window(f"/jobs/{run.job_id}", width=390, touch=True)
    chart = page.locator("figure[data-metrics='train/loss'] .u-over")
    chart.scroll_into_view_if_needed()
    fingers = Fingers(page)

    fingers.go((_place(chart, 0.4, 0.5), _place(chart, 0.2, 0.5)), (_place(chart, 0.6, 0.5), _place(chart, 0.8, 0.5)))
    page.wait_for_url("**from=*")
    first, last = _shown(page)
    assert last - first == pytest.approx(333, abs=25)
    assert (first + last) / 2 == pytest.approx(500, abs=25)

    fingers.go((_place(chart, 0.8, 0.5), _place(chart, 0.3, 0.5)))
    expect(page.get_by_label("From", exact=True)).not_to_have_value(str(first))
    moved = _shown(page)
    assert moved[1] - moved[0] == pytest.approx(last - first, abs=2)
    assert moved[0] - first == pytest.approx(0.5 * (last - first), abs=25)

    fingers.go((_place(chart, 0.1, 0.5), _place(chart, 0.45, 0.5)), (_place(chart, 0.9, 0.5), _place(chart, 0.55, 0.5)))
    expect(page.get_by_role("button", name="Show all")).to_be_disabled()

    before = page.evaluate("scrollY")
    fingers.go((_place(chart, 0.5, 0.1), _place(chart, 0.5, 1.6)))  # up: the page may be at its end
    page.wait_for_function("before => scrollY < before - 50", arg=before)
    assert "from=" not in page.url


def test_two_fingers_zoom_a_map_and_a_tap_chooses(visitor: Visitor, run: PlayedRun) -> None:
    page = visitor.window(f"/jobs/{run.job_id}/map", width=390, touch=True)
    stage, canvas = page.locator("#stage"), page.locator("#canvas")
    expect(stage).to_have_attribute("data-drawn", "5")
    canvas.scroll_into_view_if_needed()
    fingers = Fingers(page)

    fingers.go(
        (_place(canvas, 0.4, 0.5), _place(canvas, 0.2, 0.5)), (_place(canvas, 0.6, 0.5), _place(canvas, 0.8, 0.5))
    )
    expect(stage).to_have_attribute("data-scale", "3.00")
    page.touchscreen.tap(*_place(canvas, 0.5, 0.5))
    expect(page.locator("#image").get_by_role("heading", name="Image 35")).to_be_visible()

    before = page.evaluate("scrollY")
    fingers.go((_place(canvas, 0.5, 0.8), _place(canvas, 0.5, 0.1)))
    page.wait_for_function("before => scrollY > before + 50", arg=before)
    expect(stage).to_have_attribute("data-scale", "3.00")
