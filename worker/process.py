"""The training process of one attempt: started by command, asked through a pipe, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

import wcl_core

Ask = Literal["cancel", "pause", "drain"]

MARK = "WCL_ATTEMPT"
OUTPUT_FILE = "output.log"
_TERMINATE_SECONDS = 2.0


class TrainingProcess:
    """`python -m wcl_core attempt FOLDER`, alive until it ends by itself or is killed.

    The supervisor holds the only write end of its pipe, so the run notices the supervisor's death.

    Args:
        folder: the attempt's folder with `run.json`.
        mark: what every process of this attempt carries in its environment.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.mark = mark
        read_end, self._pipe = os.pipe()
        try:
            with (folder / OUTPUT_FILE).open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "wcl_core", "attempt", str(folder), "--control-fd", str(read_end)],
                    env=_environment(mark),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(read_end,),
                    start_new_session=True,
                )
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)
        self.asked: Ask | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    def ask(self, what: Ask) -> None:
        """Ask the run to save and stop; asking again changes nothing, and a cancel overrides the others."""
        if self.asked in (what, "cancel"):
            return
        self.asked = what
        with contextlib.suppress(OSError):  # it has just ended
            os.write(self._pipe, what[:1].encode())

    def kill(self) -> None:
        """End the run and every process it started, whatever process session they moved to."""
        self.close()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERMINATE_SECONDS)
        for process in marked(self.mark):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Close the pipe; a run that is still there stops by itself."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def marked(mark: str) -> Iterator[psutil.Process]:
    """Every living process that carries the mark of an attempt."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def module_environment() -> dict[str, str]:
    """An environment in which `python -m wcl_core` is this installation's, and which carries no setting or secret."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    here = str(Path(wcl_core.__file__).parents[1])
    known = clean.get("PYTHONPATH")
    return clean | {
        "PYTHONPATH": os.pathsep.join([here, known] if known else [here]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _environment(mark: str) -> dict[str, str]:
    return module_environment() | {MARK: mark}
