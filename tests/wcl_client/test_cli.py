"""Exit codes and messages of the command line, run as a process."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import parallel
from tests.servers import free_port
from wcl_core.version import VERSION, release_of

pytestmark = pytest.mark.process


def wcl(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [*parallel.wcl(), *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = wcl("--help", cwd=tmp_path)

    assert done.returncode == 0
    names = "up submit jobs show watch logs cancel checkpoints download datasets doctor demo"
    assert [name for name in names.split() if name not in done.stdout] == []


def test_the_version_is_the_one_of_the_distribution_with_the_commit_of_the_checkout(tmp_path: Path) -> None:
    done = wcl("--version", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout.strip() == f"wcl {VERSION}"
    assert release_of(VERSION) == version("wcl-service")


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("submit",), ("submit", "absent.json"), ("submit", "--preset", "x", "--kind", "other")],
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = wcl(*arguments, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("jobs",), ("show", "last"), ("datasets", "--json"), ("submit", "--preset", "x")]
)
def test_without_a_server_a_command_exits_with_3_and_prints_the_remedy(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = wcl(*arguments, cwd=tmp_path, WCL_URL=f"http://127.0.0.1:{free_port()}")

    assert done.returncode == 3
    assert done.stdout == ""
    assert "wcl up" in done.stderr


def test_doctor_reports_problems_as_json(tmp_path: Path) -> None:
    done = wcl("doctor", "--json", cwd=tmp_path, WCL_URL=f"http://127.0.0.1:{free_port()}")

    findings = {finding["name"]: finding["is_ok"] for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["Python"] is True
    assert findings["Server"] is False


def test_doctor_names_a_damaged_database(tmp_path: Path) -> None:
    database = tmp_path / "wcl-data" / "wcl.sqlite3"
    database.parent.mkdir()
    database.write_bytes(b"no database" * 1000)

    done = wcl("doctor", "--json", cwd=tmp_path, WCL_URL=f"http://127.0.0.1:{free_port()}")

    (detail,) = (finding["detail"] for finding in json.loads(done.stdout) if finding["name"] == "Database")
    assert done.returncode == 1
    assert str(database) in detail
    assert "restore a backup" in detail


def test_up_ends_with_the_reason_when_its_database_is_damaged(tmp_path: Path) -> None:
    database = tmp_path / "wcl-data" / "wcl.sqlite3"
    database.parent.mkdir()
    database.write_bytes(b"no database" * 1000)

    done = wcl("up", "--port", "0", cwd=tmp_path)

    words = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "the server cannot start" in words
    assert "restore a backup" in words
    assert "Traceback" not in words
    assert "starts again" not in words


def test_demo_refuses_unknown_data(tmp_path: Path) -> None:
    done = wcl("demo", "--data", "nothing-here", cwd=tmp_path)

    assert done.returncode == 1
    assert "expected digits, cifar10, or the path of an image folder" in " ".join(done.stderr.split())


def test_up_refuses_a_dataset_folder_that_does_not_exist(tmp_path: Path) -> None:
    done = wcl("up", "--dataset", "mine=/does/not/exist", cwd=tmp_path)

    assert done.returncode == 2
