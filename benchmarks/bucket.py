"""A bucket as storage beside the folder: time and CPU to store and to read back one checkpoint.

    python benchmarks/bucket.py [--megabytes 256] [--rounds 5]

The bucket is moto's server in a process of its own, which keeps objects in Python: times are mostly its own, and CPU
times are those of the storing and reading process alone.  The folder is on the same disk as the file, so storing is a
rename and the reading of the whole file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the server that the tests start

from measure.report import save_results, setting

from jobs.bucket import BucketStorage
from jobs.storage import LocalStorage, Storage
from tests import servers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
    content = os.urandom(options.megabytes << 20)
    sha256 = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory(prefix="wcl-bucket-") as place, servers.bucket_server() as url:
        folder = Path(place)
        storages: list[Storage] = [BucketStorage("s3://wcl/files", url), LocalStorage(folder / "storage")]
        rounds = [
            [_round(each, folder, content, sha256, number) for each in storages] for number in range(options.rounds)
        ]
    kinds = ("store, time", "store, CPU", "read, time", "read, CPU")
    numbers = {kind: [[each[side][at] for each in rounds] for side in (0, 1)] for at, kind in enumerate(kinds)}
    lines = ["| | bucket | folder | ratio (range) |", "|---|---|---|---|"]
    for kind, (bucket, of_folder) in numbers.items():
        ratios = [ours / theirs for ours, theirs in zip(bucket, of_folder, strict=True)]
        spread = f"{median(ratios):.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
        lines.append(f"| {kind} | {median(bucket):.2f} s | {median(of_folder):.2f} s | {spread} |")
    text = "\n".join([*lines, "", f"{options.megabytes} MB over loopback, medians of {options.rounds} rounds."])
    print(text)
    save_results("bucket", setting() | numbers, text)


def _round(storage: Storage, folder: Path, content: bytes, sha256: str, number: int) -> tuple[float, ...]:
    """Store a file and read it back; return the seconds and CPU seconds of both."""
    source, key = folder / "written", f"job/{number}/step-1.safetensors"
    source.write_bytes(content)

    def store() -> None:
        storage.put(source, key)
        storage.confirm(key, sha256, len(content))

    stored = _timed(store)
    read = _timed(lambda: storage.fetch(key, sha256, len(content), folder).exists())
    storage.delete(key)
    return (*stored, *read)


def _timed(act: Callable[[], object]) -> tuple[float, float]:
    began, before = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - began, time.process_time() - before


if __name__ == "__main__":
    main()
