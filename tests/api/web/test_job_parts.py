"""The page of a job beside its curves: preset, seed group, evaluations, and actions on checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import expect
from sqlalchemy import update

from jobs import submission
from jobs.models import Checkpoint
from jobs.new_job import NewJob
from tests.api.web.conftest import Visitor
from tests.api.web.served import PlayedRun, Site
from wcl_core.config import parse_spec, resolve_spec
from wcl_core.presets import presets


def from_preset(seed: int = 0, **changes: Any) -> NewJob:
    sent = resolve_spec(presets()["digits-cpu"]) | {"seed": seed} | changes
    return NewJob("pretrain", sent, parse_spec("pretrain", sent), name=f"of a preset, {seed}", preset="digits-cpu")


def with_checkpoint(site: Site, name: str = "with a checkpoint") -> tuple[PlayedRun, str]:
    run = site.running(name)
    run.start()
    run.checkpoint(50)
    run.end()
    return run, site.checkpoints(run.job_id)[0].id


def measure(site: Site, job_id: str, *values: tuple[str, float]) -> None:
    site.submit_evaluation(site.checkpoints(job_id)[0].id, "measuring")
    run = site.claim()
    run.start()
    for protocol, value in values:
        run.evaluation(protocol, value)
    run.end()


def test_preset_deviations_are_shown(visitor: Visitor, site: Site) -> None:
    new = from_preset(epochs=7, warmup_epochs=1, weak_augmentation_epochs=1)
    job_id = site.database.write(lambda session: submission.submit(session, new)).id
    plain = site.database.write(lambda session: submission.submit(session, from_preset())).id
    page = visitor.window(f"/jobs/{job_id}")

    expect(page.locator("#run-summary")).to_contain_text("preset digits-cpu, 3 fields changed")
    row = page.locator(".deviations tr", has_text="weak_augmentation_epochs")
    assert row.locator("td").all_text_contents() == ["weak_augmentation_epochs", "6", "1"]
    page.goto(f"/jobs/{plain}")
    expect(page.locator("#spec")).to_contain_text("Same as the preset digits-cpu.")
    site.claim().end()
    site.claim().end()


def test_a_seed_group_shows_its_jobs_and_their_mean(visitor: Visitor, site: Site) -> None:
    new = [from_preset(seed) for seed in (0, 1, 2)]
    ids = [job.id for job in site.database.write(lambda session: submission.submit_group(session, new))]
    for _ in ids:
        run = site.claim()
        run.start()
        run.checkpoint(10)
        run.end()
    for job_id, value in zip(ids, (0.5, 0.6, 0.7), strict=True):
        measure(site, job_id, ("linear", value))
    page = visitor.window(f"/jobs/{ids[1]}")

    group = page.locator("#group")
    expect(group.get_by_role("heading")).to_have_text("Seed group: 3 seeds")
    expect(group.locator("[aria-current]")).to_have_text("seed 1")
    row = group.locator("tbody tr")
    expect(row).to_contain_text("60.0%")
    expect(row).to_contain_text("35.2% to 84.8%")
    expect(row).to_contain_text("2 70.0%")
    group.get_by_role("link", name="seed 2").click()
    page.wait_for_url(f"**/jobs/{ids[2]}")


def test_evaluations_have_details(visitor: Visitor, site: Site) -> None:
    run, checkpoint = with_checkpoint(site)
    site.submit_evaluation(checkpoint, "measuring")
    measuring = site.claim()
    measuring.start()
    neighbours = [{"index": 7, "label": 1, "cosine": 0.99}, {"index": 9, "label": 0, "cosine": 0.9}]
    example = {"index": 3, "label": 1, "neighbours": neighbours}
    details = {"examples": [example], "by_class": [0.25, None]}
    facts = {"protocol_version": 2, "seed": 0, "dataset_digest": "d1" * 32, "stderr": None, "n": 359}
    line = {"type": "evaluation", "metric": "recall_at_1", "params": {"relevant": "same class"}, "value": 0.5, **facts}
    measuring.report(line | {"protocol": "retrieval", "split_digest": "e1" * 32, "details": details})
    tuned = {"splits": ["5a" * 32, "5b" * 32], "accuracies": [0.8, 0.9]}
    line |= {"metric": "top1", "params": {"share": 0.01}, "stderr": 0.05, "value": 0.85}
    measuring.report(line | {"protocol": "semi_supervised", "split_digest": "e2" * 32, "details": tuned})
    measuring.end()
    page = visitor.window(f"/jobs/{run.job_id}")

    cards = page.locator("#evaluations article")
    retrieval = cards.filter(has_text="retrieval")
    retrieval.get_by_text("Details").click()
    expect(retrieval).to_contain_text("v2")
    expect(retrieval.get_by_title("e1" * 32)).to_be_visible()
    expect(retrieval).to_contain_text("test image 3, 1")
    expect(retrieval.locator(".hit")).to_have_attribute("title", "train image 7, cosine 0.99")
    expect(retrieval.locator(".miss")).to_have_text("0")
    expect(retrieval).to_contain_text("0 25.0%")
    tuning = cards.filter(has_text="semi-supervised")
    expect(tuning).to_contain_text("1% of the labels")
    expect(tuning).to_contain_text("85.0% ± 5.0%")
    tuning.get_by_text("Details").click()
    expect(tuning).to_contain_text("90.0% of 5b5b5b5b5b5b…")


def test_a_submitted_evaluation_is_a_sentence_with_its_job(visitor: Visitor, site: Site) -> None:
    plan = {"protocols": ["linear"], "when": "final"}
    job_id = site.submit("brings its evaluation", evaluations=[plan])
    run = site.claim()
    run.start()
    run.checkpoint(50)
    run.end()
    page = visitor.window(f"/jobs/{job_id}")

    entry = page.locator("#timeline li", has_text="Evaluation submitted")
    expect(entry).to_contain_text("of the last checkpoint, step 50")
    entry.get_by_role("link", name="View job").click()
    expect(page.locator("#run-summary")).to_contain_text("of brings its evaluation")
    site.claim().end()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_checkpoint_is_pinned_and_measured_from_the_page(visitor: Visitor, site: Site, scripts: bool) -> None:
    run, checkpoint = with_checkpoint(site)
    page = visitor.window(f"/jobs/{run.job_id}", scripts=scripts)

    pin = page.get_by_role("button", name="Pinned: step 50")
    expect(pin).to_have_attribute("aria-pressed", "false")
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "true")
    assert site.checkpoints(run.job_id)[0].pinned
    pin.click()
    expect(pin).to_have_attribute("aria-pressed", "false")

    evaluate = page.get_by_text("Evaluate…", exact=True)
    if scripts:
        page.evaluate("document.body.style.minHeight = '300vh'")
        evaluate.evaluate("each => window.scrollBy(0, each.getBoundingClientRect().bottom - innerHeight)")
    evaluate.click()
    if scripts:
        expect(page.locator("#measure > .panel")).to_be_in_viewport(ratio=1)
    page.get_by_role("checkbox", name="kNN", exact=True).uncheck()
    page.get_by_role("checkbox", name="few labels").uncheck()
    page.get_by_role("button", name="Evaluate").click()
    page.wait_for_url(lambda url: "/jobs/" in url and run.job_id not in url)
    expect(page.locator("h1")).to_have_text("evaluate checkpoint on digits, step 50 of with a checkpoint")
    expect(page.locator("#spec-sent")).to_contain_text('"protocols": [\n    "linear"\n  ]')
    expect(page.locator("#spec-sent")).to_contain_text(checkpoint)
    lines, around = (page.locator(each).bounding_box() for each in ("#spec-sent", "#spec-sent-details"))
    assert lines
    assert around
    assert lines["width"] > 0.8 * around["width"], "the button stands beside the lines"
    site.claim().end()


def test_a_damaged_checkpoint_is_marked_and_is_not_the_last_good_one(visitor: Visitor, site: Site) -> None:
    run = site.running("damaged")
    run.start()
    for step in (40, 50):
        run.checkpoint(step)
    run.end("failed", reason="non_finite_loss")
    damaged = update(Checkpoint).where(Checkpoint.step == 50, Checkpoint.job_id == run.job_id).values(damaged_at=1)
    site.database.write(lambda session: session.execute(damaged) and None)
    page = visitor.window(f"/jobs/{run.job_id}")

    rows = page.locator("#checkpoints tbody tr")
    expect(rows.nth(0)).to_contain_text("damaged")
    expect(rows.nth(1)).not_to_contain_text("damaged")
    expect(page.locator("#run-summary")).to_contain_text("last good checkpoint: step 40")


def test_readers_see_no_buttons_that_change_anything(visitor: Visitor, site: Site) -> None:
    run, checkpoint = with_checkpoint(site)
    writer = visitor.window(f"/jobs/{run.job_id}")
    page = visitor.window(f"/jobs/{run.job_id}", scopes=("read",))

    assert writer.locator("main form[method=post]").count() > 2
    expect(page.locator("#checkpoints tbody tr")).to_have_count(1)
    assert page.locator("main form[method=post]").count() == 0
    refused = page.request.post(f"/checkpoints/{checkpoint}/pin", headers={"Origin": site.url})
    assert refused.status == 403


def test_a_job_is_cloned(visitor: Visitor, site: Site) -> None:
    job_id = site.database.write(lambda session: submission.submit(session, replace(from_preset(), tags=("kept",)))).id
    page = visitor.window(f"/jobs/{job_id}", scripts=False)

    page.get_by_role("link", name="Clone").click()
    page.locator("#section-loss > summary").click()
    page.get_by_role("textbox", name="Temperature", exact=True).fill("0.3")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: "/jobs/" in url and job_id not in url)
    expect(page.locator(".deviations tbody")).to_contain_text("loss.temperature")
    expect(page.locator("#run-summary")).to_contain_text("parent of a preset, 0")
    expect(page.locator("#run-summary .tag")).to_have_text("kept")
