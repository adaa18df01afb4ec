"""The form of a new sweep: with and without scripts, dry run, errors in place, and submitting once."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from api.rest.presets import preset_fields
from api.rest.sweep_bodies import SweepBody, new_sweep
from api.web.forms.fields import spec_typed
from api.web.forms.sweep_fields import Row, SweepForm, request_of, shared_by_all
from jobs.models import Sweep
from jobs.sweeps import trial_counts
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site
from tests.jobs import rows, sweeping
from tests.jobs.rows import job
from tests.waiting import PATIENCE
from wcl_core.presets import presets

RATE, TEMPERATURE = sweeping.RATE, sweeping.TEMPERATURE


def cell(page: Page, row: int, name: str) -> Any:
    return page.locator(f"[id='row.{row}.{name}']")


def hint(page: Page, name: str) -> Any:
    return page.locator(f"[id='message-{name}']")


def created(page: Page, site: Site) -> Sweep:
    page.wait_for_url(re.compile("/sweeps/[0-9a-f-]{36}$"))
    return sweeping.sweep(site.database, page.url.rsplit("/", 1)[1])


def test_the_form_shows_the_trials_and_starts_the_sweep(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/sweeps")
    page.get_by_role("link", name="New sweep").click()
    plan = page.locator("#plan")
    expect(page.locator(".message.wrong")).to_have_count(0)
    page.get_by_role("button", name="Check").click()
    expect(hint(page, "parameters")).to_contain_text("at least 1")
    cell(page, 0, "field").select_option(label="Temperature: now 0.4")
    cell(page, 0, "values").fill("0.1, 0.2, 0.4")
    expect(plan).to_contain_text("Ready to start")
    expect(plan).to_contain_text("3 trials")
    expect(plan.locator("#as-json")).to_contain_text('"name": "Temperature on digits"')
    page.locator("#name").fill("by hand")
    expect(plan).to_contain_text("180")  # epochs in all
    expect(hint(page, "row.0")).to_contain_text("base value 0.4; number")
    expect(page.locator("#trials")).to_be_hidden()

    page.get_by_role("radio", name="Successive halving").check()
    page.locator("#trials").fill("9")
    page.get_by_role("button", name="Add a field").click()
    cell(page, 1, "field").select_option(RATE)
    cell(page, 1, "how").select_option("log")
    cell(page, 1, "min").fill("3")
    cell(page, 1, "max").fill("0.3")
    expect(hint(page, "row.1")).to_contain_text("max: 0.3 is not above min; expected more than 3")
    cell(page, 1, "min").fill("0.03")
    expect(plan).to_contain_text("9 × 7, 3 × 20, 1 × 60 epochs")
    page.get_by_role("button", name="Add a field").click()
    cell(page, 2, "values").fill("1, 2")
    cell(page, 2, "field").select_option(TEMPERATURE)
    expect(hint(page, "row.2")).to_contain_text("another row has the field")
    expect(cell(page, 1, "max")).to_have_value("0.3")
    cell(page, 2, "field").select_option("")
    expect(hint(page, "row.2")).to_contain_text("expected the name of a field")
    cell(page, 2, "values").fill("")
    page.locator("#metric").select_option("few_labels/top1")
    expect(hint(page, "metric.settings")).to_contain_text("one value of labels_per_class")
    page.get_by_label("Labelled images a class").fill("5")
    page.locator("#seeds").fill("1, 2")
    expect(plan).to_contain_text("26, with 2 seeds per trial")
    expect(plan.locator(".first tbody tr")).to_have_count(6)
    expect(plan).to_contain_text("and 3 more")
    sent = json.loads(plan.locator("#as-json").inner_text())
    assert SweepBody.model_validate(sent).parameters == {
        TEMPERATURE: [0.1, 0.2, 0.4],
        RATE: {"min": 0.03, "max": 0.3, "log": True},
    }

    page.get_by_role("button", name="Start sweep").click()
    sweep = created(page, site)
    assert (sweep.name, sweep.search, sweep.seeds, sweep.preset) == ("by hand", "halving", [1, 2], "digits-cpu")
    assert (sweep.metric["protocol"], sweep.metric["settings"]) == ("few_labels", {"labels_per_class": [5]})
    assert sweep.base["data"]["held_out_share"] == 0.2
    with site.database.read() as session:
        assert trial_counts(session, [sweep.id])[sweep.id] == 9
    visitor.forget_failures()  # the browser logs each 422


def test_a_form_works_without_scripts_over_the_spec_of_a_job(visitor: Visitor, site: Site) -> None:
    source = site.submit("the source", ["kept"], method="simclr", epochs=12)
    page = visitor.window(f"/jobs/{source}", scripts=False)
    page.locator("#more-actions > summary").click()
    page.get_by_role("link", name="over this spec").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sweep over the spec of the source")

    cell(page, 0, "field").select_option("batch_size")
    cell(page, 0, "values").fill("64, 5000")
    page.get_by_role("button", name="Add a field").click()
    cell(page, 1, "field").select_option(TEMPERATURE)
    cell(page, 1, "how").select_option("even")
    cell(page, 1, "min").fill("0.1")
    cell(page, 1, "max").fill("0.5")
    page.get_by_role("button", name="Add a field").click()
    expect(cell(page, 2, "field")).to_have_value("")
    expect(cell(page, 1, "max")).to_have_value("0.5")
    expect(page.locator(".message.wrong")).to_have_count(0)
    page.get_by_role("button", name="Start sweep").click()
    expect(hint(page, "row.1")).to_contain_text("a range needs `trials`")
    page.get_by_role("radio", name="Random").check()
    page.locator("#trials").fill("4")
    page.get_by_role("button", name="Start sweep").click()
    expect(hint(page, "row.0")).to_contain_text("5000 is more than")
    expect(page.locator("#trials")).to_have_value("4")
    cell(page, 0, "values").fill("64, 128")
    page.locator("[id='spec.data.held_out_share']").fill("0")
    page.get_by_role("button", name="Check").click()
    expect(page.locator("#plan")).to_contain_text("selected on the test split")
    expect(page.locator("#plan")).to_contain_text("48")  # epochs in all
    page.get_by_role("button", name="Start sweep").click()

    sweep = created(page, site)
    assert (sweep.name, sweep.search, sweep.preset, sweep.options["tags"]) == ("the source", "random", None, ["kept"])
    assert (sweep.base["method"], sweep.base["epochs"], sweep.base["data"]["held_out_share"]) == ("simclr", 12, 0)
    expect(page.locator(".trials tbody tr")).to_have_count(4)
    page.locator(".trials .runs a").first.click()
    page.locator("#more-actions > summary").click()
    page.get_by_role("link", name="over this spec").click()
    # the fields that a sweep adds to its trials are no part of the next base
    assert job(site.database, source).spec["evaluations"] == []
    expect(page.locator("[id='spec.evaluations']")).to_have_value("[]")
    visitor.forget_failures()  # the browser logs each 422


FORM = {
    "preset": "digits-cpu",
    "search": "grid",
    "name": "twice",
    "row.0.field": TEMPERATURE,
    "row.0.values": "0.1, 0.2",
    "step": "submit",
}


def post(site: Site, *forms: dict[str, str]) -> list[httpx.Response]:
    cookies = {site.cookie: site.session()}
    headers = {"Origin": site.url, "Accept": "text/html"}
    with httpx.Client(base_url=site.url, cookies=cookies, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        return [client.post("/sweeps/new", data=form) for form in forms]


def test_an_unknown_field_of_a_row_is_kept_and_named(site: Site) -> None:
    (answer,) = post(site, FORM | {"row.0.field": "loss.temprature"})

    assert answer.status_code == 422
    assert "did you mean &#39;temperature&#39;" in answer.text
    assert '<option value="loss.temprature" selected>' in answer.text


def test_a_form_sent_twice_makes_one_sweep(site: Site) -> None:
    sent = FORM | {"key": "a" * 32}
    answers = rows.at_once(3, lambda _: post(site, sent)[0])
    (other,) = post(site, sent | {"row.0.values": "0.1"})

    assert {answer.status_code for answer in (*answers, other)} == {303}
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert other.headers["location"] != answers[0].headers["location"]


@pytest.mark.parametrize(
    "form",
    [
        {"name": "a\0b"},
        {"row.0.field": "<img src=x onerror=pwned=1>", "row.0.values": "<img src=x>"},
        {"row.0.values": "[" * 3000},
        {"row.0.values": "NaN, 1e999"},
        {"row.0.how": "<script>", "row.0.values": ""},
        {"row.0.how": "log", "row.0.min": "x", "row.0.max": "1e999"},
        {"row.99.field": "<script>pwned=1</script>", "row.x.field": "epochs", "row..field": "1", "row.0.field": ""},
        {"metric": "train/loss", "metric.settings": '{"a": "\\ud800"}'},
        {"metric.settings": "[1]"},
        {"search": "<script>", "seeds": "x"},
        {"search": "halving", "rungs": "2, <script>", "eta": "-"},
        {"preset": "", "spec.epochs": "<script>pwned=1</script>"},
        {"preset": "<img src=x>"},
        {"preemptible": "<img src=x>", "tags": "<img src=x>" * 30},
    ],
)
def test_invalid_forms_are_shown_with_errors(site: Site, form: dict[str, str]) -> None:
    (answer,) = post(site, FORM | form)

    assert answer.status_code == 422, answer.text
    assert "to correct" in answer.text
    assert "<img src=x" not in answer.text
    assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("field", "values", "read"),
    [
        (TEMPERATURE, "0.1, 2, 1e-3", [0.1, 2, 0.001]),
        (TEMPERATURE, "[0.1, 0.2]", [0.1, 0.2]),
        (TEMPERATURE, "0.1, much", [0.1, "much"]),
        ("method", "wcl, simclr", ["wcl", "simclr"]),
        ("method", "1", ["1"]),
        ("loss.decoupled", "true, false", [True, False]),
        ("optimizer.betas", "[0.9, 0.99], [0.9, 0.95]", [[0.9, 0.99], [0.9, 0.95]]),
        ("optimizer.betas", "[0.9, 0.99]", [[0.9, 0.99]]),
        ("method_options.rate", "1, 2", [1, 2]),
        (TEMPERATURE, "", []),
    ],
)
def test_values_are_parsed_by_the_type_of_their_field(field: str, values: str, read: list[Any]) -> None:
    assert Row.of({"row.0.field": field, "row.0.values": values}, 0).request == read


@pytest.mark.parametrize("name", list(presets()))
def test_an_unchanged_preset_sends_no_spec(name: str) -> None:
    spec = shared_by_all(preset_fields(name, "pretrain"))
    typed = {key: text for key, text in spec_typed("pretrain", spec).items() if key != "spec.seed"}
    whole = {"row.0.field": "heads.output_dim", "row.0.how": "log", "row.0.min": "16", "row.0.max": "64"}
    form = SweepForm("pretrain", name, None, typed | whole | {"name": "x", "search": "random", "trials": "3"}, spec)

    sent = request_of(form)

    assert "spec" not in sent
    assert sent["parameters"] == {"heads.output_dim": {"min": 16, "max": 64, "log": True, "integer": True}}
    design = new_sweep(SweepBody.model_validate(sent), "me")[1]
    assert all(isinstance(trial["heads.output_dim"], int) for trial in design.trials)


def test_readers_get_no_form(visitor: Visitor, site: Site) -> None:
    page = visitor.window("/sweeps", scopes=("read",))
    expect(page.get_by_role("link", name="New sweep")).to_have_count(0)
    page.goto(f"/jobs/{site.submit()}")
    expect(page.locator("#more-actions a", has_text="over this spec")).to_have_count(0)
    answer = page.goto("/sweeps/new")
    assert answer
    assert answer.status == 403
    visitor.forget_failures()  # the browser logs the refusal
