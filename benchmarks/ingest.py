"""Benchmark of what runs report: points a second and bytes a point in PostgreSQL, beside MLflow and raw COPY.

    python benchmarks/ingest.py [--rounds 5] [--mlflow PYTHON]

Each round has all rows, one after the other, in one PostgreSQL with durable commits: the delivery of a worker as it is
(fence, series, blocks, rollups, latest values), the same with a row for each point as before there were blocks, COPY of
the rows into a table with the indexes of `points`, and `log_batch` of MLflow's store by an interpreter that has it.
MLflow takes 1,000 values in a call, and each of its calls has values of one delivery.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the server that the tests start

import psycopg
from measure.report import save_results, setting

from jobs import ingest
from jobs.database import Database, new_id
from tests.jobs import rows
from tests.servers import postgres_server

SHAPES = {  # metrics, records of a delivery, deliveries
    "20 metrics, 500 records a delivery": (20, 500, 1),
    "20 metrics, 10 records a delivery": (20, 10, 50),
    "20 metrics, a record a delivery": (20, 1, 100),
    "1,000 metrics, a record a delivery": (1_000, 1, 10),
}
_OURS, _ROWS, _COPY, _MLFLOW = "a delivery", "a delivery, a row for each point", "COPY", "MLflow log_batch"
_TABLES = {_OURS: ("point_blocks", "rollup_blocks"), _ROWS: ("points", "rollups"), _COPY: ("copied",)}
Shape = tuple[int, int, int]
Way = Callable[[Shape], float]  # stores the values of a shape, and returns the seconds
_STORE = """
import json, sys, time
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore(sys.argv[1], sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    count, records, deliveries = json.loads(line)
    run = store.create_run("0", "peer", int(time.time() * 1000), [], "run").info.run_id
    batches = [
        [
            Metric(f"series/{s:04}", s / 7 + d, 1_700_000_000_000 + d, d * records + r)
            for r in range(records)
            for s in range(count)
        ]
        for d in range(deliveries)
    ]
    began = time.perf_counter()
    for batch in batches:
        for first in range(0, len(batch), 1_000):
            store.log_batch(run, batch[first : first + 1_000], [], [])
    print(time.perf_counter() - began, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mlflow", metavar="PYTHON", help="an interpreter with mlflow and psycopg; else no such row")
    options = parser.parse_args()
    with postgres_server() as (_, url):
        database = Database(url.replace("postgresql://", "postgresql+psycopg://", 1))
        database.migrate()
        rows.add_dataset(database)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE copied (LIKE points INCLUDING ALL)")
            results, sizes = _measured(database, connection, _peer(options.mlflow, connection, url), options.rounds)
        database.dispose()
    table = ["| | points a second | against MLflow | against COPY | bytes a point |", "|---|---|---|---|---|"]
    for shape, by_way in results.items():
        table.append(f"| **{shape}** | | | | |")
        for way, rates in by_way.items():
            beside = [_ratio(rates, by_way.get(peer)) for peer in (_MLFLOW, _COPY)]
            table.append(f"| {way} | {_shown(rates, 0)} | {' | '.join(beside)} | {sizes[shape].get(way, 0):,.0f} |")
    facts = setting() | {"rounds": options.rounds, "points_a_second": results, "bytes_a_point": sizes}
    load = f"Load average {facts['load_average'][0]} on {facts['cores']} cores; medians, and the range in brackets."
    print("\n".join([*table, "", load]))
    save_results("ingest", facts, "\n".join([*table, "", load]))


def _shown(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def _ratio(rates: list[float], peer: list[float] | None) -> str:
    return "-" if peer is None else _shown([rate / other for rate, other in zip(rates, peer, strict=True)], 2)


def _measured(
    database: Database,
    connection: psycopg.Connection,
    peer: Way | None,
    rounds: int,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, float]]]:
    ways: dict[str, Way] = {
        _OURS: lambda shape: _deliver(database, shape),
        _ROWS: lambda shape: _deliver_rows(database, shape),
        _COPY: lambda shape: _copy(connection, shape),
    }
    if peer is not None:
        ways[_MLFLOW] = peer
    results: dict[str, dict[str, list[float]]] = {shape: {way: [] for way in ways} for shape in SHAPES}
    sizes: dict[str, dict[str, float]] = {shape: {} for shape in SHAPES}
    for shape, numbers in SHAPES.items():
        count = numbers[0] * numbers[1] * numbers[2]
        before = {way: _bytes(connection, way) for way in ways}
        for _ in range(rounds):
            for way, store in ways.items():
                results[shape][way].append(count / store(numbers))
        for way in ways:
            sizes[shape][way] = (_bytes(connection, way) - before[way]) / (count * rounds)
    return results, sizes


def _records(shape: Shape) -> list[list[dict[str, Any]]]:
    """Return the records of each delivery, with noisy values, at the steps of a run that reports each tenth."""
    count, records, deliveries = shape
    chance = random.Random(0)
    return [
        [
            rows.metrics(10 * (1 + d * records + r), **{f"series/{s:04}": chance.gauss(0, 1) for s in range(count)})
            for r in range(records)
        ]
        for d in range(deliveries)
    ]


def _deliver(database: Database, shape: Shape) -> float:
    deliveries = _records(shape)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started())
    began = time.perf_counter()
    for records in deliveries:
        run.deliver(*records)
    seconds = time.perf_counter() - began
    run.end("succeeded")
    return seconds


def _deliver_rows(database: Database, shape: Shape) -> float:
    with patch.object(ingest, "_MEASURED", ""):
        return _deliver(database, shape)


def _copy(connection: psycopg.Connection, shape: Shape) -> float:
    names: dict[str, str] = {}
    points = [
        (names.setdefault(name, new_id()), 1, record["step"], seq, value, 1_700_000_000_000)
        for seq, record in enumerate(record for records in _records(shape) for record in records)
        for name, value in record["values"].items()
    ]
    began = time.perf_counter()
    with connection.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
        for point in points:
            copy.write_row(point)
    return time.perf_counter() - began


def _peer(python: str | None, connection: psycopg.Connection, url: str) -> Way | None:
    """Start MLflow's store on a database of its own; return what logs a shape and takes its time."""
    if python is None:
        return None
    connection.execute("CREATE DATABASE mlflow")
    own = url.rpartition("/")[0] + "/mlflow"
    command = [python, "-c", _STORE, own, tempfile.gettempdir()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    while (line := stdout.readline()).strip() != "ready":
        assert line, "MLflow did not start"

    def log(shape: Shape) -> float:
        stdin.write(json.dumps(shape) + "\n")
        stdin.flush()
        return float(stdout.readline())

    return log


def _bytes(connection: psycopg.Connection, way: str) -> int:
    if way == _MLFLOW:
        row = connection.execute("SELECT pg_database_size('mlflow')").fetchone()
    else:
        sizes = " + ".join(f"pg_total_relation_size('{table}')" for table in _TABLES[way])
        row = connection.execute(f"SELECT {sizes}").fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    main()
