"""`./run fuzz [NAME...]`: generated input for everything that reads input from outside.

A fuzzer is a module of this folder with `COUNT` and `SLICE`, the numbers of cases of a whole run and of `./run test`,
and `run(count, seed, tally)`.  Case number n has the seed `seed + n`, so that `--count 1` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time

from tests.fuzz.tally import Tally

FUZZERS = (
    "rest",
    "pages",
    "payloads",
    "spool",
    "images",
    "checkpoints",
    "packs",
)


def main() -> int:
    """Return 0 if no fuzzer found a failure."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(FUZZERS)}; all by default")
    parser.add_argument("--count", type=int, help="cases of each fuzzer")
    parser.add_argument("--seed", type=int, default=1, help="of the first case")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FUZZERS):
        parser.error(f"expected names of {', '.join(FUZZERS)}, got {', '.join(sorted(unknown))}")
    tallies = [fuzz(name, options.count, options.seed) for name in options.names or FUZZERS]
    return int(any(tally.failures for tally in tallies))


def fuzz(name: str, count: int | None, seed: int) -> Tally:
    """Run one fuzzer, and print its results; those so far when a user interrupts it."""
    fuzzer = importlib.import_module(f"tests.fuzz.{name}")
    began = time.monotonic()
    tally = Tally()
    with contextlib.suppress(KeyboardInterrupt):
        fuzzer.run(fuzzer.COUNT if count is None else count, seed, tally)
    print(f"{name}, seed {seed}, {time.monotonic() - began:.0f} s: {tally.text()}", flush=True)
    return tally


if __name__ == "__main__":
    sys.exit(main())
