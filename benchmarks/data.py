"""Benchmark of image folders: decoding by threads and by processes, the cache, and the memory that a run takes.

    python benchmarks/data.py FOLDER [FOLDER ...] [--size 32] [--files 4000] [--only decode|cache]

Each folder has a layout of docs/datasets.md. `decode` reads the same files in turn by one thread, by a thread for each
core, by a process for each core, and by one thread with torchvision's decoder. `cache` decodes the whole folder into
an empty cache, then maps it again, each in a process of its own. Results are added to benchmarks/results/data.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure.report import load_results, save_results, setting
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from wcl_core import data
from wcl_core.data import decoding
from wcl_core.data.cache import Cache
from wcl_core.data.layout import list_files
from wcl_core.limits import num_cores
from wcl_core.reporter import NullReporter

_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--files", type=int, default=4000, help="files of the part `decode`")
    parser.add_argument("--only", choices=("decode", "cache"))
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)  # cache, digest, size: the part of a new process
    options = parser.parse_args()
    if options.load:
        _load(options.folders[0], *options.load)
        return
    for folder in options.folders:
        facts: dict[str, Any] = {"folder": folder.name, "size": options.size, **setting()}
        if options.only != "cache":
            facts |= _decode(folder, options.size, options.files)
        if options.only != "decode":
            facts |= _cache(folder, options.size)
        print(json.dumps(facts, indent=1), flush=True)
        items = load_results("data").get("items", {})
        before = items.get(f"{folder.name} {options.size}", {})
        items[f"{folder.name} {options.size}"] = before | facts
        save_results("data", setting() | {"items": items}, _table(items))


def _decode(folder: Path, size: int, count: int) -> dict[str, Any]:
    """Return microseconds a file of each way of decoding, the least of three rounds."""
    files = list_files("bench", folder)
    paths = [path for path, _ in files.train]
    paths = paths[:: max(1, len(paths) // count)][:count]
    wish, cores = decoding.Wish(size), num_cores()

    def one(path: str) -> object:
        return decoding.read_file(files.root / path, wish)

    def by_threads() -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(one, paths))

    def by_processes() -> None:
        with decoding._Processes(cores, files.root, wish) as processes:
            list(processes.read(paths))

    ways: dict[str, Callable[[], object]] = {
        "one thread": lambda: [one(path) for path in paths],
        "threads": by_threads,
        "processes": by_processes,
    }
    if all(path.lower().endswith((".jpg", ".jpeg")) for path in paths):
        ways["torchvision"] = lambda: [_by_torchvision(files.root / path) for path in paths]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, act in ways.items():
            started = time.perf_counter()
            act()
            seconds[way].append(time.perf_counter() - started)
    different = sum(
        not np.array_equal(np.asarray(Image.open(files.root / path).convert("RGB")), _by_torchvision(files.root / path))
        for path in (paths if "torchvision" in ways else [])
    )
    return {
        "files": len(paths),
        "us_a_file": {way: round(1e6 * min(times) / len(paths)) for way, times in seconds.items()},
        "other_pixels_by_torchvision": different,
    }


def _by_torchvision(path: Path) -> Any:
    """Return the decoded image without resizing: (H, W, 3) uint8."""
    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _cache(folder: Path, size: int) -> dict[str, Any]:
    """Return seconds and memory of a first and a second load."""
    started = time.perf_counter()
    described = data.describe("bench", "folder", folder)
    facts: dict[str, Any] = {"images": sum(described.counts.values()), "describe_s": time.perf_counter() - started}
    with tempfile.TemporaryDirectory() as place:
        for name in ("first", "second"):
            command = [sys.executable, __file__, str(folder), "--load", place, described.digest, str(size)]
            facts[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        facts["cache_bytes"] = sum(file.size for file in Cache(Path(place)).files())
    return facts


def _load(folder: Path, place: str, digest: str, size: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    cache = Cache(Path(place))
    loaded = data.load("bench", "folder", folder, int(size), 0.01, NullReporter(), cache=cache, digest=digest)
    took = time.perf_counter() - started
    assert isinstance(loaded.train.images, torch.Tensor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    facts = {"s": round(took, 2), "peak_mib": peak >> 10, "before_mib": before >> 10}
    sys.stdout.write(json.dumps(facts | {"own_mib": int(anonymous.split()[1]) >> 10}))


def _table(items: dict[str, Any]) -> str:
    lines = [
        "Microseconds a file (least of three rounds), then the whole folder: its description, the first load into an",
        "empty cache, the second load. Memory is that of the loading process, its own pages without mapped files.",
        "",
        "| folder, pixels | one thread | threads | processes | torchvision, no resize | other pixels | images"
        " | describe | first | second | cache | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in items.items():
        us = facts.get("us_a_file", {})
        cells = [name, *(us.get(way, "") for way in ("one thread", "threads", "processes", "torchvision"))]
        cells.append(f"{facts['other_pixels_by_torchvision']} of {facts['files']}" if us else "")
        if "first" in facts:
            cells += [f"{facts['images']:,}", f"{facts['describe_s']:.1f} s"]
            cells += [f"{facts[which]['s']} s" for which in ("first", "second")]
            cells += [f"{facts['cache_bytes'] >> 20} MiB", f"{facts['first']['own_mib']} MiB"]
        else:
            cells += [""] * 6
        lines.append(f"| {' | '.join(map(str, cells))} |")
    notes = [
        f"- {name}: {facts['date']}, load average {facts['load_average'][0]} on {facts['cores']} cores"
        for name, facts in items.items()
    ]
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    main()
