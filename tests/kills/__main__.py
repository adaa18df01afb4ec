"""`./run kills`: runs that are stopped many times end with the same bytes and metrics as undisturbed runs.

Each run is killed, drained or paused several times, at moments that the seed decides, and resumed each time from the
newest checkpoint that it reported.  Then every checkpoint file and every reported metric is compared with the
undisturbed run.  The command prints one report and exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measure.report import setting
from tests.kills.moments import KINDS, REQUESTS
from tests.kills.runs import KilledRun, Reference, killed_run
from tests.kills.variants import VARIANTS


def main() -> int:
    """Kill runs; return 0 if every run ended with the same bytes."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="wcl-kills-") as temporary:
        folder, began_at = options.folder or Path(temporary), time.monotonic()
        references = [
            Reference.of(variant, folder / f"undisturbed-{place}") for place, variant in enumerate(options.variants)
        ]
        runs: list[KilledRun] = []
        for number in itertools.count(options.first_run):
            if (missing := options.kills - sum(len(run.stops) for run in runs)) <= 0:
                break
            reference = references[number % len(references)]
            runs.append(killed_run(number, reference, options.seed, missing, folder / f"run-{number}"))
            print(runs[-1], file=sys.stderr, flush=True)
    print(_report(runs, options, time.monotonic() - began_at))
    return int(any(run.differences for run in runs))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="number of stops in total")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments of all stops")
    parser.add_argument("--first-run", type=int, default=0, metavar="N", help="continue at run N of this seed")
    parser.add_argument("--folder", type=Path, help="a new folder, which keeps the files of runs that differ")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME", help=", ".join(VARIANTS)
    )
    return parser.parse_args()


def _report(runs: list[KilledRun], options: argparse.Namespace, seconds: float) -> str:
    """Return a report in Markdown: machine, numbers, moments, and differences."""
    facts, stops = setting(), [moment for run in runs for moment in run.stops]
    by_kind = Counter(moment.kind for moment in stops)
    orderly = sum(moment.kind in REQUESTS for moment in stops)
    wrong = [run for run in runs if run.differences]
    return "\n".join(
        [
            "# kills",
            "",
            f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, {facts['gpu'] or 'no GPU'}, torch "
            f"{facts['torch']}, Python {facts['python']}; load average {facts['load_average'][1]} over five minutes",
            "",
            f"{len(stops)} stops in {len(runs)} runs, {orderly} of them orderly and the others by SIGKILL, "
            f"seed {options.seed}, {seconds:.0f} s: "
            + (f"{len(wrong)} RUNS DIFFER" if wrong else "all checkpoints and metrics equal the undisturbed runs'")
            + ".",
            "",
            "| run | runs | stops | points reported again | equal |",
            "|---|---|---|---|---|",
            *(_row(variant, [run for run in runs if run.variant == variant]) for variant in options.variants),
            "",
            "| stopped | times |",
            "|---|---|",
            *(f"| {kind} | {by_kind[kind]} |" for kind in KINDS),
            "",
            f"Checkpoint files left half written, of which none was taken for a whole one: "
            f"{sum(run.num_parts for run in runs)}. Stops that came too late and do not count: "
            f"{sum(len(run.missed) for run in runs)}.",
            *(f"\n{run}" for run in wrong),
        ]
    )


def _row(variant: str, runs: list[KilledRun]) -> str:
    equal = "yes" if not any(run.differences for run in runs) else "NO"
    stops, again = sum(len(run.stops) for run in runs), sum(run.points_again for run in runs)
    return f"| {variant} | {len(runs)} | {stops} | {again} | {equal} |"


if __name__ == "__main__":
    sys.exit(main())
