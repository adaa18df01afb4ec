"""The training process of one attempt: its start, requests through a pipe, and its end with all children."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil

import wcl_core
from wcl_core import orphans
from wcl_core.failpoints import failpoint
from wcl_core.limits import num_cores
from wcl_core.protocol import OUTPUT_FILE, PEER_LOST_EXIT, REQUEST_LETTERS, Request
from wcl_core.standby import MARK
from worker import children
from worker.devices import Share
from worker.standby import Process, Standby

COMMAND = (sys.executable, "-m", "wcl_core", "attempt")  # and the folder
# The system, the interpreter, and the libraries that compute or fetch a dataset.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TEMP|TMP|XDG_CACHE_HOME|VIRTUAL_ENV|FAILPOINTS"
    r"|PYTHON\w+|LD_\w+|DYLD_\w+|MALLOC_\w+|OMP_\w+|GOMP_\w+|KMP_\w+|MKL_\w+|OPENBLAS_\w+|BLIS_\w+|NUMEXPR_\w+"
    r"|TORCH\w+|PYTORCH_\w+|TRITON_\w+|CUDA_\w+|CUBLAS_\w+|CUDNN_\w+|NVIDIA_\w+|NCCL_\w+|GLOO_\w+"
    r"|HIP_\w+|HSA_\w+|ROCR_\w+|MIOPEN_\w+|SSL_CERT_FILE|SSL_CERT_DIR|(?i:https?_proxy|all_proxy|no_proxy)"
)
_TERMINATE_SECONDS = 2.0
_KILL_SECONDS = 10.0
_RANK_SECONDS = 5.0


@dataclass(frozen=True)
class World:
    """The ranks of a run on several machines.

    Attributes:
        first: the rank of the first process of this machine.
        size: number of ranks on all machines.
        interface: that they communicate through.
    """

    first: int
    size: int
    interface: str


class TrainingProcess:
    """`python -m wcl_core attempt FOLDER`, once for each rank; alive until all ranks have ended.

    This process holds the only write end of each rank's pipe, so every rank notices its death.  Ranks are started here
    and not by torchrun: its rendezvous listens on every address and unpickles what it receives, its children do not
    inherit a pipe, and it hides the exit codes of the ranks.  The ranks meet through a file in the folder and use
    loopback, unless the run is on several machines.

    Args:
        folder: the attempt's folder with `run.json`.
        mark: identifies the attempt in the environment of every process.
        num_ranks: processes that train together on this machine.
        environment: names of further environment variables that the run gets.
        standby: forks the ranks, so that they do not import everything again; None starts them by command.
        share: the part of the machine that the run gets.
        world: of a run on several machines.

    Attributes:
        requested: the request that was sent to the run.
    """

    def __init__(
        self,
        folder: Path,
        mark: str,
        num_ranks: int = 1,
        environment: Iterable[str] = (),
        standby: Standby | None = None,
        share: Share | None = None,
        world: World | None = None,
    ) -> None:
        self._world = world
        self.mark, share = mark, share or Share()
        self._standby = standby
        self._environment = module_environment(environment)
        if share.visible is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = share.visible
        self._threads = share.threads
        self.requested: Request | None = None
        self._pipes: list[int] = []
        self._ranks: list[Process] = []
        self._failure: int | None = None  # the exit code that explains most
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
        environment = self._environment | {MARK: self.mark} | self._of_rank(rank, num_ranks)
        read_end, write_end = os.pipe()
        self._pipes.append(write_end)
        try:
            with (folder / OUTPUT_FILE).open("ab") as output:
                process: Process | None = None
                if self._standby is not None:
                    process = self._standby.run(["attempt", str(folder)], environment, output, read_end)
                self._ranks.append(process or _by_command(folder, environment, output, read_end))
        finally:
            os.close(read_end)

    def _of_rank(self, rank: int, num_ranks: int) -> dict[str, str]:
        return _rank_environment(rank, num_ranks, self._threads, self._world)

    @property
    def pid(self) -> int:
        """The id of the first rank's process, which reports."""
        return self._ranks[0].pid

    def exit_code(self) -> int | None:
        """Return None while a rank runs, 0 for success, else the exit code that explains most; negative for a signal.

        Once the first rank has ended or any rank has failed, the others have a few seconds, since they may wait for a
        lost rank; then they are killed.
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

    def wait(self, seconds: float) -> None:
        """Wait until a rank ends, for at most `seconds`."""
        running = [rank.pid for rank in self._ranks if rank.poll() is None]
        if not running:
            return
        if not hasattr(os, "pidfd_open"):  # not Linux
            time.sleep(seconds)
            return
        with contextlib.ExitStack() as stack:
            ends = select.poll()
            for pid in running:
                descriptor = os.pidfd_open(pid)
                stack.callback(os.close, descriptor)
                ends.register(descriptor, select.POLLIN)
            ends.poll(1000 * seconds)

    def request(self, request: Request) -> None:
        """Request that the run saves and stops; a repetition changes nothing, and a cancel overrides the others.

        The first rank decides for all ranks, at the same step.
        """
        if self.requested in (request, "cancel"):
            return
        self.requested = request
        with contextlib.suppress(OSError, IndexError):  # the run has just ended
            os.write(self._pipes[0], REQUEST_LETTERS[request])

    def kill(self, at_once: bool = False) -> None:
        """End the run and every process it started, also those in another process session or environment.

        Args:
            at_once: the run gets no time to end by itself, and so to report an end of its own.
        """
        for rank in self._ranks if at_once else ():
            rank.kill()
        self.close()
        for rank in self._ranks:
            rank.terminate()
        deadline = time.monotonic() + _TERMINATE_SECONDS
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.wait(max(0.0, deadline - time.monotonic()))
        _kill_all(self._members)
        for rank in self._ranks:
            rank.wait()
            children.forget(rank.pid)
        _reap_orphans()

    def _members(self) -> Iterator[psutil.Process]:
        """Yield the processes of the attempt, those that ended runs have left behind, and all their descendants."""
        if not orphans.are_adopted():  # otherwise it costs a read of every process of the machine
            yield from marked(self.mark)
        ranks = [rank.pid for rank in self._ranks if rank.poll() is None]
        for pid in [*ranks, *(each.pid for each in children.left_behind())]:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                yield from filter(_is_alive, [process, *process.children(recursive=True)])

    def close(self) -> None:
        """Close the pipes; a run that is still alive stops by itself."""
        while self._pipes:
            os.close(self._pipes.pop())


def _by_command(folder: Path, environment: dict[str, str], output: BinaryIO, control: int) -> Process:
    return children.start(
        lambda: subprocess.Popen(
            [*COMMAND, str(folder), "--control-fd", str(control)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(control,),
            start_new_session=True,
        )
    )


def _worst(codes: list[int | None]) -> int | None:
    """Return the exit code that explains most: a signal, then a failure, then a rank that only lost the others."""
    failures = [code for code in codes if code]
    return min(failures, key=lambda code: (code > 0, code == PEER_LOST_EXIT), default=None)


def _rank_environment(
    rank: int, num_ranks: int, threads: int | None = None, world: World | None = None
) -> dict[str, str]:
    """Return a rank's environment: its share of the threads, and of several ranks its place and one interface.

    Args:
        rank: from 0 on this machine.
        num_ranks: of the run on this machine.
        threads: of the run; None for all cores.  A single rank then takes them by itself.
        world: of a run on several machines; ranks of one machine use loopback only.
    """
    share = {"OMP_NUM_THREADS": str(max(1, (threads or num_cores()) // num_ranks))}
    if num_ranks == 1 and world is None:
        return share if threads else {}
    exact = "=" if world else ""  # by itself NCCL takes each interface whose name begins so
    world = world or World(0, num_ranks, "lo")
    return share | {
        "RANK": str(world.first + rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "WORLD_SIZE": str(world.size),
        "GLOO_SOCKET_IFNAME": world.interface,
        "NCCL_SOCKET_IFNAME": exact + world.interface,
    }


def _kill_all(find: Callable[[], Iterator[psutil.Process]]) -> None:
    """Kill every process that `find` yields.

    All are suspended first, until `find` yields no further one: processes that multiply meanwhile would escape.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    stopped: set[int] = set()
    while (running := [each for each in find() if each.pid not in stopped]) and time.monotonic() < deadline:
        for process in running:
            stopped.add(process.pid)
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for process in find() if stopped else ():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _reap_orphans() -> None:
    """Read the exit codes of adopted orphans, so that none stays a zombie."""
    for child in children.left_behind():
        with contextlib.suppress(psutil.Error):
            child.wait(_KILL_SECONDS)


def marked(*marks: str) -> Iterator[psutil.Process]:
    """Yield every living process that carries one of the marks."""
    for process in psutil.process_iter() if marks else ():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) in marks and _is_alive(process):
                yield process


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def module_environment(further: Iterable[str] = ()) -> dict[str, str]:
    """Return an environment in which `python -m wcl_core` is this installation, with listed variables only.

    A plugin reads its environment, and the worker's holds settings, passwords and tokens.

    Args:
        further: names that an operator has listed.
    """
    clean = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    clean |= {name: os.environ[name] for name in further if name in os.environ}
    here = str(Path(wcl_core.__file__).parents[1])
    inherited = clean.get("PYTHONPATH")
    return clean | {
        "PYTHONPATH": os.pathsep.join([here, inherited] if inherited else [here]),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
