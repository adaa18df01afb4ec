"""A process of `tests.parallel.python` ends as one of the interpreter does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import parallel
from tests.waiting import eventually

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
    assert run("-c", _KILLED).returncode == -signal.SIGKILL
    assert run("-c", "import os; os.abort()").returncode == -signal.SIGABRT
    failed = run("-c", "raise SystemExit('a message')")
    assert (failed.returncode, failed.stderr) == (1, "a message\n")
    assert "ValueError: a fault" in run("-c", "raise ValueError('a fault')").stderr


def test_a_program_has_its_arguments_its_variables_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import os\nNAME = os.environ['NAME']\n")
    (tmp_path / "program.py").write_text("import sys, beside\nprint(beside.NAME, sys.argv[1:], sys.stdin.read())\n")

    done = run(str(tmp_path / "program.py"), "-c", "last", NAME="a name")

    assert (done.returncode, done.stdout) == (0, "a name ['-c', 'last'] input\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_it_ends_its_process(number: signal.Signals) -> None:
    command = [parallel.python(), "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        process = int(started.stdout.readline())

        started.send_signal(number)

        assert started.wait(60) == -number
        assert started.stdout.read() == "", "the process still has its output"
    eventually(lambda: not psutil.pid_exists(process), "the end of the process")


def test_a_handler_of_it_gets_the_signal() -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(5)); print('ready', flush=True); signal.pause()"
    with subprocess.Popen([parallel.python(), "-c", code], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        started.stdout.readline()
        started.terminate()

        assert started.wait(60) == 5
