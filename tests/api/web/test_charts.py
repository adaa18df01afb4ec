"""Charts: zoom loads detail, the options are in the address, and data and pictures can be saved."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.api.web.conftest import Visitor
from tests.api.web.served import PlayedRun, Site
from tests.waiting import eventually

STEPS = 6_000


@pytest.fixture(scope="module")
def run(site: Site) -> PlayedRun:
    """Return a run that reported a value for each of 6,000 steps, 600 an epoch."""
    played = site.running("a long one")
    played.start()
    for first in range(0, STEPS, 2_000):
        steps = range(first + 1, first + 2_001)
        played.report(*({"type": "metrics", "step": s, "values": {"train/loss": 5 - s / 1000}} for s in steps))
    played.report(played.progress(STEPS, STEPS))
    return played


def loss_chart(page: Page) -> Locator:
    chart = page.locator("figure[data-metrics='train/loss']")
    expect(chart.locator("canvas")).to_be_visible()
    return chart


def drag(page: Page, chart: Locator, start: float, end: float) -> None:
    """Drag the pointer over a part of the plot's width."""
    box = chart.locator(".u-over").bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], middle)
    page.mouse.move(box["x"] + end * box["width"], middle)
    page.mouse.up()


def number_of(page: Page, name: str) -> float:
    return float(page.get_by_label(name, exact=True).input_value())


def table(page: Page, chart: Locator, path: Path) -> list[dict[str, Any]]:
    with page.expect_download() as started:
        chart.get_by_role("button", name="as CSV").click()
    started.value.save_as(path)
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_zoom_brings_every_point_and_is_a_link(visitor: Visitor, site: Site, run: PlayedRun, tmp_path: Path) -> None:
    page = visitor.window(f"/jobs/{run.job_id}")
    chart = loss_chart(page)
    rows = table(page, chart, tmp_path / "all.csv")
    assert 250 <= len(rows) <= 500
    assert float(rows[0]["max"]) == 5 - 1 / 1000
    assert float(rows[-1]["min"]) == 5 - STEPS / 1000

    drag(page, chart, 0.5, 0.56)
    page.wait_for_url("**from=*")
    first, last = number_of(page, "From"), number_of(page, "to")
    assert 2_900 < first < 3_100 < last < 3_700
    eventually(lambda: int(chart.get_attribute("data-step") or 0) == -(-last // 1), "the detail")
    rows = table(page, chart, tmp_path / "part.csv")
    assert [int(row["step"]) for row in rows] == list(range(int(first), int(-(-last // 1)) + 1))
    assert all(float(row["value"]) == 5 - int(row["step"]) / 1000 for row in rows)

    link = page.url
    other = visitor.window(link, width=390, theme="dark")
    expect(loss_chart(other)).to_have_attribute("data-points", str(len(rows)))
    page.go_back()
    expect(page.get_by_label("From", exact=True)).to_have_value("")
    page.go_forward()
    expect(chart).to_have_attribute("data-points", str(len(rows)))
    chart.locator(".u-over").dblclick()
    expect(chart).to_have_attribute("data-step", str(STEPS))
    assert "from=" not in page.url


def test_the_keyboard_zooms_too(visitor: Visitor, site: Site, run: PlayedRun) -> None:
    page = visitor.window(f"/jobs/{run.job_id}")
    chart = loss_chart(page)
    chart.locator(".canvas").focus()
    page.keyboard.press("+")
    page.wait_for_url("**from=*")
    half = number_of(page, "to") - number_of(page, "From")
    assert half == pytest.approx(STEPS / 2, rel=0.01)
    page.keyboard.press("-")
    expect(page.get_by_label("From", exact=True)).not_to_have_value("1500.5")
    assert number_of(page, "to") - number_of(page, "From") > half
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Show all")).to_be_disabled()
    page.get_by_label("From", exact=True).fill("5501")
    page.get_by_label("From", exact=True).press("Enter")
    expect(chart).to_have_attribute("data-points", "500")
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_label("From", exact=True)).to_have_value("")
    assert page.url.endswith(run.job_id)


def test_sparse_curves_are_not_smoothed(visitor: Visitor, site: Site) -> None:
    played = site.running("now and then")
    played.start()
    losses = [{"type": "metrics", "step": s, "values": {"train/loss": float(s % 2)}} for s in range(1, 101)]
    accuracies = [{"type": "metrics", "step": s, "values": {"eval/knn_top1": s / 200}} for s in (20, 40, 60, 80, 100)]
    played.report(*sorted(losses + accuracies, key=lambda report: report["step"]))
    played.end()
    page = visitor.window(f"/jobs/{played.job_id}?smooth=0.9")
    for metric, expected in (("train/loss", r"0\.4\d+.*step 100|step 100.*0\.4\d+"), ("eval/knn_top1", r"50\.0%")):
        chart = page.locator(f"figure[data-metrics='{metric}']")
        chart.locator(".canvas").press("End")
        expect(chart.locator("figcaption")).to_contain_text(re.compile(expected))


def test_a_share_below_zero_is_inside_its_chart(visitor: Visitor, site: Site) -> None:
    """The agreement of two views counts from chance, so it may be below."""
    played = site.running("below chance")
    played.start()
    played.report(*({"type": "metrics", "step": s, "values": {"weak/view_agreement": -s / 1000}} for s in (10, 20)))
    played.end()
    page = visitor.window(f"/jobs/{played.job_id}")
    chart = page.locator("figure[data-metrics='weak/view_agreement']")
    chart.locator(".canvas").press("End")
    expect(chart.locator("figcaption")).to_contain_text("-2.0%")
    expect(chart.locator(".u-cursor-pt:not(.u-off)")).not_to_have_count(0)


def test_chart_options_are_in_the_address(visitor: Visitor, site: Site, run: PlayedRun, tmp_path: Path) -> None:
    page = visitor.window(f"/jobs/{run.job_id}?x=epoch&smooth=0.5&log=1&from=9.5&to=10")
    chart = loss_chart(page)
    expect(chart).to_have_attribute("data-step", str(STEPS))
    expect(chart.locator(".foot")).to_contain_text("Epochs; positive values only")
    expect(page.get_by_label("Smoothing")).to_have_value("0.5")
    expect(page.get_by_label("Log scale")).to_be_checked()
    rows = table(page, chart, tmp_path / "epochs.csv")
    assert [int(row["step"]) for row in rows] == list(range(5_700, 6_001))
    assert float(rows[0]["epoch"]) == pytest.approx(9.5)

    chart.locator(".u-over").hover(position={"x": 1, "y": 40})
    expect(chart.locator("figcaption")).to_contain_text("epoch 9.5")
    page.get_by_label("X axis").select_option("images")
    expect(chart.locator(".foot")).to_contain_text("Images")
    expect(page.get_by_label("From", exact=True)).to_have_value("")
    page.get_by_label("X axis").select_option("time")
    expect(chart.locator(".foot")).to_contain_text("Time since the first report")
    page.get_by_label("Log scale").uncheck()
    page.get_by_label("Smoothing").fill("0")
    assert page.url.endswith("?x=time")
    with page.expect_download() as started:
        chart.get_by_role("button", name="as PNG").click()
    started.value.save_as(tmp_path / "Loss.png")
    assert started.value.suggested_filename == "Loss.png"
    assert (tmp_path / "Loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_zoom_without_an_end_shows_live_points(visitor: Visitor, site: Site) -> None:
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    growing = site.running("grows")
    growing.start()
    growing.losses(range(1, 21))
    page = visitor.window(f"/jobs/{growing.job_id}?from=11")
    chart = loss_chart(page)
    expect(chart).to_have_attribute("data-points", "10")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    growing.losses(range(21, 26))
    expect(chart).to_have_attribute("data-points", "15")
    page.get_by_label("to", exact=True).fill("20")
    page.get_by_label("to", exact=True).press("Enter")
    expect(chart).to_have_attribute("data-points", "10")
    growing.losses(range(26, 31))
    expect(page.locator("#run-summary")).to_contain_text("30 / 100")
    assert chart.get_attribute("data-points") == "10"
    page.get_by_role("button", name="Show all").click()
    expect(chart).to_have_attribute("data-points", "30")
    growing.end()


def test_the_comparison_has_the_same_chart_options(
    visitor: Visitor, site: Site, run: PlayedRun, tmp_path: Path
) -> None:
    page = visitor.window(f"/compare?job={run.job_id}&x=epoch&from=2&to=2.5")
    chart = loss_chart(page)
    expect(chart).to_have_attribute("data-points", "301")
    rows = table(page, chart, tmp_path / "part.csv")
    assert [int(row["step"]) for row in rows] == list(range(1_200, 1_501))
    drag(page, chart, 0.25, 0.75)
    expect(chart).not_to_have_attribute("data-points", "301")
    assert f"job={run.job_id}" in page.url
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_label("From", exact=True)).to_have_value("")


def test_the_reference_of_the_dataset_is_a_grey_line_in_the_charts_of_others(visitor: Visitor, site: Site) -> None:
    pinned, other = site.running("the reference"), site.running("another one")
    for played, steps in ((pinned, range(1, 41)), (other, range(1, 11))):
        played.start()
        played.losses(steps)
        played.end()
    page = visitor.window(f"/jobs/{pinned.job_id}")
    page.locator("#more-actions > summary").click()
    page.get_by_role("button", name="Set as reference").click()
    expect(page.locator("#run-summary")).to_contain_text("reference of the dataset")

    page.goto(f"/jobs/{other.job_id}")
    expect(page.locator("#reference")).to_contain_text("Grey lines: the reference the reference.")
    loss = page.locator("figure[data-metrics='train/loss']")
    expect(loss).to_have_attribute("data-reference", "40")
    expect(loss).to_have_attribute("data-points", "10")
    page.goto(f"/jobs/{pinned.job_id}")
    page.locator("#more-actions > summary").click()
    page.get_by_role("button", name="Unset reference").click()  # the other tests of the module have none
    expect(page.locator("#more-actions button", has_text="Set as reference")).to_have_count(1)
