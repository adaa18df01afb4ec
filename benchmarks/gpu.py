"""Benchmark of `wcl_core` on a GPU, in slices of at most nine minutes.

    python benchmarks/gpu.py --slice speed --slice sync ... [--minutes 9] [--results FILE] [--resume]

speed    the training loop with views, and prototypes of a compiled and captured step, in images/s and ms a step
sync     lines of the code that wait for the GPU in a step, for several specs
graph    components and losses against SciPy and a dense mask, in time, memory and error
profile  GPU time of a step by category, for the loop and for the prototype
tests    the tests of `wcl_core` on this machine

Every slice is a list of parts.  A part that fails is recorded with its error, and the next part runs.  Each part adds
one line to the results, with date, card and versions; `--resume` skips the parts that the file has for this card,
these versions and this code.  Needed are torch, torchvision, numpy, safetensors and pydantic, and for `tests` pytest,
in a folder with copies of `wcl_core`, `benchmarks`, `tests` and `pyproject.toml`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import card_labels, card_profile, card_speed, card_sync, card_tests  # noqa: E402
from measure.report import RESULTS, setting  # noqa: E402

Part = Callable[[float], dict[str, Any]]
SLICES: dict[str, Callable[[], dict[str, Part]]] = {
    "speed": card_speed.parts,
    "sync": card_sync.parts,
    "graph": card_labels.parts,
    "profile": card_profile.parts,
    "tests": lambda: card_tests.parts(ROOT),
}
# A part starts only if so many seconds are left, since a compilation takes about as long.
LAST_START_SECONDS = 45


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--slice", action="append", choices=tuple(SLICES), help="may be given several times; default: all"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all slices of this call")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.jsonl")
    parser.add_argument("--resume", action="store_true", help="skip the parts that the results have")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return
    facts = card_facts()
    present = set(_present(options.results, facts)) if options.resume else set()
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.slice or SLICES:
        for part, measure in SLICES[name]().items():
            if (name, part) in present:
                continue
            if deadline - time.monotonic() < LAST_START_SECONDS:
                print(f"{name}: no time left for {part}")
                continue
            _append(options.results, {"slice": name, "part": part} | facts | _measured(measure, deadline))


def card_facts() -> dict[str, Any]:
    """Return date, card and versions."""
    of_machine = setting()
    return {name: of_machine[name] for name in ("date", "gpu", "cores", "python", "torch", "torchvision", "code")} | {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _measured(measure: Part, deadline: float) -> dict[str, Any]:
    """Return the values of a part, or its error."""
    start = time.monotonic()
    try:
        outcome: dict[str, Any] = {"values": measure(deadline)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    torch.cuda.empty_cache()
    return outcome | {"seconds": round(time.monotonic() - start, 1)}


def _append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    values = json.dumps(record.get("values", record.get("error")))
    print(f"{record['slice']} / {record['part']} ({record['seconds']} s): {values}", flush=True)


def _present(path: Path, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield slice and part of each measurement in the file that has the same facts, but for the date."""
    same = {name: value for name, value in facts.items() if name != "date"}
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        if "values" in record and all(record.get(name) == value for name, value in same.items()):
            yield record["slice"], record["part"]


if __name__ == "__main__":
    main()
