"""The form of a new job: presets, validation while typing, dry run, and submitting once."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
import yaml
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from api.web.forms import spec_form
from jobs import queries, workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from jobs.models import Job
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site
from tests.waiting import PATIENCE
from wcl_core.config import parse_spec, resolve_spec
from wcl_core.config.overlay import changed_fields
from wcl_core.presets import presets


def job_of(page: Page, site: Site) -> Job:
    page.wait_for_url("**/jobs/*")
    with site.database.read() as session:
        return queries.get_job(session, page.url.rsplit("/", 1)[1])


def hint(page: Page, name: str) -> Any:
    return page.locator(f"[id='message-spec.{name}']")


def field(page: Page, name: str) -> Any:
    """Return the field of a setting, in its open section."""
    box = page.locator(f"[id='spec.{name}']")
    section = page.locator("#settings > details", has=box)
    if section.get_attribute("open") is None:
        section.locator("summary").click()
    return box


def job_options(page: Page) -> None:
    page.locator("#section-jobs > summary").click()


@pytest.mark.parametrize("name", list(presets()))
def test_every_preset_survives_the_form(name: str) -> None:
    spec = resolve_spec(presets()[name])
    typed = {f"spec.{each.name}": each.shown(spec) for each in spec_form.fields("pretrain")}

    read = spec_form.read("pretrain", typed)

    assert resolve_spec(parse_spec("pretrain", read)) == spec
    assert changed_fields(read, spec) == {}
    assert {field.path[0] for field in spec_form.fields("pretrain")} == set(spec) - {"spec_version"}


def test_a_dry_run_shows_memory_time_and_disk(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/submit?preset=wcl-digits")
    field(page, "batch_size").fill("131")
    plan = page.locator("#plan")
    expect(plan).to_contain_text("by a rule of thumb; the first epoch tells more")
    shown = plan.locator(".minutes").inner_text()
    expect(plan.get_by_text(f"about {shown}, by a rule of thumb")).to_be_visible()  # one time, not two

    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: "/jobs/" in url)
    run = site.claim()
    run.start()
    run.report({"type": "metrics", "step": 40, "values": {"train/images_per_second": 1572.0}})
    run.checkpoint(40)
    run.end()
    page.goto("/submit?preset=wcl-digits")
    field(page, "batch_size").fill("131")
    # 60 epochs of 10 steps; on a busy machine the run was long beside its training, and the time is a range.
    expect(plan).to_contain_text(re.compile(r"50 s( to .+?)? at 1,572 images/s"))
    expect(plan.get_by_role("link", name="the newest similar job")).to_have_attribute("href", f"/jobs/{run.job_id}")


def test_a_form_is_checked_while_it_is_filled_in(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/submit?preset=wcl-digits")
    plan = page.locator("#plan")
    expect(plan).to_contain_text("Same as wcl-digits")

    field(page, "epochs").fill("7")
    expect(hint(page, "warmup_epochs")).to_have_text("becomes 0.7")  # a tenth of the run, as in the preset
    expect(hint(page, "epochs")).to_have_text("preset: 60")
    expect(plan).to_contain_text("1 field changed from wcl-digits")
    field(page, "epochs").fill("5")
    field(page, "warmup_epochs").fill("9")
    expect(hint(page, "warmup_epochs")).to_contain_text("warmup_epochs is 9, but epochs is 5; use fewer than 5")
    expect(plan).to_contain_text("1 error to correct")
    plan.get_by_role("link", name="Warm-up of the learning rate (epochs)").click()
    expect(field(page, "warmup_epochs")).to_be_focused()
    field(page, "warmup_epochs").fill("6")
    field(page, "epochs").fill("many")
    expect(hint(page, "epochs")).to_contain_text("expected an integer")
    field(page, "epochs").fill("60")
    field(page, "loss.temperature").fill("0.2")
    job_options(page)
    page.get_by_label("Seeds").fill("3, 4")
    page.get_by_label("Name", exact=True).first.fill("two seeds")
    page.get_by_label("Time limit (s)").fill("3600")
    page.get_by_label("May give way").select_option("yes")
    expect(plan).to_contain_text("2, one per seed")
    expect(plan.locator("#as-command")).to_have_text(
        "wcl submit --preset wcl-digits --set loss.temperature=0.2 --name 'two seeds' --max-seconds 3600 "
        "--preemptible --seeds 3,4"
    )
    assert yaml.safe_load(plan.locator("#as-yaml").text_content() or "") == {"loss": {"temperature": 0.2}}
    expect(plan.locator("#command")).not_to_contain_text("in a file")
    page.get_by_role("button", name="Submit").click()
    job = job_of(page, site)
    assert (job.name, job.preset, job.spec["seed"]) == ("two seeds, seed 3", "wcl-digits", 3)
    assert job.spec["loss"]["temperature"] == 0.2
    assert (job.max_seconds, job.preemptible) == (3600, True)
    page.get_by_role("link", name="Clone…").click()
    expect(page.get_by_label("Time limit (s)")).to_have_value("3600")
    expect(page.get_by_label("May give way")).to_have_value("true")
    assert job.group_id
    visitor.forget_failures()  # the browser logs each 422


def test_a_form_works_without_scripts(visitor: Visitor, site: Site) -> None:
    page = visitor.window(scripts=False)
    page.get_by_role("link", name="New job").click()
    page.get_by_text("Start from a preset or another job").click()
    page.get_by_label("Start from preset").select_option("simclr-digits")
    page.get_by_role("button", name="Load").click()
    expect(field(page, "method")).to_have_value("simclr")

    field(page, "batch_size").fill("5000")
    job_options(page)
    page.get_by_label("Tags").fill("by hand, trial")
    page.get_by_role("button", name="Submit").click()
    expect(hint(page, "batch_size")).to_contain_text("5000 is more than the 1438 train images")
    expect(field(page, "batch_size")).to_have_value("5000")
    expect(page.get_by_label("Tags")).to_have_value("by hand, trial")
    field(page, "batch_size").fill("128")
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#plan")).to_contain_text("Ready to submit")
    expect(page.locator("#plan")).to_contain_text("660, 11 per epoch")
    page.get_by_role("button", name="Submit").click()
    job = job_of(page, site)
    assert (job.spec["method"], job.spec["batch_size"], job.preset) == ("simclr", 128, "simclr-digits")
    with site.database.read() as session:
        assert queries.tags(session, [job.id])[job.id] == ["by hand", "trial"]
    visitor.forget_failures()  # the browser logs the 422


def test_invalid_fields_are_marked(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/submit")
    job_options(page)
    for name, value, expected in (
        ("priority", "5000", "expected at most 1,000, not 5,000"),
        ("gpus", "x", "expected an integer"),
        ("max_seconds", "0", "expected at least 1, not 0"),
        ("pool", "../x", "pattern"),
        ("seeds", "1, 1", "must not repeat"),
    ):
        page.locator(f"#{name}").fill(value)
        expect(page.locator(f"#message-{name}")).to_contain_text(expected)
    judged = page.get_by_label("Judgement")
    expect(judged.get_by_role("link", name="Time limit (s)")).to_have_attribute("href", "#max_seconds")
    expect(judged).to_contain_text("Seeds: ")
    visitor.forget_failures()  # the browser logs each 422


@pytest.mark.parametrize("scripts", [True, False])
def test_three_questions_make_a_job_that_fits_the_images(visitor: Visitor, site: Site, scripts: bool) -> None:
    name = f"leaves-{scripts}".lower()
    report = {"median": [120, 104], "smallest": [90, 90], "largest": [140, 139], "modes": {"RGB": 490}, "layout": "x"}
    counts = {"train": 490, "test": 107}
    facts = DatasetFacts(name, "folder", "f2" * 32, counts, ["a", "b"], {"train": [245, 245]}, report=report)
    worker = replace(site.worker, id=new_id(), datasets=site.worker.datasets | {name: facts.digest})
    site.database.write(lambda session: workers.register(session, worker, 77, [facts]))
    page = visitor.window("/submit?preset=wcl-digits", scripts=scripts)

    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("link", name=name)).to_have_attribute("aria-current", "true")
    expect(page.get_by_role("link", name=name)).to_contain_text("597 images · 2 classes · about 104 px")
    page.get_by_role("link", name="Quick look").click()
    quick = page.get_by_role("link", name="Quick look")
    expect(quick).to_have_attribute("aria-current", "true")
    plan = re.search(
        r"([\d,]+) steps, (\d+) epochs", quick.inner_text()
    )  # as many as this machine trains in ten minutes
    assert plan is not None
    steps, epochs = plan.groups()
    expect(quick).to_contain_text("px · WCL")
    if scripts:  # the panel at the side has the same time
        expect(page.locator("#plan .minutes")).to_have_text(quick.locator(".minutes").inner_text())
    assert int(steps.replace(",", "")) == 7 * int(epochs) >= 1000
    page.get_by_role("link", name="Drawings").click()
    expect(page.get_by_role("link", name="Drawings")).to_have_attribute("aria-current", "true")
    expect(page.locator("#settings")).to_contain_text(f"wcl, {epochs} epochs, batch of 64")
    expect(field(page, "augmentation.flip_probability")).to_have_value("0.0")
    field(page, "loss.temperature").fill("0.2")
    page.get_by_label("Name", exact=True).fill("by its recipe")
    if not scripts:
        page.get_by_role("button", name="Check").click()
    expect(page.locator("#plan")).to_contain_text("Ready to submit")
    expect(page.locator("#plan")).to_contain_text(f"{steps}, 7 per epoch")
    expect(hint(page, "loss.temperature")).to_have_text("proposed: 0.1")
    page.get_by_role("button", name="Submit").click()

    job = job_of(page, site)
    assert (job.name, job.dataset_name, job.preset, job.spec["epochs"]) == ("by its recipe", name, None, int(epochs))
    assert job.spec["loss"]["temperature"] == 0.2
    assert job.spec["data"]["image_size"] in (32, 48, 64)  # by the speed of this machine
    assert "queue_size" not in job.spec_sent, "the request holds more than the recipe and the changes"


def test_the_form_says_what_cannot_run_or_learn(visitor: Visitor, site: Site) -> None:
    tiny = DatasetFacts("handful", "folder", "f3" * 32, {"train": 9}, [])
    away = DatasetFacts("away", "folder", "f4" * 32, {"train": 900}, [])
    worker = replace(site.worker, id=new_id(), datasets={"handful": tiny.digest})
    site.database.write(lambda session: workers.register(session, worker, 77, [tiny, away]))
    page = visitor.window("/submit?dataset=handful")
    expect(page.locator("#content")).to_contain_text("handful has 9 train images, too few to learn from")
    page.goto("/submit?dataset=away")
    expect(page.locator("#plan")).to_contain_text("It would wait: no running worker can take it")
    page.goto("/submit?dataset=digits&length=quick")
    expect(page.locator("#plan")).to_contain_text("Ready to submit")
    field(page, "batch_size").fill("700")
    field(page, "epochs").fill("5")
    expect(page.locator("#plan")).to_contain_text("It would hardly learn")
    expect(page.locator("#plan")).to_contain_text("an epoch is only 2 steps")
    expect(page.get_by_role("button", name="Submit anyway")).to_be_visible()
    visitor.forget_failures()  # the browser logs the 422 of the handful


def test_every_field_has_a_label_and_a_section() -> None:
    for kind, model in spec_form._MODELS.items():
        names = [each.name for each in spec_form.fields(kind)]
        assert len(set(names)) == len(names)
        assert {name.partition(".")[0] for name in names} == set(model.model_fields) - {"spec_version"}
        assert all(each.label for each in spec_form.fields(kind))


def test_a_job_without_a_preset_is_cloned_whole(visitor: Visitor, site: Site) -> None:
    source = site.submit("the source", ["kept"], method="simclr", seed=5)
    page = visitor.window(f"/jobs/{source}")

    page.get_by_role("link", name="Clone…").click()
    expect(page.locator("#plan")).to_contain_text("It would hardly learn")
    expect(page.locator("#plan")).to_contain_text("50 steps in all, too few to learn anything")
    assert yaml.safe_load(page.locator("#as-yaml").text_content() or "")["method"] == "simclr"
    field(page, "seed").fill("6")
    expect(hint(page, "seed")).to_have_text("before: 5")
    page.get_by_role("button", name="Submit anyway").click()
    page.wait_for_url(lambda url: "/jobs/" in url and source not in url)
    job = job_of(page, site)
    assert (job.parent_id, job.name, job.spec["seed"], job.spec["method"]) == (source, "the source-2", 6, "simclr")
    expect(page.locator("#run-summary .tag")).to_have_text("kept")


def test_an_evaluation_is_cloned_with_its_features(visitor: Visitor, site: Site) -> None:
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    run = site.running("to be measured")
    run.start()
    run.checkpoint(5)
    run.end()
    checkpoint = site.checkpoints(run.job_id)[0].id
    source = site.submit_evaluation(checkpoint, "measuring")
    page = visitor.window(f"/submit?source={source}", scripts=False)

    field(page, "protocols").fill('["linear"]')
    page.get_by_role("button", name="Submit").click()
    job = job_of(page, site)
    assert (job.kind, job.spec["protocols"]) == ("evaluate", ["linear"])
    assert job.spec["features"]["checkpoint_id"] == checkpoint


def test_a_form_sent_twice_makes_one_job(visitor: Visitor, site: Site) -> None:
    cookies = {site.cookie: site.session()}
    headers = {"Origin": site.url, "Accept": "text/html"}
    with httpx.Client(base_url=site.url, cookies=cookies, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        text = client.get("/submit").text
        key = re.search(r'name="key" value="(\w+)"', text)
        assert key
        body = {"kind": "pretrain", "preset": "digits-cpu", "key": key[1], "step": "submit", "spec.seed": "1"}
        first, again = client.post("/submit", data=body), client.post("/submit", data=body)
        other = client.post("/submit", data=body | {"spec.seed": "2"})

        assert (first.status_code, again.status_code, other.status_code) == (303, 303, 303)
        assert first.headers["location"] == again.headers["location"] != other.headers["location"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"kind": "<script>", "preset": "<img src=x>"},
        {"spec.method_options": '{"a": "\\ud800"}'},
        {"spec.evaluations": "[" * 3000},
        {"spec.epochs": "NaN"},
        {"name": "a\0b", "preset": "digits-cpu"},
        {"name": "<script>pwned=1</script>", "preset": "digits-cpu", "spec.epochs": "<img src=x onerror=pwned=1>"},
        {"source": ""},
        {"preset": "digits-cpu", "preemptible": "<img src=x onerror=pwned=1>"},
    ],
)
def test_invalid_forms_are_shown_with_errors(visitor: Visitor, site: Site, body: dict[str, str]) -> None:
    cookies = {site.cookie: site.session()}
    headers = {"Origin": site.url, "Accept": "text/html"}
    with httpx.Client(base_url=site.url, cookies=cookies, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        answer = client.post("/submit", data={"step": "submit"} | body)

    assert answer.status_code == 422
    assert "to correct" in answer.text
    assert "<img src=x" not in answer.text
    assert "<script>" not in answer.text


def test_readers_get_no_form(visitor: Visitor, site: Site) -> None:
    page = visitor.window(scopes=("read",))

    expect(page.get_by_role("link", name="New job")).to_have_count(0)
    answer = page.goto("/submit")
    assert answer
    assert answer.status == 403
    visitor.forget_failures()  # the browser logs the refusal


def test_a_script_that_sends_a_form_again_sends_its_key_again(visitor: Visitor, site: Site) -> None:
    while (claimed := site.try_claim()) is not None:
        claimed.end()
    run = site.running("fails")
    run.start()
    run.end("failed", "bad_data", "broken")
    page = visitor.window(f"/jobs/{run.job_id}")
    keys: list[str | None] = []

    def lose_the_first_answer(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        answer = route.fetch()
        if len(keys) == 1:
            route.abort()
        else:
            route.fulfill(response=answer)

    page.route("**/v1/jobs/*/retry", lose_the_first_answer)
    retry = page.get_by_role("button", name="Retry")
    retry.click()
    expect(page.locator("#toast")).to_contain_text("does not respond")
    retry.click()
    page.wait_for_url(lambda url: run.job_id not in url)

    with site.database.read() as session:
        retries = session.execute(select(Job.id).where(Job.parent_id == run.job_id)).scalars().all()
    assert retries == [page.url.rsplit("/", 1)[1]]
    assert keys == [keys[0]] * 2
    assert keys[0]
    visitor.forget_failures()  # the browser logs the lost answer
