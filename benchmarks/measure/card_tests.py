"""The tests of `wcl_core` on this machine, in a process of their own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SUMMARY = re.compile(r"^(FAILED|ERROR|SKIPPED) (.*)$", re.MULTILINE)
_PROCESSES = 8


def parts(root: Path) -> dict[str, Callable[[float], dict[str, Any]]]:
    return {"tests/wcl_core": lambda deadline: outcome(root, deadline)}


def outcome(root: Path, deadline: float) -> dict[str, Any]:
    """Return pytest's last line, and its lines of failures, errors and skipped tests."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/wcl_core",
        "-q",
        "--tb=short",
        "-rfEs",
        "--confcutdir=tests/wcl_core",  # the folder above has fixtures of the service
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
    ]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(_PROCESSES)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        try:
            output, _ = tests.communicate(timeout=max(30.0, deadline - time.monotonic() - 5))
        except subprocess.TimeoutExpired:
            tests.terminate()
            output, _ = tests.communicate()
    print(output, flush=True)
    lines = [f"{kind} {rest}"[:300] for kind, rest in _SUMMARY.findall(output)]
    return {"last_line": output.strip().splitlines()[-1:], "lines": lines}
