"""`./run mutants`: removes each guard of the guarantees, one at a time, and expects its tests to fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Return 0 if the tests notice every mutant."""
    with tempfile.TemporaryDirectory(prefix="wcl-mutants-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "wcl-data", "runs", "build"))
        survived = [guard.name for guard in GUARDS if not is_noticed(copy, guard)]
    print(f"{len(GUARDS) - len(survived)} of {len(GUARDS)} mutants are noticed", *survived, sep="\n  survived: ")
    return int(bool(survived))


def is_noticed(copy: Path, guard: Guard) -> bool:
    """Return whether a test of the guard fails without it."""
    path = copy / guard.path
    text = path.read_text()
    assert text.count(guard.text) == 1, (
        f"{guard.name}: the text of the guard is not in {guard.path} exactly once; update tests/mutants/guards.py"
    )
    path.write_text(text.replace(guard.text, guard.without))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *guard.tests]
        result = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    finally:
        path.write_text(text)
    print(f"{guard.name}: {'noticed' if result.returncode == 1 else 'NOT noticed'}", flush=True)
    return result.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
