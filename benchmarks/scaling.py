"""Unit costs of the service for PostgreSQL: statements, bytes of the log, bytes on disk and CPU time of each request.

    python benchmarks/scaling.py [--count 200]

The benchmark starts its own PostgreSQL and calls the functions that server and workers call.  docs/scaling.md computes
with the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the server that the tests start

import psutil
from measure.report import save_results, setting
from sqlalchemy import event, text

from jobs import workers
from jobs.database import Database
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.jobs import rows
from tests.servers import postgres_server

SERIES, STEPS = 20, 10
_TABLES = ("jobs", "attempts", "events", "tags", "checkpoints", "point_blocks", "rollup_blocks", "series")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="repetitions of each request")
    options = parser.parse_args()
    with postgres_server() as (_, url):
        database = Database(url.replace("postgresql://", "postgresql+psycopg://", 1))
        database.migrate()
        costs, sizes = _measure(database, options.count)
        database.dispose()
    lines = ["| request | statements | log of PostgreSQL | CPU of PostgreSQL |", "|---|---|---|---|"]
    lines += [f"| {name} | {n:.1f} | {wal:,.0f} bytes | {cpu:.2f} ms |" for name, (n, wal, cpu) in costs.items()]
    lines += ["", "| stored | on disk, with indexes |", "|---|---|"]
    lines += [f"| {name} | {size:,.0f} bytes |" for name, size in sizes.items()]
    lines += [
        "",
        f"Means of {options.count} repetitions, one client. The CPU time is read in steps of 10 ms over all of them.",
    ]
    facts = setting() | {"costs": {name: list(cost) for name, cost in costs.items()}, "sizes": sizes}
    save_results("scaling", facts, "\n".join(lines))
    print("\n".join(lines))


def _measure(database: Database, count: int) -> tuple[dict[str, tuple[float, float, float]], dict[str, float]]:
    rows.add_dataset(database)
    costs: dict[str, tuple[float, float, float]] = {}
    num_statements = 0

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(*_: object) -> None:
        nonlocal num_statements
        num_statements += 1

    def measured(name: str, act: Callable[[int], object], repeats: int = count) -> None:
        before = num_statements, _log_bytes(database), _cpu_seconds(database)
        for number in range(repeats):
            act(number)
        statements = num_statements - before[0]
        log, cpu = _log_bytes(database) - before[1], _cpu_seconds(database) - before[2]
        costs[name] = statements / repeats, log / repeats, 1000 * cpu / repeats

    database.write(lambda session: workers.register(session, rows.WORKER, 1, ()))
    measured("a poll of an idle worker without a job", lambda _: rows.try_claim(database))
    measured(
        "a heartbeat of a worker",
        lambda _: database.write(lambda session: workers.heartbeat(session, rows.WORKER.id, None)),
    )
    reconciler = Reconciler(database, Settings(database_url=database.url), sends_wake_ups=False)
    measured("a pass of the reconciler", lambda _: reconciler.poll())
    measured("a submission", lambda number: rows.submit(database, name=f"run {number}"))
    runs: list[rows.Run] = []
    measured("a claim", lambda _: runs.append(rows.Run(database, rows.claim(database))))
    for run in runs:
        run.deliver(rows.started())
    values = {f"series/{number:02}": 0.5 for number in range(SERIES)}
    measured(
        f"a delivery of {STEPS} records of {SERIES} metrics",
        lambda number: runs[number].deliver(*(rows.metrics(step, **values) for step in range(STEPS))),
    )
    measured(
        f"a delivery of a record of {SERIES} metrics",
        lambda number: runs[number].deliver(rows.metrics(STEPS, **values)),
    )
    measured("a renewal without records", lambda number: runs[number].deliver())
    measured("a checkpoint", lambda number: runs[number].deliver(rows.checkpoint(STEPS + 1, f"{number:064x}")))
    measured("the end of a job", lambda number: runs[number].end("succeeded"))
    sizes = {name: _bytes(database, name) for name in _TABLES}
    points = count * (STEPS + 1) * SERIES
    return costs, {
        "a job with its attempt, events and one checkpoint": sum(sizes[n] for n in _TABLES[:5]) / count,
        "a point of a metric": sizes["point_blocks"] / points,
        "its rollups, in short curves": sizes["rollup_blocks"] / points,
    }


def _log_bytes(database: Database) -> int:
    with database.read() as session:
        return int(session.execute(text("SELECT pg_current_wal_lsn() - '0/0'")).scalar_one())


def _bytes(database: Database, name: str) -> int:
    with database.read() as session:
        return int(session.execute(text("SELECT pg_total_relation_size(:name)"), {"name": name}).scalar_one())


def _cpu_seconds(database: Database) -> float:
    """Return the CPU time of the backend of this process's connections."""
    with database.read() as session:
        pids = session.execute(text("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")).scalars()
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


if __name__ == "__main__":
    main()
