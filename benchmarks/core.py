"""Benchmark of the speed of `wcl_core` against its usual alternatives, measured in the same run.

    python benchmarks/core.py [ITEM ...] [--rounds 7] [--threads N] [--lightly-python PATH]

Items: graph, loss, views, stall, step, gpu; by default all of them. Only ratios can be compared: rounds are
interleaved, and the table shows the median of the rounds' ratios with their range.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict

from measure import graph, loss, stall, step, views
from measure.report import load_results, save_results, setting
from measure.rounds import Row, table

ITEMS = ("graph", "loss", "views", "stall", "step", "gpu")
# Measured by hand on 2026-11-25 in CPU time, because the machine was busy.
WCL_BOUND = """\
The parts of the WCL step, CPU time on one thread (2026-11-25, least of many): for 128 images in two views the tiny net
takes 160 ms, a head 7.4, the instance loss 2.0, views 6.1, SGD 0.5. WCL adds a head of its own 7.4 (its products alone
7.1), the weak-label loss 1.6, labels 0.2 and SGD of that head 0.3: 1.05 times SimCLR at the least. With no cost but the
head's products it would be 1.04. Two threads share the backbone better than the small products of a head."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"{', '.join(ITEMS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of whole steps; use 1 on a busy machine"
    )
    parser.add_argument("--lightly-python", help="Python interpreter of an environment with lightly and this project")
    options = parser.parse_args()
    if unknown := set(options.items) - set(ITEMS):
        parser.error(f"unknown items: {', '.join(sorted(unknown))}; expected {', '.join(ITEMS)}")
    skipped: list[str] = []
    measures: dict[str, Callable[[], list[Row]]] = {
        "graph": lambda: graph.rows(options.rounds),
        "loss": lambda: loss.rows(options.rounds),
        "views": lambda: views.rows(options.rounds, skipped),
        "stall": lambda: stall.rows(options.rounds),
        "step": lambda: step.rows(options.rounds, options.threads, options.lightly_python, skipped),
        "gpu": lambda: step.gpu_rates(skipped),
    }
    for name in options.items or ITEMS:
        print(f"measuring {name}", flush=True)
        rows = measures[name]()
        print(table(rows), *[f"skipped: {reason}" for reason in skipped], sep="\n", flush=True)
        _save(name, rows, skipped, options.rounds)
        skipped.clear()


def _save(name: str, rows: list[Row], skipped: list[str], rounds: int) -> None:
    """Replace this item in the results; the other items keep their values, date and load."""
    items = load_results("core").get("items", {})
    items[name] = setting() | {"rounds": rounds, "skipped": list(skipped), "rows": [asdict(row) for row in rows]}
    items = {item: items[item] for item in ITEMS if item in items}
    all_rows = [Row(**row) for item in items.values() for row in item["rows"]]
    notes = [
        f"- {item}: {facts['date']}, {facts['rounds']} rounds, load average {facts['load_average'][0]} on "
        f"{facts['cores']} cores" + "".join(f"; skipped: {reason}" for reason in facts["skipped"])
        for item, facts in items.items()
    ]
    explained = "Medians of interleaved rounds; the ratio is the median of the rounds'."
    text = "\n".join([table(all_rows), "", explained, "", WCL_BOUND, "", *notes])
    save_results("core", setting() | {"items": items}, text)


if __name__ == "__main__":
    main()
