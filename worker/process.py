"""The training process of one attempt: started by command, asked through a pipe, ended with all it started."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil

import wcl_core
from wcl_core.failpoints import failpoint

Ask = Literal["cancel", "pause", "drain"]

COMMAND = (sys.executable, "-m", "wcl_core", "attempt")  # and the folder
MARK = "WCL_ATTEMPT"
OUTPUT_FILE = "output.log"
PEER_LOST_EXIT = 71  # of wcl_core.attempt
_TERMINATE_SECONDS = 2.0
_KILL_SECONDS = 10.0
_RANK_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class TrainingProcess:
    """`python -m wcl_core attempt FOLDER`, once for each rank, alive until all ranks end or are killed.

    The supervisor holds the only write end of each rank's pipe, so every rank notices the supervisor's death.  Ranks
    are started here and not by torchrun: its rendezvous listens on every address and unpickles what it is sent, its
    children do not inherit a pipe, and it hides which rank died of what.  Ours meet through a file in the folder and
    talk over loopback.

    Args:
        folder: the attempt's folder with `run.json`.
        mark: what every process of this attempt carries in its environment.
        num_ranks: processes that train together.
    """

    def __init__(self, folder: Path, mark: str, num_ranks: int = 1) -> None:
        self.mark = mark
        self.asked: Ask | None = None
        self._pipes: list[int] = []
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._failure: int | None = None  # the exit code that says most of why ranks ended
        self._others_end_at: float | None = None
        try:
            for rank in range(num_ranks):
                failpoint("process.before_spawn")
                self._start(folder, rank, num_ranks)
            failpoint("process.after_spawn")
        except OSError:
            self.kill()
            raise

    def _start(self, folder: Path, rank: int, num_ranks: int) -> None:
        read_end, write_end = os.pipe()
        self._pipes.append(write_end)
        try:
            with (folder / OUTPUT_FILE).open("ab") as output:
                self._ranks.append(
                    subprocess.Popen(
                        [*COMMAND, str(folder), "--control-fd", str(read_end)],
                        env=_environment(self.mark) | (_place(rank, num_ranks) if num_ranks > 1 else {}),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=(read_end,),
                        start_new_session=True,
                    )
                )
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        """Of the first rank, which reports."""
        return self._ranks[0].pid

    def exit_code(self) -> int | None:
        """None while a rank runs; else 0, or how the rank ended that ended worst: negative for a signal.

        Once the first rank has ended or any has failed, the others have a few seconds: they may wait for a lost one.
        """
        codes = [rank.poll() for rank in self._ranks]
        if self._others_end_at is None or time.monotonic() < self._others_end_at:
            self._failure = _worst([self._failure, *codes])
        if None not in codes:
            return self._failure or 0
        if self._others_end_at is None and (codes[0] is not None or self._failure):
            self._others_end_at = time.monotonic() + _RANK_SECONDS
        if self._others_end_at is not None and time.monotonic() > self._others_end_at:
            for rank in self._ranks:
                rank.kill()
        return None

    def ask(self, what: Ask) -> None:
        """Ask the run to save and stop; asking again changes nothing, and a cancel overrides the others.

        The first rank decides for all, at the same step.
        """
        if self.asked in (what, "cancel"):
            return
        self.asked = what
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            os.write(self._pipes[0], what[:1].encode())

    def kill(self) -> None:
        """End the run and every process it started, whatever process session or environment they moved to."""
        self.close()
        for rank in self._ranks:
            rank.terminate()
        deadline = time.monotonic() + _TERMINATE_SECONDS
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(max(0.0, deadline - time.monotonic()))
        _end_all(self._members)
        for rank in self._ranks:
            rank.wait()
        _bury({rank.pid for rank in self._ranks})

    def _members(self) -> Iterator[psutil.Process]:
        """Whatever is below a process that adopts orphans is of its one attempt, with or without the mark."""
        yield from marked(self.mark)
        if _adopts_orphans():
            yield from filter(_is_alive, psutil.Process().children(recursive=True))

    def close(self) -> None:
        """Close the pipes; a run that is still there stops by itself."""
        while self._pipes:
            os.close(self._pipes.pop())


def _worst(codes: list[int | None]) -> int | None:
    """Of some exit codes the one that says most: a signal, then a failure, then a rank that only lost the others."""
    failures = [code for code in codes if code]
    return min(failures, key=lambda code: (code > 0, code == PEER_LOST_EXIT), default=None)


def _place(rank: int, num_ranks: int) -> dict[str, str]:
    """A rank's place, with nothing open to the network and the machine's cores shared out."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks)),
    }


def failure_of(folder: Path) -> tuple[str, str | None, str] | None:
    """(outcome, reason, message) that a rank other than the first left; None when none did."""
    for path in sorted(folder.glob("failure-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            said = json.loads(path.read_text())
            return said["outcome"], said["reason"], f"{path.stem.replace('failure-', 'rank ')}: {said['message']}"
    return None


def adopt_orphans() -> None:
    """Become the parent of whatever a run leaves behind when it ends, so that a worker finds all of it.

    A process may clear its environment and with it the mark; it cannot leave its ancestors.  It takes no right.  Where
    the system is not Linux, the mark is all there is.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _adopts_orphans() -> bool:
    answer = ctypes.c_int(0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return bool(answer.value)


def _end_all(find: Callable[[], Iterator[psutil.Process]]) -> None:
    """Kill every process that is found.

    They are stopped first, until no further one turns up: what multiplies while it is being killed would escape.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    stopped: set[int] = set()
    while (found := [each for each in find() if each.pid not in stopped]) and time.monotonic() < deadline:
        for process in found:
            stopped.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for process in find():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _bury(ranks: set[int]) -> None:
    """Take the exit codes of adopted orphans, which nobody else asks for; the ranks' own are already taken."""
    if _adopts_orphans():
        for child in psutil.Process().children():
            if child.pid not in ranks:
                with contextlib.suppress(psutil.Error):
                    child.wait(_KILL_SECONDS)


def marked(*marks: str) -> Iterator[psutil.Process]:
    """Every living process that carries the mark of one of these attempts."""
    for process in psutil.process_iter() if marks else ():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) in marks and _is_alive(process):
                yield process


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


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
