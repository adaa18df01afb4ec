"""A small part of `./run kills`, and a check that it notices a difference."""

from __future__ import annotations

import random
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import parallel
from tests.kills.attempts import Left, differences
from tests.kills.moments import KINDS, plan
from tests.kills.variants import VARIANTS as VARIANTS_OF_RUNS

ROOT = Path(__file__).parents[2]
VARIANTS = ("WCL", "queue, momentum encoder, multi-crop")


@pytest.mark.timeout(600)  # on a machine whose cores others share; by itself it takes some 40 s
def test_runs_killed_again_and_again_end_with_the_bytes_of_undisturbed_ones() -> None:
    """WCL, and WCL with queue, momentum encoder and multi-crop on; `./run kills` does 200 over more of them.

    The seed is one whose runs stop four times each, at eight kinds of moments, once of them in order, and resume in
    their middle, within a log window.
    """
    command = [parallel.python(), "-m", "tests.kills", "--kills", "8", "--seed", "1152", "--variants", *VARIANTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 stops in 2 runs, 2 of them orderly" in done.stdout
    for name in VARIANTS:
        assert re.search(rf"^\| {name} \| 1 \| 4 \| \d+ \| yes \|$", done.stdout, re.MULTILINE)
    resumed = [re.findall(r"resumed at (\d+)", line) for line in done.stderr.splitlines() if "resumed at" in line]
    assert all(set(steps) & {"5", "10", "15"} for steps in resumed), "nothing was loaded that could have been lost"
    intervals = [VARIANTS_OF_RUNS[name]["log_every_steps"] for name in VARIANTS]
    for interval, steps in zip(intervals, resumed, strict=True):
        assert any(int(step) % interval for step in steps), "no run resumed within a log window"
    assert len(resumed) == len(VARIANTS)


def test_a_plan_is_a_function_of_its_seed_and_in_the_order_of_a_run() -> None:
    for seed in range(50):
        moments = plan(6, 2, random.Random(seed))
        assert moments == plan(6, 2, random.Random(seed))
        assert moments == sorted(moments, key=lambda moment: (moment.step, KINDS.index(moment.kind)))
        assert len({moment.kind for moment in moments}) == 6


def metrics(*losses: float, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"type": "metrics", "step": start + number, "values": {"train/loss": loss}}
        for number, loss in enumerate(losses, start=1)
    ]


WHOLE = Left(metrics(0.5, 0.25, 0.125, 0.0625), {"step-2": "a", "step-4": "b"}, 0, Path("step-4"), 4)
FIRST = Left(metrics(0.5, 0.25, 0.125), {"step-2": "a"}, 1, Path("step-2"), 2)
LAST = Left(metrics(0.125, 0.0625, start=2), {"step-4": "b"}, 0, Path("step-4"), 4)


DRAIN = {"type": "end", "outcome": "drained"}


def test_equal_attempts_have_no_differences() -> None:
    assert differences([WHOLE], WHOLE) == []
    assert differences([FIRST, LAST], WHOLE) == []
    drained = Left([*metrics(0.5, 0.25, 0.125), DRAIN], {"step-2": "a", "step-3": "c"}, 0, Path("step-3"), 3)
    assert differences([drained, replace(LAST, records=metrics(0.0625, start=3))], WHOLE) == []


@pytest.mark.parametrize(
    ("lives", "words"),
    [
        ([FIRST, replace(LAST, files={"step-4": "c"})], "step-4 has other bytes"),
        ([replace(FIRST, files={"step-1": "a"}), LAST], "step-1 has other bytes"),
        ([FIRST, replace(LAST, files={})], "no last checkpoint"),
        ([FIRST, replace(LAST, records=metrics(0.125, 0.0626, start=2))], "train/loss at step 4 is 0.0626"),
        ([replace(FIRST, records=metrics(0.5, 0.25, 0.126)), LAST], "train/loss at step 3 is 0.126"),
        ([FIRST, replace(LAST, records=metrics(0.0625, start=3))], "steps that survived"),
        ([replace(FIRST, records=metrics(0.5)), LAST], "steps that survived"),
        ([replace(FIRST, records=[*FIRST.records, DRAIN], files={"step-4": "c"}), LAST], "step-4 has other bytes"),
        ([FIRST, replace(LAST, records=[*LAST.records, {"type": "warning", "message": "changed"}])], "changed"),
    ],
)
def test_each_difference_is_reported(lives: list[Left], words: str) -> None:
    result = differences(lives, WHOLE)
    assert result
    assert any(words in text for text in result)
