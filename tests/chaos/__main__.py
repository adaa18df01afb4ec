"""`./run chaos`: storms, two machines with stand-in devices, the failpoint sweep, the downtime cells and the
detection of dead workers, for one seed.

Finished parts are stored beside the report, so the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.chaos import cells, gpus
from tests.chaos.detection import seconds_until_noticed
from tests.chaos.report import Results
from tests.chaos.stage import REAL, SCALED, Theatre, theatre
from tests.chaos.storm import Size, Storm
from tests.chaos.sweep import ACTIONS, Sweep

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# The number of faults that a job survives is tested elsewhere.
_UNBREAKABLE = {"WCL_MAX_FAILURES": "1000000"}
_DEATHS = 10
_PARTS = ("storm", "gpus", "sweep", "cells", "detection")
_SWEEPS = {"postgres": ("postgres", False), "sqlite": ("sqlite", False), "training": ("sqlite", True)}
_TRAININGS_SHARE = 0.01
_OF_KIND = {"postgres": Size(), "sqlite": Size(num_workers=3, num_servers=1, num_hands=2)}


def main() -> int:
    """Return 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="./run chaos", description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], help=f"some of {', '.join(_PARTS)}; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=20_000, help="on PostgreSQL")
    parser.add_argument("--sqlite-jobs", type=int, default=5_000)
    parser.add_argument("--round", type=int, default=500, help="jobs of a round, which has a fresh service")
    parser.add_argument("--sweeps", nargs="+", choices=_SWEEPS, default=list(_SWEEPS), help="of the failpoints")
    parser.add_argument("--side-by-side", type=int, default=6, help="cells at a time")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"expected parts of {', '.join(_PARTS)}, got {', '.join(sorted(unknown))}")
    results = Results(options.results, options.seed)
    with tempfile.TemporaryDirectory(prefix="wcl-chaos-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run under another account
        with theatre(Path(folder)) as house:
            for part in options.parts or _PARTS:
                _DOES[part](house, results, options)
    print(results.text())
    return 1 if results.problems() else 0


def _storm(house: Theatre, results: Results, options: argparse.Namespace) -> None:
    rounds = [("postgres", place) for place in range(options.jobs // options.round)]
    rounds += [("sqlite", place) for place in range(options.sqlite_jobs // options.round)]
    for kind, place in rounds:
        part = f"storm/{kind}/{options.round}/{place}"
        if results.has(part):
            continue
        trainings = round(options.round * _TRAININGS_SHARE)
        size = Size(**asdict(_OF_KIND[kind]) | {"num_jobs": options.round, "num_trainings": trainings})
        with house.stage(f"storm-{kind}-{place}", kind, **_UNBREAKABLE) as stage:
            outcome = Storm(stage, options.seed * 1000 + place, size).run()
        results.add(part, **asdict(outcome))
        _print_problems(part, outcome.problems)


def _gpus(house: Theatre, results: Results, options: argparse.Namespace) -> None:
    for kind in _OF_KIND:
        if results.has(part := f"gpus/{kind}"):
            continue
        with house.stage(f"gpus-{kind}", kind, **_UNBREAKABLE) as stage:
            facts = gpus.Round(stage, options.seed).facts()
        results.add(part, database=kind, **facts)
        _print_problems(part, facts["problems"])


def _sweep(house: Theatre, results: Results, options: argparse.Namespace) -> None:
    for which in options.sweeps:
        kind, trains = _SWEEPS[which]
        name = f"{kind}{'-training' if trains else ''}"
        with house.stage(f"sweep-{name}", kind, **_UNBREAKABLE) as stage, Sweep(stage, trains).running() as sweep:
            tries = [(place, action) for place in sweep.places() for action in ACTIONS]
            for place, action in random.Random(options.seed).sample(tries, len(tries)):
                part = f"sweep/{name}/{action}/{place.node}/{place.name}"
                if not results.has(part):
                    problems = sweep.try_at(place, action)
                    results.add(part, database=name, action=action, problems=problems)
                    _print_problems(part, problems)


def _cells(house: Theatre, results: Results, options: argparse.Namespace) -> None:
    parts = {f"cell/{cell.part}/{cell.state}/{cell.seconds}": cell for cell in cells.all_cells()}
    parts |= {f"real-cell/{cell.part}/{cell.state}/{cell.seconds}": cell for cell in cells.REAL_CELLS}
    left = [(part, cell) for part, cell in parts.items() if not results.has(part)]
    for start in range(0, len(left), options.side_by_side):
        batch = left[start : start + options.side_by_side]
        result = cells.run_all(house, [cell for _, cell in batch], options.side_by_side)
        for part, cell in batch:
            results.add(part, problems=result[cell])
            _print_problems(part, result[cell])


def _detection(house: Theatre, results: Results, options: argparse.Namespace) -> None:
    for place, settings in enumerate((*[SCALED] * 10, REAL)):
        part = f"detection/{place}"
        if results.has(part):
            continue
        with house.stage(f"detection-{place}", **settings) as stage:
            look = float(settings["WCL_LOOK_SECONDS"])
            seconds = seconds_until_noticed(stage, _DEATHS, options.seed + place, look)
        results.add(part, lease=float(settings["WCL_LEASE_SECONDS"]), seconds=seconds)
        _print_problems(part, [])


def _print_problems(part: str, problems: list[str] | None) -> None:
    print(f"{part}: {'not passed again' if problems is None else problems or 'right'}", flush=True)


_DOES = {"storm": _storm, "gpus": _gpus, "sweep": _sweep, "cells": _cells, "detection": _detection}

if __name__ == "__main__":
    sys.exit(main())
