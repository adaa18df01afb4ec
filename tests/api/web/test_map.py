"""The map of a feature space: without scripts, with mouse and keyboard, zoom, and choices in the address."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from jobs import submission
from jobs.models import Checkpoint
from jobs.submission import NewJob
from tests.api.web.conftest import Visitor
from tests.api.web.served import SPEC, PlayedRun, Site
from wcl_core.config import parse_spec

HOSTILE = "<img src=x onerror=pwned=1>"


def evaluation(site: Site, trained: PlayedRun, step: int, parent_id: str | None) -> PlayedRun:
    """Return a running job that makes a map; a job without a parent was submitted separately."""
    checkpoint = next(each for each in site.checkpoints(trained.job_id) if each.step == step)
    sent = {"data": SPEC["data"], "features": {"kind": "checkpoint", "checkpoint_id": checkpoint.id}}
    sent |= {"protocols": ["map"]}
    new = NewJob("evaluate", sent, parse_spec("evaluate", sent), name="a map", parent_id=parent_id)
    site.database.write(lambda session: submission.submit(session, new))
    return site.claim()


@pytest.fixture(scope="module")
def trained(site: Site) -> PlayedRun:
    run = site.running("trained")
    run.start()
    for step in (10, 20, 30):
        run.checkpoint(step)
    run.end()
    return run


@pytest.fixture(scope="module")
def mapped(site: Site, trained: PlayedRun) -> str:
    """Return the address of a map of step 20."""
    run = evaluation(site, trained, 20, trained.job_id)
    run.map()
    run.end()
    return f"/jobs/{run.job_id}/map"


def test_a_map_of_a_folder_names_the_files(visitor: Visitor, site: Site) -> None:
    own = site.running("trained on a folder")
    own.start()
    own.checkpoint(10)
    own.end()
    run = evaluation(site, own, 10, own.job_id)
    run.map(files=["a/0.png", "a/1.png", "b/2.png", "b/3.png", f"c/{HOSTILE}.png"])
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}/map?image=7", scripts=False)
    expect(page.locator("#image")).to_contain_text("a/1.png · test split")
    expect(page.locator("#image li").last).to_contain_text(f"{HOSTILE}.png")  # it has no class


def test_a_map_can_be_read_without_scripts(visitor: Visitor, mapped: str) -> None:
    page = visitor.window(mapped, scripts=False)
    drawn = page.locator("#map-drawn")
    expect(drawn.locator("path.class-1")).to_have_attribute("d", "M-1 -1h0M-0.9 -1h0")
    expect(drawn.locator("path.class-0")).to_have_attribute("d", "M0 0h0")
    expect(page.get_by_text("shows neighbourhoods, not distances")).to_be_visible()
    expect(page.locator(".facts")).to_contain_text("step 20, epoch 1")
    expect(page.locator(".facts")).to_contain_text("5 of 40 test images")
    expect(page.locator("#map-legend li")).to_have_text(["zero 2", f"{HOSTILE} 2"])

    page.get_by_role("spinbutton", name="Image").fill("7")
    page.get_by_role("button", name="Show").click()
    assert "image=7" in page.url
    chosen = page.locator("#image")
    expect(chosen.get_by_role("heading", name="Image 7, class zero")).to_be_visible()
    expect(chosen).to_contain_text("1 of 1 neighbours have its class")
    expect(chosen.locator("li")).to_have_count(2)
    expect(drawn.locator(".links")).to_have_attribute("d", "M-0.9 -1.0L-1.0 -1.0M-0.9 -1.0L0.0 0.0")
    page.get_by_role("link", name="PCA").click()
    assert "image=7" in page.url
    expect(page.get_by_text("50.0% and 25.0% of the variance")).to_be_visible()
    expect(drawn.locator("path.class-1").first).to_have_attribute("d", "M-1 -1h0M-1 -0.9h0")
    page.get_by_role("link", name="Weak label").click()
    expect(page.locator("#map-legend li")).to_have_text(["mostly zero 3", f"mostly {HOSTILE} 2"])
    page.locator("#map-legend a").first.click()
    assert "only=0" in page.url
    expect(drawn.locator("path.faded")).to_have_attribute("d", "M1 1h0M1 0.9h0")
    chosen.get_by_role("link", name="Image 35").click()
    expect(chosen.get_by_role("heading", name="Image 35")).to_be_visible()
    page.goto(f"{mapped}?image=4")
    expect(chosen).to_contain_text("Image 4 is not on this map")


def point_at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return the place of a point of the map on the screen, without zoom."""
    box = page.locator("#canvas").bounding_box()
    assert box
    unit = min(box["width"], box["height"]) / 2 / 1.06
    return box["x"] + box["width"] / 2 + x * unit, box["y"] + box["height"] / 2 + y * unit


def test_a_map_shows_the_image_under_the_pointer_and_zooms(visitor: Visitor, mapped: str) -> None:
    page = visitor.window(mapped)
    stage, tip, chosen = page.locator("#stage"), page.locator("#tip"), page.locator("#image")
    expect(stage).to_have_attribute("data-drawn", "5")
    expect(page.locator("#map-drawn")).to_be_hidden()

    page.mouse.move(*point_at(page, 1.0, 1.0))
    expect(tip).to_have_text(f"Image 11, class {HOSTILE}")
    page.mouse.move(*point_at(page, -0.3, 0.6))
    expect(tip).to_be_hidden()
    page.mouse.click(*point_at(page, 0.0, 0.0))
    expect(chosen.get_by_role("heading", name="Image 35")).to_be_visible()
    assert page.url.endswith("?image=35")
    page.get_by_role("link", name="Weak label").click()
    expect(page.locator("#map-choices")).to_have_attribute("data-colour", "weak")
    assert "image=35" in page.url
    page.go_back()
    expect(page.locator("#map-choices")).to_have_attribute("data-colour", "class")
    page.get_by_role("button", name="Zoom in").click()
    expect(stage).to_have_attribute("data-scale", "1.50")
    page.get_by_role("button", name="Reset", exact=True).click()
    expect(stage).to_have_attribute("data-scale", "1.00")
    assert page.evaluate("typeof pwned") == "undefined"


def test_the_keyboard_moves_between_images_of_a_map(visitor: Visitor, mapped: str) -> None:
    page = visitor.window(f"{mapped}?image=35", theme="dark")
    canvas, tip = page.locator("#canvas"), page.locator("#tip")
    expect(page.locator("#stage")).to_have_attribute("data-drawn", "5")
    canvas.focus()
    canvas.press("ArrowDown")
    expect(tip).to_have_text(f"Image 20, class {HOSTILE}")
    canvas.press("ArrowRight")
    expect(tip).to_have_text(f"Image 11, class {HOSTILE}")
    canvas.press("+")
    expect(page.locator("#stage")).to_have_attribute("data-scale", "1.50")
    canvas.press("0")
    canvas.press("Enter")
    expect(page.locator("#image").get_by_role("heading", name="Image 11")).to_be_visible()
    expect(canvas).to_be_focused()


def test_a_training_links_to_a_map_that_was_submitted_separately(
    visitor: Visitor, site: Site, trained: PlayedRun, mapped: str
) -> None:
    bare = evaluation(site, trained, 20, None)
    page = visitor.window(f"/jobs/{trained.job_id}", scripts=False)
    link = page.get_by_role("link", name="Map of step 20")
    expect(link).to_have_attribute("href", mapped)
    bare.map()
    bare.end()
    page.reload()
    expect(link).to_have_attribute("href", f"/jobs/{bare.job_id}/map")
    link.click()
    expect(page.locator(".crumbs [aria-current]")).to_have_text("Map")
    page.locator(".crumbs").get_by_role("link", name="trained").click()
    expect(page.locator("h1")).to_have_text("trained")


def test_checkpoints_link_to_their_maps_and_damaged_ones_to_none(
    visitor: Visitor, site: Site, trained: PlayedRun, mapped: str
) -> None:
    damaged = next(each for each in site.checkpoints(trained.job_id) if each.step == 30)
    damage = update(Checkpoint).where(Checkpoint.id == damaged.id).values(damaged_at=1)
    site.database.write(lambda session: session.execute(damage))
    page = visitor.window(f"/jobs/{trained.job_id}")
    newest = page.get_by_role("link", name="Map of step 20").get_attribute("href")
    expect(page.get_by_role("button", name="Create map of step 30")).to_have_count(0)
    sections = page.get_by_role("navigation", name="Sections")
    expect(sections.get_by_role("link", name="Map")).to_have_attribute("href", newest or "")
    page.get_by_text("Evaluate…", exact=True).click()
    offered = page.locator("select[name=checkpoint_id] option")
    expect(offered).to_have_text(["step 20, epoch 1", "step 10, epoch 1"])
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Create map of step 10").click()

    page.wait_for_url(lambda url: trained.job_id not in url)
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Map").click()
    expect(page.get_by_text("The map appears here when the job has finished it.")).to_be_visible()
    expect(page.locator("meta[http-equiv=refresh]")).to_have_count(1)
    making = site.claim()
    assert making.job_id in page.url
    making.artifact("map.json", b'{"version": 1}', "application/json")
    making.end()
    page.reload()
    expect(page.get_by_text("missing or unreadable")).to_be_visible()
    answer = page.goto(f"/jobs/{trained.job_id}/map")
    assert answer
    assert answer.status == 200
    expect(page.get_by_text("This job has no map")).to_be_visible()


def test_a_map_of_images_without_labels_offers_no_colours_by_class(
    site: Site, visitor: Visitor, trained: PlayedRun
) -> None:
    run = evaluation(site, trained, 20, trained.job_id)
    run.map(class_names=[], labels=[None] * 5)
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}/map", scripts=False)
    expect(page.locator("#map-legend li").first).to_contain_text("weak label")
    expect(page.get_by_role("link", name="Class", exact=True)).to_have_count(0)
