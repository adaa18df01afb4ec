"""The rule of collapse: it recognises real collapses, ignores healthy runs, and ends a run according to the spec."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.wcl_core import small
from tests.wcl_core.test_attempt import DIGITS, write_run
from wcl_core import checkpoint
from wcl_core.attempt import run_attempt
from wcl_core.data import ImageData, Split
from wcl_core.reporter import MemoryReporter
from wcl_core.training import pretrain as pretrain_module
from wcl_core.training import run_metrics
from wcl_core.training.collapse import CollapseError, CollapseWatch, NonFiniteLossError, collapse_signs
from wcl_core.training.pretrain import pretrain

torch.set_num_threads(1)

HEALTHY = {"embedding/std": 0.3, "embedding/rankme": 9.0, "weak/component_share": 0.25}
SIGN = HEALTHY | {"embedding/std": 0.001}


def test_three_signs_in_a_row_are_a_collapse() -> None:
    watch = CollapseWatch()
    texts = [watch.check(values) for values in (SIGN, SIGN, HEALTHY, SIGN, SIGN, SIGN, SIGN)]
    assert [text is not None for text in texts] == [False] * 5 + [True] * 2
    assert "embedding/std = 0.001 is below 0.02" in str(texts[5])


@pytest.mark.parametrize("name", list(HEALTHY))
def test_each_bound_is_a_sign(name: str) -> None:
    assert collapse_signs(HEALTHY) == []
    assert len(collapse_signs(HEALTHY | {name: 0.01})) == 1
    assert collapse_signs({key: value for key, value in HEALTHY.items() if key != name}) == []
    assert collapse_signs(HEALTHY | {name: math.nan}) == []


def constant() -> ImageData:
    """Return a dataset that repeats one image."""
    data = small.few_digits()
    images = data.train.images[:1].expand(270, -1, -1, -1).contiguous()
    return ImageData(data.name, Split(images, data.train.labels, "0" * 64), data.test, data.classes, data.digest)


ABSURD = {"name": "sgd", "learning_rate": 1.0, "scaling": "none", "weight_decay": 1.0}
RUN: dict[str, Any] = {"epochs": 6, "knn_every_epochs": 0, "log_every_steps": 100}


def warnings(reporter: MemoryReporter) -> list[str]:
    return [record["reason"] for record in reporter.of("warning")]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wcl", "simclr"])
@pytest.mark.parametrize("cause", ["weight decay", "constant images"])
def test_a_real_collapse_is_recognised_once(tmp_path: Path, cause: str, method: str) -> None:
    spec = small.spec(**RUN, method=method, **({"optimizer": ABSURD} if cause == "weight decay" else {}))
    data = constant() if cause == "constant images" else small.few_digits()
    reporter = MemoryReporter()

    assert pretrain(spec, reporter, dataset=data, output_dir=tmp_path) == "succeeded"

    assert warnings(reporter) == ["collapse"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wcl", "simclr"])
def test_a_healthy_run_shows_no_sign(tmp_path: Path, method: str) -> None:
    reporter = MemoryReporter()
    pretrain(small.spec(**RUN, method=method), reporter, dataset=small.few_digits(), output_dir=tmp_path)
    looks = [record["values"] for record in reporter.of("metrics") if "embedding/std" in record["values"]]
    assert len(looks) == 6
    assert [sign for values in looks for sign in collapse_signs(values)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("action", "outcome"), [("pause", "paused"), ("fail", "failed")])
def test_a_collapse_ends_the_run_according_to_the_spec(tmp_path: Path, action: str, outcome: str) -> None:
    spec = small.spec(**RUN, on_collapse=action, checkpoints={"every_epochs": 100})
    reporter = MemoryReporter()

    with pytest.raises(CollapseError, match="embedding/std") as caught:
        pretrain(spec, reporter, dataset=constant(), output_dir=tmp_path)

    assert caught.value.outcome == outcome
    # The third check is after the third epoch, of four steps; a pause writes a checkpoint.
    assert [record["step"] for record in reporter.of("checkpoint")] == ([12] if action == "pause" else [])


def attempts(folder: Path, action: str) -> list[MemoryReporter]:
    """Run on constant images, drained after every epoch, until the run ends by itself."""
    spec = small.spec(**RUN, on_collapse=action)
    reporters: list[MemoryReporter] = []
    resume: Path | None = None
    while not reporters or reporters[-1].of("checkpoint")[-1]["step"] < 24:
        reporter = MemoryReporter(lambda records: "drain" if any(r["type"] == "metrics" for r in records) else None)
        reporters.append(reporter)
        here = folder / str(len(reporters))
        with contextlib.suppress(CollapseError):
            pretrain(spec, reporter, dataset=constant(), output_dir=here, resume=resume)
        resume = sorted((here / "checkpoints").glob("*"))[-1]
    return reporters


@pytest.mark.slow
def test_the_count_of_signs_continues_after_a_resume(tmp_path: Path) -> None:
    reporters = attempts(tmp_path, "warn")

    assert len(reporters) == 6, "an epoch each"
    assert [warnings(reporter) for reporter in reporters] == [[], [], ["collapse"], [], [], []]


@pytest.mark.slow
def test_a_job_that_is_resumed_after_a_collapse_gets_three_checks_again(tmp_path: Path) -> None:
    reporters = attempts(tmp_path, "pause")

    assert [warnings(reporter) for reporter in reporters] == [[], [], ["collapse"], [], [], ["collapse"]]


@pytest.mark.slow
@pytest.mark.parametrize(("action", "outcome"), [("pause", "paused"), ("fail", "failed")])
@pytest.mark.parametrize("reason", ["collapse", "non_finite_loss"])
def test_an_attempt_ends_with_outcome_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, outcome: str, reason: str
) -> None:
    changes: dict[str, Any] = {"on_collapse": action}
    if reason == "non_finite_loss":
        changes = {"on_non_finite": action}
        means = run_metrics.Window.means
        monkeypatch.setattr(run_metrics.Window, "means", lambda window: [math.nan for _ in means(window)])
    else:
        monkeypatch.setattr(CollapseWatch, "check", lambda *_: "the representation has collapsed")
    write_run(tmp_path, spec=small.fields(**changes), dataset=DIGITS)

    assert run_attempt(tmp_path, None) == 0

    last = json.loads((tmp_path / "report.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["outcome"], last["reason"]) == ("end", outcome, reason)


def test_weights_that_are_not_finite_pause_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = checkpoint.NonFiniteStateError("not finite")
    monkeypatch.setattr(pretrain_module._Run, "_log", lambda *_: None)

    def finish(_: object) -> None:
        if started:
            raise error

    started: list[bool] = []
    monkeypatch.setattr(checkpoint.BackgroundWriter, "start", lambda *_: started.append(True))
    monkeypatch.setattr(checkpoint.BackgroundWriter, "finish", finish)
    spec = small.spec(**RUN, on_non_finite="pause")
    with pytest.raises(NonFiniteLossError) as caught:
        pretrain(spec, MemoryReporter(), dataset=small.few_digits(), output_dir=tmp_path)
    assert caught.value.outcome == "paused"
