"""The standby process of this worker, seen from the worker: runs that start without the imports of a new process.

A run that the standby process cannot start is started by command.  The standby process ends with the worker, however
that ends: it reads the end of their socket.  `wcl_core.standby` is the process itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO, Protocol

from wcl_core import standby
from wcl_core.standby import GO, LATE, MARK, READY, REFUSED, ROOM, Request
from worker import children

log = logging.getLogger(__name__)

_REPLY_SECONDS = 5.0
_POLL_SECONDS = 0.02
_MOST_BYTES = 64


class Process(Protocol):
    """A child process, as `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """A child process of this process that another process forked, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        with self._lock:
            if self._code is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # another call has read the exit code, as for `subprocess.Popen`
                    self._code = 0
                else:
                    self._code = os.waitstatus_to_exitcode(status) if pid else None
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended.

        Raises:
            subprocess.TimeoutExpired: the process still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(end: socket.socket, environment: Mapping[str, str]) -> Process:
    """Start a standby process that serves one end of a socket.

    A process without threads that has everything imported can replace this function by a fork that closes all other
    descriptors and calls `wcl_core.standby.serve`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", standby.__name__, str(end.fileno()), ROOM],
        env={**environment, MARK: ROOM},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(end.fileno(),),
        start_new_session=True,
    )


class Standby:
    """The standby process, which is replaced by another one when it does not answer.

    Args:
        environment: of the runs, without the variables of one run.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._start()

    def _start(self) -> None:
        self._socket, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with end:
            self._process = children.start(lambda: start(end, self._environment))
        self._is_ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float) -> None:
        """Wait until the standby process has imported everything, or until the time is over."""
        with self._lock:
            try:
                self._wait(seconds)
            except OSError as error:
                self._replace(error)

    def _wait(self, seconds: float) -> bool:
        """Return whether it has imported everything.

        Raises:
            OSError: it has ended.
        """
        if not self._is_ready:
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self._is_ready = self._receive(seconds) == READY
        return self._is_ready

    def run(
        self, arguments: list[str], environment: Mapping[str, str], output: BinaryIO, control: int
    ) -> Process | None:
        """Start `python -m wcl_core ARGUMENTS --control-fd N` in a process session of its own.

        Args:
            arguments: of the command.
            environment: all variables of the run.
            output: for what it writes to stdout and stderr.
            control: read end of its control pipe.

        Returns:
            The child process; None when the run must be started by command.
        """
        if _differing(environment, self._environment) - LATE:
            return None
        with self._lock:
            try:
                if not self._wait(0.0):
                    return None
                request = Request(arguments, dict(environment))
                return children.start(lambda: self._fork(request, output, control))
            except (OSError, ValueError) as error:
                self._replace(error)
                return None

    def _replace(self, error: Exception) -> None:
        if self._is_stopped:
            return
        log.warning("the standby process is replaced: %s", error)
        self._end()
        self._start()

    def _fork(self, request: Request, output: BinaryIO, control: int) -> Process:
        """Return the run that the standby process forks.

        Raises:
            OSError: it does not, or not in time.
        """
        gate, opened = os.pipe()
        try:
            socket.send_fds(self._socket, [request.encoded()], [gate, output.fileno(), control])
            reply = self._receive(_REPLY_SECONDS)
            if reply == REFUSED:
                raise OSError("it has refused; a distribution may have been installed meanwhile")
            pid = int(reply)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises if it is no child of this process
            os.write(opened, GO)
        finally:
            os.close(gate)
            os.close(opened)
        return Forked(pid)

    def _receive(self, seconds: float) -> bytes:
        self._socket.settimeout(seconds)
        if not (message := self._socket.recv(_MOST_BYTES)):
            raise ConnectionError(f"it has ended with exit code {self._process.wait(_REPLY_SECONDS)}")
        return message

    def stop(self) -> None:
        """End the standby process, also while a thread waits for its imports; no other one replaces it."""
        self._is_stopped = True
        self._process.kill()  # a thread that waits for it reads the end of their socket
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()
        children.forget(self._process.pid)


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Return the names of the variables that two environments do not share."""
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
