"""Benchmark of the way from a submission to the first step, with and without the standby process, and of the queue.

    python benchmarks/start.py [PART ...] [--rounds 5] [--submissions 100] [--jobs 100] [--photos 600]
        [--photos-from FOLDER]

Parts are runs, claims, rates, forks and up; all by default.  Rows of other parts are kept, each with its date and load.

Runs of digits are real; their first step is the moment at which the first metrics stand in the run's file.  The rates
and the times to a claim are those of stand-in bodies, which train nothing; jobs whose rate is measured are submitted as
seed groups.  `wcl up` and its processes are started by command.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers that the tests start

import httpx
import numpy as np
import psutil
from measure.report import load_results, save_results, setting
from PIL import Image
from sqlalchemy import func, select

from jobs.database import Database
from jobs.models import Attempt, Job
from tests.acceptance.service import SHORT_SPEC, Service
from tests.chaos.stage import REAL, Stage, Theatre, spec, theatre
from tests.waiting import eventually
from wcl_client.api import WclClient

FOLDERS = 5
WORKERS = (1, 4)
RATES = {1: 10, 4: 30}  # the goals, in jobs per second
_GROUP = 25  # jobs
_POLL_SECONDS = 0.005
_SERVICE = {"WCL_LOOK_SECONDS": "5", "WCL_LEASE_SECONDS": "60"}

PARTS = ("runs", "claims", "rates", "forks", "up")

Measured = tuple[str, str, str, str]  # what, without the standby process, now, and the goal
Row = tuple[str, str, str, str, str]  # the same, and when


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[], help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of real runs")
    parser.add_argument("--submissions", type=int, default=100, help="whose time to a claim is measured")
    parser.add_argument("--jobs", type=int, default=100, help="for each rate")
    parser.add_argument("--photos", type=int, default=600, help="in each of five folders")
    parser.add_argument("--photos-from", type=Path, help="a folder of folders of photographs; by default they are made")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    measured: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="wcl-start-") as name, theatre(Path(name) / "theatre") as house:
        for part in options.parts or PARTS:
            for *row, goal in _MEASURE[part](house, Path(name), options):
                measured[row[0]] = (*row, goal, f"{date.today()}, load {os.getloadavg()[0]:.1f}")  # type: ignore[assignment]
            print(_table(measured), flush=True)
    rows: dict[str, Row] = {each[0]: tuple(each) for each in load_results("start").get("rows", ())} | measured
    facts = setting() | {"rows": list(rows.values())}
    text = f"{facts['cores']} cores; medians, and the range in brackets.  The load is the average of the last minute."
    save_results("start", facts, f"{_table(rows)}\n\n{text}")


def _table(rows: dict[str, Row]) -> str:
    head = ["| measured | without the standby process | now | goal | when |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows.values())])


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


# --- real runs -----------------------------------------------------------------------------------------------------


class Digits:
    """A service of its own whose jobs are real runs of digits."""

    def __init__(self, data_dir: Path, standby: str) -> None:
        self.service = Service(data_dir, WCL_STANDBY=standby, **_SERVICE)
        self.service.start()
        self._client = self.service.client()
        eventually(lambda: _has_read_all(self._client), "the worker")
        self._database = Database(f"sqlite:///{data_dir / 'wcl.sqlite3'}")

    def pair(self) -> tuple[float, float]:
        """Run two jobs in turn; return the seconds from the claim to the first step, and from end to next step."""
        first, second = (self._client.submit("pretrain", SHORT_SPEC)["id"] for _ in range(2))
        first_step, second_step = self._first_step(first), self._first_step(second)
        return first_step - self._time(first, "started_at"), second_step - self._time(first, "ended_at")

    def _first_step(self, job_id: str) -> float:
        while True:
            for spool in (self.service.data_dir / "attempts").glob(f"{job_id}/*/report.jsonl"):
                if b'"metrics"' in spool.read_bytes():
                    return time.time()
            time.sleep(_POLL_SECONDS)

    def _time(self, job_id: str, column: str) -> float:
        with self._database.read() as session:
            at = session.execute(select(getattr(Attempt, column)).where(Attempt.job_id == job_id)).scalar_one()
        return float(at) / 1000

    def wait(self) -> None:
        """Wait until no job runs."""
        while _num_open(self._database):
            time.sleep(0.1)


def _runs(folder: Path, rounds: int) -> list[Measured]:
    """Measure both services in turn, so that other load of the machine affects both."""
    services = {standby: Digits(folder / standby, standby) for standby in ("off", "on")}
    times: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    try:
        for number in range(rounds + 1):
            for standby, digits in services.items():
                pair = digits.pair()
                digits.wait()
                if number:  # the first round reads the libraries from the disk
                    times[standby].append(pair)
    finally:
        for digits in services.values():
            digits.service.stop()
    names = ("claim to first step, digits", "end of a job to the first step of the next one, digits")
    return [
        (name, *(_seconds([pair[which] for pair in times[standby]]) for standby in ("off", "on")), goal)
        for which, (name, goal) in enumerate(zip(names, ("1.5 s", "3 s"), strict=True))
    ]


# --- the queue, with stand-in bodies -------------------------------------------------------------------------------


@contextmanager
def _served(house: Theatre, name: str, kind: str, num_workers: int) -> Iterator[tuple[Stage, Callable[..., str]]]:
    """Yield a service with workers, and a function that submits a job or a seed group."""
    settings = {name: value for name, value in REAL.items() if name != "WCL_CLAIM_SECONDS"}
    with house.stage(name, kind, **settings) as stage:
        server, names = stage.server("server").start(), [f"worker-{number}" for number in range(num_workers)]
        for each in names:
            stage.worker(each, forks=True).start()
        stage.wait_for_workers(*names)
        environment = server.start_as.environment
        data_dir = Path(environment["WCL_DATA_DIR"])
        eventually((data_dir / "server.json").exists, "the start of the server")
        key = (data_dir / "key").read_text().strip()
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:

            def submit(*seeds: int) -> str:
                requested = spec(seeds[0], epochs=1, step_ms=1)
                body: dict[str, Any] = {"kind": "pretrain", "spec": requested}
                if len(seeds) > 1:
                    del requested["seed"]
                    body["seeds"] = seeds
                response = client.post(f"http://127.0.0.1:{environment['WCL_PORT']}/v1/jobs", json=body)
                return str(response.raise_for_status().json().get("id"))  # a seed group has none

            stage.wait_for_end(submit(0))
            yield stage, submit


def _claims(house: Theatre, count: int) -> list[Measured]:
    rows = []
    for kind, name in (("sqlite", "SQLite"), ("postgres", "PostgreSQL and Redis")):
        with _served(house, f"claims-{kind}", kind, 1) as (stage, submit):
            for number in range(count):
                time.sleep(random.uniform(0.5, 1.0))
                stage.wait_for_end(submit(number))
            waits = select(Attempt.started_at - Job.created_at).join(Job, Job.id == Attempt.job_id)
            with stage.database.read() as session:
                seconds = [ms / 1000 for ms in session.execute(waits).scalars()]
        at = quantiles(seconds, n=100)
        shown = f"p50 {at[49]:.2f} s, p99 {at[98]:.2f} s"
        rows.append((f"submission to the claim by an idle worker, {name}", "the same", shown, "p50 0.1 s, p99 0.5 s"))
    return rows


def _rates(house: Theatre, count: int) -> list[Measured]:
    rows = []
    for num_workers in WORKERS:
        with _served(house, f"rate-{num_workers}", "postgres", num_workers) as (stage, submit):
            began, before = time.monotonic(), _cpu_by_part(stage)
            for first in range(0, count, _GROUP):
                submit(*range(first, min(count, first + _GROUP)))
            while _num_open(stage.database):
                time.sleep(0.05)
            rate = count / (time.monotonic() - began)
            after = _cpu_by_part(stage)
        of_job = ", ".join(f"{part} {1000 * (after[part] - before[part]) / count:.0f}" for part in after)
        name = f"stand-in jobs a second, {num_workers} worker{'s' if num_workers > 1 else ''}, PostgreSQL and Redis"
        rows.append((name, "the same", f"{rate:.1f} (ms of CPU a job: {of_job})", f"{RATES[num_workers]}"))
    return rows


def _cpu_by_part(stage: Stage) -> dict[str, float]:
    """Return the CPU time of the server, of the workers with their runs, and of PostgreSQL, in seconds."""
    server, *workers = [node.pid for node in stage.nodes]
    assert stage.postgres is not None
    assert stage.postgres._process is not None
    return {
        "server": _cpu_seconds(server),
        "workers and runs": sum(map(_cpu_seconds, workers)),
        "PostgreSQL": _cpu_seconds(stage.postgres._process.pid),
    }


def _num_open(database: Database) -> int:
    with database.read() as session:
        return session.execute(select(func.count()).select_from(Job).where(Job.ended_at.is_(None))).scalar_one()


# --- the forks of a run ---------------------------------------------------------------------------------------------


# In a process without threads: milliseconds of CPU for what a standby process does for a run that does nothing.
_FORKS = """
import gc, json, os, resource, sys
from importlib import import_module
from wcl_core import standby
def spent():
    own, below = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1000 * (own.ru_utime + own.ru_stime + below.ru_utime + below.ru_stime)
def pair():
    before = spent()
    if (child := os.fork()) == 0:
        if (run := os.fork()) == 0:
            os._exit(0)
        os.waitpid(run, 0)
        os._exit(0)
    os.waitpid(child, 0)
    return spent() - before
results = []
for modules in (standby._MODULES, ["sklearn.datasets", "sklearn.manifold", "sklearn.metrics"]):
    for name in modules:
        import_module(name)
    gc.freeze()
    standby.use_huge_pages()
    with open("/proc/self/maps") as maps:
        results.append([sorted(pair() for _ in range(int(sys.argv[1]))), len(maps.readlines())])
print(json.dumps(results))
"""


def _forks(rounds: int) -> list[Measured]:
    command = [sys.executable, "-c", _FORKS, str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    now, before = (f"{min(times):.0f} ms ({mappings} mappings)" for times, mappings in json.loads(done.stdout))
    name = "two forks and two ends of a run that does nothing, CPU time, the least of some"
    return [(name, "", f"{now}; with scikit-learn imported {before}", "")]


# --- the start of the service --------------------------------------------------------------------------------------


def _up(folder: Path, photos: int, source: Path | None) -> list[Measured]:
    times = [_up_once(folder, photos, source, standby) for standby in ("off", "on")]
    name = f"`wcl up` with {FOLDERS} folders of {photos} {'made' if source is None else 'real'} photos to"
    steps = (("the first submission", "3 s"), ("a worker that has read them", "6 s"))
    return [
        (f"{name} {step}", *(f"{seconds:.1f} s ({cpu:.1f} s of CPU)" for seconds, cpu in shown), goal)
        for (step, goal), *shown in zip(steps, *times, strict=True)
    ]


def _up_once(folder: Path, photos: int, source: Path | None, standby: str) -> list[tuple[float, float]]:
    """Return the seconds, and those of CPU, until the first submission and until a worker has all datasets."""
    service = Service(folder / f"up-{standby}", WCL_STANDBY=standby, **_SERVICE)
    service.is_forked = False
    for number in range(FOLDERS):
        place = folder / f"photos-{standby}-{number}"
        _photos(place, photos) if source is None else _real_photos(place, photos, source, number)
        service.options += ["--dataset", f"photos{number}={place}"]
    began = time.monotonic()
    try:
        service.start()
        client = service.client()
        times: list[tuple[float, float]] = []
        for is_over in (lambda: _is_accepted(service), lambda: _has_read_all(client)):
            while not is_over():
                time.sleep(0.05)
            times.append((time.monotonic() - began, _cpu_seconds(service.pid)))
        return times
    finally:
        service.stop()


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of all those below it, also of those that have ended."""
    top, times = psutil.Process(pid), []
    for each in [top, *top.children(recursive=True)]:
        with suppress(psutil.Error):
            times.append(sum(each.cpu_times()[:4]))
    return sum(times)


def _has_read_all(client: WclClient) -> bool:
    """Return whether the worker has read all its datasets."""
    workers = client.workers()
    return bool(workers) and not workers[0]["pending_datasets"]


def _is_accepted(service: Service) -> bool:
    body: dict[str, Any] = {"kind": "pretrain", "spec": SHORT_SPEC}
    key = (service.data_dir / "key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    response = httpx.post(f"http://127.0.0.1:{service.port}/v1/jobs", json=body, headers=headers, trust_env=False)
    return response.status_code == httpx.codes.CREATED


def _real_photos(folder: Path, count: int, source: Path, number: int) -> None:
    """Copy one of five parts of the photographs, each of its class."""
    for path in sorted(source.rglob("*.jpg"))[number::FOLDERS][:count]:
        copy = folder / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def _photos(folder: Path, count: int) -> None:
    """Make a folder of JPEG files of 500x375 pixels in ten classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


_MEASURE: dict[str, Callable[[Theatre, Path, argparse.Namespace], list[Measured]]] = {
    "runs": lambda _, folder, options: _runs(folder, options.rounds),
    "claims": lambda house, _, options: _claims(house, options.submissions),
    "rates": lambda house, _, options: _rates(house, options.jobs),
    "forks": lambda _, __, options: _forks(4 * options.rounds),
    "up": lambda _, folder, options: _up(folder, options.photos, options.photos_from),
}

if __name__ == "__main__":
    main()
