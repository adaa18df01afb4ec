"""A small part of `./run kills`, and a check that it notices a difference."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kills.attempts import Left, differences
from tests.kills.moments import KINDS, plan

ROOT = Path(__file__).parents[2]
VARIANTS = ("WCL", "queue, momentum encoder, multi-crop")


@pytest.mark.timeout(600)  # on a machine whose cores others share; by itself it takes some 40 s
def test_runs_killed_again_and_again_end_with_the_bytes_of_undisturbed_ones() -> None:
    """WCL, and WCL with queue, momentum encoder and multi-crop on; `./run kills` does 200 over more of them.

    The seed is one whose runs die four times each, at eight kinds of moments, and resume in their middle.
    """
    command = [sys.executable, "-m", "tests.kills", "--kills", "8", "--seed", "2860", "--variants", *VARIANTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kills by SIGKILL in 2 runs" in done.stdout
    for name in VARIANTS:
        assert re.search(rf"^\| {name} \| 1 \| 4 \| \d+ \| yes \|$", done.stdout, re.MULTILINE)
    resumed = [re.findall(r"resumed at (\d+)", line) for line in done.stderr.splitlines() if "resumed at" in line]
    assert all(set(steps) & {"5", "10", "15"} for steps in resumed), "nothing was loaded that could have been lost"
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


def test_equal_attempts_have_no_differences() -> None:
    assert differences([WHOLE], WHOLE) == []
    assert differences([FIRST, LAST], WHOLE) == []


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
        ([FIRST, replace(LAST, records=[*LAST.records, {"type": "warning", "message": "changed"}])], "changed"),
    ],
)
def test_each_difference_is_reported(lives: list[Left], words: str) -> None:
    result = differences(lives, WHOLE)
    assert result
    assert any(words in text for text in result)
