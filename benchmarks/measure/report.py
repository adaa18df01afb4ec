"""The results of a benchmark: a table and the same as JSON, with date, machine and versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torchvision

RESULTS = Path(__file__).parents[1] / "results"
READING = "## Reading"  # the heading of the text that people add below the figures


def setting() -> dict[str, Any]:
    """Return date, hardware, versions, commit and load of the machine."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "code": _code(),
    }


def _code() -> str | None:
    """Return the commit, with `-dirty` if there are changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """Return the processor's name, from /proc on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def load_results(name: str) -> dict[str, Any]:
    """Return the JSON that `save_results` wrote; empty if there is none."""
    path = RESULTS / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def save_results(name: str, facts: dict[str, Any], table: str) -> None:
    """Write results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    text = RESULTS / f"{name}.md"
    if text.exists() and READING in (old := text.read_text()):
        # The old text explains the old figures: keep it, but not below the new ones.
        text.with_suffix(".old.md").write_text(old)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
    where = (
        f"{facts['date']}, {facts['processor']}, {facts['cores']} cores, "
        f"{facts['gpu'] or 'no GPU'}, torch {facts['torch']}, Python {facts['python']}"
    )
    text.write_text(f"# {name}\n\n{where}\n\n{table}\n")
