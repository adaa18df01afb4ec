"""The page of weak labels: groups of the monitor batch, choices by links, live updates, and empty states."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from jobs import transitions
from tests.api.web.conftest import Visitor
from tests.api.web.served import PlayedRun, Site

COLOURS = [(200, 40, 40), (40, 160, 40), (40, 40, 200), (200, 200, 40), (40, 200, 200), (200, 40, 200), (120, 120, 120)]
CLASSES = [0, 0, 0, 1, 1, 1, 1]
HOSTILE = "<img src=x onerror=alert(1)>"
# A group of mixed classes and a pure one, then two pure ones.
MIXED, PURE = [0, 0, 0, 0, 0, 5, 5], [0, 0, 0, 3, 3, 3, 3]


@pytest.fixture(scope="module")
def grouped(site: Site) -> PlayedRun:
    """Return a running job that reported weak labels at two epochs."""
    run = site.running("grouped")
    run.start()
    run.monitor_batch(COLOURS, CLASSES, ["cat", HOSTILE])
    run.groups(1, MIXED)
    run.groups(2, PURE)
    return run


def address(run: PlayedRun, query: str = "") -> str:
    return f"/jobs/{run.job_id}/weak-labels{query}"


def groups(page: Page) -> list[list[str]]:
    """Return the images of each group, in the page's order."""
    return [
        [thumb.get_attribute("aria-label") or "" for thumb in group.locator("a.thumb").all()]
        for group in page.locator(".group").all()
    ]


def named(*places: int) -> list[str]:
    return [f"Image {100 + place}, class {['cat', HOSTILE][CLASSES[place]]}" for place in places]


def colour_of(thumb: Locator) -> tuple[int, int, int]:
    """Return the colour in the middle of an image as the browser draws it."""
    drawn = np.asarray(Image.open(io.BytesIO(thumb.locator("svg").screenshot())).convert("RGB"))
    red, green, blue = drawn[drawn.shape[0] // 2, drawn.shape[1] // 2]
    return int(red), int(green), int(blue)


def report_quality(run: PlayedRun, step: int, values: dict[str, float]) -> None:
    metrics = {f"weak/{name}": value for name, value in values.items()}
    run.report({"type": "metrics", "step": step, "values": metrics}, run.progress(step))


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_of_a_run_warns_of_noisy_weak_labels(visitor: Visitor, site: Site, scripts: bool) -> None:
    run = site.running("with noisy weak labels")
    run.start()
    page = visitor.window(f"/jobs/{run.job_id}", scripts=scripts)
    expect(page.locator("#label-quality")).to_have_count(0)
    values = {"components": 125.0, "largest_share": 0.23, "view_agreement": 0.21}
    noisy = values | {"pair_precision": 0.055, "pair_precision_chance": 0.012}

    report_quality(run, 50, noisy)
    if not scripts:
        page.reload()
    figures = page.locator("#label-quality")
    expect(figures).to_contain_text("Pair precision5.5% chance 1.2%")
    for text in ("View agreement21.0%", "Components125", "Largest component23.0% of a batch"):
        expect(figures).to_contain_text(text)
    warning = page.locator("#noisy-labels")
    expect(warning).to_contain_text("The weak labels are mostly noise. Only 5.5% of the pairs")
    expect(warning).to_contain_text("Train the same spec with method simclr and compare")

    twin = site.submit("the twin", method="simclr")
    page.reload()
    expect(warning).to_contain_text("Compare it with its SimCLR twin, the twin (queued)")
    expect(warning).not_to_contain_text("Train the same spec")
    site.database.write(lambda session: transitions.cancel(session, twin))  # the next test claims the first job

    report_quality(run, 60, noisy | {"pair_precision": 0.5})
    if not scripts:
        page.reload()
    expect(figures).to_contain_text("Pair precision50.0% chance 1.2%")
    expect(warning).to_have_count(0)
    run.end()


def test_every_group_shows_its_own_images_and_their_classes(visitor: Visitor, grouped: PlayedRun) -> None:
    page = visitor.window(address(grouped, "?epoch=1"))

    assert groups(page) == [named(0, 1, 2, 3, 4), named(5, 6)]
    for place, colour in enumerate(COLOURS):
        assert colour_of(page.locator(f".group a.thumb[title^='Image {100 + place},']")) == colour
    facts = page.locator("#epochs dl")
    expect(facts).to_contain_text("2 of 7 images")
    # In the first group 3 x 2 + 2 x 1 of 5 x 4 ordered pairs are of one class.
    expect(page.locator(".group").first).to_contain_text("precision 40.0%")
    expect(facts).to_contain_text("57.1%")
    expect(facts).to_contain_text("chance 51.0%")
    expect(page.locator(".bars rect").nth(0)).to_have_attribute("height", "57.1")
    expect(page.locator(".bars rect").nth(1)).to_have_attribute("height", "100.0")
    expect(page.locator(".legend li")).to_have_text(["cat (3)", f"{HOSTILE} (4)"])


@pytest.mark.parametrize("scripts", [False, True], ids=["plain", "scripts"])
def test_links_exist_to_every_epoch_order_and_image(visitor: Visitor, grouped: PlayedRun, scripts: bool) -> None:
    page = visitor.window(f"/jobs/{grouped.job_id}", scripts=scripts)
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Weak labels").click()
    page.locator(".group").first.wait_for()
    assert groups(page) == [named(3, 4, 5, 6), named(0, 1, 2)]

    page.get_by_role("link", name="Previous: epoch 1").click()
    expect(page.locator(".group").first).to_contain_text("5 images")
    page.get_by_role("link", name="Purest first").click()
    expect(page.locator(".group").first).to_contain_text("2 images")
    page.get_by_role("link", name="Worst first").click()
    expect(page.locator(".group").first).to_contain_text("5 images")
    page.locator(".group a.thumb").nth(1).click()
    expect(page.locator("#image h3")).to_have_text(named(1)[0])
    assert page.url.endswith("?epoch=1&order=worst&image=101#image")
    page.locator("#image").get_by_role("link", name="Close").click()
    expect(page.locator("#image")).to_have_count(0)
    page.go_back()
    expect(page.locator("#image h3")).to_have_text(named(1)[0])
    page.reload()
    expect(page.locator("#image h3")).to_have_text(named(1)[0])
    expect(page.locator(".chip[aria-current]")).to_have_text("Worst first")


def test_same_label_images_by_epoch(visitor: Visitor, grouped: PlayedRun) -> None:
    page = visitor.window(address(grouped, "?image=100"), scripts=False)

    rows = page.locator(".strip > li")
    assert [row.locator("a.thumb").count() for row in rows.all()] == [4, 2]
    expect(rows.nth(0)).to_contain_text("4 images, 2 of its class")
    expect(rows.nth(1)).to_contain_text("2 images, 2 of its class")
    assert rows.nth(0).locator(".kept").count() == 0
    kept = [thumb.get_attribute("title") for thumb in rows.nth(1).locator(".kept").all()]
    assert kept == named(1, 2)
    page.goto(address(grouped, "?image=7"))
    expect(page.locator("#image")).to_contain_text("Image 7 is not in the monitor batch")


def test_arrow_keys_step_through_the_epochs_without_leaving(visitor: Visitor, grouped: PlayedRun) -> None:
    page = visitor.window(address(grouped))
    page.evaluate("window.isTheSame = true")

    page.locator(".bars a").last.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".group").first).to_contain_text("5 images")
    assert page.url.endswith("?epoch=1")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".group").first).to_contain_text("4 images")
    assert page.evaluate("window.isTheSame")


def test_new_epochs_appear_by_themselves(visitor: Visitor, site: Site) -> None:
    run = site.running("live groups")
    page = visitor.window(address(run))
    expect(page.locator("#groups")).to_contain_text("Weak labels appear after the first epoch.")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")

    run.start()
    run.monitor_batch(COLOURS, CLASSES, ["cat", "dog"])
    run.groups(1, MIXED)
    expect(page.locator(".group").first).to_contain_text("5 images")
    run.groups(2, PURE)
    expect(page.locator(".group").first).to_contain_text("4 images")
    page.locator(".bars a").first.click()
    expect(page.locator(".group").first).to_contain_text("5 images")
    run.groups(3, PURE)
    expect(page.locator(".bars a")).to_have_count(3)
    expect(page.locator(".group").first).to_contain_text("5 images")  # the chosen epoch stays
    run.end()


def test_missing_weak_labels_are_explained(visitor: Visitor, site: Site) -> None:
    page = visitor.window(scripts=False)
    unlabelled = site.running("without classes")
    unlabelled.start()
    unlabelled.monitor_batch(COLOURS, [*CLASSES[:-1], None], ["cat", "dog"])
    unlabelled.groups(1, MIXED)
    unlabelled.end()
    page.goto(address(unlabelled, "?order=worst"))
    expect(page.locator("#groups")).to_contain_text("These images have no labels")
    assert "precision" not in page.locator("#epochs").inner_text() + page.locator(".groups").inner_text()
    assert [len(group) for group in groups(page)] == [5, 2]

    bare = site.running("without its monitor batch")
    bare.start()
    bare.groups(1, MIXED)
    bare.end()
    page.goto(address(bare))
    expect(page.locator("#groups")).to_contain_text("pictures of these images are not stored")
    assert [len(group) for group in groups(page)] == [5, 2]

    simclr = site.submit("simclr", method="simclr")
    page.goto(f"/jobs/{simclr}/weak-labels")
    expect(page.locator("#groups")).to_contain_text("SimCLR makes no weak labels")
    site.claim().end()
