"""`./run mutants`: removes each guard of the guarantees, one at a time, and expects its tests to fail."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Return 0 if the tests notice every mutant."""
    guards = _chosen()
    with tempfile.TemporaryDirectory(prefix="wcl-mutants-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "wcl-data", "runs", "build"))
        survived = [guard.name for guard in guards if not is_noticed(copy, guard)]
    print(f"{len(guards) - len(survived)} of {len(guards)} mutants are noticed", *survived, sep="\n  survived: ")
    return int(bool(survived))


def _chosen() -> list[Guard]:
    parser = argparse.ArgumentParser(prog="./run mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only guards whose name or file contains one of them")
    words = parser.parse_args().words
    guards = [each for each in GUARDS if not words or any(word in f"{each.name} {each.path}" for word in words)]
    return guards or parser.error("no guard has one of these words in its name or file")


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
