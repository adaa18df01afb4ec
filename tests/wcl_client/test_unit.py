"""`wcl service`: the unit that it writes, as systemd itself reads it, and what it asks of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wcl_client import unit
from wcl_client.cli import app
from wcl_client.up import UpOptions

pytestmark = pytest.mark.process


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `systemctl` first that notes its arguments: no test machine can be relied on to run a user's systemd."""
    noted = tmp_path / "calls"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {noted}\n[ ! -e {tmp_path}/refusal ] || {{ cat {tmp_path}/refusal >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return noted


def wcl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_unit_is_installed_changed_and_removed(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    file = tmp_path / "config" / "systemd" / "user" / "wcl.service"

    installed = wcl("service", "install", "--workers", "2", "--dataset", "flowers=photos", "--dataset", "cifar10")

    assert installed.exit_code == 0, installed.output
    assert "loginctl enable-linger" in installed.output
    command = next(line for line in file.read_text().splitlines() if line.startswith("ExecStart="))
    assert command.endswith(
        f'"-m" "wcl_client" "up" "--data-dir" "{tmp_path}/wcl-data" "--host" "127.0.0.1" "--port" "8000" '
        '"--workers" "2" '
        f'"--dataset" "flowers={tmp_path}/photos" "--dataset" "cifar10"'
    )
    asked = ["--user daemon-reload", "--user enable wcl.service", "--user restart wcl.service"]
    assert calls.read_text().splitlines() == asked
    assert wcl("service", "install", "--port", "9000").exit_code == 0
    assert '"--port" "9000"' in file.read_text()
    assert wcl("service", "remove").exit_code == 0
    assert not file.exists()
    assert "--user disable --now wcl.service" in calls.read_text()
    assert "there is no" in str(wcl("service", "remove").exception)


def test_a_systemd_that_refuses_is_quoted_with_what_to_do(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "refusal").write_text("Failed to connect to bus:\nNo medium found\n")

    refused = wcl("service", "install").exception

    assert isinstance(refused, unit.UnitError)
    assert "Failed to connect to bus: No medium found. In a session of ssh or sudo XDG_RUNTIME_DIR" in str(refused)


def test_without_systemd_the_way_around_is_named(calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "keep `wcl up` running in tmux" in str(wcl("service", "install").exception)


def test_a_dataset_that_cannot_be_is_refused_before_anything_is_written(calls: Path, tmp_path: Path) -> None:
    refused = wcl("service", "install", "--dataset", "flowers=absent")

    assert refused.exit_code == 2
    assert "there is no folder or file" in refused.output
    assert not (tmp_path / "config").exists()
    assert not calls.exists()


@pytest.mark.parametrize("name", ["plain", "two words", "100%h", "$HOME", 'a"b', "back\\slash", "é", "#;x"])
def test_systemd_reads_the_folder_as_it_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NO systemd-analyze: the unit was not read by systemd; install systemd")
    text = unit.unit_text(UpOptions(tmp_path / name))
    file = tmp_path / "wcl.service"
    file.write_text(text)

    done = _verified(file, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

    if set(name) & set('$"\\'):
        return  # no name of a program may have them
    # systemd names the program that it cannot find, which shows how it read the word.
    file.write_text(text.replace("ExecStart=", f"ExecStart={unit._quoted(f'/absent/{name}')} "))
    done = _verified(file, tmp_path)
    assert done.returncode != 0
    assert f"Command /absent/{name} is not executable" in done.stderr


def _verified(file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "verify", "--user", "--man=no", str(file)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_folder_that_no_unit_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(unit.UnitError, match="control character"):
        unit.unit_text(UpOptions(tmp_path / "two\nlines"))
