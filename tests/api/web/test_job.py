"""The page of a job: live curves without gaps or repeats, buttons, downloads, log."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from jobs.models import DatasetVersion
from tests.api.web.conftest import Visitor
from tests.api.web.served import DIGEST, PlayedRun, Site
from tests.waiting import eventually
from wcl_core.config import SPEC_VERSIONS


def curve(page: Page, name: str = "train/loss") -> dict[str, Any]:
    """Return a chart's data: steps, values, and the steps where later attempts began."""
    script = """name => {
        const { curves } = document.getElementById("charts");
        const { steps = [], values = [] } = curves?.byName.get(name) ?? {};
        return { steps: [...steps], values: [...values], starts: [...(curves?.starts ?? [])] };
    }"""
    data: dict[str, Any] = page.evaluate(script, name)
    return data


def wait_for_steps(page: Page, steps: list[int]) -> None:
    eventually(lambda: curve(page)["steps"] == steps, f"steps up to {steps[-1]}")


def open_run(visitor: Visitor, run: PlayedRun) -> Page:
    page = visitor.window(f"/jobs/{run.job_id}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    return page


def test_curves_and_progress_grow_live(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.losses([10, 20])
    page = open_run(visitor, run)
    wait_for_steps(page, [10, 20])

    run.losses([30, 40])
    run.report({"type": "metrics", "step": 40, "values": {"eval/knn_top1": 0.875, "mine/extra": 3.0}})

    wait_for_steps(page, [10, 20, 30, 40])
    chart = page.locator("figure[data-metrics='train/loss']")
    expect(chart).to_have_attribute("data-step", "40")
    expect(chart.locator("figcaption")).to_contain_text("4.6")
    expect(page.locator("figure[data-metrics='eval/knn_top1']")).to_contain_text("87.5%")
    expect(page.get_by_role("heading", name="mine/extra")).to_be_visible()
    summary = page.locator("#run-summary")
    expect(summary).to_contain_text("4.0 / 10")
    expect(summary).to_contain_text("1,234")
    expect(summary.locator("progress")).to_have_attribute("value", "0.4000")
    run.end()
    expect(summary).to_contain_text("succeeded")
    expect(page.locator("#timeline")).to_contain_text("Succeeded")


def test_a_killed_server_leaves_neither_gap_nor_repeat(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.losses(range(1, 11))
    page = open_run(visitor, run)
    wait_for_steps(page, list(range(1, 11)))
    run.losses(range(11, 16))
    wait_for_steps(page, list(range(1, 16)))

    site.kill()
    expect(page.locator("#connection")).to_have_attribute("data-state", "lost")
    run.losses(range(16, 31))
    site.start()

    wait_for_steps(page, list(range(1, 31)))
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    run.losses(range(31, 36))
    wait_for_steps(page, list(range(1, 36)))
    expect(page.locator("#run-summary")).to_contain_text("35 / 100")
    run.end()
    # The browser logs only that the connection was refused.
    assert all("ERR_" in complaint for complaint in visitor.complaints), visitor.complaints
    visitor.forget_failures()


def test_a_hidden_tab_holds_no_connection_and_catches_up(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.losses([1, 2])
    page = open_run(visitor, run)
    wait_for_steps(page, [1, 2])

    show(page, "hidden")
    run.losses([3, 4])
    page.wait_for_timeout(1500)
    assert curve(page)["steps"] == [1, 2]
    show(page, "visible")

    wait_for_steps(page, [1, 2, 3, 4])
    run.end()


def show(page: Page, state: str) -> None:
    """Send the browser's event for a tab that becomes hidden or visible."""
    script = """state => {
        Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(script, state)


# A browser without a window refuses notifications: this takes their place, and answers the request for the right.
_NOTIFICATIONS = """(answer) => {
  window.shown = [];
  window.Notification = class {
    static requestPermission() { return Promise.resolve(answer); }
    constructor(title, { body }) { window.shown.push(`${title}|${body}`); }
  };
}"""


def test_the_bell_notifies_of_news_also_while_the_page_is_hidden(visitor: Visitor, site: Site) -> None:
    run = site.running("clothes")
    run.start()
    page = visitor.window(f"/jobs/{run.job_id}")
    bell = page.get_by_role("button", name="Notifications of this job")
    page.evaluate(_NOTIFICATIONS, "denied")
    bell.click()
    expect(page.get_by_text("does not allow notifications")).to_be_visible()
    expect(bell).to_have_attribute("aria-pressed", "false")

    page.clock.install()
    page.evaluate(_NOTIFICATIONS, "granted")
    bell.click()
    expect(page.get_by_text("This browser tells when the job ends")).to_be_visible()
    expect(bell).to_have_attribute("aria-pressed", "true")
    show(page, "hidden")
    run.checkpoint(40)
    run.report({"type": "warning", "reason": "collapsed", "message": "the features collapse"})
    run.end()

    def shown() -> list[str]:
        page.clock.run_for(10_000)
        return [str(each) for each in page.evaluate("shown")]

    eventually(lambda: len(shown()) > 1, "the notifications")
    assert shown() == ["clothes: warning|the features collapse", "clothes: succeeded|"]
    expect(bell).to_have_attribute("aria-pressed", "false")


def test_a_resumed_attempt_continues_from_its_checkpoint(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.losses([10, 20])
    run.checkpoint(20)
    run.losses([30, 40])
    page = open_run(visitor, run)
    wait_for_steps(page, [10, 20, 30, 40])

    run.lose()
    second = site.claim()
    assert second.job_id == run.job_id
    second.start(step=20)
    wait_for_steps(page, [10, 20])
    second.losses([30, 40, 50])

    wait_for_steps(page, [10, 20, 30, 40, 50])
    assert curve(page)["starts"] == [[2, 20]]
    expect(page.locator("#timeline")).to_contain_text("worker lost")
    page.reload()
    wait_for_steps(page, [10, 20, 30, 40, 50])
    assert curve(page)["starts"] == [[2, 20]]

    # Labels of attempts that begin close together would overlap, and become one.
    second.end("drained")
    for step in (21, 22, 50):
        again = site.claim()
        again.start(step=step)
        again.losses([step + 1, 55])
        if step < 50:
            again.end("drained")
    chart = page.locator("figure[data-metrics='train/loss']")
    expect(chart).to_have_attribute("data-starts", "attempts 2–4; attempt 5")
    again.end()


def test_the_values_under_the_cursor_are_read_out(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.losses([10, 20, 30])
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}")
    figure = page.locator("figure[data-metrics='train/loss']")
    expect(figure).to_have_attribute("data-points", "3")

    figure.locator(".u-over").hover(position={"x": 1, "y": 40})
    expect(figure.locator("figcaption")).to_contain_text("step 10")
    expect(figure.locator("figcaption")).to_contain_text("4.9")
    page.mouse.move(0, 0)
    figure.locator(".canvas").focus()
    page.keyboard.press("ArrowLeft")
    expect(figure.locator("figcaption")).to_contain_text("step 30")
    page.keyboard.press("ArrowLeft")
    expect(figure.locator("figcaption")).to_contain_text("step 20")
    expect(figure.locator(".canvas")).to_have_attribute("aria-label", "Loss: loss 4.8 at step 20")


def test_cancel_needs_two_clicks_and_cancels(visitor: Visitor, site: Site) -> None:
    run = site.running("to be cancelled")
    run.start()
    page = open_run(visitor, run)

    page.get_by_text("Cancel…").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Cancel this job")).to_be_hidden()
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator("#run-summary")).to_contain_text("cancelling: stopping the run…")
    expect(page.get_by_text("Cancel…")).to_have_count(0)
    run.end("cancelled")

    expect(page.locator("#run-summary .status.pill")).to_have_text("cancelled")
    assert site.status(run.job_id) == "cancelled"
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: "/jobs/" in url and run.job_id not in url)
    expect(page.locator("#run-summary")).to_contain_text("parent to be cancelled")
    again = page.url.rsplit("/", 1)[1]
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("queued")
    site.claim().end()
    assert site.status(again) == "succeeded"


def test_the_actions_of_a_job_are_few_and_the_others_in_a_menu_for_the_keyboard(visitor: Visitor, site: Site) -> None:
    run = site.running("has a menu")
    run.start()
    page = open_run(visitor, run)
    shown = page.locator("#actions :is(a, button, summary):visible")
    expect(shown).to_have_text(["Pause", "Clone…", "Cancel…", "More"])
    run.checkpoint(50)
    run.end()
    expect(shown).to_have_text(["Continue…", "Clone…", "More"])
    expect(page.locator("#run-summary .main:visible")).to_have_text(["Download weights"])
    more = page.locator("#more-actions > summary")
    more.press("Enter")
    verbs = ["Sweep… over this spec", "Share…", "Set as reference", "Archive", "Delete…"]
    expect(page.locator("#more-actions .panel :is(a, button)")).to_have_text(verbs)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Sweep…")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Sweep…")).to_be_hidden()
    expect(more).to_be_focused()
    more.click()
    page.get_by_role("button", name="Archive").click()
    expect(page.locator("#more-actions")).not_to_have_attribute("open", "")
    more.click()
    expect(page.get_by_role("button", name="Unarchive")).to_be_visible()


def test_without_scripts_the_menu_of_a_job_works(visitor: Visitor, site: Site) -> None:
    page = visitor.window(f"/jobs/{site.submit('without scripts')}", scripts=False)
    page.locator("#more-actions > summary").click()
    page.get_by_role("button", name="Set as reference").click()
    expect(page.locator("#run-summary")).to_contain_text("reference of the dataset")
    page.locator("#more-actions > summary").click()
    page.get_by_role("button", name="Unset reference").click()
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#run-summary .status.pill")).to_have_text("paused")
    expect(page.locator("#actions .main")).to_have_text("Resume")


def test_a_training_that_takes_much_longer_than_expected_says_so_on_its_page(visitor: Visitor, site: Site) -> None:
    run = site.running("takes long")
    run.start()
    run.report(run.progress(60) | {"eta_seconds": 90_000.0})
    page = open_run(visitor, run)
    expect(page.locator("#longer")).to_contain_text("much longer than the expected")
    run.report(run.progress(60) | {"eta_seconds": 1.0})
    expect(page.locator("#longer")).to_have_count(0)
    run.end("cancelled")


def test_a_refused_action_shows_the_reason(visitor: Visitor, site: Site) -> None:
    job_id = site.submit("ends behind the page's back")
    page = visitor.window(f"/jobs/{job_id}")
    page.route("**/live", lambda route: route.abort())  # the page keeps its old buttons
    site.claim().end()

    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#toast")).to_contain_text("cannot pause a job that is succeeded")
    visitor.forget_failures()  # the browser logs the refusal and the aborted request


def test_a_run_begins_with_its_answer(visitor: Visitor, site: Site) -> None:
    """The verdict grows live; diagnostics are folded, and each says what it means."""
    version = DatasetVersion(digest=DIGEST, class_counts={"test": [36] * 10})
    site.database.write(lambda session: session.merge(version))
    run = site.running()
    run.start()
    run.report({"type": "metrics", "step": 0, "values": {"eval/knn_top1": 0.5}})
    page = open_run(visitor, run)
    result = page.locator("#result")
    expect(result).to_contain_text("kNN accuracy50.0%")

    run.report({"type": "metrics", "step": 40, "values": {"eval/knn_top1": 0.875, "repr/std": 0.9}})
    run.checkpoint(50)
    headline = result.get_by_role("heading", level=2).first
    expect(headline).to_have_text("So far: 37.5 points above the untrained network, interval +31.1 to +43.5")
    expect(headline).to_have_class("open")
    expect(result).to_contain_text("load_backbone")
    result.get_by_text("Use on new images").click()
    expect(result.locator("#use-lines")).to_contain_text(f"wcl features {run.job_id[-12:]} FOLDER -o features.csv")
    expect(page.locator("figure[data-metrics='eval/knn_top1'] .foot")).to_contain_text("untrained 50.0%")
    weights = f"/v1/checkpoints/{site.checkpoints(run.job_id)[0].id}/download?kind=backbone"
    expect(result.get_by_role("link", name="Download weights")).to_have_attribute("href", weights)

    diagnostic = page.locator("#diagnostics figure[data-metrics='repr/std']")
    expect(diagnostic).to_be_hidden()
    page.get_by_text("Diagnostics", exact=True).click()
    expect(diagnostic).to_be_visible()
    expect(diagnostic).to_contain_text("Spread of features")
    expect(diagnostic).to_contain_text("0 in a collapse.")
    run.end()


def test_a_job_without_results_has_no_empty_sections(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.end("failed", "bad_data")
    page = visitor.window(f"/jobs/{run.job_id}")
    expect(page.get_by_role("heading", level=2)).to_have_text(["The data is invalid", "Timeline", "Spec"])
    sections = page.get_by_role("navigation", name="Sections")
    expect(sections.get_by_role("link")).to_have_text(["Timeline", "Spec"])


def test_a_waiting_job_shows_the_sections_of_a_run_once_it_starts(visitor: Visitor, site: Site) -> None:
    page = visitor.window(f"/jobs/{site.submit('waits')}")
    links = page.get_by_role("navigation", name="Sections").get_by_role("link")
    expect(links).to_have_text(["Timeline", "Spec"])
    run = site.claim()
    run.start()
    run.losses([1])
    expect(links).to_have_text(["Curves", "Weak labels", "Hardware", "Log", "Timeline", "Spec"])
    expect(page.locator("#charts figure")).to_be_visible()
    run.checkpoint(1)
    expect(page.locator("#checkpoints tbody tr")).to_have_count(1)
    expect(links.filter(has_text="Checkpoints")).to_be_visible()
    run.end()


def test_a_run_leads_to_its_twin_and_one_without_weak_labels_has_no_page_of_them(visitor: Visitor, site: Site) -> None:
    ours = site.submit("ours", seed=77)
    page = visitor.window(f"/jobs/{ours}")
    page.get_by_role("button", name="Train the SimCLR twin").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("ours-simclr")
    expect(page.locator("#twin")).to_contain_text("WCL twin ours")

    runs = [site.claim(), site.claim()]
    for run in runs:
        run.start()
        run.losses([1])
        run.checkpoint(1)
        run.end()
    twin = next(run.job_id for run in runs if run.job_id != ours)

    links = page.get_by_role("navigation", name="Sections").get_by_role("link")
    page.goto(f"/jobs/{twin}")
    expect(links).to_have_text(["Evaluations", "Curves", "Checkpoints", "Timeline", "Spec"])
    lines = page.locator("#loading-lines .code-copy")
    file = f"{site.checkpoints(twin)[0].id}-backbone.safetensors"
    expect(lines.locator("pre")).to_have_text(f"import wcl_core; network = wcl_core.load_backbone('{file}')")
    expect(lines.get_by_role("button")).to_have_attribute("data-copy", lines.locator("pre").inner_text())
    page.goto(f"/jobs/{ours}")
    expect(links.filter(has_text="Weak labels")).to_have_count(1)
    page.locator("#twin").get_by_role("link", name="Compare both").click()
    expect(page).to_have_url(f"{site.url}/compare?job={ours}&twin=true")


def test_a_continued_run_draws_the_curves_of_its_parent_before_its_own(visitor: Visitor, site: Site) -> None:
    parent = site.running("the parent")
    parent.start()
    parent.losses(range(1, 52))
    parent.checkpoint(50)
    parent.end()
    page = visitor.window(f"/jobs/{parent.job_id}")
    page.locator("#confirm-continue > summary").click()
    page.get_by_role("button", name="Continue training").click()
    page.wait_for_url(lambda url: parent.job_id not in url)
    site.worker = replace(site.worker, spec_versions=SPEC_VERSIONS)  # restarts need version 2
    run = site.claim()
    run.start(50)
    run.losses(range(51, 61))
    run.report(run.progress(120, total=200) | {"epoch": 12.0, "total_epochs": 20})
    page.reload()
    expect(page.locator("#run-summary progress")).to_have_attribute("value", "0.2000")
    expect(page.locator("#own-part")).to_contain_text(
        "The first 10 epochs are of the parent, and the bar leaves them out"
    )
    run.end()
    page.reload()
    expect(page.locator("#curves")).to_contain_text(
        "Lighter lines: the parent until step 50, which this job continues."
    )
    loss = page.locator("figure[data-metrics='train/loss']")
    expect(loss).to_have_attribute("data-earlier", "50")
    expect(loss).to_have_attribute("data-points", "10")
    page.get_by_label("X axis").select_option("time")  # on which the pause between both has no place
    loss.locator(".canvas").press("End")
    expect(loss).to_contain_text("4.4")


def test_downloads_are_the_registered_bytes(visitor: Visitor, site: Site, tmp_path: Path) -> None:
    run = site.running()
    run.start()
    page = open_run(visitor, run)
    digest = run.checkpoint(50, {"train/loss": 1.25, "eval/knn_top1": 0.5})

    row = page.locator("#checkpoints tbody tr")
    expect(row).to_contain_text(digest[:12])
    expect(row).to_contain_text("50.0%")
    with page.expect_download() as started:
        row.get_by_role("link", name="full checkpoint").click()
    started.value.save_as(tmp_path / "file")
    assert hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest() == digest
    run.end()


def test_the_log_follows_and_pauses(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.report({"type": "log", "level": "info", "message": "loaded"}, output=[f"line {n}" for n in range(100)])
    page = open_run(visitor, run)
    box = page.locator("#log-lines")
    is_at_end = "box => box.scrollHeight - box.clientHeight - box.scrollTop < 2"
    expect(box.locator(".line")).to_have_count(101)
    assert box.evaluate(is_at_end)

    run.report(output=["a late line"])
    expect(box).to_contain_text("a late line")
    assert box.evaluate(is_at_end)
    box.evaluate("box => { box.scrollTop = 0; }")
    expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "false")
    run.report(output=["a later line"])
    expect(box).to_contain_text("a later line")
    assert not box.evaluate(is_at_end)
    page.get_by_label("Source").select_option("run")
    expect(box.locator(".line:visible")).to_have_count(1)
    run.end()


def test_a_failed_job_shows_the_reason_and_the_remedy(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    run.report({"type": "metrics", "step": 5, "values": {"train/loss": None}})
    run.end("failed", "non_finite_loss", "the loss is nan after step 5")
    page = visitor.window(f"/jobs/{run.job_id}")

    failure = page.get_by_role("alert")
    expect(failure).to_contain_text("The loss is not finite")
    expect(failure).to_contain_text("A lower learning rate")
    expect(failure).to_contain_text("the loss is nan after step 5")
    failure.get_by_role("link", name="non finite loss").click()
    expect(page.locator("#non_finite_loss")).to_contain_text("A lower learning rate")
    page.go_back()
    expect(page.locator("figure[data-metrics='train/loss']")).to_contain_text("not finite")


def test_an_evaluation_appears_on_both_jobs(visitor: Visitor, site: Site) -> None:
    run = site.running("measured run")
    run.start()
    run.checkpoint(50)
    run.end()
    evaluation = site.submit_evaluation(site.checkpoints(run.job_id)[0].id, "measuring")
    measuring = site.claim()
    page = visitor.window(f"/jobs/{evaluation}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")

    measuring.start()
    measuring.evaluation("knn", 0.97214, k=20, temperature=0.07)
    measuring.evaluation("few_labels", 0.8312, 0.0113, labels_per_class=1, draws=20)
    measuring.end()

    table = page.locator("#evaluations")
    expect(table).to_contain_text("97.2%")
    expect(table).to_contain_text("83.1% ± 1.1%")
    expect(page.locator("#curves")).to_have_count(0)
    table.get_by_role("link", name="measured run").first.click()
    page.wait_for_url(f"**/jobs/{run.job_id}")
    expect(page.locator("#evaluations")).to_contain_text("step 50")
    expect(page.locator("#evaluations")).to_contain_text("97.2%")


def test_the_reason_for_waiting_is_shown(visitor: Visitor, site: Site) -> None:
    run = site.running("first")
    job_id = site.submit("second")
    page = visitor.window(f"/jobs/{job_id}")

    expect(page.locator("#run-summary")).to_contain_text("every worker that fits is busy")
    expect(page.locator("#run-summary")).to_contain_text("Position 1 in the queue of pool default")
    run.end()
    site.claim().end()
    expect(page.locator("#run-summary .status.pill")).to_have_text("succeeded")


def test_a_long_finished_run_loads_few_points(visitor: Visitor, site: Site) -> None:
    run = site.running()
    run.start()
    for first in range(0, 20_000, 2_000):
        run.losses(range(first + 1, first + 2_001))
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}")

    eventually(lambda: len(curve(page)["steps"]) > 50, "the curve")
    steps = curve(page)["steps"]
    assert len(steps) <= 1000
    assert steps == sorted(set(steps))
