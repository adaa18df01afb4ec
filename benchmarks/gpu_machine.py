"""Benchmark of a GPU machine as its users have one, in at most nine minutes.

    python benchmarks/gpu_machine.py [--slice memory ...] [--minutes 9] [--results FILE] [--resume]

memory   the estimated memory of a training process beside the measured peak, for six shapes
batch    `batch_size: auto`: the search's time and result, and a run with it; the message of a run without memory
service  the whole service on this machine: claim to first step, jobs side by side, cancels, the bytes after a kill, the
         load, memory and temperature of each device as the service shows them, whether Xids and ECC errors are watched,
         and the start of jobs on a folder of 60,000 small images

Without a GPU, WCL_DEVICES=4 gives the service four stand-in devices: the slice `service` then runs on the CPU, to see
that it works, and the others are left out.

Every slice is a list of parts, as for `gpu.py`.  The package must be installed with all its requirements.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import card_memory, card_service  # noqa: E402
from measure.report import RESULTS  # noqa: E402
from measure.slices import Part, run  # noqa: E402

SLICES: dict[str, Callable[[], dict[str, Part]]] = {
    "memory": card_memory.parts,
    "batch": card_memory.batch_parts,
    "service": card_service.parts,
}


if __name__ == "__main__":
    stand_ins = ("service",) if os.environ.get("WCL_DEVICES") else ()
    run(SLICES, __doc__, RESULTS / "gpu_machine.jsonl", stand_ins)
