"""A process of `tests.parallel.python` ends as one of the interpreter does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import parallel

pytestmark = pytest.mark.process
_KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
_REPLACED = f"import os; os.execv({sys.executable!r}, [{sys.executable!r}, '-I', '-S', '-c', 'raise SystemExit(4)'])"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, with `input` on its stdin."""
    return subprocess.run(
        [parallel.python(), *arguments], env=os.environ | variables, input="input", capture_output=True, text=True
    )


def test_the_exit_code_arrives() -> None:
    assert run("-c", "pass").returncode == 0
    assert run("-c", "raise SystemExit(3)").returncode == 3
    assert run("-c", _REPLACED).returncode == 4
    assert run("-c", _KILLED).returncode != 0
    failed = run("-c", "raise SystemExit('a message')")
    assert (failed.returncode, failed.stderr) == (1, "a message\n")
    assert "ValueError: a fault" in run("-c", "raise ValueError('a fault')").stderr


def test_a_program_has_its_arguments_its_variables_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import os\nNAME = os.environ['NAME']\n")
    (tmp_path / "program.py").write_text("import sys, beside\nprint(beside.NAME, sys.argv[1:], sys.stdin.read())\n")

    done = run(str(tmp_path / "program.py"), "-c", "last", NAME="a name")

    assert (done.returncode, done.stdout) == (0, "a name ['-c', 'last'] input\n"), done.stderr
