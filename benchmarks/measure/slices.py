"""The driver of the benchmarks of a card: slices of parts, in a limited time, with a line of results for each part."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from measure.report import setting

Part = Callable[[float], dict[str, Any]]
# A part starts only if so many seconds are left, since a compilation takes about as long.
LAST_START_SECONDS = 45


def run(
    slices: Mapping[str, Callable[[], dict[str, Part]]],
    description: str | None,
    results: Path,
    without_gpu: Collection[str] = (),
) -> None:
    """Measure the parts of the slices that the command line names; without a GPU, only those that need none.

    Args:
        slices: by name; each gives its parts, which get the deadline.
        description: of the command line.
        results: the file that each part adds a line to.
        without_gpu: the slices that need no GPU.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--slice", action="append", choices=tuple(slices), help="may be given several times; default: all"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all slices of this call")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--resume", action="store_true", help="skip the parts that the results have")
    options = parser.parse_args()
    chosen = options.slice or list(slices)
    if not torch.cuda.is_available():
        print(f"skipped, no GPU: {', '.join(name for name in chosen if name not in without_gpu) or 'nothing'}")
        chosen = [name for name in chosen if name in without_gpu]
    facts = card_facts()
    present = set(_present(options.results, facts)) if options.resume else set()
    deadline = time.monotonic() + 60 * options.minutes
    for name in chosen:
        for part, measure in slices[name]().items():
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
