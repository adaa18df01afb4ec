"""The pages of datasets and workers, and draining a worker."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from jobs import workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.models import Worker
from tests.api.web.conftest import Visitor
from tests.api.web.served import DIGEST, Site, sheet
from tests.jobs import rows
from wcl_core.data.kinds import HIDDEN

COLOURS = ((200, 30, 30), (30, 160, 60), (40, 60, 220))
FLOWERS = DatasetFacts(
    "flowers",
    "folder",
    "f1" * 32,
    {"train": 7, "test": 4, "unlabelled": 50},
    ["rose", "iris", "aster", "lotus"],
    {"train": [4, 1, 2, 0], "test": [1, 1, 1, 1]},
    {"official-1": {"digest": "ab" * 32, "images": 2}},
    sheet=sheet(COLOURS, columns=3, side=24),
)


def announce(site: Site, *datasets: DatasetFacts, **facts: object) -> WorkerFacts:
    digests = {each.name: each.digest for each in datasets}
    worker = replace(site.worker, id=new_id(), datasets=digests, **facts)  # type: ignore[arg-type]
    worker = replace(worker, devices=tuple(replace(each, memory_bytes=8 << 30) for each in worker.devices))
    site.database.write(lambda session: workers.register(session, worker, 77, datasets, 64 << 30))
    return worker


@pytest.mark.parametrize("scripts", [True, False])
def test_a_dataset_shows_its_classes_and_their_images(visitor: Visitor, site: Site, scripts: bool) -> None:
    announce(site, FLOWERS, name="florist")
    page = visitor.window("/datasets", scripts=scripts)
    card = page.locator(".sets li", has_text="flowers")
    expect(card).to_contain_text("4 classes · 7 train · 4 test · 50 unlabelled")
    expect(card).to_contain_text("on florist")
    expect(card.locator(".samples")).to_have_accessible_name("An image of each of the classes rose, iris, aster")
    card.get_by_role("link", name="flowers").click()

    page.wait_for_url("**/datasets/flowers")
    rows = page.locator(".classes li")
    expect(rows).to_have_text(["rose4 train · 1 test", "iris1 train · 1 test", "aster2 train · 1 test"])
    expect(page.locator("#other-classes")).to_contain_text("lotus 0 train · 1 test")
    expect(rows.nth(1).locator(".samples")).to_have_accessible_name("1 images of the class iris")
    for place, colour in enumerate(COLOURS):  # each class has its own row of the sheet, and no cell that is empty
        drawn = rows.nth(place).locator(".samples").screenshot()
        picture = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))
        assert np.abs(picture[picture.shape[0] // 2, 12].astype(int) - colour).max() < 12, place
        is_last_filled = np.abs(picture[picture.shape[0] // 2, -12].astype(int) - colour).max() < 12
        assert is_last_filled == (place == 0), place
    expect(page.get_by_role("region", name="Table of label lists")).to_contain_text("official-1")
    expect(page.locator("#holders")).to_contain_text("florist")
    expect(page.locator("#runs")).to_contain_text("No jobs yet")
    expect(page.get_by_role("link", name="Leaderboard", exact=True)).to_have_count(1)  # that of the menu


def test_a_card_says_what_was_refused_left_out_or_odd(visitor: Visitor, site: Site) -> None:
    remarks = {
        "left_out": [
            {"text": "files with the ending .txt", "count": 2, "examples": ["notes.txt"]},
            {"text": HIDDEN, "count": 1, "examples": [".DS_Store"]},
        ],
        "odd": [{"text": "classes of one image", "count": 1, "examples": ["lotus"]}],
    }
    report = remarks | {"layout": "a fixed fifth of each class is the test split", "smallest": [60, 80]}
    report |= {"median": [120, 104], "largest": [200, 200], "formats": {}, "modes": {}, "unreadable": 0}
    worker = announce(site, replace(FLOWERS, name="weeds", report=report), name="gardener")
    site.database.write(lambda session: workers.settle_dataset(session, worker.id, "empty", "it has no images"))
    page = visitor.window("/datasets")

    card = page.locator(".sets li", has_text="weeds").first
    expect(card).to_contain_text("50 unlabelled · about 104 px")
    expect(card.locator(".remarks > li")).to_have_text(
        [
            "Left out: files with the ending .txt (2)",
            f"Left out: {HIDDEN} (1)",
            "Classes of one image (1)",
            "A fixed fifth of each class is the test split",
        ]
    )
    expect(card.locator(".remarks > .warned")).to_have_text(["Left out: files with the ending .txt (2)"])
    expect(page.locator(".sets > .refused")).to_contain_text("It has no images")
    card.get_by_role("link", name="Train on this").click()
    expect(page.get_by_role("link", name="weeds")).to_have_attribute("aria-current", "true")


def test_a_dataset_links_its_jobs_leaderboard_and_workers(visitor: Visitor, site: Site) -> None:
    run = site.running("trained on digits")
    run.start()
    run.report({"type": "metrics", "step": 1, "values": {"eval/knn_top1": 0.875}})
    run.checkpoint(1)
    run.end()
    evaluation = site.submit_evaluation(site.checkpoints(run.job_id)[0].id, "measured on digits")
    measuring = site.claim()
    measuring.evaluation("knn", 0.9)
    measuring.end()
    old = DatasetFacts("digits", "builtin", "01" * 32, {"train": 1, "test": 1}, ["0"])
    stale = announce(site, old, name="stale")
    site.register()  # the newest announcement is the current version again
    preparing = site.running("prepares digits")
    preparing.report({"type": "metrics", "step": 0, "values": {"eval/knn_top1": 0.465}})
    preparing.report(
        {"type": "progress", "phase": "prepare", "share": 0.43, "eta_seconds": 20}
        | dict.fromkeys(("step", "total_steps", "epoch", "total_epochs"), 0)
    )
    page = visitor.window("/datasets/digits")

    expect(page.locator("#dataset-head")).to_contain_text("prepares digits is preparing the dataset, 43%")
    expect(page.locator("#dataset-head")).to_contain_text("20 s left")
    rows = page.locator("#runs tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("untrained 46.5%")
    expect(rows.nth(2)).not_to_contain_text("untrained")
    rows.nth(0).get_by_role("link").click()
    expect(page.locator("#content")).to_contain_text("Preparing the dataset, 43%…")
    expect(page.locator("#content")).not_to_contain_text("20 s left")  # of the preparation, not of the run
    page.go_back()
    expect(rows.nth(1).get_by_role("link")).to_have_attribute("href", f"/jobs/{evaluation}")
    expect(rows.nth(1)).to_contain_text("90.0%")  # what the evaluation itself has measured
    expect(rows.nth(2)).to_contain_text("87.5%")
    expect(page.locator("#holders li", has_text="stale")).to_contain_text("other version")
    expect(page.locator("#holders li", has_text="box-1").first).not_to_contain_text("other version")
    page.locator("#content").get_by_role("link", name="Leaderboard").click()
    page.wait_for_url("**/leaderboard?dataset=digits")
    page.goto(f"/workers#worker-{stale.id}")
    expect(page.locator(f"#worker-{stale.id}")).to_contain_text("digits older version")
    answer = page.goto("/datasets/unknown")
    assert answer
    assert answer.status == 404
    visitor.forget_failures()  # the browser logs the 404


@pytest.mark.parametrize("scripts", [True, False])
def test_workers_show_their_load_and_are_drained(visitor: Visitor, site: Site, scripts: bool) -> None:
    pool = f"pool-{scripts}".lower()
    facts = DatasetFacts("digits", "builtin", DIGEST, {"train": 1438, "test": 359}, ["0", "1"])
    busy, idle, ended = (
        announce(site, facts, name=name, pool=pool, devices=rows.devices(2, f"{pool}-{name}"))
        for name in ("busy", "idle", "ended")
    )
    site.database.write(lambda session: workers.stop(session, ended.id))
    site.worker = replace(busy, datasets={"digits": DIGEST})
    job_id = site.submit("what it does", pool=pool)
    site.submit("waits behind it", pool=pool)
    run = site.claim()
    assert run.job_id == job_id
    run.start()
    run.losses([10, 40])
    page = visitor.window("/workers", scripts=scripts)

    load = page.locator(".pool", has_text=pool)
    expect(load).to_contain_text("1 of 2 busy")
    expect(load).to_contain_text("1 queued · 4 GPUs")
    card = page.locator(f"#worker-{busy.id}")
    expect(card).to_contain_text("what it does")
    expect(card.locator("progress")).to_have_attribute("value", "0.4000")
    expect(card).to_contain_text("epoch 4 / 10")
    expect(card).to_contain_text("2, 8.0 GiB each")
    expect(page.locator(f"#worker-{idle.id}")).to_contain_text("Waiting for a job")
    expect(page.locator(f"#worker-{ended.id}")).to_have_count(0)
    expect(page.locator("#gone table")).to_be_hidden()
    page.locator("#gone > summary").click()
    expect(page.locator("#gone tr", has_text="ended").filter(has_text=pool)).to_contain_text("stopped")

    card.get_by_text("Drain…").click()
    card.get_by_role("button", name="Drain worker").click()
    expect(card.locator("header")).to_contain_text("draining")
    expect(card).to_contain_text("will be requeued")
    expect(card.get_by_text("Drain…")).to_have_count(0)
    with site.database.read() as session:
        assert session.get_one(Worker, busy.id).drain_requested_at is not None
        assert session.get_one(Worker, idle.id).drain_requested_at is None


def test_only_administrators_see_the_drain_button(visitor: Visitor, site: Site) -> None:
    announce(site, name="kept")
    page = visitor.window("/workers", scopes=("read", "submit"))

    expect(page.get_by_text("kept", exact=True).first).to_be_visible()
    expect(page.get_by_text("Drain…")).to_have_count(0)


def test_a_pool_with_queued_jobs_and_no_worker_is_shown(visitor: Visitor, site: Site) -> None:
    site.submit("waits for nobody", pool="deserted")
    page = visitor.window("/workers")

    load = page.locator(".pool", has_text="deserted")
    expect(load).to_contain_text("no worker")
    expect(load).to_contain_text("1 queued")
