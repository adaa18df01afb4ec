"""Speed of `wcl_core` against what people would use instead, peers in the same run.

    python benchmarks/core.py [ITEM ...] [--rounds 7] [--lightly-python PATH]

Items: graph, loss, views, stall, step, gpu; without any, all of them. Only ratios mean anything: rounds are interleaved
and the table shows the median of each round's ratio with its range.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict

from measure import graph, loss, stall, step, views
from measure.report import save_results, setting
from measure.rounds import Row, table

ITEMS = ("graph", "loss", "views", "stall", "step", "gpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(ITEMS)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lightly-python", help="interpreter of an environment with lightly and this project")
    options = parser.parse_args()
    if unknown := set(options.items) - set(ITEMS):
        parser.error(f"no such item: {', '.join(sorted(unknown))}; there are {', '.join(ITEMS)}")
    facts, skipped, rates = setting(), list[str](), dict[str, float]()
    rows: list[Row] = []
    items: dict[str, Callable[[], list[Row]]] = {
        "graph": lambda: graph.rows(options.rounds),
        "loss": lambda: loss.rows(options.rounds),
        "views": lambda: views.rows(options.rounds),
        "stall": lambda: stall.rows(options.rounds),
        "step": lambda: step.rows(options.rounds, options.lightly_python, skipped),
    }
    for name, measure in items.items():
        if not options.items or name in options.items:
            print(f"measuring {name}", flush=True)
            rows += measure()
    if not options.items or "gpu" in options.items:
        rates = step.gpu_rates(skipped)
    lines = [f"{name}: {rate:,.0f} images/s, two views, bfloat16" for name, rate in rates.items()]
    text = "\n".join([table(rows, skipped), *lines, "", f"Medians of {options.rounds} interleaved rounds."])
    print(text)
    if not options.items:
        facts |= {
            "rounds": options.rounds,
            "rows": [asdict(row) for row in rows],
            "skipped": skipped,
            "gpu_rates": rates,
        }
        save_results("core", facts, text)


if __name__ == "__main__":
    main()
