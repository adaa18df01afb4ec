"""The moments at which a run is stopped, and the trap that stops it there: by SIGKILL, or by a request.

A step is some thousand calls of Python and of C functions.  A trap sits in the training process, follows these calls as
a profiler does and sends SIGKILL to its own process at the one that was drawn; the code under test is as it is.  Only
ANY_TIME comes from outside, at any point of the process: in a matrix product, in a system call, on any thread.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.kills.variants import STEPS, STEPS_PER_EPOCH, WARM_UP_STEPS
from wcl_core import attempt, checkpoint, reporter
from wcl_core.protocol import CheckpointRecord, Record, Request
from wcl_core.training import pretrain

ANY_TIME = "any time, from outside"
FIRST_STEPS = "in one of the first two steps"
WARM_UP = "in the warm-up"
EPOCH_EDGE = "at the edge of an epoch"
LAST_STEP = "from the last step to the end"
PART_FILE = "while a checkpoint is written"
BEFORE_RENAME = "checkpoint written, not renamed"
BEFORE_REPORT = "checkpoint renamed, not reported"
REPORTED = "checkpoint just reported"
DRAINED = "drained"
PAUSED = "paused"
# In the order in which a run passes them at equal steps.
KINDS = (
    ANY_TIME,
    FIRST_STEPS,
    WARM_UP,
    EPOCH_EDGE,
    LAST_STEP,
    PART_FILE,
    BEFORE_RENAME,
    BEFORE_REPORT,
    REPORTED,
    DRAINED,
    PAUSED,
)
REQUESTS: dict[str, Request] = {DRAINED: "drain", PAUSED: "pause"}  # of the kinds that are no kills
_OF_CHECKPOINTS = (PART_FILE, BEFORE_RENAME, BEFORE_REPORT, REPORTED)

_EDGES = tuple(range(STEPS_PER_EPOCH, STEPS, STEPS_PER_EPOCH))
_WITHIN = [step for step in range(1, STEPS) if step % STEPS_PER_EPOCH]
# The steps that a moment is drawn from. An edge is an epoch's last step with the measurements after it, or the next.
# Orderly stops have steps of their own, because the run resumes after the step and never stops there again.
_STEPS: dict[str, tuple[int, ...]] = {
    ANY_TIME: tuple(range(1, STEPS - 1)),
    FIRST_STEPS: (1, 2),
    WARM_UP: tuple(range(3, WARM_UP_STEPS + 1)),
    EPOCH_EDGE: tuple(edge + after for edge in _EDGES for after in (0, 1)),
    LAST_STEP: (STEPS,),
    DRAINED: tuple(_WITHIN[::2]),
    PAUSED: tuple(_WITHIN[1::2]),
} | dict.fromkeys(_OF_CHECKPOINTS, (*_EDGES, STEPS))


@dataclass(frozen=True)
class Moment:
    """The moment at which a run is stopped.

    Attributes:
        kind: one of `KINDS`.
        step: from 1; the step that is being taken, or whose checkpoint is being written.
        place: where within it, in [0, 1).
        rank: whose process is killed; the first one receives requests.
    """

    kind: str
    step: int
    place: float
    rank: int

    def __str__(self) -> str:
        return f"{self.kind}, step {self.step} + {self.place:.3f}, rank {self.rank}"


def plan(count: int, num_ranks: int, draw: random.Random) -> list[Moment]:
    """Return moments of different kinds, in an order in which one run can pass them all.

    A run that is killed at a step resumes from before it, except after a reported checkpoint; that kind comes last,
    with orderly stops.
    """
    moments = [
        Moment(
            kind,
            draw.choice(_STEPS[kind]),
            draw.random(),
            0 if kind in (*_OF_CHECKPOINTS, *REQUESTS) else draw.randrange(num_ranks),
        )
        for kind in draw.sample(KINDS, count)
    ]
    return sorted(moments, key=lambda moment: (moment.step, KINDS.index(moment.kind)))


# --- in the training process ------------------------------------------------------------------------------------------

Look = Callable[[FrameType, str, Any], bool]

_STEP = pretrain._Run._train_step.__code__
_WRITE = checkpoint._write.__code__
_REPORT = reporter.Reporter.checkpoint.__code__
_EMIT = reporter.SpoolReporter.emit.__code__
_END = reporter.Reporter.end.__code__
_CALLS_AFTER_A_REPORT = 50
# The calls below `_write` while the partial file exists: they write the header and the body, and sync them.
_CALLS_OF_WRITING = ("write", "update", "write", "update", "flush", "fsync")


def set_trap(moment: Moment, calls: list[int]) -> None:
    """Kill this process at the moment, or request its stop; of any kind but ANY_TIME.

    Args:
        moment: when.
        calls: how many calls each step takes on this rank, from `count_calls`.
    """
    step = moment.step
    if moment.kind in REQUESTS:
        _request_after(step, REQUESTS[moment.kind])
    elif moment.kind == PART_FILE:
        _follow_writer(_while_written(step, int(moment.place * len(_CALLS_OF_WRITING))))
    elif moment.kind == BEFORE_RENAME:
        _follow_writer(_at_rename(step, "c_call"))
    elif moment.kind == BEFORE_REPORT and moment.place < 0.5:
        _follow_writer(_at_rename(step, "c_return"))
    elif moment.kind == BEFORE_REPORT:
        _follow_loop(_after(_REPORT, "call", lambda names: names["step"] == step, 0))
    elif moment.kind == REPORTED:
        _follow_loop(
            _after(_EMIT, "return", lambda names: _is_checkpoint(names["record"], step), int(moment.place * 50))
        )
    else:
        _follow_loop(
            _after(_STEP, "call", lambda names: names["self"].step == step - 1, int(moment.place * calls[step - 1]))
        )


def _request_after(step: int, request: Request) -> None:
    """Let the control pipe hold the request from the end of the step on."""
    train_step, requested = pretrain._Run._train_step, list[Request]()

    def train(run: pretrain._Run, *arguments: Any) -> None:
        train_step(run, *arguments)
        if run.step == step:
            requested.append(request)

    pretrain._Run._train_step = train  # type: ignore[method-assign]
    attempt.Control.request = lambda _: requested[0] if requested else None  # type: ignore[method-assign]


def _follow_loop(look: Look) -> None:
    sys.setprofile(_killing(look))


def _follow_writer(look: Look) -> None:
    threading.setprofile(_killing(look))  # of threads that start from now on


def _killing(look: Look) -> Callable[[FrameType, str, Any], None]:
    def follow(frame: FrameType, event: str, argument: Any) -> None:
        if look(frame, event, argument):
            os.kill(os.getpid(), signal.SIGKILL)

    return follow


def _after(code: CodeType, event: str, is_it: Callable[[dict[str, Any]], bool], count: int) -> Look:
    """Return a look that is true a number of events after an event of a function with the right variables."""
    remaining: int | None = None

    def look(frame: FrameType, what: str, _: Any) -> bool:
        nonlocal remaining
        if remaining is not None:
            remaining -= 1
        elif frame.f_code is code and what == event and is_it(frame.f_locals):
            remaining = count
        return remaining is not None and remaining <= 0

    return look


def _is_checkpoint(record: Record, step: int) -> bool:
    return isinstance(record, CheckpointRecord) and record.step == step


def _while_written(step: int, count: int) -> Look:
    """Return a look that is true before call number `count` of `_CALLS_OF_WRITING`."""
    remaining = count

    def look(frame: FrameType, what: str, argument: Any) -> bool:
        nonlocal remaining
        if what == "c_call" and argument.__name__ in _CALLS_OF_WRITING and _is_writing(frame, step):
            remaining -= 1
        return remaining < 0

    return look


def _at_rename(step: int, event: str) -> Look:
    """Return a look that is true before or after the rename itself, which `Path.replace` calls."""

    def look(frame: FrameType, what: str, argument: Any) -> bool:
        return what == event and argument is os.replace and _is_writing(frame, step)

    return look


def _is_writing(frame: FrameType | None, step: int) -> bool:
    """Return whether the frame is below the writing of the step's checkpoint."""
    while frame is not None and frame.f_code is not _WRITE:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals["path"].stem == f"step-{step:08d}")


def count_calls(path: Path) -> None:
    """Count the calls of each step in this process's loop, into a file, one number a line.

    A step lasts until the next one; the last step lasts until the `end` record.
    """
    calls: list[int] = []

    def follow(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is _STEP:
            calls.append(0)
        if calls:
            calls[-1] += 1
        if event == "return" and frame.f_code is _END:
            path.write_text("\n".join(map(str, calls)))

    sys.setprofile(follow)
