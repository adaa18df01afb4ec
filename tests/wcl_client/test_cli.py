"""Exit codes and messages of the command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from wcl_client.up import free_port

pytestmark = pytest.mark.process


def wcl(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "wcl_client", *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = wcl("--help", cwd=tmp_path)

    assert done.returncode == 0
    names = "up submit jobs show watch logs cancel checkpoints download datasets doctor demo"
    assert [name for name in names.split() if name not in done.stdout] == []


def test_the_version_is_the_one_of_the_distribution(tmp_path: Path) -> None:
    done = wcl("--version", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout.strip() == f"wcl {version('wcl-service')}"


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("submit",), ("submit", "absent.json"), ("submit", "--preset", "x", "--kind", "other")],
)
def test_wrong_usage_is_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = wcl(*arguments, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("jobs",), ("show", "last"), ("datasets", "--json"), ("submit", "--preset", "x")]
)
def test_no_server_is_3_with_advice(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = wcl(*arguments, cwd=tmp_path, WCL_URL=f"http://127.0.0.1:{free_port()}")

    assert done.returncode == 3
    assert done.stdout == ""
    assert "wcl up" in done.stderr


def test_doctor_says_what_is_wrong_in_json(tmp_path: Path) -> None:
    done = wcl("doctor", "--json", cwd=tmp_path, WCL_URL=f"http://127.0.0.1:{free_port()}")

    findings = {finding["name"]: finding["is_ok"] for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["Python"] is True
    assert findings["Server"] is False


def test_demo_with_unknown_data_says_so(tmp_path: Path) -> None:
    done = wcl("demo", "--data", "nothing-here", cwd=tmp_path)

    assert done.returncode == 1
    assert "neither digits nor cifar10 nor a folder" in done.stderr


def test_up_refuses_a_folder_that_is_none(tmp_path: Path) -> None:
    done = wcl("up", "--dataset", "mine=/does/not/exist", cwd=tmp_path)

    assert done.returncode == 2
