"""The standby process: its runs are children of the worker, and equal runs that are started by command."""

from __future__ import annotations

import hashlib
import json
import os
import select
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import parallel
from tests.processes import ROOT
from tests.waiting import PATIENCE
from tests.worker.running import SHORT
from wcl_core import standby
from wcl_core.protocol import DatasetSource, RunFile

pytestmark = pytest.mark.process

# A worker in a process of its own, since it adopts orphans and kills its descendants.
_WORKER = """
import json, os, signal, socket, sys, time
from pathlib import Path
from wcl_core import standby
from wcl_core.protocol import RunFile
from wcl_core import orphans
from worker import process, standby
orphans.adopt()
folder = Path(sys.argv[1])
environment = process.module_environment()
mark = f"{folder}@2:3"  # no process of another session of the tests has it
"""
# A standby process without the imports, whose runs write down what they are.
_LIGHT = """
import wcl_core.standby as served
import psutil
def fork(end, environment):
    if pid := os.fork():
        return standby.Forked(pid)
    os.closerange(3, end.fileno())
    os.closerange(end.fileno() + 1, 1024)
    connection = socket.socket(fileno=end.detach())
    os.environ.clear()
    os.environ.update(environment)
    arguments = served.serve(connection, served.Memory())
    if arguments is None:
        os._exit(0)
    print(json.dumps([arguments, dict(os.environ), sys.argv[1:]]), flush=True)
    os._exit(len(os.read(int(arguments[-1]), 1)) + 7)
standby.start = fork
def run(environment):
    read, write = os.pipe()
    with (folder / "output").open("ab") as output:
        started = waiting.run(["attempt", "x"], environment, output, read)
    os.close(read)
    return started, write
"""

# Python imports this first.  In the standby process it notes the calls to CUDA, until the first fork.
_NOTE_CUDA = """
import sys
if sys.orig_argv[1:3] == ["-m", "wcl_core.standby"]:
    import json, os, torch
    calls, own = [], {name: vars(torch._C).get(name) for name in ("_cuda_getDeviceCount", "_cuda_init")}
    def note(*_):
        calls.append(1)
        return 0
    for name in own:
        setattr(torch._C, name, note)
    def write():
        if own:
            from wcl_core.standby import _MODULES
            imported = list(calls)
            torch.cuda.is_available()
            absent, is_large = sorted({*_MODULES} - {*sys.modules}), "sklearn" in sys.modules
            facts = [imported, calls, torch.backends.cuda.is_built(), absent, is_large]
            with open(__file__.replace("sitecustomize.py", "cuda.json"), "w") as file:
                json.dump(facts, file)
        while own:
            setattr(torch._C, *own.popitem())
    os.register_at_fork(before=write)
"""


def worker(folder: Path, code: str, *, light: bool = True, **variables: str) -> Any:
    """Run code in a worker process; return what its last line says in JSON."""
    python = parallel.python() if light else sys.executable  # a run by command is compared with a forked one
    command = [python, "-c", _WORKER + (_LIGHT if light else "") + code, str(folder)]
    environment = os.environ | variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


def test_a_run_is_a_child_of_the_worker_with_its_own_environment(tmp_path: Path) -> None:
    code = """
waiting = standby.Standby(environment)
waiting.wait(10)
own = environment | {process.MARK: mark, "RANK": "0"}
run_, write = run(own)
seen = psutil.Process(run_.pid)
facts = {"parent": seen.ppid() == os.getpid(), "environment": seen.environ() == own, "command": seen.cmdline()}
facts["pid"] = run_.pid
facts["session"] = os.getsid(run_.pid) == run_.pid
facts["marked"] = [each.pid for each in process.marked(mark)]
facts["polled"] = run_.poll()
os.close(write)
facts["code"] = run_.wait(10)
killed, write = run(own)
killed.kill()
facts["killed"] = killed.wait(10)
facts["output"] = json.loads((folder / "output").read_text().splitlines()[0])
facts["expected"] = own
standby_pid = waiting.pid
waiting.stop()
facts["stopped"] = not psutil.pid_exists(standby_pid)
print(json.dumps(facts))
"""
    facts = worker(tmp_path, code)

    assert facts["parent"]
    assert facts["session"]
    assert facts["marked"] == [facts["pid"]]
    assert facts["environment"]
    assert facts["command"][1:5] == ["-m", "wcl_core", "attempt", "x"]
    assert (facts["polled"], facts["code"], facts["killed"]) == (None, 7, -9)
    assert facts["output"][:2] == [facts["command"][3:7], facts["expected"]]
    assert facts["stopped"]


def test_a_standby_process_that_cannot_start_a_run_is_replaced(tmp_path: Path) -> None:
    """It is dead, suspended, or older than an installed distribution; the run is then started by command."""
    code = """
standby._REPLY_SECONDS = 0.5
place = folder / "place"
place.mkdir()
sys.path.append(str(place))
waiting = standby.Standby(environment)
waiting.wait(10)
pids, outcomes = [waiting.pid], []
def fails(broken, environment=environment):
    broken()
    outcomes.append(run(environment)[0])
    pids.append(waiting.pid)
    waiting.wait(10)
fails(lambda: os.kill(waiting.pid, signal.SIGKILL))
fails(lambda: os.kill(waiting.pid, signal.SIGSTOP))
fails(lambda: (place / "new-1.dist-info").mkdir())
fails(lambda: None, environment | {"A": "x" * 10_000_000, "RANK": "0"})
fails(lambda: None, environment | {"RANK": "x" * 100_000})
started, write = run(environment)
os.close(write)
print(json.dumps({"pids": pids, "outcomes": outcomes, "code": started.wait(10)}))
"""
    facts = worker(tmp_path, code)

    assert facts["outcomes"] == [None] * 5
    first, killed, suspended, installed, imported, too_long = facts["pids"]
    assert len({first, killed, suspended, installed, too_long}) == 5
    assert imported == installed, "an environment that a new process must read at its imports is no fault"
    assert facts["code"] == 7


def test_a_stop_during_the_imports_ends_it_and_starts_no_other_one(tmp_path: Path) -> None:
    """A thread waits for the imports meanwhile, as for the first run of a worker."""
    code = """
import logging, threading
logging.basicConfig()
started = []
def sleeping(end, environment):
    started.append(subprocess.Popen(["sleep", "600"], pass_fds=(end.fileno(),)))
    return started[-1]
import subprocess
standby.start = sleeping
waiting = standby.Standby(environment)
thread = threading.Thread(target=waiting.wait, args=(600,))
thread.start()
while not waiting._lock.locked():
    pass
waiting.stop()
thread.join()
read, write = os.pipe()
late = waiting.run(["attempt", "x"], environment, open(os.devnull, "wb"), read)
ends = [each.wait() for each in started]
print(json.dumps({"ends": ends, "late": late}))
"""
    facts = worker(tmp_path, code)

    assert (facts["ends"], facts["late"]) == ([-9], None)
    assert "replaced" not in facts["log"]


def test_a_run_that_the_worker_has_given_up_does_nothing(tmp_path: Path) -> None:
    code = """
class Closed(standby.Standby):
    def _receive(self, seconds):
        message = super()._receive(seconds)
        if message != served.READY:
            self.forked = int(message)
            raise TimeoutError("too late")
        return message
waiting = Closed(environment)
waiting.wait(10)
before = waiting.pid
given_up, _ = run(environment)
code = standby.Forked(waiting.forked).wait(10)
print(json.dumps({"given_up": given_up, "code": code, "output": (folder / "output").read_text()}))
"""
    facts = worker(tmp_path, code)

    assert (facts["given_up"], facts["code"], facts["output"]) == (None, 0, "")


def test_it_ends_with_its_worker_and_no_attempt_ends_it(tmp_path: Path) -> None:
    code = """
waiting = standby.Standby(environment)
waiting.wait(10)
process.COMMAND = ("/bin/true",)
attempt = process.TrainingProcess(folder, mark, standby=waiting)
attempt.kill()
alive = psutil.Process(waiting.pid).status() != psutil.STATUS_ZOMBIE
print(json.dumps({"pid": waiting.pid, "alive": alive}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [parallel.python(), "-c", _WORKER + _LIGHT + code, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )  # its end closes the pipes

    assert json.loads(done.stdout.splitlines()[-1])["alive"], done.stderr


def test_it_ends_in_order_when_its_worker_leaves_a_reply_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ThreadPoolExecutor(1) as pool:
        arguments = pool.submit(standby.serve, theirs, standby.Memory())
        select.select([ours], [], [], 60)
        ours.close()

        assert arguments.result(60) is None


@pytest.fixture(scope="module")
def by_both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two equal runs: `forked` from a real standby process, and `command`.

    `cuda.json` has the calls to CUDA before the first fork of the standby process, and those of a question afterwards.
    """
    tmp_path = tmp_path_factory.mktemp("by_both")
    code = """
waiting = standby.Standby(environment)
waiting.wait(240)
for name, by in (("forked", waiting), ("command", None)):
    run = RunFile.read(folder / name)
    attempt = process.TrainingProcess(folder / name, mark, run.spec["processes"], standby=by)
    while attempt.exit_code() is None:
        time.sleep(0.05)
    (folder / name / "code").write_text(str(attempt.exit_code()))
    attempt.close()
waiting.stop()
print("{}")
"""
    # Several threads, since a library may have another number of them after a fork.
    spec = {name: value for name, value in SHORT.items() if name != "threads"} | {"knn_every_epochs": 1}
    for name in ("forked", "command"):
        (tmp_path / name).mkdir()
        run = RunFile(
            job_id="job",
            attempt=1,
            host="here",
            kind="pretrain",
            spec=spec | {"processes": 1},
            dataset=DatasetSource(kind="builtin"),
        )
        run.write(tmp_path / name)
    (tmp_path / "sitecustomize.py").write_text(_NOTE_CUDA)
    places = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    worker(tmp_path, code, light=False, PYTHONPATH=places)

    return tmp_path


def test_a_run_has_the_same_bytes_with_and_without_it(by_both: Path) -> None:
    assert [(by_both / name / "code").read_text() for name in ("forked", "command")] == ["0", "0"]
    assert digests(by_both / "forked") == digests(by_both / "command")
    for name in ("forked", "command"):
        assert (by_both / name / "output.log").read_text() == "", "a run has nothing to print"


def test_its_imports_do_not_start_cuda(by_both: Path) -> None:
    """A process that was forked from one that has asked for the GPUs can use none."""
    imported, afterwards, is_built, absent, is_large = json.loads((by_both / "cuda.json").read_text())

    assert absent == []
    assert not is_large, "the libraries of scikit-learn make each fork take twice as long"
    assert imported == []
    assert afterwards or not is_built, "the count of GPUs was not noted"


def digests(folder: Path) -> dict[str, str]:
    files = sorted((folder / "checkpoints").iterdir())
    assert len(files) == 2
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
