"""Real server and worker processes, forked from one that has everything imported: a start costs milliseconds.

The code that runs is `python -m api` and `python -m worker` as they are.  The process that forks them belongs to the
process of the tests and ends with it.  A worker's standby process is forked, too, so that runs import nothing either.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, BinaryIO
from unittest import mock

import wcl_client.demo
import wcl_client.processes
import worker.datasets
import worker.process
import worker.standby
from jobs.transitions import outcomes
from tests import parallel
from wcl_core import standby
from wcl_core.protocol import RunFile
from wcl_core.reporter import Reporter, SpoolReporter

ROOT = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1
PRELOADED = [
    "tests.chaos.processes",
    "worker.__main__",
    "api.__main__",
    "wcl_client.cli",
    "wcl_client.up",
    "psycopg",
    "celery.apps.worker",
    "alembic.command",
    *standby._MODULES,
    "tests.preloaded",
]
_start_standby = worker.standby.start
_LONG_EPOCHS, _LONGEST_PAUSE_SECONDS, _MORE_SECONDS = 5, 0.5, 0.01
_FIRST_WAIT_SECONDS, _LEASE_SECONDS = outcomes._FIRST_WAIT_SECONDS, 60.0


class Forked:
    """`python -m MODULE ARGUMENTS` in the folder of the project, with the methods of `subprocess.Popen`.

    Args:
        module: `api` or `worker`.
        environment: all its variables; `outside` has those of the tests.
        output: the file that its output is appended to.
        arguments: of its command line.
        prepare: changes that a test makes in the process before its start.
        errors: the file for its stderr, if that is another one.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        output: Path,
        arguments: Sequence[str] = (),
        prepare: Callable[[], None] | None = None,
        errors: Path | None = None,
    ) -> None:
        output.touch()
        os.umask(umask := os.umask(0))  # the only way to read it
        self._process = _context().Process(
            target=_main, args=(module, dict(environment), (output, errors or output), list(arguments), prepare, umask)
        )
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended.

        Raises:
            subprocess.TimeoutExpired: the process still runs.
        """
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def outside() -> dict[str, str]:
    """Return the environment of the tests without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, {standby.MARK: standby.ROOM}):  # room for the environments of all processes
        multiprocessing.set_executable(parallel.python())
        forkserver.ensure_running()
        multiprocessing.set_executable(sys.executable)
    return context


def _main(
    module: str,
    environment: dict[str, str],
    outputs: tuple[Path, Path],
    arguments: list[str],
    prepare: Callable[[], None] | None,
    umask: int,
) -> None:
    """Run `python -m MODULE` in the new process."""
    os.umask(umask)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no process outlives the tests
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    for descriptor, path in enumerate((Path(os.devnull), *outputs)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND if descriptor else os.O_RDONLY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(ROOT)
    _execute(module, arguments, environment, prepare)


def _execute(
    module: str, arguments: list[str], environment: Mapping[str, str], prepare: Callable[[], None] | None = None
) -> None:
    gc.freeze()  # a collection would copy the memory that all processes share
    standby.Memory().write([sys.executable, "-m", module, *arguments], environment)
    standby._apply(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in {"", *sys.path}]
    importlib.import_module("wcl_core.failpoints")._FOLDER = environment.get("FAILPOINTS")  # type: ignore[attr-defined]
    # The backoff after an infrastructure failure is not a setting; here it is scaled with the lease.
    scale = float(environment.get("WCL_LEASE_SECONDS", _LEASE_SECONDS)) / _LEASE_SECONDS
    outcomes._FIRST_WAIT_SECONDS = _FIRST_WAIT_SECONDS * min(1.0, scale)
    worker.standby.start = fork_standby
    worker.datasets.sys = SimpleNamespace(executable=parallel.python())  # type: ignore[attr-defined]
    if prepare is not None:
        prepare()
    sys.argv = [module, *arguments]
    sys.modules.pop(f"{module}.__main__", None)  # it is executed now, and was only imported before
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def fork_standby(
    end: socket.socket, environment: Mapping[str, str], run: Callable[[list[str]], int] | None = None
) -> worker.standby.Process:
    """Fork the standby process of a worker that has no other threads yet; replace it by a real one later.

    Args:
        run: executes the arguments of a run; the real run by default.
    """
    if threading.active_count() > 1:
        return _start_standby(end, environment)
    if pid := os.fork():
        return worker.standby.Forked(pid)
    os.setsid()
    os.closerange(3, end.fileno())
    os.closerange(end.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    signal.set_wakeup_fd(-1)
    os.environ.clear()
    os.environ.update(environment)
    memory = standby.Memory()
    memory.write([sys.executable, "-m", standby.__name__], environment)
    arguments = standby.serve(socket.socket(fileno=end.detach()), memory)
    if arguments is None:
        os._exit(0)
    if run is not None:
        os._exit(run(arguments))
    if _is_long(arguments):
        _pause_between_steps()
    os._exit(importlib.import_module("wcl_core.__main__").main(arguments))


def fork_runs() -> None:
    """Let a worker that starts its run by command, as with `--once`, fork it from a standby process instead."""
    waiting, by_command = worker.standby.Standby(worker.process.module_environment()), worker.process._by_command

    def fork(folder: Path, environment: dict[str, str], output: BinaryIO, control: int) -> worker.standby.Process:
        run = waiting.run(["attempt", str(folder)], environment, output, control)
        return run or by_command(folder, environment, output, control)

    worker.process._by_command = fork


def _is_long(arguments: Sequence[str]) -> bool:
    with suppress(OSError, ValueError):
        return arguments[0] == "attempt" and RunFile.read(Path(arguments[1])).spec.get("epochs", 0) >= _LONG_EPOCHS
    return False


def _pause_between_steps() -> None:
    """Let a long run use ever less of a core: after its first steps it trains while its test waits for others."""
    pauses = count(0.0, _MORE_SECONDS)

    def metrics(reporter: Reporter, step: int, values: Mapping[str, float]) -> None:
        time.sleep(min(next(pauses), _LONGEST_PAUSE_SECONDS))
        Reporter.metrics(reporter, step, values)

    SpoolReporter.metrics = metrics  # type: ignore[method-assign]


def fork_children() -> None:
    """Let `wcl up`, in its own process, fork the server and its workers; and `wcl demo` fork `wcl up`."""
    for module in (wcl_client.processes, wcl_client.demo):
        module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _fork_child})  # type: ignore[attr-defined]


def _fork_child(
    command: list[str], *, env: Mapping[str, str], stdin: int = subprocess.DEVNULL, stdout: IO[bytes], **_: Any
) -> worker.standby.Forked:
    if pid := os.fork():
        return worker.standby.Forked(pid)
    code: object = 1
    try:
        os.setsid()
        wcl_client.processes.die_with_parent()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(signal.getsignal(number)):  # as a new process begins
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        read_from = os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else stdin
        for descriptor, source in enumerate((read_from, stdout.fileno(), stdout.fileno())):
            os.dup2(source, descriptor)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _execute(command[2], command[3:], env)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for other threads
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
