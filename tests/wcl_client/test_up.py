"""The parts of `wcl up` with real processes: lock, restarts, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import eventually
from wcl_client.up import Child, UpError, UpOptions, free_port, locked, module_environment, port_is_free

pytestmark = pytest.mark.process

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_one_owner_of_a_data_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UpError, match=str(os.getpid())), locked(tmp_path):
        pytest.fail("two owners")

    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_owner_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from wcl_client.up import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "held\n"
        owner.kill()

    with locked(tmp_path):
        pass


def test_a_killed_child_is_restarted_after_a_pause(tmp_path: Path) -> None:
    messages: list[str] = []
    child = Child("worker", SLEEPER, dict(os.environ), tmp_path / "log")
    child.start()
    first = child.pid
    assert first
    os.kill(first, signal.SIGKILL)

    eventually(
        lambda: (child.watch(messages.append), child.is_running() and child.pid != first)[1], "the new child", 10
    )

    assert len(messages) == 1
    assert "exit code -9" in messages[0]
    child.kill()


def test_a_drained_worker_is_not_restarted_and_a_failed_one_is(tmp_path: Path) -> None:
    for code, comes_back in ((0, False), (1, True)):
        messages: list[str] = []
        command = [sys.executable, "-c", f"raise SystemExit({code})"]
        child = Child("worker", command, dict(os.environ), tmp_path / "log", may_end=True)
        child.start()

        eventually(lambda child=child, messages=messages: (child.watch(messages.append), messages)[1], "its end", 30)  # type: ignore[misc]
        child.watch(messages.append)

        assert len(messages) == 1
        assert ("it starts again" in messages[0]) == comes_back
        assert ("is not started again" in messages[0]) != comes_back


def test_quick_failures_wait_longer_each_time(tmp_path: Path) -> None:
    messages: list[str] = []
    child = Child(
        "worker", [sys.executable, "-c", "print('no'); raise SystemExit(3)"], dict(os.environ), tmp_path / "log"
    )
    child.start()

    eventually(lambda: (child.watch(messages.append), len(messages) == 2)[1], "two failures", 10)

    assert "in 1 s" in messages[0]
    assert "in 2 s" in messages[1]
    assert "no" in child.last_lines()


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """`kill -9` of `wcl up` leaves no server behind (Linux)."""
    code = (
        "import os, sys, time, pathlib; from wcl_client.up import Child\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = Child('x', command, dict(os.environ), pathlib.Path(sys.argv[1]))\n"
        "child.start(); print(child.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()

    eventually(lambda: not is_alive(pid), "the end of the child", 10)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_in_use_is_not_free() -> None:
    port = free_port()
    assert port_is_free("127.0.0.1", port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not port_is_free("127.0.0.1", port)


def test_url_of_an_ipv6_address() -> None:
    assert UpOptions(Path(), host="::1", port=80).url == "http://[::1]:80"


def test_modules_of_the_working_folder_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "wcl_client.py").write_text("print('the wrong one')")

    command = [sys.executable, "-m", "wcl_client", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=module_environment(), capture_output=True, text=True)

    assert "the wrong one" not in done.stdout
    assert "wcl" in done.stdout
