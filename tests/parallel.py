"""`python -m tests.parallel PROCESSES ARGUMENTS`: pytest in several processes that import nothing.

The imports of all tests take as long as many a folder of tests.  Each process of pytest-xdist would repeat them, and so
would the fork server of `tests.processes` in each of them.  Here one process imports everything, and forks these: an
option of xdist names another interpreter for its processes, which is `tests/forked_python.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import json
import logging
import multiprocessing.util
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wcl_core import standby

_VARIABLE = "PYTEST_FORKED_PYTHON"  # the path of the program that stands for the interpreter
# Read when NumPy is imported: after a fork, each further thread of OpenBLAS begins with a tenth of a second of waiting.
_NUMPY_THREADS = "OPENBLAS_NUM_THREADS"
_LAUNCHER = Path(__file__).with_name("forked_python.py")
# `wcl` starts processes by itself: `python -m wcl_core` and `python -m worker`
_WCL = """import runpy, sys
sys.executable = sys.argv.pop(1)
runpy.run_module("wcl_client", run_name="__main__", alter_sys=True)"""
_PR_SET_PDEATHSIG = 1
_MOST_BYTES, _MOST_DESCRIPTORS, _MOST_SIGNALS, _LEAST_FREE = 1 << 20, 64, 16, 256


class _ImportsAlone:
    def pytest_configure(self, config: pytest.Config) -> None:
        """Import what the tests' processes need; `--fast` starts none."""
        if not config.getoption("fast"):
            for name in importlib.import_module("tests.processes").PRELOADED:
                importlib.import_module(name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self) -> list[pytest.Item]:
        return []


def python() -> str:
    """Return the interpreter for a process whose imports no test is about: they are forked below `main`.

    Such a process is no child of the caller, though it has its folder, variables, network, open files and exit code.
    """
    return os.environ.get(_VARIABLE, sys.executable)


def wcl() -> list[str]:
    """Return the command `wcl`, for tests that are not about its start; it starts its processes in the same way."""
    return [python(), "-c", _WCL, python()]


def main(processes: str, *arguments: str) -> int:
    """Run pytest; return its exit code."""
    memory = standby.Memory()
    memory.write([sys.executable, "-m", "pytest", *arguments], os.environ)
    with _silence():
        # Without a capture of the output, so that no module keeps a stream that replaces it for a while
        pytest.main(["--collect-only", "--capture=no", *arguments], plugins=[_ImportsAlone()])
    if "hypothesis" in sys.modules:  # it reads the source of all modules for their constants
        importlib.import_module("hypothesis.internal.conjecture.providers")._get_local_constants()
    if "wcl_client.cli" in sys.modules:
        importlib.import_module("wcl_client.cli")._command()  # makes all commands, once for all processes
    os.environ.pop(_NUMPY_THREADS, None)
    standby.use_huge_pages()
    folder = Path(tempfile.mkdtemp(prefix="wcl-tests-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    if os.fork() == 0:
        _forget_exits()
        _run(_serve(listener, memory))  # in each process that it forks
        return 0
    listener.close()
    try:
        program = folder / "python"
        command = shlex.join([sys.executable, "-I", "-S", str(_LAUNCHER), str(folder / "socket")])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o700)
        os.environ[_VARIABLE] = str(program)
        return pytest.main(["--tx", f"{processes}*popen//python={program}", *arguments])
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Let nothing be seen of what is printed: the processes report the same errors."""
    kept = [os.dup(number) for number in (1, 2)]
    with Path(os.devnull).open("w") as nothing:
        for number in (1, 2):
            os.dup2(nothing.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _forget_exits() -> None:
    """Leave what libraries do at an exit to the process that imported them: it would copy their memory in each other.

    What a forked process begins, it ends as usual.
    """
    for finalizer in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        finalizer.atexit = False
    atexit._clear()
    for end in (weakref.finalize._exitfunc, logging.shutdown, multiprocessing.util._exit_function):  # type: ignore[attr-defined]
        atexit.register(end)


def _serve(listener: socket.socket, memory: standby.Memory) -> list[str]:
    """Fork a process for each request; return its arguments in that process, and later send its exit code.

    Until then, the process gets each signal that its launcher sends, and SIGKILL when its launcher has ended.
    """
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the processes
    requests: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that shows the end of the process
    launchers: dict[socket.socket, int] = {}  # the processes, by the connections of launchers that have not ended
    while True:
        ready, _, _ = select.select([listener, *requests, *launchers], [], [])
        for end in requests.keys() & ready:
            process, connection = requests.pop(end)
            launchers.pop(connection, None)
            os.close(end)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"%d" % code)
        for connection in launchers.keys() & ready:
            numbers = b""
            with contextlib.suppress(ConnectionError):
                numbers = connection.recv(_MOST_SIGNALS)
            process = launchers[connection] if numbers else launchers.pop(connection)
            for number in numbers or [signal.SIGKILL]:
                os.kill(process, number)
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        message, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, _MOST_DESCRIPTORS)
        while not message.endswith(b"\n"):
            message += connection.recv(_MOST_BYTES)
        if (process := os.fork()) == 0:
            for each in (listener, connection, *(other for _, other in requests.values())):
                each.close()
            for end in requests:
                os.close(end)
            return _become(json.loads(message), descriptors, memory)
        requests[os.pidfd_open(process)] = process, connection
        launchers[connection] = process
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: dict[str, Any], descriptors: list[int], memory: standby.Memory) -> list[str]:
    """Let this process go on as a new one with a request's variables, folder and open files; return its arguments."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = request["descriptors"]
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _LEAST_FREE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, wanted, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    _enter_network_of(request["launcher"])
    arguments: list[str] = request["arguments"]
    memory.write([sys.executable, *arguments], request["environment"])
    standby._apply(request["environment"])
    os.chdir(request["folder"])
    folders = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [each for each in folders if each not in {"", *sys.path}]
    return arguments


def _enter_network_of(launcher: int) -> None:
    """Enter the launcher's network if it has one of its own, by way of the users that own it."""
    for name in ("user", "net"):
        if os.readlink(theirs := f"/proc/{launcher}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            with open(theirs) as opened:
                if ctypes.CDLL(None, use_errno=True).setns(opened.fileno(), 0):
                    raise OSError(ctypes.get_errno(), f"the {name} namespace of the launcher")


def _run(arguments: list[str]) -> None:
    """Do as `python ARGUMENTS`: options without values, then `-c CODE`, `-m MODULE` or a file, with what follows."""
    is_option = [argument.startswith("-") and argument not in {"-c", "-m"} for argument in arguments]
    kind, *rest = arguments[is_option.index(False) :]
    if kind not in {"-c", "-m"}:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")
        return
    subject, *rest = rest
    sys.argv = [kind, *rest]
    if kind == "-m":
        is_package = hasattr(importlib.import_module(subject), "__path__")
        sys.modules.pop(f"{subject}.__main__" if is_package else subject, None)  # it is executed now, not imported
        runpy.run_module(subject, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = module = ModuleType("__main__")
    exec(subject, vars(module))  # noqa: S102


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    if standby.MARK not in os.environ:  # room for the variables and command lines of all processes
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], standby.ROOM]
        os.execve(sys.executable, command, {**os.environ, standby.MARK: standby.ROOM, _NUMPY_THREADS: "1"})  # noqa: S606
    code: object = 1
    try:
        code = main(*sys.argv[1:-1])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:  # not by `sys.exit`, which takes a million objects apart, for a second of each process
        threading._shutdown()  # type: ignore[attr-defined]  # waits for other threads
        atexit._run_exitfuncs()
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code) if isinstance(code, int) else bool(code))
