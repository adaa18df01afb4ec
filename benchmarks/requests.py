"""Benchmark of a cancel where the worker reaches its database slowly.

    python benchmarks/requests.py [--rounds 5] [--delays 0 0.1 0.3 1.0]

The worker of a stand-in job reaches PostgreSQL through a proxy that delays each message in both directions.  The cancel
is written without delay, at a random moment.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers that the tests start

from measure.report import save_results, setting

from jobs import transitions
from tests.chaos.stage import REAL, Stage, Theatre, spec, theatre

_ENDLESS = 100_000  # epochs
_STEP_MS = 500
_LIMIT_SECONDS = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="for each delay")
    parser.add_argument("--delays", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0], help="seconds of each message")
    options = parser.parse_args()
    table = ["| delay of a message | cancel to the end of the run | cancel to the end of the job |", "|---|---|---|"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="wcl-requests-") as name, theatre(Path(name)) as house:
        for number, delay in enumerate(options.delays):
            pairs = _measured(house, f"delay-{number}", delay, options.rounds)
            rows.append({"delay": delay, "run": [run for run, _ in pairs], "job": [job for _, job in pairs]})
            table.append(f"| {delay:g} s | {_shown([run for run, _ in pairs])} | {_shown([job for _, job in pairs])} |")
            print(table[-1], flush=True)
    facts = setting() | {"rounds": options.rounds, "rows": rows}
    load = f"Load average {facts['load_average'][0]} on {facts['cores']} cores; medians, and the range in brackets."
    save_results("requests", facts, "\n".join([*table, "", load]))


def _shown(values: list[float]) -> str:
    return f"{median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


def _measured(house: Theatre, name: str, delay: float, rounds: int) -> list[tuple[float, float]]:
    """Return the seconds from a cancel to the end of the run, and to the end of its job, in each round."""
    pairs = []
    with house.stage(name, **REAL) as stage:
        url, proxy = stage.proxied(stage.url)
        worker = stage.worker("worker", url).start()
        stage.wait_for_workers("worker")
        for number in range(rounds):
            proxy.mend()
            job_id = stage.submit(spec(number, _ENDLESS, _STEP_MS))
            _until(lambda: bool(worker.trainings()))
            proxy.slow(delay)
            time.sleep(
                random.uniform(2, 4) + 30 * delay
            )  # a new connection takes several messages; the worker has five
            stage.database.write(lambda session, each=job_id: transitions.cancel(session, each))  # type: ignore[misc]
            began = time.monotonic()
            run = _until(lambda: not worker.trainings()) - began
            pairs.append((run, _until(lambda each=job_id: _is_over(stage, each)) - began))  # type: ignore[misc]
    return pairs


def _is_over(stage: Stage, job_id: str) -> bool:
    return stage.job(job_id).status == "cancelled"


def _until(condition: Callable[[], bool]) -> float:
    """Return the monotonic time at which a condition holds."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
    return time.monotonic()


if __name__ == "__main__":
    main()
