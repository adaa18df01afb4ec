"""Benchmark of submissions: single ones and batches, beside a loop of Celery's `task.delay()`.

    python benchmarks/submissions.py [--rounds 5] [--jobs 1000] [--singles 200]

One server process on PostgreSQL with durable commits, and Redis; no worker.  Each round has all rows, one after the
other.  A message of Celery is a line in the memory of Redis; an accepted job is durable, and is validated before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers that the tests start

import httpx
import numpy as np
import psutil
from celery import Celery
from measure.report import save_results, setting

from tests.chaos.stage import Stage, spec, theatre
from tests.waiting import eventually

_CLIENTS = 8
_PEER = "task.delay() in a loop"
_SINGLE = "POST /v1/jobs, 1 client"
_PARALLEL = f"POST /v1/jobs, {_CLIENTS} clients"
_BATCH = "POST /v1/jobs:batch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1000, help="of a batch, and messages of the peer")
    parser.add_argument("--singles", type=int, default=200, help="single submissions")
    options = parser.parse_args()
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="wcl-submissions-"))
        house = stack.enter_context(theatre(Path(name)))
        rounds = _measured(stack.enter_context(house.stage("submissions")), house.redis_url, options)
    table = [
        "| | a second | against the peer | ms of the server's CPU each | p99 of a request, ms |",
        "|---|---|---|---|---|",
    ]
    for row in (_PEER, _SINGLE, _PARALLEL, _BATCH):
        ratios = [each[row][0] / each[_PEER][0] for each in rounds]
        cpu = "-" if row == _PEER else f"{median(each[row][1] for each in rounds):.2f}"
        slowest = "-" if row == _PEER else _shown([each[row][2] for each in rounds])
        table.append(
            f"| {row} | {_shown([each[row][0] for each in rounds])} | {_shown(ratios, 2)} | {cpu} | {slowest} |"
        )
    facts = setting() | {"rounds": rounds, "jobs": options.jobs, "singles": options.singles}
    load = f"Load average {facts['load_average'][0]} on {facts['cores']} cores; medians, and the range in brackets."
    print("\n".join([*table, "", load]))
    save_results("submissions", facts, "\n".join([*table, "", load]))


def _shown(values: list[float], digits: int = 0) -> str:
    middle, low, high = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def _measured(stage: Stage, redis_url: str, options: argparse.Namespace) -> list[dict[str, tuple[float, ...]]]:
    """Return rate, milliseconds of the server's CPU for each, and p99 of a request, of each row in each round."""
    server = stage.server("server").start()
    environment = server.start_as.environment
    data_dir = Path(environment["WCL_DATA_DIR"])
    eventually((data_dir / "server.json").exists, "the start of the server")
    headers = {"Authorization": f"Bearer {(data_dir / 'key').read_text().strip()}"}
    url = f"http://127.0.0.1:{environment['WCL_PORT']}"
    app = Celery("peer", broker=redis_url, set_as_current=False)
    app.conf.update(task_serializer="json", task_ignore_result=True)

    @app.task(name="peer.work")
    def work(requested: Any) -> Any:
        return requested

    peer: Any = work
    body: dict[str, Any] = {"kind": "pretrain", "spec": spec(0, epochs=1, step_ms=1)}
    batch = {"jobs": [body | {"spec": spec(seed, epochs=1, step_ms=1)} for seed in range(options.jobs)]}
    with httpx.Client(base_url=url, headers=headers, timeout=300, trust_env=False) as client:
        seconds_of: list[float] = []

        def send(path: str, content: dict[str, Any]) -> None:
            began = time.monotonic()
            client.post(path, json=content).raise_for_status()
            seconds_of.append(time.monotonic() - began)

        def post(_number: int) -> None:
            send("/v1/jobs", body)

        def parallel() -> None:
            with ThreadPoolExecutor(_CLIENTS) as pool:
                list(pool.map(post, range(options.singles)))

        rows: dict[str, tuple[Callable[[], Any], int]] = {
            _PEER: (lambda: [peer.delay(job) for job in batch["jobs"]], options.jobs),
            _SINGLE: (lambda: [post(number) for number in range(options.singles)], options.singles),
            _PARALLEL: (parallel, options.singles),
            _BATCH: (lambda: send("/v1/jobs:batch", batch), options.jobs),
        }
        rounds = []
        for _ in range(options.rounds + 1):
            times: dict[str, tuple[float, ...]] = {}
            for name, (act, count) in rows.items():
                seconds_of.clear()
                before, began = _cpu_seconds(server.pid), time.monotonic()
                act()
                seconds = time.monotonic() - began
                cpu = 1000 * (_cpu_seconds(server.pid) - before) / count
                slow = 1000 * float(np.percentile(seconds_of or [0.0], 99))
                times[name] = count / seconds, cpu, slow
            rounds.append(times)
            print({name: f"{rate:.0f}/s, {cpu:.2f} ms" for name, (rate, cpu, _) in times.items()}, flush=True)
    return rounds[1:]  # the first one warms up


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
