"""The processes that `wcl up` starts: one `Child` each, with its restarts and its log file.

waiting ──start──► running ──ends──► waiting (backoff)
└── drained by a user, or an error that only a user can fix ──► over
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

DRAINED_EXIT = 77  # of a worker that a user has drained

MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
_REASON_CHARACTERS = 500
_READ_BYTES = 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent() -> None:
    """End this child process when its parent is killed; on Linux only, elsewhere the child continues."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of processes that a killed child leaves behind; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    """Return the living processes that this process or its children have started."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def module_environment() -> dict[str, str]:
    """Return an environment in which `python -m` runs this installation's packages, not those of the working folder.

    A user's folder may hold its own `api` or `worker.py`.
    """
    paths = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    return dict(os.environ) | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class Refused(Exception):  # noqa: N818 (named by what the process did)
    """A process refused to start; the message gives the reason."""


class Child:
    """One process of the service, with its restarts and its log file.

    Args:
        stdin: the descriptor that it reads from.

    Attributes:
        name: for messages.
        log_path: the file that gets its output.
        failures: ends since it last ran for a minute.
        is_over: whether it has ended for good.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        log_path: Path,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.name = name
        self._stdin = stdin
        self.log_path = log_path
        self.failures = 0
        self.is_over = False
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._next_start_at = 0.0
        self._log_bytes = 0  # of earlier starts
        self._last_message = ""

    def start(self) -> None:
        """Start the process; its output goes to the log file.

        Raises:
            OSError: the log file or the process cannot be made, for example without free file descriptors.
        """
        with self.log_path.open("ab") as log:
            self._log_bytes = log.tell()
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=self._stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In its own session the child gets no Ctrl-C: `wcl up` gets it and stops each child in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._started_at = time.monotonic()

    def watch(self, report: Callable[[str], None]) -> None:
        """Start the process if it does not run; after a quick end the wait doubles, up to half a minute.

        Raises:
            Refused: it ended with an error that only a user can fix.
        """
        if self.is_over:
            return
        now = time.monotonic()
        if self._process is None:
            if now >= self._next_start_at:
                self._start_or_wait(report)
            return
        code = self._process.poll()
        if code is not None:
            self._end(code, report)
        elif self.failures and now - self._started_at > STABLE_SECONDS:
            self.failures, self._last_message = 0, ""
            report(f"{self.name} runs again")

    def _start_or_wait(self, report: Callable[[str], None]) -> None:
        try:
            self.start()
        except (OSError, subprocess.SubprocessError) as error:  # the latter when the forked child fails
            self._wait(f"{self.name} cannot be started: {error}", report)

    def _end(self, code: int, report: Callable[[str], None]) -> None:
        """Decide on a restart after the process has ended."""
        self._process = None
        self.is_over = code in (DRAINED_EXIT, os.EX_CONFIG)
        if code == DRAINED_EXIT:
            report(f"{self.name} was drained and is not started again")
        elif code == os.EX_CONFIG:
            raise Refused(self._reason().removeprefix("error: ") or f"see {self.log_path}")
        else:
            self._wait(f"{self.name} {self._cause(code)}", report)

    def _cause(self, code: int) -> str:
        if code < 0:
            return f"was killed by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"
        if code == 0:
            return "was stopped from outside by a signal"
        return f"ended with exit code {code} ({self._reason() or 'its log has no reason'})"

    def _reason(self) -> str:
        """Return the newest line of the log that begins with `error: `, or else its last line."""
        lines = self.last_lines().splitlines()
        return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")

    def _wait(self, cause: str, report: Callable[[str], None]) -> None:
        """Set the time of the next start; say so unless the last message was the same."""
        self.failures += 1
        wait = min(2.0 ** (self.failures - 1), MAX_BACKOFF_SECONDS)
        self._next_start_at = time.monotonic() + wait
        message = f"{cause}; it starts again in {wait:.0f} s, see {self.log_path}"
        if message != self._last_message:
            report(message)
        self._last_message = message

    @property
    def pid(self) -> int | None:
        """The process id; None if the process does not run."""
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process and self.is_running():
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process and the rest of its process group."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_lines(self, count: int = 15) -> str:
        """Return the last lines that the newest start has written to the log file."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as log:
            log.seek(max(self._log_bytes, log.seek(0, os.SEEK_END) - _READ_BYTES))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            return "\n".join(line[:_REASON_CHARACTERS] for line in lines[-count:])
        return ""
