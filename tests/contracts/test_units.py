"""The units of systemd in `systemd/`: systemd reads them, and they fit the exit codes and times of the service."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.settings import Settings
from wcl_client import unit
from worker.__main__ import _END_SECONDS, _parser

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").iterdir())
INTERPRETER = "/opt/wcl/.venv/bin/python"
WORKER_STOP_SECONDS = 45  # for a worker to stop, wherever it runs


def read(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(ROOT / "systemd" / name)
    return parsed


@pytest.mark.process
def test_systemd_reads_each_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NO systemd-analyze: the units were not read by systemd; install systemd")
    for path in UNITS:
        (tmp_path / path.name).write_text(path.read_text().replace(INTERPRETER, sys.executable))
    files = [str(tmp_path / path.name) for path in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True, timeout=120
    )

    messages = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("wcl-")]
    assert (len(UNITS), done.returncode, messages) == (4, 0, [])


def test_a_drained_worker_and_a_wrong_setting_are_not_restarted() -> None:
    worker, server = read("wcl-worker.service")["Service"], read("wcl-server.service")["Service"]
    options = _parser().parse_args(worker["ExecStart"].removeprefix(f"{INTERPRETER} -m worker").split())

    assert (worker["Restart"], server["Restart"]) == ("always", "always")
    assert worker["RestartPreventExitStatus"].split() == [str(options.drained_exit), "78"]
    assert worker["SuccessExitStatus"] == str(options.drained_exit)
    assert server["RestartPreventExitStatus"] == "78"


def test_a_worker_has_time_to_save_its_runs() -> None:
    worker = read("wcl-worker.service")["Service"]

    assert int(worker["TimeoutStopSec"]) == WORKER_STOP_SECONDS == unit._STOP_SECONDS
    assert Settings().drain_seconds + _END_SECONDS < WORKER_STOP_SECONDS
    operating = (ROOT / "docs" / "operating.md").read_text()
    assert set(re.findall(r"(\d+) s to (?:save|stop)", operating)) == {str(WORKER_STOP_SECONDS)}
    assert worker["KillMode"] == "mixed", "only the worker gets the signal, not its runs"
    assert worker["OOMPolicy"] == "continue", "the kill of one run ends no other"
