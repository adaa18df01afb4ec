"""Benchmark of image folders: decoding by threads and by processes, the cache, and the memory that a run takes.

    python benchmarks/data.py FOLDER [FOLDER ...] [--size 32] [--files 4000] [--only decode|decoders|cache]

Each folder has a layout of docs/datasets.md. `decode` reads the same files in turn by one thread, by a thread for each
core, by a process for each core, and by one thread with torchvision's decoder: alone, and with all else that a file
needs (digest, header, resize). `decoders` compares Pillow and torchvision in processor time, file by file in turn:
other programs disturb that less. `cache` decodes the whole folder into an empty cache, then maps it again, each in a
process of its own. Results are added to benchmarks/results/data.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure.report import load_results, save_results, setting
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file

from wcl_core import data
from wcl_core.data import decoding
from wcl_core.data.cache import Cache
from wcl_core.data.image_file import FORMATS
from wcl_core.data.layout import Files, list_files
from wcl_core.limits import num_cores
from wcl_core.reporter import NullReporter

_ROUNDS = 3
_COMPARED = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--files", type=int, default=4000, help="files of the part `decode`")
    parser.add_argument("--only", choices=("decode", "decoders", "cache"))
    parser.add_argument("--load", nargs=3, help=argparse.SUPPRESS)  # cache, digest, size: the part of a new process
    options = parser.parse_args()
    if options.load:
        _load_folder(options.folders[0], *options.load)
        return
    for folder in options.folders:
        facts: dict[str, Any] = {"folder": folder.name, "size": options.size}
        if options.only != "decoders":
            facts |= setting()
        if options.only in (None, "decode"):
            facts |= _decode(folder, options.size, options.files)
        if options.only in (None, "decoders"):
            facts["decoders"] = setting() | _decoders(folder, options.size, options.files)
        if options.only in (None, "cache"):
            facts |= _cache(folder, options.size)
        print(json.dumps(facts, indent=1), flush=True)
        items = load_results("data").get("items", {})
        before = items.get(f"{folder.name} {options.size}", {})
        items[f"{folder.name} {options.size}"] = before | facts
        save_results("data", setting() | {"items": items}, _table(items))


def _decode(folder: Path, size: int, count: int) -> dict[str, Any]:
    """Return microseconds a file of each way of decoding, the least of three rounds."""
    files = list_files("bench", folder)
    paths, wish, cores = _chosen(files, count), decoding.Wish(size), num_cores()

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
        ways["torchvision, whole"] = lambda: [_whole_by_torchvision(files.root / path, size) for path in paths]
        ways["reduced"] = lambda: [_reduced(files.root / path, size) for path in paths]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, act in ways.items():
            started = time.perf_counter()
            act()
            seconds[way].append(time.perf_counter() - started)
    compared = paths[:_COMPARED] if "torchvision" in ways else []
    different = sum(
        not np.array_equal(np.asarray(Image.open(files.root / path).convert("RGB")), _by_torchvision(files.root / path))
        for path in compared
    )
    reduced = [
        int(np.abs(_reduced(files.root / path, size).astype(int) - _image(files.root / path, wish)).max())
        for path in compared
    ]
    return {
        "compared": len(compared),
        "reduced_difference": max(reduced, default=0),
        "starts": _starts(),
        "files": len(paths),
        "us_a_file": {way: round(1e6 * min(times) / len(paths)) for way, times in seconds.items()},
        "other_pixels_by_torchvision": different,
    }


def _chosen(files: Files, count: int) -> list[str]:
    """Return so many of the train images, or of those without labels, evenly spread."""
    paths = [path for path, _ in files.train or files.splits["unlabelled"]]
    return paths[:: max(1, len(paths) // count)][:count]


def _decoders(folder: Path, size: int, count: int) -> dict[str, Any]:
    """Return the processor time of a file by both decoders, the least of some rounds, each file by all in turn."""
    torch.set_num_threads(1)
    files = list_files("bench", folder)
    paths = [files.root / path for path in _chosen(files, count)]
    total: dict[str, int] = {}
    num_different = 0
    for path in paths:
        content, wish = path.read_bytes(), decoding.Wish(size)
        ways: dict[str, Callable[[], Any]] = {
            "Pillow": partial(decoding.read_file, path, wish),
            "torchvision": partial(_whole_by_torchvision, path, size),
            "Pillow, decoding only": partial(_load, content),
            "torchvision, decoding only": partial(
                decode_image, torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB
            ),
        }
        times = {way: min(_cpu_ns(act) for _ in range(_ROUNDS)) for way, act in ways.items()}
        total = {way: total.get(way, 0) + ns for way, ns in times.items()}
        num_different += not np.array_equal(_whole_by_torchvision(path, size), decoding.read_file(path, wish)[1])
    us = {way: round(ns / len(paths) / 1000) for way, ns in total.items()}
    return {"files": len(paths), "cpu_us_a_file": us, "other_pixels_by_torchvision": num_different}


def _cpu_ns(act: Callable[[], Any]) -> int:
    started = time.thread_time_ns()
    act()
    return time.thread_time_ns() - started


def _load(content: bytes) -> None:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.load()


def _by_torchvision(path: Path) -> Any:
    """Return the decoded image without resizing: (H, W, 3) uint8."""
    return decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _whole_by_torchvision(path: Path, size: int) -> Any:
    """Return what `decoding.read_file` returns for a plain JPEG or PNG, decoded by torchvision."""
    content = path.read_bytes()
    hashlib.sha256(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as header:  # for the limits and the orientation
        header.getexif()
        pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return _square(Image.fromarray(pixels.permute(1, 2, 0).numpy()), size)


def _reduced(path: Path, size: int) -> Any:
    """Return the image from a JPEG that is decoded at an eighth, a quarter or half of its size, if that is enough."""
    content = path.read_bytes()
    hashlib.sha256(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.getexif()
        image.draft("RGB", (4 * size, 4 * size))
        return _square(image, size)


def _square(image: Image.Image, size: int) -> Any:
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _image(path: Path, wish: decoding.Wish) -> Any:
    pixels = decoding.read_file(path, wish)[1]
    assert pixels is not None
    return pixels.astype(int)


def _starts() -> dict[str, dict[str, float]]:
    """Return the processor time and the memory that a decoding process takes before its first file."""
    facts = {}
    for name, modules in (
        ("Pillow", "wcl_core.data.decoding"),
        ("torchvision", "wcl_core.data.decoding, torchvision.io"),
    ):
        program = f"import {modules}, time; print(time.process_time(), open('/proc/self/status').read())"
        runs = [
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
            for _ in range(_ROUNDS)
        ]
        facts[name] = {
            "cpu_s": min(float(run[0]) for run in runs),
            "mib": int(runs[0][runs[0].index("VmHWM:") + 1]) >> 10,
        }
    return facts


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


def _load_folder(folder: Path, place: str, digest: str, size: str) -> None:
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
    ways = ("one thread", "threads", "processes", "torchvision, whole", "torchvision", "reduced")
    lines = [
        "Microseconds a file (least of three rounds), then the whole folder: its description, the first load into an",
        "empty cache, the second load. Memory is that of the loading process, its own pages without mapped files.",
        "",
        "| folder, pixels | one thread | threads | processes | torchvision | torchvision, decoding only | reduced"
        " | images | describe | first | second | cache | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in items.items():
        if "files" not in facts and "first" not in facts:
            continue
        us = facts.get("us_a_file", {})
        cells = [name, *(us.get(way, "") for way in ways)]
        if "first" in facts:
            cells += [f"{facts['images']:,}", f"{facts['describe_s']:.1f} s"]
            cells += [f"{facts[which]['s']} s" for which in ("first", "second")]
            cells += [f"{facts['cache_bytes'] >> 20} MiB", f"{facts['first']['own_mib']} MiB"]
        else:
            cells += [""] * 6
        lines.append(f"| {' | '.join(map(str, cells))} |")
    notes = [_note(name, facts) for name, facts in items.items() if "files" in facts or "first" in facts]
    return "\n".join([*lines, "", *notes, "", *_decoder_lines(items)])


def _decoder_lines(items: dict[str, Any]) -> list[str]:
    ways = ("Pillow", "torchvision", "Pillow, decoding only", "torchvision, decoding only")
    lines = [
        "Processor time of a file in microseconds, in one run, each file by all ways in turn: all that a file needs",
        "(digest, header, decoding, resizing), and decoding alone.",
        "",
        f"| folder, pixels | files | {' | '.join(ways)} | files with other pixels | when |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in items.items():
        if (each := facts.get("decoders")) is not None:
            cells = [name, each["files"], *(each["cpu_us_a_file"][way] for way in ways)]
            when = f"{each['date']}, load {each['load_average'][0]:.1f}"
            lines.append(f"| {' | '.join(map(str, [*cells, each['other_pixels_by_torchvision'], when]))} |")
    return lines


def _note(name: str, facts: dict[str, Any]) -> str:
    text = f"- {name}: {facts['date']}, load average {facts['load_average'][0]} on {facts['cores']} cores"
    if not facts.get("compared"):
        return text
    starts = "; ".join(f"{each['cpu_s']:.2f} s and {each['mib']} MiB ({way})" for way, each in facts["starts"].items())
    return (
        f"{text}; of {facts['compared']} files, torchvision decodes {facts['other_pixels_by_torchvision']} to other "
        f"pixels; a reduced image differs by at most {facts['reduced_difference']} of 255; a process starts in {starts}"
    )


if __name__ == "__main__":
    main()
