"""The training process: its environment, requests to it, and its end with all child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import parallel
from tests.processes import ROOT
from tests.waiting import PATIENCE, eventually
from tests.worker.running import ENDLESS
from wcl_core.protocol import DatasetSource, RunFile
from worker import process as process_module
from worker.process import MARK, TrainingProcess, _kill_all, marked, module_environment

pytestmark = pytest.mark.process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = DatasetSource(kind="builtin")
    run = RunFile(job_id="job", attempt=1, host="here", kind="pretrain", spec=ENDLESS, dataset=dataset)
    run.write(tmp_path)
    return tmp_path


def records(folder: Path) -> list[dict[str, Any]]:
    spool = folder / "report.jsonl"
    return [json.loads(line) for line in spool.read_text().splitlines()] if spool.exists() else []


def is_training(folder: Path) -> bool:
    return any(record["type"] == "metrics" for record in records(folder))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the runs of a test that is not about their start."""
    monkeypatch.setattr(process_module, "COMMAND", (parallel.python(), *process_module.COMMAND[1:]))


@pytest.mark.usefixtures("forked")
def test_a_drained_run_saves_and_ends(folder: Path) -> None:
    process = TrainingProcess(folder, "job/1")
    eventually(lambda: is_training(folder), "training")

    process.request("drain")

    assert eventually(lambda: process.exit_code() is not None, "the end")
    assert process.exit_code() == 0
    assert records(folder)[-1] == {**records(folder)[-1], "type": "end", "outcome": "drained"}
    assert records(folder)[-2]["type"] == "checkpoint"
    process.kill()


@pytest.mark.usefixtures("forked")
def test_a_run_without_its_supervisor_ends(folder: Path) -> None:
    process = TrainingProcess(folder, "job/1")
    eventually(lambda: is_training(folder), "training")

    process.close()

    eventually(lambda: process.exit_code() is not None, "the end of the orphan")


def test_the_run_carries_its_mark_and_no_setting_of_the_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_DATABASE_URL", "postgresql://name:secret@host/wcl")
    process = TrainingProcess(folder, "job/1")
    try:
        # Empty for a moment, while the new program is loaded.
        environment = eventually(lambda: psutil.Process(process.pid).environ(), "an environment")
        # A process that is stopped has the same descriptors from one read to the next.
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "a stopped process")
        descriptors = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.kill()

    assert environment[MARK] == "job/1"
    assert [name for name in environment if name.startswith("WCL_")] == [MARK]
    assert not any("sqlite" in name or "socket" in name for name in descriptors)


def test_killing_reaches_processes_that_left_for_a_session_of_their_own(folder: Path) -> None:
    process = TrainingProcess(folder, "job/kill")
    strayed = subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
        env=module_environment() | {MARK: "job/kill"},
        start_new_session=True,
    )
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ | {MARK: "job/2"})
    try:
        process.kill()

        assert strayed.wait(PATIENCE) == -signal.SIGKILL
        assert process.exit_code() is not None
        assert list(marked("job/kill")) == []
        assert other.poll() is None, "another attempt's process was killed"
    finally:
        other.kill()
        strayed.kill()
        other.wait()


_RESTARTING = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_processes_that_restart_each_other_are_all_killed() -> None:
    """The search is slow here, so a process that is killed first would be there again before its parent is killed."""
    mark = "job/restarting"

    def find_slowly() -> Iterator[psutil.Process]:
        for process in sorted(marked(mark), key=lambda each: -each.pid):  # children first
            yield process
            time.sleep(0.3)

    parent = subprocess.Popen([sys.executable, "-c", _RESTARTING], env=os.environ | {MARK: mark})
    try:
        eventually(lambda: len(list(marked(mark))) == 2, "a child")

        _kill_all(find_slowly)

        assert parent.wait(PATIENCE) == -signal.SIGKILL
        eventually(lambda: not list(marked(mark)), "the end of the children")
    finally:
        for process in marked(mark):
            process.kill()


@pytest.mark.usefixtures("forked")
def test_a_cancel_overrides_and_is_never_overridden(folder: Path) -> None:
    process = TrainingProcess(folder, "job/1")
    try:
        process.request("pause")
        process.request("cancel")
        process.request("drain")

        assert process.requested == "cancel"
        eventually(lambda: process.exit_code() is not None, "the end")
        assert records(folder)[-1]["outcome"] == "cancelled"
    finally:
        process.kill()


def test_a_run_gets_listed_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (
        "PGPASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "WCL_DATABASE_PASSWORD",
        "WCL_KEY",
        "GITHUB_TOKEN",
        "A",
    )
    needed = ("CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "OMP_PROC_BIND", "https_proxy", "NO_PROXY", "LC_ALL", "TORCH_HOME")
    for name in (*secrets, *needed):
        monkeypatch.setenv(name, "x")

    passed = module_environment(["A", "absent"])

    assert passed.keys() & set(secrets) == {"A"}
    assert passed.keys() >= set(needed)
    assert passed["PATH"] == os.environ["PATH"]


def test_a_running_process_has_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "x")
    process = TrainingProcess(folder, "job/1", environment=["LISTED"])
    try:
        # The kernel shows it a moment after the start of the program.
        environment = eventually(psutil.Process(process.pid).environ, "the environment")
    finally:
        process.kill()

    assert "PGPASSWORD" not in environment
    assert environment[MARK] == "job/1"


# A worker with two runs, in a process of its own, since it adopts orphans.  Each leaves a process without its mark.
_TWO_RUNS = """
import json, signal, sys, time
from pathlib import Path
import psutil
from tests.waiting import eventually
from wcl_core import orphans
from worker import process
_RUN = '''
import os, pathlib, subprocess, sys, time
from wcl_core import orphans
orphans.adopt()
if os.fork() == 0:
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True)
    (pathlib.Path(sys.argv[1]) / "new").write_text(str(stray.pid))
    (pathlib.Path(sys.argv[1]) / "new").rename(pathlib.Path(sys.argv[1]) / "stray")
    os._exit(0)
os.wait()
time.sleep(600)
'''
process.COMMAND = (sys.executable, "-c", _RUN)
orphans.adopt()

def begin(name):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    run = process.TrainingProcess(folder, name)
    eventually((folder / "stray").exists, "a process that the run leaves behind")
    return run, int((folder / "stray").read_text())

(one, of_one), (two, of_two) = begin("one"), begin("two")
one.kill()
facts = [psutil.pid_exists(of_one), psutil.pid_exists(of_two), two.exit_code()]
psutil.Process(two.pid).kill()
eventually(lambda: two.exit_code() is not None, "the end of the run")
three, of_three = begin("three")
facts.append(psutil.pid_exists(of_two))
three.kill()
facts += [psutil.pid_exists(pid) for pid in (of_two, of_three)]
two.kill()
print(json.dumps(facts))
"""


def test_the_end_of_a_run_kills_what_it_leaves_behind_and_no_other_run(tmp_path: Path) -> None:
    command = [parallel.python(), "-c", _TWO_RUNS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    # Of a run that has ended, the process is killed at the next end of an attempt.
    assert json.loads(done.stdout.splitlines()[-1]) == [False, True, None, True, False, False], done.stderr


def test_a_run_adopts_its_orphans(tmp_path: Path) -> None:
    code = """
from wcl_core import attempt, orphans
from wcl_core.__main__ import main
attempt.run_attempt = lambda *_: 7 if orphans.are_adopted() else 8
main(["attempt", "x"])
"""
    assert subprocess.run([parallel.python(), "-c", code], cwd=ROOT).returncode == 7
