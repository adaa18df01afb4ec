"""A reader at a terminal: a folder, a running service, and shell variables that live from one command to the next."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests import parallel
from tests.acceptance.service import Service
from tests.docs.exceptions import IDLE_POOL, SHORT, SHORTENED
from tests.docs.pages import ROOT, Block
from tests.processes import outside
from tests.waiting import eventually
from wcl_client.errors import WclError

_VARIABLES = ("JOB", "EVALUATION", "GROUP", "SWEEP", "CHECKPOINT", "KEY", "V1")

# Threads that wait for each other's turn on busy cores would take most of the time of such small runs, and looks at the
# database twice a second most of the time of the service, which hears of new jobs without them.
_CALM = {"WCL_LEASE_SECONDS": "60", "WCL_LOOK_SECONDS": "2", "OMP_NUM_THREADS": "1"}


class DocsService(Service):
    """`wcl up --dataset flowers=FOLDER` with two workers and the example plugin.

    It is forked: six processes that import everything by themselves would take 25 s of a core.  `wcl demo` in
    tests/acceptance starts the same processes by command.
    """

    def __init__(self, folder: Path, flowers: Path, plugin_site: Path) -> None:
        super().__init__(folder / "data", PYTHONPATH=str(plugin_site), **_CALM)
        self.flowers = flowers
        self.options = ["--workers", "2", "--dataset", f"flowers={flowers}"]

    def start(self) -> None:
        """Start it and wait until its datasets are registered."""
        super().start()
        with self.client() as client:
            eventually(lambda: len(client.datasets()) == 2, "both datasets", 90)

    def clear_queue(self, kept: set[str]) -> None:
        """Cancel all jobs that have not ended, so that no command waits for the jobs of earlier ones."""
        with self.client() as client:
            for sweep in client.sweeps(status="running"):
                with contextlib.suppress(WclError):  # it ended meanwhile
                    client.cancel_sweep(sweep["id"])
            for job in client.jobs(status="queued,running,blocked,paused", limit=200):
                if job["id"] not in kept:
                    with contextlib.suppress(WclError):
                        client.cancel(job["id"])


class Reader:
    """Follows one page in a folder of its own; `wcl` and `python` start without their imports, see `tests.parallel`."""

    def __init__(self, folder: Path, service: DocsService) -> None:
        self.folder, self._service = folder, service
        self._variables: dict[str, str] = {}
        self._namespace: dict[str, object] = {"__name__": "docs", "SHORT": SHORT}
        for name, target in (
            ("wcl-data", service.data_dir),
            (".venv", Path(sys.prefix)),
            ("examples", ROOT / "examples"),
            ("docs", ROOT / "docs"),
        ):
            (folder / name).symlink_to(target)
        self._programs = folder / ".programs"
        self._programs.mkdir()
        for name, command in (("python", [parallel.python()]), ("wcl", parallel.wcl())):
            program = self._programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            program.chmod(0o700)

    def write(self, block: Block) -> None:
        """Save a block that is a file."""
        assert block.file_name
        (self.folder / block.file_name).write_text(self._adapted(block.text))

    def python(self, block: Block) -> None:
        """Run a Python block; later blocks of the page see its names."""
        self._service.clear_queue(set(self._variables.values()))
        exec(compile(self._adapted(block.text), block.place, "exec", dont_inherit=True), self._namespace)  # noqa: S102

    def run(self, command: str, place: str) -> None:
        """Run one shell command and keep its variables.

        Raises:
            AssertionError: its exit code is not 0.
        """
        if "watch" in command or "/stream" in command:
            self._service.clear_queue(set(self._variables.values()))
        state = self.folder / ".variables"
        assigned = "".join(f"{name}={shlex.quote(value)}\n" for name, value in self._variables.items())
        values = " ".join(f'"${name}"' for name in _VARIABLES)
        kept = f"set +u\nprintf '%s\\0' {values} > {shlex.quote(str(state))}\n"
        if command.startswith("wcl submit ") and "watch" not in command and "--dry-run" not in command:
            command += f" {IDLE_POOL}"
        if command.startswith("GROUP=$(wcl submit "):
            command = f"{command.removesuffix(')')} {IDLE_POOL})"
        script = f"set -euo pipefail\n{assigned}{self._adapted(command)}\n{kept}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{place}: {command}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        variables = zip(_VARIABLES, state.read_text().split("\0"), strict=False)
        self._variables = {name: value for name, value in variables if value}
        if command.startswith(("wcl evaluate ", "wcl clone ")):  # no later command waits for these
            self._service.clear_queue(set(self._variables.values()))

    def _environment(self) -> dict[str, str]:
        clean = outside()
        path = os.pathsep.join([str(self._programs), str(Path(sys.executable).parent), clean["PATH"]])
        return clean | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def _adapted(self, text: str) -> str:
        here = (("/data/flowers", str(self._service.flowers)), ("127.0.0.1:8000", f"127.0.0.1:{self._service.port}"))
        for old, new in (*SHORTENED, *here):
            text = text.replace(old, new)
        return text
