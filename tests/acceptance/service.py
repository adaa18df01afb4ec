"""A running service for the acceptance tests: the processes a user would start, and the way to kill them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.processes import Forked, fork_children, outside
from tests.servers import free_port
from tests.waiting import eventually
from wcl_client.api import WclClient
from wcl_client.responses import Job

ROOT = Path(__file__).parents[2]
T = TypeVar("T")

# Small enough for one thread of a slow machine; the long one is long enough to be killed in the middle.
SHORT_SPEC: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8},
    "epochs": 3,
    "warmup_epochs": 1,
    "weak_augmentation_epochs": 1,
    "backbone": {"name": "tiny", "stem": "stride2", "width": 4},
    "heads": {"hidden_dim": 32, "output_dim": 16},
    "knn_every_epochs": 0,
    "threads": 1,
    "log_every_steps": 1,
    "checkpoints": {"every_epochs": 1, "first_epoch": True},
}
LONG_SPEC: dict[str, Any] = SHORT_SPEC | {"epochs": 8}  # `tests.processes` slows it down


class Service:
    """One `wcl up` with its server, its worker and their runs, forked unless they are started by command."""

    is_forked = True

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.log_path = data_dir / "up.log"
        self.options: list[str] = []  # further ones of `wcl up`
        self._settings = {"WCL_LOOK_SECONDS": "0.5", "WCL_LEASE_SECONDS": "4", "WCL_CLAIM_SECONDS": "1"} | settings
        self._process: Forked | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start `wcl up`, and wait until it serves."""
        self.spawn()
        eventually(self._serves, f"the start of the service\n{self.log_path.read_text(errors='replace')}\n", 60)

    def spawn(self) -> None:
        """Start `wcl up`."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        arguments = ["up", "--data-dir", str(self.data_dir), "--port", str(self.port), *self.options]
        environment = outside() | self._settings
        if self.is_forked:
            self._process = Forked("wcl_client", environment, self.log_path, arguments, fork_children)
            return
        command = [sys.executable, "-m", "wcl_client", *arguments]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def _serves(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.words()
        return "Open " in self.log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process id of `wcl up`."""
        assert self._process
        return self._process.pid

    def client(self) -> WclClient:
        return WclClient(f"http://127.0.0.1:{self.port}", (self.data_dir / "key").read_text().strip())

    def environment(self) -> dict[str, str]:
        """Return the variables that a shell needs to use this service by `wcl`."""
        return outside() | {"WCL_DATA_DIR": str(self.data_dir), "PYTHONPATH": str(ROOT)}

    def process(self, *words: str) -> psutil.Process | None:
        """Return the oldest process below `wcl up` whose command line has `-m` and all of `words`.

        The process that forks a run for the standby process has the run's command line for a moment, and is left out.
        """
        assert self._process
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                line, parent = process.cmdline(), process.parent()
                is_fork = parent is not None and any("standby" in word for word in parent.cmdline())
                if "-m" in line and all(word in line for word in words) and not is_fork:
                    return process
        return None

    def kill(self, *words: str) -> int:
        """Kill one process with SIGKILL; return its id."""
        victim = eventually(lambda: self.process(*words), f"a process {words}")
        victim.send_signal(signal.SIGKILL)
        return victim.pid

    def stop(self) -> float:
        """End the service as Ctrl-C does; return the seconds until its end.

        Raises:
            AssertionError: it did not end within a minute; all its processes are killed then.
        """
        began = time.monotonic()
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                processes = psutil.Process(self._process.pid).children(recursive=True)
                for process in (self._process, *processes):
                    with suppress(psutil.Error):
                        process.kill()
                raise AssertionError(f"wcl up did not end within 60 s\n{self.words()}") from None
        return time.monotonic() - began

    def words(self) -> str:
        """Return everything that the service printed, for the message of a failing test."""
        paths = [self.log_path, *sorted((self.data_dir / "logs").glob("*.log"))]
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in paths if path.exists()
        )


def submit_when_ready(client: WclClient, spec: dict[str, Any], **fields: Any) -> Job:
    """Submit once a worker has registered the data set."""
    eventually(lambda: "digits" in [entry["name"] for entry in client.datasets()], "the digits data set")
    return client.submit("pretrain", spec, **fields)
