"""Benchmark of the pages with a long history, and of live streams with many viewers.

    python benchmarks/page.py [--jobs 100000] [--points 1000000] [--viewers 500] [--rounds 5]

The benchmark starts its own PostgreSQL and fills it by SQL with jobs of every status, of which a tenth wait, and a
running job with 20 series.  Pages are compared with those of a service with 1,000 jobs and 10,000 points in the same
rounds.  Streams are compared with streams that query the database for each viewer.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers that the tests start

from measure import viewers
from measure.history import History, fill
from measure.pages import Connection, addresses, interactive_seconds, serving
from measure.report import save_results, setting
from measure.rounds import Row, interleaved, table

from tests.servers import postgres_server

SERIES = 20
SMALL_JOBS, SMALL_POINTS = 1_000, 10_000
MOST_MS, MOST_BROWSER_MS, LEAST_RATIO = 100, 1_000, 3
REPORTS = 10
_OPTIONS = {
    "shared_buffers": "1GB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "16GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "random_page_cost": "1.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1_000_000, help="points of each of the 20 series")
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as stack:
        _, url = stack.enter_context(postgres_server(**_OPTIONS))
        small = fill(_database(url, "small"), SMALL_JOBS, SMALL_POINTS, SERIES)
        print("filling", flush=True)
        large = fill(_database(url, "large"), options.jobs, options.points, SERIES)
        rows = _pages(large, small, options.rounds)
        print(table(rows), flush=True)
        rows += _streams(small, options.viewers, options.rounds)
    print(table(rows[-3:]), flush=True)
    _save(rows, options)


def _database(url: str, name: str) -> str:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.replace("postgresql://", "postgresql+psycopg://", 1).rpartition("/")[0] + f"/{name}"


def _pages(large: History, small: History, rounds: int) -> list[Row]:
    with serving(large) as big_server, serving(small) as small_server:
        big, little = Connection(big_server), Connection(small_server)
        rows = []
        for name in addresses(large):
            ours, theirs = interleaved(lambda n=name: big.seconds(n), lambda n=name: little.seconds(n), rounds)  # type: ignore[misc]
            rows.append(_row(name, ours, theirs, MOST_MS))
        loaded, small_loaded = (interactive_seconds(server, rounds) for server in (big_server, small_server))
    return rows + [_row(name, loaded[name], small_loaded[name], MOST_BROWSER_MS) for name in loaded]


def _row(name: str, ours: list[float], theirs: list[float], most_ms: int) -> Row:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ours_ms, theirs_ms = median(ours) * 1000, median(theirs) * 1000
    spread = (median(ratios), min(ratios), max(ratios))
    return Row(name, "short history", ours_ms, theirs_ms, "ms", *spread, f"<= {most_ms} ms", ours_ms <= most_ms)


def _streams(history: History, count: int, rounds: int) -> list[Row]:
    """Return reports delivered per CPU second of the server, and the delay of the last report."""
    with serving(history, viewers.PROGRAM) as server:
        deliveries = {
            path: [viewers.deliver(server, path, count, REPORTS) for _ in range(1)]
            for path in (viewers.OURS, viewers.PEER)
        }
        for _ in range(rounds):
            for path, delivered in deliveries.items():
                delivered.append(viewers.deliver(server, path, count, REPORTS))
    ours, theirs = deliveries[viewers.OURS][1:], deliveries[viewers.PEER][1:]
    expected = count * REPORTS
    assert all(delivered.reports == expected for delivered in ours), ours
    ratios = [a.per_cpu_second / b.per_cpu_second for a, b in zip(ours, theirs, strict=True)]
    rates = [median(d.per_cpu_second for d in side) for side in (ours, theirs)]
    lags = [median(d.lag_seconds for d in side) for side in (ours, theirs)]
    late = [a.lag_seconds / b.lag_seconds for a, b in zip(ours, theirs, strict=True)]
    name, peer = f"{count} viewers of a job", "one subscription a viewer"
    spread = (median(ratios), min(ratios), max(ratios))
    return [
        Row(f"{name}, reports delivered per CPU second", peer, rates[0], rates[1], "/s", *spread,
            f">= {LEAST_RATIO}", spread[0] >= LEAST_RATIO),
        Row(f"{name}, until all have the last report", peer, lags[0], lags[1], "s",
            median(late), min(late), max(late), "<= 1", median(late) <= 1),
    ]  # fmt: skip


def _save(rows: list[Row], options: argparse.Namespace) -> None:
    facts = setting() | vars(options) | {"series": SERIES, "rows": [asdict(row) for row in rows]}
    text = (
        f"{options.jobs:,} jobs and a running one with {SERIES} series of {options.points:,} points, beside "
        f"{SMALL_JOBS:,} jobs and {SMALL_POINTS:,} points, on PostgreSQL; medians of {options.rounds} interleaved "
        f"rounds; load average {facts['load_average'][0]} on {facts['cores']} cores. Server times are of whole "
        "requests over loopback; in the browser, from the start of loading with an empty cache to a live list, or to "
        "all charts in sight."
    )
    save_results("page", facts, f"{table(rows)}\n\n{text}")


if __name__ == "__main__":
    main()
