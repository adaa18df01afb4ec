"""The parts of `wcl up` with real processes: lock, restarts, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.waiting import eventually
from wcl_client import cli, processes
from wcl_client.api import WclClient
from wcl_client.processes import DRAINED_EXIT, Child, Refused, descendants, module_environment
from wcl_client.up import Service, UpError, UpOptions, free_port, locked
from worker.__main__ import main as worker_main

pytestmark = pytest.mark.process

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_only_a_terminal_gets_a_sign_in_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WclClient, "sign_in_link", lambda client: "the link")

    with WclClient("http://127.0.0.1:1") as client:
        assert client.page_link(is_terminal=True) == "the link"
        assert "the link" not in client.page_link(is_terminal=False)
        assert client.page_link(is_terminal=False).startswith("http://127.0.0.1:1 ")


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
    assert "was killed by SIGKILL" in messages[0]
    child.kill()


def test_a_drained_worker_is_not_restarted_and_a_stopped_or_failed_one_is(tmp_path: Path) -> None:
    for code, comes_back in ((DRAINED_EXIT, False), (0, True), (1, True)):
        messages: list[str] = []
        command = [sys.executable, "-c", f"raise SystemExit({code})"]
        child = Child("worker", command, dict(os.environ), tmp_path / "log")
        child.start()

        eventually(lambda child=child, messages=messages: (child.watch(messages.append), messages)[1], "its end", 30)  # type: ignore[misc]
        child.watch(messages.append)

        assert len(messages) == 1
        assert child.is_over != comes_back
        assert ("it starts again" in messages[0]) == comes_back
        assert ("is not started again" in messages[0]) != comes_back


def test_workers_start_beside_the_server_and_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    service = Service(UpOptions(tmp_path), pytest.fail)
    worker = service.workers[0]
    assert "--wait-for-stdin" in worker._command
    code = "import sys; print('it waits', flush=True); sys.stdin.read(); print('it begins', flush=True)"
    worker._command = [sys.executable, "-c", code]

    worker.start()
    eventually(lambda: worker.last_lines() == "it waits", "its start")
    assert worker.is_running()
    service.open_gate()

    eventually(lambda: worker.last_lines() == "it waits\nit begins", "its beginning")
    worker.kill()


def test_a_worker_that_waits_for_the_server_does_not_open_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WaitsError(Exception): ...

    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(os, "read", Mock(side_effect=WaitsError))
    monkeypatch.setattr("worker.__main__.Database", Mock(side_effect=AssertionError("it opens the database")))

    with pytest.raises(WaitsError):
        worker_main(["--wait-for-stdin"])

    assert list(tmp_path.iterdir()) == []


def test_quick_failures_wait_longer_each_time(tmp_path: Path) -> None:
    messages: list[str] = []
    child = Child(
        "worker", [sys.executable, "-c", "print('no'); raise SystemExit(3)"], dict(os.environ), tmp_path / "log"
    )
    child.start()

    eventually(lambda: (child.watch(messages.append), len(messages) == 2)[1], "two failures")

    assert "in 1 s" in messages[0]
    assert "in 2 s" in messages[1]
    assert "no" in child.last_lines()


def test_an_error_that_only_a_user_can_fix_is_not_tried_again(tmp_path: Path) -> None:
    code = f"print('an older line'); print('error: the port is wrong'); raise SystemExit({os.EX_CONFIG})"
    child = Child("worker", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
    child.start()

    with pytest.raises(Refused, match="^the port is wrong$"):
        eventually(lambda: child.watch(pytest.fail), "the refusal")

    assert child.is_over
    child.watch(pytest.fail)


def test_an_end_that_repeats_is_said_once_and_a_new_cause_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_BACKOFF_SECONDS", 0.01)
    (tmp_path / "code").write_text("1")
    code = f"import pathlib; raise SystemExit(int(pathlib.Path({str(tmp_path / 'code')!r}).read_text()))"
    child = Child("worker", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
    messages: list[str] = []

    eventually(lambda: (child.watch(messages.append), child.failures == 3)[1], "three ends")
    (tmp_path / "code").write_text("2")
    eventually(lambda: (child.watch(messages.append), child.failures == 6)[1], "three more")

    assert [message.split(" (")[0] for message in messages] == [f"worker ended with exit code {n}" for n in (1, 2)]


def test_a_child_that_cannot_be_started_waits_and_starts_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_BACKOFF_SECONDS", 0.01)
    messages: list[str] = []
    child = Child("worker", SLEEPER, dict(os.environ), tmp_path / "absent" / "log")

    eventually(lambda: (child.watch(messages.append), child.failures == 3)[1], "three failures")
    assert len(messages) == 1
    assert "worker cannot be started: [Errno 2] No such file or directory" in messages[0]

    (tmp_path / "absent").mkdir()
    eventually(lambda: (child.watch(messages.append), child.is_running())[1], "the start")
    child.kill()


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    for folder, reason in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(UpError, match=f"{folder} cannot be used: {reason}"), locked(folder):
            pytest.fail("locked")


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """`kill -9` of `wcl up` leaves no server behind (Linux)."""
    code = (
        "import os, sys, time, pathlib; from wcl_client.processes import Child\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = Child('x', command, dict(os.environ), pathlib.Path(sys.argv[1]))\n"
        "child.start(); print(child.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()

    eventually(lambda: not is_alive(pid), "the end of the child")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_port_in_use_is_not_free() -> None:
    port = free_port()
    assert free_port("127.0.0.1", port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(UpError, match=f"port {port} on 127.0.0.1 is in use; choose another one with --port"):
            free_port("127.0.0.1", port)


def test_a_free_port_of_an_ipv6_address() -> None:
    assert 0 < free_port("::1") < 1 << 16


@pytest.mark.parametrize(
    "host", ["nosuch.invalid", "300.1.1.1", "192.0.2.1", "::g", "", " ", "a" * 300, "é" * 70, "[::1]"]
)
def test_a_host_that_is_no_address_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(UpError, match="address of this machine"):
        free_port(host)


def test_url_of_an_ipv6_address() -> None:
    assert UpOptions(Path(), host="::1", port=80).url == "http://[::1]:80"


def test_settings_of_the_environment_hold_for_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option has precedence over its variable, or adds to it."""
    started: list[UpOptions] = []
    monkeypatch.setattr("wcl_client.commands.service.run", lambda options, _: started.append(options))
    variables = {"WCL_HOST": "127.0.0.2", "WCL_PORT": "8123", "WCL_DATA_DIR": str(tmp_path / "data")}
    variables |= {"WCL_BUILTIN_DATASETS": '["stl10", "mine"]', "WCL_DATASETS": '{"a": "/a", "b": "/b"}'}
    for name, value in (variables | {"WCL_WORKER_NAME": "node", "WCL_DRAIN_SECONDS": "90"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "new").mkdir()

    assert cli.run(["up"]) == 0
    folder = f"b={tmp_path / 'new'}"
    assert cli.run(["up", "--host=::1", "--port=1", "--workers=2", "--dataset=cifar10", f"--dataset={folder}"]) == 0

    from_variables, from_options = started
    assert (from_variables.host, from_variables.port) == ("127.0.0.2", 8123)
    assert from_variables.data_dir == tmp_path / "data"
    assert (from_options.host, from_options.port) == ("::1", 1)
    service = Service(from_options, pytest.fail)
    assert service.stop_seconds == 93
    environments = [child._environment for child in service.children]
    assert [json.loads(each["WCL_BUILTIN_DATASETS"]) for each in environments] == [["stl10", "mine", "cifar10"]] * 3
    assert json.loads(environments[0]["WCL_DATASETS"]) == {"a": "/a", "b": str(tmp_path / "new")}
    assert [each["WCL_WORKER_NAME"] for each in environments] == ["node", "node-1", "node-2"]


def test_modules_of_the_working_folder_are_never_run(tmp_path: Path) -> None:
    (tmp_path / "wcl_client.py").write_text("print('the wrong one')")

    command = [sys.executable, "-m", "wcl_client", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=module_environment(), capture_output=True, text=True)

    assert "the wrong one" not in done.stdout
    assert "wcl" in done.stdout


def test_no_descendant_is_counted_twice() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert [each.pid for each in descendants()].count(child.pid) == 1
    child.kill()
    eventually(lambda: child.pid not in [each.pid for each in descendants()], "a zombie is no descendant")
    child.wait()
