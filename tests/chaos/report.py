"""The results: a line of JSON for each part, so that an interrupted run can continue, and a report in Markdown."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.stage import SCALE, SCALED

_COLUMNS = (
    "database",
    "rounds",
    "jobs",
    "of them real trainings",
    "ended as",
    "attempts",
    "lost",
    "of them without a fault of their worker",
    "faults",
    "repeated requests",
    "restarts",
)


class Results:
    """The finished parts of one seed.

    Args:
        folder: where they are kept.
        seed: whose.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.page = folder / f"chaos-{seed}.md"
        self._path, self._seed = folder / f"chaos-{seed}.jsonl", seed
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._parts: dict[str, Any] = {part["part"]: part for part in map(json.loads, lines)}

    def has(self, part: str) -> bool:
        return part in self._parts

    def add(self, part: str, **facts: Any) -> None:
        """Store one part and rewrite the report."""
        self._parts[part] = {"part": part, **facts}
        with self._path.open("a") as file:
            file.write(json.dumps(self._parts[part]) + "\n")
        self.page.write_text(self.text())

    def problems(self) -> list[str]:
        return [f"{name}: {problem}" for name, part in self._parts.items() for problem in part.get("problems") or ()]

    def text(self) -> str:
        """Return the report."""
        cpus, memory = psutil.cpu_count(), psutil.virtual_memory().total >> 30
        lines = [
            f"# Chaos, seed {self._seed}",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {_version()}, Python {platform.python_version()}, {cpus} CPU cores,"
            f" {memory} GiB.",
            f"Leases, looks and drains are scaled by {SCALE:g}: "
            + ", ".join(f"{name} = {value}" for name, value in SCALED.items())
            + ".",
            "",
            *self._storms(),
            *self._gpus(),
            *self._sweep(),
            *self._cells(),
            *self._detections(),
            "## Broken promises",
            "",
            *([f"- {problem}" for problem in self.problems()] or ["None."]),
        ]
        return "\n".join(lines) + "\n"

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [part for name, part in self._parts.items() if name.startswith(f"{kind}/")]

    def _storms(self) -> Iterator[str]:
        storms = self._of("storm")
        if not storms:
            return
        yield "## Storms"
        yield ""
        yield f"| {' | '.join(_COLUMNS)} |"
        yield f"|{'---|' * len(_COLUMNS)}"
        for database in sorted({storm["database"] for storm in storms}):
            own = [storm for storm in storms if storm["database"] == database]
            jobs = sum((Counter(storm["jobs"]) for storm in own), Counter())
            ends = ", ".join(f"{count} {status}" for status, count in jobs.most_common())
            trainings = sum(storm.get("trainings", 0) for storm in own)
            sums = {name: sum(storm[name] for storm in own) for name in ("attempts", "reaped", "retries", "restarts")}
            faults = sum(sum(storm["faults"].values()) for storm in own)
            innocent = sum(len(storm["innocent"]) for storm in own)
            yield (
                f"| {database} | {len(own)} | {sum(jobs.values())} | {trainings} | {ends} | {sums['attempts']} |"
                f" {sums['reaped']} | {innocent} | {faults} | {sums['retries']} | {sums['restarts']} |"
            )
        faults = sum((Counter(storm["faults"]) for storm in storms), Counter())
        yield ""
        yield f"{sum(faults.values())} faults of {len(faults)} kinds: " + ", ".join(
            f"{kind} {count}" for kind, count in faults.most_common()
        )
        yield ""

    def _gpus(self) -> Iterator[str]:
        rounds = self._of("gpus")
        if not rounds:
            return
        yield "## Two machines with stand-in devices"
        yield ""
        yield "| database | jobs | attempts | on both machines | most at once | preempted | kills | seconds |"
        yield "|---|---|---|---|---|---|---|---|"
        for each in rounds:
            kills = ", ".join(f"{kind} {count}" for kind, count in sorted(each["kills"].items()))
            counts = f"{each['attempts']} | {each.get('on_several', 0)} | {each['most_at_once']} | {each['preempted']}"
            yield f"| {each['database']} | {sum(each['jobs'].values())} | {counts} | {kills} | {each['seconds']:g} |"
        yield ""

    def _sweep(self) -> Iterator[str]:
        tries = self._of("sweep")
        if not tries:
            return
        yield "## Failpoints"
        yield ""
        yield "| database | action | places | right | wrong | not passed again |"
        yield "|---|---|---|---|---|---|"
        for database, action in sorted({(each["database"], each["action"]) for each in tries}):
            own = [each for each in tries if (each["database"], each["action"]) == (database, action)]
            missed = sum(each["problems"] is None for each in own)
            wrong = sum(bool(each["problems"]) for each in own)
            yield f"| {database} | {action} | {len(own)} | {len(own) - wrong - missed} | {wrong} | {missed} |"
        yield ""

    def _cells(self) -> Iterator[str]:
        kinds = {"cell": "with all constants scaled", "real-cell": "at the real constants"}
        result = {how: cells for kind, how in kinds.items() if (cells := self._of(kind))}
        if not result:
            return
        yield "## Downtime cells"
        yield ""
        for how, cells in result.items():
            right = sum(not cell["problems"] for cell in cells)
            yield f"- {right} of {len(cells)} cells right {how}"
        yield ""
        yield "In a cell something is away for 0 to 300 s in a state of a job."
        yield ""

    def _detections(self) -> Iterator[str]:
        result = self._of("detection")
        if not result:
            return
        yield "## A dead worker is noticed"
        yield ""
        yield "| lease | deaths | median | 99th percentile | goal |"
        yield "|---|---|---|---|---|"
        for lease in sorted({part["lease"] for part in result}):
            seconds = sorted(value for part in result if part["lease"] == lease for value in part["seconds"])
            last = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
            goal = lease * 70 / 60
            yield f"| {lease:g} s | {len(seconds)} | {seconds[len(seconds) // 2]:.2f} s | {last:.2f} s | {goal:.2f} s |"
        yield ""


def _version() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit"
