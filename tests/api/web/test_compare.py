"""Comparison and leaderboard: configurations, warnings about unfair comparisons, and published values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect
from sqlalchemy import update

from api.web.published import references
from jobs import submission, transitions, workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.models import Job
from jobs.new_job import NewJob
from tests.api.web.conftest import Visitor
from tests.api.web.served import DIGEST, SPEC, Site
from tests.waiting import PATIENCE
from wcl_core.config import parse_spec

LINEAR = {"protocol": "linear_sgd", "protocol_version": 1, "metric": "top1", "params": {"form": "sgd"}, "n": 359}


def submit(site: Site, name: str, **changes: Any) -> str:
    sent = SPEC | changes
    new = NewJob("pretrain", sent, parse_spec("pretrain", sent), name=name)
    return site.database.write(lambda session: submission.submit(session, new)).id


def trained(site: Site, name: str, **changes: Any) -> str:
    """Return the id of a job that succeeded, with a curve and a checkpoint of its last epoch."""
    job_id = submit(site, name, **changes)
    run = site.claim()
    run.start()
    run.losses(range(1, 51))
    run.report({"type": "metrics", "step": 50, "values": {"eval/knn_top1": 0.5}})
    digest = (job_id.replace("-", "") * 2)[:64]
    facts = {"step": 50, "epoch": changes.get("epochs", 10), "path": "x", "sha256": digest, "size": 1, "metrics": {}}
    run.report({"type": "checkpoint", **facts})
    run.end()
    return job_id


def measured(site: Site, job_id: str, value: float, dataset: str = DIGEST, **changes: Any) -> None:
    site.submit_evaluation(site.checkpoints(job_id)[0].id, "measuring")
    run = site.claim()
    run.start()
    identity = {"dataset_digest": dataset, "split_digest": "e1" * 32, "seed": 0, "stderr": None, "value": value}
    run.report({"type": "evaluation"} | LINEAR | identity | changes)
    run.end()


def address(ids: Sequence[str]) -> str:
    return "/compare?" + "&".join(f"job={job_id}" for job_id in ids)


def test_seeds_are_one_configuration_with_mean_and_interval(visitor: Visitor, site: Site) -> None:
    ours = [trained(site, f"ours, seed {seed}", seed=seed) for seed in (0, 1, 2)]
    theirs = trained(site, "theirs", method="simclr")
    for job_id, value in zip(ours, (0.6, 0.7, 0.8), strict=True):
        measured(site, job_id, value)
    measured(site, theirs, 0.65)
    page = visitor.window(address([*ours, theirs]))

    assert page.locator(".configurations h2").all_text_contents() == ["ours", "theirs"]
    chart = page.locator("figure[data-metrics='train/loss']")
    expect(chart).to_have_attribute("data-lines", "4")
    expect(page.locator("figure")).to_have_count(2)
    cells = [text.strip() for text in page.locator("#evaluations tbody td").all_text_contents()]
    assert "70.0% ± 24.8%3 seeds, std. dev. 10.0%" in cells
    assert "No difference shown: theirs 5.0 points ahead of ours, interval -2.1 to +12.0" in cells
    assert "65.0%1 seed, 59.9% to 69.8%" in cells, "the interval of one seed is by its images"
    fields = page.locator("#specs tbody th").all_text_contents()
    assert fields == ["Method method"]  # the label, then the name in the spec
    warnings = page.locator(".notice").all_text_contents()
    assert [text.strip() for text in warnings] == ["Only one seed: theirs. Differences may be noise."]


def test_jobs_to_compare_are_those_that_have_begun_and_match(visitor: Visitor, site: Site) -> None:
    for name in ("chosen once", "chosen twice"):
        trained(site, name)
    waiting = submit(site, "chosen, but waits")
    page = visitor.window("/compare")
    page.get_by_role("checkbox", name="chosen once").check()
    page.get_by_role("searchbox").fill("no such job")
    page.get_by_role("searchbox").press("Enter")
    expect(page.get_by_role("checkbox")).to_have_count(1)  # a search keeps what is chosen
    page.get_by_role("searchbox").fill("chosen")
    page.get_by_role("button", name="Find").click()

    expect(page.locator(".choose label")).to_have_count(2)
    assert page.get_by_role("checkbox", name="chosen once").is_checked()
    assert "waits" not in page.locator(".choose").inner_text()
    assert page.locator(".choose .number").all_text_contents() == ["kNN 50.0%"] * 2
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()  # of one
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".configurations li").first).to_contain_text("50.0% kNN accuracy")
    page.goto("/compare?q=chosen")
    expect(page.locator("#left-out")).to_have_text(
        "1 training has not begun, and is not listed: there is nothing to compare yet."
    )
    site.database.write(lambda session: transitions.cancel(session, waiting))  # the next test claims the first job


@pytest.mark.parametrize("scripts", [True, False])
def test_paused_trainings_can_be_compared_and_equal_names_have_their_ids(
    visitor: Visitor, site: Site, scripts: bool
) -> None:
    ids = [trained(site, f"namesake {scripts}") for _ in range(2)]
    other = trained(site, f"namesake {scripts} paused")
    site.database.write(lambda session: session.execute(update(Job).where(Job.id == other).values(status="paused")))
    page = visitor.window(f"/compare?q=namesake+{scripts}", scripts=scripts)
    labels = page.locator(".choose label")
    expect(labels).to_have_count(3)
    expect(labels.filter(has_text=other[-12:])).to_have_count(0)
    for each in ids:
        expect(labels.filter(has_text=each[-12:])).to_have_count(1)
    expect(page.locator(".choose-end")).to_contain_text("Tick at least two.")
    site.database.write(lambda session: session.execute(update(Job).where(Job.id == other).values(status="succeeded")))


def test_different_budgets_and_settings_give_warnings(visitor: Visitor, site: Site) -> None:
    short = trained(site, "short", seed=5)
    longer = trained(site, "longer", epochs=20, seed=5)
    measured(site, short, 0.6)
    measured(site, longer, 0.7, params={"form": "sgd", "epochs": 5})
    never = trained(site, "never measured", seed=5, batch_size=64)
    running = site.running("still running")
    page = visitor.window(address([short, longer, never, running.job_id]))

    notices = page.locator(".notice")
    expect(
        notices.filter(has_text="Different budgets: epochs 10 / 20 / 10; batch size 256 / 256 / 64.")
    ).to_be_visible()
    expect(notices.filter(has_text="Measured with different settings of linear probe by SGD: no line")).to_be_visible()
    expect(notices.filter(has_text='"never measured" is not evaluated with linear probe by SGD.')).to_be_visible()
    expect(notices.filter(has_text='Not finished: "still running".')).to_be_visible()
    row = page.locator("#specs tr", has_text="epochs").first
    assert row.locator("td").all_text_contents() == ["10", "20", "10"]
    running.end()
    narrow = visitor.window(address([short, never]), width=390)
    for name in ("short", "never measured"):
        expect(narrow.locator("#evaluations thead th", has_text=name)).to_be_visible()


def test_a_comparison_leads_to_the_evaluation_of_a_run_that_has_none(visitor: Visitor, site: Site) -> None:
    numbered, without = trained(site, "has numbers", seed=51), trained(site, "has none", seed=51, batch_size=128)
    measured(site, numbered, 0.6)
    page = visitor.window(address([numbered, without]), width=1440)

    settings, results = page.locator("#specs").bounding_box(), page.locator("#evaluations").bounding_box()
    assert settings
    assert results
    assert (settings["x"] > results["x"] + results["width"], settings["y"]) == (True, results["y"]), "side by side"
    expect(page.get_by_role("link", name="Evaluate has numbers…")).to_have_count(0)
    page.get_by_role("link", name="Evaluate has none…").click()
    page.wait_for_url(f"**/jobs/{without}#evaluations")
    expect(page.locator("#measure > summary")).to_have_text("Evaluate…")


def test_a_comparison_draws_no_chart_of_its_reference_alone(visitor: Visitor, site: Site) -> None:
    pinned = submit(site, "the pinned one", seed=61)
    run = site.claim()
    run.start()
    run.losses(range(1, 11))
    run.report({"type": "metrics", "step": 10, "values": {"weak/pair_precision": 0.5}})
    run.end()
    ids = [trained(site, f"beside it {size}", seed=61, batch_size=size) for size in (64, 128)]
    pin = update(Job).where(Job.id == pinned)
    site.database.write(lambda session: session.execute(pin.values(reference_at=1)))
    page = visitor.window(address(ids))
    expect(page.locator("figure[data-metrics='train/loss']")).to_have_attribute("data-lines", "3")
    expect(page.locator("figure[data-metrics='weak/pair_precision']")).to_have_count(0)
    expect(page.locator("#reference")).to_be_visible()
    site.database.write(lambda session: session.execute(pin.values(reference_at=None)))


def test_a_comparison_works_without_scripts(visitor: Visitor, site: Site) -> None:
    one, other = trained(site, "chosen one", seed=8), trained(site, "chosen other", seed=8, batch_size=128)
    page = visitor.window("/compare", scripts=False)

    page.get_by_role("checkbox", name="chosen one").check()
    page.get_by_role("checkbox", name="chosen other").check()
    page.get_by_role("button", name="Compare").click()
    assert one in page.url
    assert other in page.url
    picture = page.get_by_role("img", name="Curves of Loss")
    picture.scroll_into_view_if_needed()
    drawn = page.request.get(picture.get_attribute("src") or "").text()
    assert drawn.count("<polyline") == 2
    assert "#2387a5" in drawn
    assert "#c76a2d" in drawn


def test_invalid_comparisons_are_refused(visitor: Visitor, site: Site) -> None:
    ids = [submit(site, f"many {number}", batch_size=16 * number + 16) for number in range(9)]
    cookies = {site.cookie: site.session()}
    with httpx.Client(
        base_url=site.url, cookies=cookies, headers={"Accept": "text/html"}, trust_env=False, timeout=PATIENCE
    ) as client:
        assert client.get("/compare?job=nothing").status_code == 404
        assert client.get("/compare?group=nothing").status_code == 404
        assert client.get(address(ids[:8])).status_code == 200
        answer = client.get(address(ids))
        assert answer.status_code == 422
        assert "at most 8 configurations" in answer.text


def test_a_chart_gets_at_most_a_thousand_points(visitor: Visitor, site: Site) -> None:
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    ids = []
    for seed in (31, 32):
        ids.append(submit(site, "a long one", seed=seed))
        run = site.claim()
        run.start()
        for first in range(0, 6_000, 2_000):
            run.losses(range(first + 1, first + 2_001))
        run.end()
    page = visitor.window()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address(ids))

    expect(page.locator("figure[data-metrics='train/loss']")).to_have_attribute("data-lines", "2")
    assert sum("/metrics?max_points=500" in url for url in requested) == 2


def test_the_leaderboard_has_tabs_and_shows_published_values(visitor: Visitor, site: Site) -> None:
    datasets = {"imagenet": "1a" * 32, "cifar10-jpeg": "1b" * 32, "cifar10": "1c" * 32}
    for name, digest in datasets.items():
        facts = DatasetFacts(name, "folder", digest, {"train": 1000, "test": 359}, ["0", "1"])
        worker = WorkerFacts(new_id(), f"with {name}", "default", (), {name: digest}, (1,))
        site.database.write(lambda session, w=worker, f=facts: workers.register(session, w, 1, [f]))  # type: ignore[misc]
    better, worse = trained(site, "better", seed=41), trained(site, "worse", seed=41, batch_size=64)
    for job_id, value in ((better, 0.69), (worse, 0.4)):
        for digest in datasets.values():
            measured(site, job_id, value, digest)
    sent = {"data": SPEC["data"], "features": {"kind": "pixels"}, "protocols": ["linear_sgd"]}
    new = NewJob("evaluate", sent, parse_spec("evaluate", sent), name="raw pixels")
    site.database.write(lambda session: submission.submit(session, new))
    run = site.claim()
    run.start()
    identity = {"dataset_digest": datasets["imagenet"], "split_digest": "e1" * 32, "seed": 0, "stderr": None}
    run.report({"type": "evaluation", "value": 0.45} | LINEAR | identity)
    run.end()
    page = visitor.window("/leaderboard?dataset=imagenet&protocol=linear_sgd")

    expect(page.locator(".chip[aria-current]")).to_have_text("linear probe by SGD")
    places = [row.locator("td").all_text_contents() for row in page.locator("tbody tr").all()]
    shown = [(cells[0], cells[1].strip(), cells[2]) for cells in places]
    assert shown == [
        ("", "[P] published", "72.2%"),
        ("", "[C] published", "70.5%"),
        ("", "[P] published", "70.3%"),
        ("1", "better", "69.0%"),
        ("", "[C] published", "68.5%"),
        ("", "[P] published", "68.1%"),
        ("", "raw pixels", "45.0%"),
        ("2", "worse", "40.0%"),
    ]
    of_one_seed, of_pixels = places[3], places[6]
    assert (of_one_seed[3].strip(), of_one_seed[5]) == ("64.0% to 73.6%", "359 images")
    assert (of_pixels[3].strip(), of_pixels[5]) == ("39.9% to 50.2%", "359 images")
    expect(page.locator("#unmeasured")).to_have_count(0)
    page.goto("/leaderboard?dataset=cifar10-jpeg&protocol=linear_sgd")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.goto("/leaderboard?dataset=cifar10&protocol=linear_sgd")
    expect(page.locator("tr.reference")).to_have_count(3)
    page.get_by_role("link", name="better").click()
    page.wait_for_url(f"**{address([better])}")


def test_the_leaderboard_shows_the_last_epoch_only(visitor: Visitor, site: Site) -> None:
    job_id = submit(site, "stopped in between", seed=77)
    run = site.claim()
    run.start()
    facts = {"step": 5, "epoch": 3, "path": "x", "sha256": "77" * 32, "size": 1, "metrics": {}}
    run.report({"type": "checkpoint", **facts})
    run.end()
    measured(site, job_id, 0.99, protocol="retrieval")
    page = visitor.window("/leaderboard?dataset=digits&protocol=retrieval")

    expect(page.get_by_role("heading", name="Nothing was measured at its last epoch yet on digits")).to_be_visible()
    expect(page.locator(".empty")).to_contain_text("1 configuration was measured before the last epoch only.")
    page.get_by_role("link", name="Choose a run to evaluate").click()
    expect(page.locator(f"#job-{job_id}")).to_be_visible()
    page.goto(address([job_id]))
    expect(page.locator("#evaluations tbody")).to_contain_text("epoch 3")


def test_the_leaderboard_names_trained_jobs_without_an_evaluation(visitor: Visitor, site: Site) -> None:
    ranked, forgotten = trained(site, "ranked here", seed=91), trained(site, "forgotten here", seed=92)
    measured(site, ranked, 0.6)
    page = visitor.window("/leaderboard?dataset=digits&protocol=linear_sgd")

    # Other seeds of these settings may give the row its name; its link holds every run.
    expect(page.locator(f"tbody a[href*='{ranked}']")).to_be_visible()
    expect(page.locator("tr", has=page.locator(f"a[href*='{ranked}']"))).to_contain_text(re.compile("seeds|images"))
    named = page.locator("#unmeasured")
    expect(named.locator(f"a[href='/jobs/{forgotten}#evaluations']")).to_have_text("forgotten here")
    expect(named.locator(f"a[href='/jobs/{ranked}#evaluations']")).to_have_count(0)


def test_published_values_need_the_exact_dataset_name() -> None:
    assert [(r.mark, r.value) for r in references("imagenet", "semi_supervised", "top1", 0.01)] == [("[P]", 0.65)]
    assert [r.value for r in references("imagenet", "semi_supervised", "top1", 0.1)] == [0.72]
    assert len(references("imagenet", "linear_sgd", "top1")) == 5
    assert references("imagenet", "linear_sgd", "mean_per_class") == []
    assert references("imagenet", "linear", "top1") == []
    assert references("cifar10-jpeg", "knn_wide", "top1") == []
