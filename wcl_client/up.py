"""`wcl up`: starts, watches, restarts and stops a server and its workers on this machine.

    starting ──ready──► serving ──signal──► stopping (at most 30 s) ──► stopped
       └── the server ends three times before it is ready ──► UpError

This module does not import the service. It starts processes: `python -m api` and `python -m worker`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from wcl_client.api import WclClient
from wcl_client.errors import WclError

STOP_SECONDS = 28.0
READY_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


class UpError(WclError):
    """The service cannot run; the message gives the reason."""


@dataclass(frozen=True)
class UpOptions:
    """Options of `wcl up`; a dataset without a folder is a built-in one."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    datasets: dict[str, Path | None] = field(default_factory=dict)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the lock of the data folder: one `wcl up` at a time may use its SQLite database.

    Raises:
        UpError: another process holds the lock.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UpError(
                f"{data_dir} is in use by another `wcl up` (process {owner}). "
                "Stop that process, or choose another folder with --data-dir"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    """Return whether the server can bind the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        # The server sets the same option: a port in TIME_WAIT is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


def die_with_parent() -> None:
    """End this child process when its parent is killed; on Linux only, elsewhere the child continues."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def module_environment() -> dict[str, str]:
    """Return an environment in which `python -m` runs this installation's packages, not those of the working folder.

    A user's folder may hold its own `api` or `worker.py`.
    """
    paths = (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH"))
    return dict(os.environ) | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class Child:
    """One process of the service, with its restarts and its log file.

    With `may_end` the process is not restarted after exit code 0, for example a drained worker.
    """

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log_path: Path, *, may_end: bool = False
    ) -> None:
        self.name = name
        self._may_end = may_end
        self._has_ended = False
        self.log_path = log_path
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._next_start_at = 0.0
        self.failures = 0

    def start(self) -> None:
        """Start the process; its output goes to the log file."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In its own session the child gets no Ctrl-C: `wcl up` gets it and stops each child in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._started_at = time.monotonic()

    def watch(self, report: Callable[[str], None]) -> None:
        """Restart the process if it has ended; the wait doubles after each quick failure."""
        if self._has_ended:
            return
        now = time.monotonic()
        if self._process is None:
            if now >= self._next_start_at:
                self.start()
            return
        code = self._process.poll()
        if code is None:
            if now - self._started_at > STABLE_SECONDS:
                self.failures = 0
            return
        if code == 0 and self._may_end:
            self._has_ended = True
            report(f"{self.name} was drained and is not started again")
            return
        self.failures += 1
        wait = min(2.0 ** (self.failures - 1), MAX_BACKOFF_SECONDS)
        report(f"{self.name} ended (exit code {code}); it starts again in {wait:.0f} s, see {self.log_path}")
        self._process, self._next_start_at = None, now + wait

    @property
    def pid(self) -> int | None:
        """The process id; None if the process has not started."""
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
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
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])
        return ""


class Service:
    """The server and its workers, as child processes."""

    def __init__(self, options: UpOptions, report: Callable[[str], None]) -> None:
        self.options = options
        self._report = report
        self._stop = False
        logs = options.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        base = _environment(options)
        self.server = Child("server", [sys.executable, "-m", "api"], base, logs / "server.log")
        self.workers = [
            Child(
                f"worker {number}",
                [sys.executable, "-m", "worker"],
                base | ({"WCL_WORKER_NAME": f"{socket.gethostname()}-{number}"} if options.workers > 1 else {}),
                logs / f"worker-{number}.log",
                may_end=True,
            )
            for number in range(1, options.workers + 1)
        ]

    @property
    def children(self) -> list[Child]:
        return [self.server, *self.workers]

    @property
    def is_stopping(self) -> bool:
        return self._stop

    def request_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Request a stop; usable as a signal handler."""
        self._stop = True

    def start(self) -> None:
        """Start the server, wait until it has migrated the database and is ready, then start the workers.

        Raises:
            UpError: the server ended three times, or is not ready after 60 s.
        """
        self.server.start()
        deadline = time.monotonic() + READY_SECONDS
        with WclClient(self.options.url) as client:
            while not client.is_ready():
                if self._stop:
                    return
                self.server.watch(self._report)
                if self.server.failures >= 3 or time.monotonic() > deadline:
                    raise UpError(
                        f"the server does not start; the end of {self.server.log_path}:\n{self.server.last_lines()}"
                    )
                time.sleep(0.1)
        for worker in self.workers:
            worker.start()

    def watch(self) -> None:
        """Restart processes that end, until a stop is requested."""
        while not self._stop:
            for child in self.children:
                child.watch(self._report)
            time.sleep(0.2)

    def stop(self) -> None:
        """Terminate all processes, and kill those that still run after 28 s; running jobs return to the queue."""
        for child in self.children:
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(child.is_running() for child in self.children):
            time.sleep(0.1)
        for child in self.children:
            child.kill()


def _environment(options: UpOptions) -> dict[str, str]:
    environment = module_environment() | {
        "WCL_DATA_DIR": str(options.data_dir.resolve()),
        "WCL_HOST": options.host,
        "WCL_PORT": str(options.port),
        "PYTHONUNBUFFERED": "1",
    }
    folders = {name: str(path.resolve()) for name, path in options.datasets.items() if path}
    if folders:
        from_settings = json.loads(environment.get("WCL_DATASETS") or "{}")
        environment["WCL_DATASETS"] = json.dumps(from_settings | folders)
    if builtins := [name for name, path in options.datasets.items() if not path]:
        environment["WCL_BUILTIN_DATASETS"] = json.dumps(["digits", *builtins])
    return environment


def _page_link(options: UpOptions) -> str:
    """Return a one-time sign-in link; the plain URL if the local key lacks the permission for one."""
    key = os.environ.get("WCL_KEY")
    with contextlib.suppress(OSError):
        key = (options.data_dir / "key").read_text(encoding="utf-8").strip()
    with contextlib.suppress(WclError), WclClient(options.url, key) as client:
        return client.sign_in_link()
    return options.url


def run(options: UpOptions, report: Callable[[str], None], out: IO[str] = sys.stdout) -> None:
    """Run the service until SIGINT or SIGTERM.

    Raises:
        UpError: the data folder or the port is in use, or the server does not start.
    """
    with locked(options.data_dir):
        if not port_is_free(options.host, options.port):
            raise UpError(f"port {options.port} on {options.host} is in use; choose another one with --port")
        service = Service(options, report)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, service.request_stop)
        try:
            service.start()
            if not service.is_stopping:
                print(f"Serving {options.url} from {options.data_dir}", file=out)
                print(f"Open     {_page_link(options)}", file=out, flush=True)
            service.watch()
            report("stopping; running jobs save a checkpoint and return to the queue")
        finally:
            service.stop()
