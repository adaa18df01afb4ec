"""`wcl up`: starts, watches, restarts and stops a server and its workers on this machine.

    starting ──ready──► serving ──Ctrl-C, SIGTERM, SIGHUP──► stopping (at most 30 s) ──► stopped
       └────────────────┴── the server refuses to start: only a user can fix it ──► UpError

This module does not import the service. It starts processes: `python -m api` and `python -m worker`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar

import psutil

from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.processes import DRAINED_EXIT, Child, Refused, adopt_orphans, descendants, module_environment
from wcl_client.registration import Announcer
from wcl_client.terminal import write
from wcl_core.text import visible_lines

STOP_SECONDS = 28.0  # at least
_AFTER_DRAIN_SECONDS = 3.0  # of a worker's stop, beside the time for its run
SLOW_SECONDS = 60.0
_ORPHAN_SECONDS = 7.0  # a run ends by itself within 5 s of its worker
_READY_SECONDS = 0.05  # between two questions whether the server is ready
_SAME_PRESS_SECONDS = 0.5  # a wrapper such as `uv run` passes on a Ctrl-C that the terminal has sent already
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGHUP: "the terminal was closed (SIGHUP)"}


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
        UpError: another process holds the lock, or the folder cannot be used.
    """
    with _lock_file(data_dir) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UpError(
                f"{data_dir} is in use by another `wcl up` (process {owner}). "
                "Stop that process, or choose another folder with --data-dir"
            ) from error
        with contextlib.suppress(OSError):  # the disk may be full; the lock holds without the number
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), str(os.getpid()).encode())
        yield


def _lock_file(data_dir: Path) -> IO[str]:
    """Make the data folder if needed, and open its lock file."""
    try:
        (data_dir / "logs").mkdir(parents=True, exist_ok=True)
        return (data_dir / "up.lock").open("a+")
    except OSError as error:
        reason = "it is a file, expected a folder" if data_dir.is_file() else error.strerror
        raise UpError(
            f"the data folder {data_dir} cannot be used: {reason}. "
            "Make it a folder that you can write to, or choose another one with --data-dir"
        ) from error


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """Return a port that the server can bind; for port 0 a free one.

    Raises:
        UpError: the port is in use, or the host is no address of this machine.
    """
    if not host.strip():
        raise UpError("--host is empty; expected an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            # The server sets the same option: a port in TIME_WAIT is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return int(listener.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UpError(f"port {port} on {host} is in use; choose another one with --port") from error
        raise UpError(
            f"the server cannot listen on {host}, port {port}: {error.strerror or error}. "
            "Choose an address of this machine with --host, or another port with --port"
        ) from error
    except (UnicodeError, TypeError) as error:  # the latter for bytes that are no text
        raise UpError(f"--host {host[:100]} is no host name; expected an address of this machine") from error


class Service:
    """The server and its workers, as child processes."""

    def __init__(self, options: UpOptions, report: Callable[[str], None]) -> None:
        self.options = options
        self.report = report
        self._signals: list[tuple[int, float]] = []  # and the time of each
        self._num_answered = 0
        self._ends_at_once = False
        self.stop_seconds = _stop_seconds()
        logs = options.data_dir / "logs"
        base = _environment(options)
        # The workers start beside the server, and wait for the end of this pipe before they open the database.
        self._gate, self._gate_end = os.pipe()
        self.server = Child("the server", [sys.executable, "-m", "api", "--no-wait"], base, logs / "server.log")
        self.workers = [
            Child(
                f"worker {number}",
                [sys.executable, "-m", "worker", "--drained-exit", str(DRAINED_EXIT), "--wait-for-stdin"],
                base | ({"WCL_WORKER_NAME": f"{_worker_name()}-{number}"} if options.workers > 1 else {}),
                logs / f"worker-{number}.log",
                self._gate,
            )
            for number in range(1, options.workers + 1)
        ]

    @property
    def children(self) -> list[Child]:
        """The server and all workers."""
        return [self.server, *self.workers]

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was requested."""
        return bool(self._signals)

    def handle_signals(self) -> None:
        """Let Ctrl-C, SIGTERM and a closed terminal stop the service; under `nohup` it outlives its terminal."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append((number, time.monotonic()))  # printing in a handler could interrupt another print

    def _answer_signals(self) -> None:
        """Say what each signal does; a second Ctrl-C ends everything at once."""
        for number, at in self._signals[self._num_answered :]:
            name = _SIGNALS.get(signal.Signals(number), signal.Signals(number).name)
            if self._num_answered == 0:
                limit = f"at most {self.stop_seconds:.0f} s; Ctrl-C again ends at once"
                self.report(f"{name}: stopping; running jobs save a checkpoint and return to the queue ({limit})")
            elif number == signal.SIGINT and not self._ends_at_once and at - self._signals[0][1] > _SAME_PRESS_SECONDS:
                self._ends_at_once = True
                self.report(f"{name} again: ending at once; the next start continues running jobs")
            else:
                self.report(f"{name} again: already {'ending' if self._ends_at_once else 'stopping'}")
            self._num_answered += 1

    def start(self) -> None:
        """Start all processes, and wait until the server has migrated the database and is ready, however long it takes.

        Raises:
            UpError: the server refuses to start.
        """
        for child in self.children:
            self._watch(child)
        slow_at = time.monotonic() + SLOW_SECONDS
        with WclClient(self.options.url) as client:
            while not self.is_stopping and not (self.server.is_running() and client.is_ready()):
                self._watch(self.server)
                if time.monotonic() > slow_at:
                    slow_at = float("inf")
                    self.report(f"the server is not ready after {SLOW_SECONDS:.0f} s; see {self.server.log_path}")
                time.sleep(_READY_SECONDS)

    def open_gate(self) -> None:
        """Let the workers open the database; each later start of one finds the gate open."""
        os.close(self._gate_end)

    def watch(self) -> None:
        """Restart processes that end, until a stop is requested.

        Raises:
            UpError: the server refuses to start again.
        """
        while not self.is_stopping:
            for child in self.children:
                self._watch(child)
            time.sleep(0.2)

    def _watch(self, child: Child) -> None:
        try:
            child.watch(self.report)
        except Refused as error:
            if child is self.server:
                raise UpError(f"the server cannot start: {error}") from error
            self.report(f"{child.name} cannot start: {error}; it is not started again")

    def stop(self) -> None:
        """Stop all processes; kill those that run for too long or at a second Ctrl-C, and leave no orphan."""
        adopt_orphans()
        for child in self.children:
            child.terminate()
        self._wait_while(
            lambda: not self._ends_at_once and any(map(Child.is_running, self.children)), self.stop_seconds
        )
        late = [child.name for child in self.children if child.is_running()]
        if late and not self._ends_at_once:
            self.report(f"{' and '.join(late)} did not stop within {self.stop_seconds:.0f} s and will be killed")
        for child in self.children:
            child.kill()
        self._wait_while(descendants, _ORPHAN_SECONDS)
        for process in descendants():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.report("stopped")

    def _wait_while(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait for at most so long while the condition holds, and answer signals meanwhile."""
        deadline = time.monotonic() + seconds
        self._answer_signals()
        while condition() and time.monotonic() < deadline:
            time.sleep(0.1)
            self._answer_signals()


def _environment(options: UpOptions) -> dict[str, str]:
    environment = module_environment() | {
        "WCL_DATA_DIR": str(options.data_dir.resolve()),
        "WCL_HOST": options.host,
        "WCL_PORT": str(options.port),
        "PYTHONUNBUFFERED": "1",
    }
    folders = {name: str(path.resolve()) for name, path in options.datasets.items() if path}
    if folders:
        environment["WCL_DATASETS"] = json.dumps(
            _json_setting("WCL_DATASETS", {}, 'object from name to folder, such as {"birds": "/data/birds"}') | folders
        )
    if builtins := [name for name, path in options.datasets.items() if not path]:
        others = _json_setting("WCL_BUILTIN_DATASETS", ["digits"], 'list of names, such as ["digits", "cifar10"]')
        environment["WCL_BUILTIN_DATASETS"] = json.dumps(list(dict.fromkeys([*map(str, others), *builtins])))
    return environment


T = TypeVar("T", list[Any], dict[str, Any])


def _json_setting(name: str, default: T, expected: str) -> T:
    """Return the JSON of a variable to which an option adds.

    Raises:
        UpError: it is JSON of another type, or none.
    """
    try:
        value = json.loads(os.environ[name]) if os.environ.get(name, "").strip() else default
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, type(default)):
        raise UpError(f"{name}: expected a JSON {expected}")
    return value


def _worker_name() -> str:
    return os.environ.get("WCL_WORKER_NAME", "").strip() or socket.gethostname()


def _stop_seconds() -> float:
    """Return the time for a stop: that of a worker which gives its run `WCL_DRAIN_SECONDS`."""
    with contextlib.suppress(ValueError):
        drain = float(os.environ.get("WCL_DRAIN_SECONDS") or 0)
        if STOP_SECONDS < drain + _AFTER_DRAIN_SECONDS < float("inf"):
            return drain + _AFTER_DRAIN_SECONDS
    return STOP_SECONDS  # the server refuses a value that is no number


def _page_link(options: UpOptions, out: IO[str]) -> str:
    """Return a one-time sign-in link on a terminal; the plain URL elsewhere, or if the local key may make no link."""
    with contextlib.suppress(WclError), WclClient(options.url, _key(options)) as client:
        return client.page_link(out.isatty())
    return options.url


def _announce_datasets(options: UpOptions, service: Service) -> None:
    """Start a thread that says what becomes of the datasets; the workers of this start register afterwards."""
    client = WclClient(options.url, _key(options))
    announcer = Announcer(client, options.workers, service.report)
    with contextlib.suppress(WclError):  # a key that may not read
        announcer.ignore_present()
        threading.Thread(target=announcer.run, args=(lambda: service.is_stopping,), daemon=True).start()


def _key(options: UpOptions) -> str | None:
    with contextlib.suppress(OSError):
        return (options.data_dir / "key").read_text(encoding="utf-8").strip()
    return os.environ.get("WCL_KEY")


def _announcer(options: UpOptions, report: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that says a message and keeps it in a log: the terminal may be closed, or its disk full."""

    def announce(message: str) -> None:
        with contextlib.suppress(OSError), (options.data_dir / "logs" / "up.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible_lines(message)}\n")
        with contextlib.suppress(OSError):
            report(message)

    return announce


def run(options: UpOptions, report: Callable[[str], None]) -> None:
    """Run the service until SIGINT, SIGTERM or SIGHUP.

    Raises:
        UpError: the data folder or the port cannot be used, or the server refuses to start.
    """
    out = sys.stdout  # of this call: a test or a caller may have replaced it
    os.umask(0o077)  # for this process and its children: other accounts of the machine read no file of the service
    with locked(options.data_dir):
        free_port(options.host, options.port)
        service = Service(options, _announcer(options, report))
        service.handle_signals()
        try:
            service.start()
            if not service.is_stopping:
                _announce_datasets(options, service)
                service.open_gate()
                with contextlib.suppress(OSError):  # the terminal may be closed
                    write(f"Serving {options.url} from {options.data_dir}", out)
                    write(f"Open     {_page_link(options, out)}", out)
                    write(
                        f"In other terminals: export WCL_DATA_DIR={shlex.quote(str(options.data_dir.resolve()))}", out
                    )
            service.watch()
        finally:
            service.stop()
