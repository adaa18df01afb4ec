"""Benchmark of `wcl_core` on a GPU, in slices of at most nine minutes.

    python benchmarks/gpu.py --slice speed --slice sync ... [--minutes 9] [--results FILE] [--resume]

speed    the training step with its views, eager and compiled, in images/s and ms a step
sync     lines of the code that wait for the GPU in a step, for several specs
graph    ten losses of eager and compiled steps; components and losses against SciPy and a dense mask
profile  GPU time of a step by category, eager and compiled
tests    the tests of `wcl_core` on this machine

Every slice is a list of parts.  A part that fails is recorded with its error, and the next part runs.  Each part adds
one line to the results, with date, card and versions; `--resume` skips the parts that the file has for this card,
these versions and this code.  Needed are torch, torchvision, numpy, safetensors and pydantic, and for `tests` pytest,
in a folder with copies of `wcl_core`, `benchmarks`, `tests` and `pyproject.toml`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import card_labels, card_profile, card_speed, card_sync, card_tests  # noqa: E402
from measure.report import RESULTS  # noqa: E402
from measure.slices import Part, run  # noqa: E402

SLICES: dict[str, Callable[[], dict[str, Part]]] = {
    "speed": card_speed.parts,
    "sync": card_sync.parts,
    "graph": lambda: card_speed.comparisons() | card_labels.parts(),
    "profile": card_profile.parts,
    "tests": lambda: card_tests.parts(ROOT),
}


if __name__ == "__main__":
    run(SLICES, __doc__, RESULTS / "gpu.jsonl")
