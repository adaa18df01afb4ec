"""A run that is stopped many times, and the undisturbed run that it has to equal."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.kills.attempts import Attempt, Left, differences
from tests.kills.moments import ANY_TIME, Moment, count_calls, plan, set_trap
from tests.kills.variants import STEPS, fields

_FEWEST_KILLS, _MOST_KILLS = 3, 7
_LOOK_SECONDS = 0.002


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        variant: its name.
        whole: its records and files.
        calls: how many calls each of its steps takes, for each rank.
        step_seconds: how long a step takes, about.
    """

    variant: str
    whole: Left
    calls: list[list[int]]
    step_seconds: float

    @staticmethod
    def of(variant: str, folder: Path) -> Reference:
        """Run the variant, and once more to count its calls; the second run has to equal the first.

        Raises:
            RuntimeError: when it fails or two undisturbed runs differ, so that nothing can be compared with them.
        """
        began_at = time.monotonic()
        whole = _undisturbed(Attempt(folder / "undisturbed", fields(variant), None))
        step_seconds = (time.monotonic() - began_at) / STEPS
        counted = Attempt(folder / "counted", fields(variant), None, lambda rank: count_calls(folder / f"calls-{rank}"))
        if problems := differences([_undisturbed(counted)], whole):
            raise RuntimeError(f"two undisturbed runs of {variant} differ: {problems}")
        calls = [[int(count) for count in path.read_text().split()] for path in sorted(folder.glob("calls-*"))]
        return Reference(variant, whole, calls, step_seconds)


def _undisturbed(attempt: Attempt) -> Left:
    codes, left = attempt.wait(), Left.by(attempt)
    if any(codes) or left.outcome != "succeeded":
        raise RuntimeError(f"an undisturbed attempt failed, {codes}: {attempt.output()}")
    return left


@dataclass
class KilledRun:
    """A run that was stopped several times.

    Attributes:
        number: its place; together with the seed it decides all its moments.
        variant: its name.
        stops: the moments at which it was killed or asked to stop.
        resumed_at: the step of the checkpoint that was resumed from after each of them; 0 without one.
        missed: a moment from outside that it outran, or none.
        num_parts: files that kills left half written.
        points_again: points of the loss that were reported more than once.
        differences: from the undisturbed run; empty if all is well.
    """

    number: int
    variant: str
    stops: list[Moment] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    missed: list[Moment] = field(default_factory=list)
    num_parts: int = 0
    points_again: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        moments = "; ".join(
            f"{moment}, then resumed at {step}" for moment, step in zip(self.stops, self.resumed_at, strict=True)
        )
        verdict = "equal" if not self.differences else "DIFFERENT: " + "; ".join(self.differences[:5])
        missed = f"; missed {self.missed[0]}" if self.missed else ""
        return f"run {self.number}, {self.variant}, {verdict}\n    stopped {moments}{missed}"


def killed_run(number: int, reference: Reference, seed: int, most: int, folder: Path) -> KilledRun:
    """Stop a run at most `most` times, let it end, and compare; the folder stays only if something differs."""
    draw = random.Random(f"{seed}:{number}")
    spec = fields(reference.variant)
    moments = plan(draw.randint(_FEWEST_KILLS, _MOST_KILLS), spec.get("processes", 1), draw)[:most]
    run, lives, resume = KilledRun(number, reference.variant), [], None
    for place, moment in enumerate((*moments, None)):
        attempt = Attempt(folder / str(place), spec, resume, _trap(moment, reference))
        if moment is not None and moment.kind == ANY_TIME:
            _kill_from_outside(attempt, moment, reference.step_seconds)
        codes, left = attempt.wait(), Left.by(attempt)
        lives.append(left)
        resume = left.checkpoint or resume
        if moment is not None and (-signal.SIGKILL in codes or left.outcome in ("drained", "paused")):
            run.stops.append(moment)
            run.resumed_at.append(max(life.step for life in lives))
            continue
        if any(codes) or left.outcome != "succeeded":
            run.differences.append(f"attempt {place} failed, {codes}: {attempt.output()}")
        run.missed += [moment] if moment else []
        break
    run.num_parts = sum(left.num_parts for left in lives)
    run.points_again = sum(left.num_points for left in lives) - reference.whole.num_points
    run.differences += differences(lives, reference.whole)
    if not run.differences:
        shutil.rmtree(folder)
    return run


def _trap(moment: Moment | None, reference: Reference) -> Callable[[int], None]:
    def prepare(rank: int) -> None:
        if moment is not None and moment.kind != ANY_TIME and moment.rank == rank:
            set_trap(moment, reference.calls[rank])

    return prepare


def _kill_from_outside(attempt: Attempt, moment: Moment, step_seconds: float) -> None:
    """Kill the attempt at about the moment's step, counted from the step that it has reported last."""
    last, since = -1, time.monotonic()
    while not attempt.is_over():
        if (step := attempt.last_step()) != last:
            last, since = step, time.monotonic()
        remaining = moment.step - 1 - last + moment.place
        if last >= 0 and time.monotonic() - since >= remaining * step_seconds:
            break
        time.sleep(_LOOK_SECONDS)
    attempt.kill()
