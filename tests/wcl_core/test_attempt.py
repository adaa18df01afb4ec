"""One attempt as a worker starts it: a real process with a pipe, and its `end` record for every way to end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from tests import parallel
from tests.disks import Disk
from tests.photographs import photographs
from tests.waiting import eventually
from tests.wcl_core import small
from wcl_core import attempt, checkpoint, data
from wcl_core.attempt import classify, describe, run_attempt
from wcl_core.checkpoint import CheckpointError
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.protocol import DISK_FULL_EXIT, ORPHANED_EXIT, RUN_FILE, SPOOL_FILE, STORAGE_FAULT_EXIT, RunFile
from wcl_core.reporter import NullReporter, SpoolReporter
from wcl_core.training.collapse import NonFiniteLossError
from wcl_core.training.pretrain import pretrain
from worker.exit_reason import exit_reason

torch.set_num_threads(1)

ROOT = Path(attempt.__file__).parents[1]
DIGITS: dict[str, Any] = {"kind": "builtin", "path": None}


def write_run(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run = {"job_id": "job", "attempt": 1, "host": "here", "kind": "pretrain", "spec": small.fields()}
    RunFile.model_validate(run | {"dataset": DIGITS} | changes).write(folder)
    return folder


def spool(folder: Path) -> list[dict[str, Any]]:
    """Return every complete line so far; check that their numbers have no gap."""
    path = folder / SPOOL_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = [json.loads(line) for line in lines]
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    return records


def of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in spool(folder) if record["type"] == kind]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Importing torch takes seconds: one process does it and forks for each run, which then parses the same arguments.
SERVER = """
import json, os, signal, sys
import sklearn.datasets, torch._dynamo, wcl_core.attempt
from wcl_core.__main__ import main
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    folder, code = json.loads(line)
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        open(f"{folder}/pid", "w").write(f"{child} ")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        open(f"{folder}/status", "w").write(f"{status} ")
        os._exit(0)
    output = os.open(f"{folder}/output.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    control = os.open(f"{folder}/control", os.O_RDONLY)
    status = 1
    try:
        exec(code)
        status = main(["attempt", folder, "--control-fd", str(control)])
    finally:
        os._exit(status)
"""


class Process:
    """An attempt in a process of its own, and the write end of its pipe."""

    def __init__(self, folder: Path, server: subprocess.Popen[str], code: str) -> None:
        self.folder = folder
        os.mkfifo(folder / "control")
        assert server.stdin is not None
        server.stdin.write(json.dumps([str(folder), code]) + "\n")
        server.stdin.flush()
        self.pipe = os.open(folder / "control", os.O_WRONLY)

    def close(self) -> None:
        """Close the pipe, as the end of the supervisor does."""
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def kill(self) -> None:
        wait_for(lambda: self._number("pid") is not None)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._number("pid") or 0, signal.SIGKILL)

    def status(self, seconds: float = 120) -> int:
        """Return the exit code once the process has ended; negative for a signal."""
        wait_for(lambda: self._number("status") is not None, seconds)
        status = self._number("status")
        assert status is not None
        return status

    def end(self) -> dict[str, Any]:
        """Return the `end` record of a process that ends by itself."""
        assert self.status() == 0, (self.folder / "output.log").read_text()
        return last_word(self.folder)

    def decoders(self) -> list[psutil.Process]:
        """Return the processes that decode images for it."""
        if (pid := self._number("pid")) is None:
            return []
        return [each for each in psutil.Process(pid).children() if "wcl_core.data.decoding" in each.cmdline()]

    def _number(self, name: str) -> int | None:
        path = self.folder / name
        text = path.read_text() if path.exists() else ""
        return int(text) if text.endswith(" ") else None


def last_word(folder: Path) -> dict[str, Any]:
    last = spool(folder)[-1]
    assert last["type"] == "end"
    assert len(of(folder, "end")) == 1
    return {name: last[name] for name in ("outcome", "reason", "message")}


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    command = [parallel.python(), "-c", SERVER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True) as process:
        yield process


@pytest.fixture
def start(server: subprocess.Popen[str]) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(folder: Path, code: str = "") -> Process:
        started.append(Process(folder, server, code))
        return started[-1]

    yield begin
    for process in started:
        process.close()
        if process._number("status") is None:
            process.kill()


def ends(folder: Path) -> tuple[str, str | None, str]:
    """Run an attempt in this process; return outcome, reason and message of its `end` record."""
    assert run_attempt(folder, None) == 0
    end = spool(folder)[-1]
    assert end["type"] == "end"
    return end["outcome"], end["reason"], end["message"] or ""


# --- a real process ------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_command_runs_from_start_to_end(tmp_path: Path) -> None:
    """It starts as a supervisor does it; another process with the same spec writes the same bytes.

    `test_standby` starts the command without a fork, and sees that its imports print nothing either.
    """
    write_run(tmp_path / "a")
    read_end, write_end = os.pipe()
    command = [parallel.python(), "-m", "wcl_core", "attempt", str(tmp_path / "a"), "--control-fd", str(read_end)]
    done = subprocess.run(command, cwd=ROOT, pass_fds=(read_end,), capture_output=True, text=True, check=False)
    os.close(read_end)
    os.close(write_end)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert last_word(tmp_path / "a") == {"outcome": "succeeded", "reason": None, "message": None}
    assert spool(tmp_path / "a")[0]["phase"] == "load"
    last = of(tmp_path / "a", "checkpoint")[-1]
    content = (tmp_path / "a" / last["path"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == last["sha256"]
    pretrain(small.spec(), NullReporter(), dataset=small.digits(), output_dir=tmp_path / "b")
    assert (tmp_path / "b" / last["path"]).read_bytes() == content


LONG = small.fields(epochs=90_000, warmup_epochs=0, knn_every_epochs=0, checkpoints={"every_epochs": 90_000})


@pytest.mark.parametrize(("byte", "outcome"), [(b"d", "drained"), (b"p", "paused")])
def test_a_request_on_the_pipe_leads_to_a_checkpoint(
    tmp_path: Path, start: Callable[..., Process], byte: bytes, outcome: str
) -> None:
    process = start(write_run(tmp_path / "a", spec=LONG, request_id="r-1"), "wcl_core.attempt._HEAR_SECONDS = 600")
    wait_for(lambda: of(tmp_path / "a", "metrics"))
    assert of(tmp_path / "a", "log")[0]["message"] == "request r-1"
    os.write(process.pipe, b"?" + byte)  # an unknown byte is no request
    assert process.end()["outcome"] == outcome
    (saved,) = of(tmp_path / "a", "checkpoint")
    assert saved["step"] == of(tmp_path / "a", "metrics")[-1]["step"]
    assert checkpoint.read(tmp_path / "a" / saved["path"]).metadata["step"] == saved["step"]


def test_without_a_supervisor_a_run_saves_and_stops(tmp_path: Path, start: Callable[..., Process]) -> None:
    process = start(write_run(tmp_path / "a", spec=LONG))
    wait_for(lambda: of(tmp_path / "a", "metrics"))
    process.close()
    assert process.status(attempt._ORPHAN_SECONDS + 10) == 0
    assert spool(tmp_path / "a")[-1]["outcome"] == "drained"
    assert len(of(tmp_path / "a", "checkpoint")) == 1


@pytest.mark.parametrize("hang", ["time.sleep(600)", "[0 for _ in iter(int, 1) if 0]"], ids=["sleeping", "busy"])
def test_without_a_supervisor_even_a_hanging_run_ends(tmp_path: Path, start: Callable[..., Process], hang: str) -> None:
    code = f"""
import time
from wcl_core.training.pretrain import _Run
def hang(self, rate, loss, classes):
    self.reporter.log("hangs")
    {hang}
_Run._log = hang  # after the step, which is not saved
"""
    process = start(write_run(tmp_path / "a"), code)
    wait_for(lambda: of(tmp_path / "a", "log"))
    process.close()
    closed_at = time.monotonic()
    assert process.status(attempt._ORPHAN_SECONDS + 10) == ORPHANED_EXIT
    assert time.monotonic() - closed_at > attempt._ORPHAN_SECONDS - 1  # it had its time to save
    assert of(tmp_path / "a", "end") == []


# --- requests in phases that have nothing to save --------------------------------------------------------------------

PHASES = {
    "loading": ("wcl_core.data.load", {}),
    "compilation": ("wcl_core.training.execution.compiled", {"execution": "compiled"}),
    "first step": ("wcl_core.training.learner.Learner.gradients", {}),
    "measurement of the untrained network": ("wcl_core.training.pretrain.network_features", {"knn_every_epochs": 1}),
    "saving to a slow disk": ("wcl_core.checkpoint._write", {"checkpoints": {"every_epochs": 1}}),
    "linear features": ("wcl_core.evaluation.run._subject", None),
    "linear": ("wcl_core.evaluation.linear.fit", None),
    "knn": ("wcl_core.evaluation.knn.knn_correct", None),
    "linear_sgd": ("wcl_core.evaluation.linear_sgd.linear_sgd", None),
    "few_labels": ("wcl_core.evaluation.few_labels.few_labels", None),
    "semi_supervised": ("wcl_core.evaluation.semi_supervised.semi_supervised", None),
    "retrieval": ("wcl_core.evaluation.retrieval.retrieval", None),
    "map": ("wcl_core.evaluation.embedding_map._tsne", None),
    "embed": ("wcl_core.checkpoint.write", None),
}
PIXELS = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}}
UNTRAINED = PIXELS | {"features": {"kind": "untrained", "backbone": {"name": "tiny", "stem": "stride2", "width": 4}}}
ENDLESS = """
import importlib, time
*path, owner, name = {place!r}.split(".")
try:
    owner = importlib.import_module(".".join([*path, owner]))
except ImportError:
    owner = getattr(importlib.import_module(".".join(path)), owner)
def endless(*_, **__):
    open({folder!r} + "/reached", "w").close()
    time.sleep(600)
setattr(owner, name, endless)
"""


@pytest.mark.parametrize("phase", PHASES)
def test_a_request_ends_a_phase_that_has_nothing_to_save(
    tmp_path: Path, start: Callable[..., Process], phase: str
) -> None:
    place, changes = PHASES[phase]
    folder = tmp_path / "a"
    evaluated = UNTRAINED if phase == "semi_supervised" else PIXELS
    run = {"kind": "evaluate", "spec": evaluated | {"protocols": [phase.partition(" ")[0]]}}
    run = run if changes is None else {"kind": "pretrain", "spec": small.fields(**changes)}
    process = start(write_run(folder, **run), ENDLESS.format(place=place, folder=str(folder)))
    wait_for((folder / "reached").exists)

    os.write(process.pipe, b"c")

    assert process.end()["outcome"] == "cancelled"
    assert of(folder, "checkpoint") == []


def test_a_run_that_owes_a_save_is_not_ended_by_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"the run is ended with {code}"))
    reporter = SpoolReporter(tmp_path / SPOOL_FILE)
    reporter.owes_save = True

    reporter.abandon("paused", 3)
    reporter.abandon("drained", 3)

    reporter.owes_save = False
    reporter.end("succeeded")
    reporter.abandon("cancelled", 3)
    assert last_word(tmp_path)["outcome"] == "succeeded"


def test_a_cancel_ends_a_long_step_in_its_middle_and_leaves_the_last_checkpoint(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    """The checkpoint is written while the step runs, and is reported before the step ends; the step is lost."""
    code = """
import time
from wcl_core.training.learner import Learner
gradients, durations = Learner.gradients, iter([0, 600])
def long_step(*arguments, **options):
    time.sleep(next(durations))
    return gradients(*arguments, **options)
Learner.gradients = long_step
"""
    folder = write_run(tmp_path / "a", spec=small.fields(batch_size=1024, checkpoints={"every_epochs": 1}))
    process = start(folder, code)
    wait_for(lambda: of(folder, "checkpoint"))

    os.write(process.pipe, b"c")

    assert process.end()["outcome"] == "cancelled"
    assert [saved["step"] for saved in of(folder, "checkpoint")] == [1]


def test_a_run_that_loses_its_supervisor_while_it_loads_ends(tmp_path: Path, start: Callable[..., Process]) -> None:
    folder = tmp_path / "a"
    process = start(write_run(folder), ENDLESS.format(place="wcl_core.data.load", folder=str(folder)))
    wait_for((folder / "reached").exists)

    process.close()

    assert process.end()["outcome"] == "drained"


@pytest.mark.parametrize(
    ("kind", "byte", "outcome"),
    [("pretrain", b"c", "cancelled"), ("pretrain", b"d", "drained"), ("evaluate", b"p", "paused")],
)
def test_a_request_ends_the_decoding_of_photographs(
    tmp_path: Path, start: Callable[..., Process], kind: str, byte: bytes, outcome: str
) -> None:
    """Training decodes them into the cache, the evaluation into memory; both would take minutes."""
    folder, root = tmp_path / "a", photographs(tmp_path / "photos", 1000)
    dataset: dict[str, Any] = {"kind": "folder", "path": str(root)}
    large = {"data": {"name": "photos", "image_size": 224}}
    spec = PIXELS | large | {"protocols": ["knn"]}
    if kind == "pretrain":
        dataset |= {"digest": "0" * 64, "cache": {"folder": str(tmp_path / "cache"), "max_bytes": 1 << 30}}
        spec = small.fields(**large)
    process = start(write_run(folder, kind=kind, spec=spec, dataset=dataset))
    decoders = eventually(process.decoders, "the start of processes that decode")

    os.write(process.pipe, byte)

    assert process.end()["outcome"] == outcome
    assert {record["phase"] for record in of(folder, "progress")} <= {"load", "prepare"}
    for each in decoders:
        with contextlib.suppress(psutil.Error):
            each.kill()  # as the worker does


def test_a_killed_process_leaves_complete_lines_and_a_checkpoint_to_continue_from(
    tmp_path: Path, start: Callable[..., Process]
) -> None:
    spec = small.fields(epochs=400)
    process = start(write_run(tmp_path / "a", spec=spec))
    wait_for(lambda: len(of(tmp_path / "a", "checkpoint")) >= 2)
    process.kill()
    assert process.status() == -signal.SIGKILL
    assert of(tmp_path / "a", "end") == []
    last = of(tmp_path / "a", "checkpoint")[-1]
    assert hashlib.sha256((tmp_path / "a" / last["path"]).read_bytes()).hexdigest() == last["sha256"]
    assert checkpoint.read(tmp_path / "a" / last["path"]).metadata["step"] == last["step"]


# --- failures name themselves --------------------------------------------------------------------------------------


def photos(root: Path, num_corrupt: int) -> Path:
    for index in range(40):
        path = root / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
        if index < num_corrupt:
            path.write_bytes(path.read_bytes()[:30])
    return root


def photo_run(folder: Path, root: Path) -> Path:
    spec = small.fields(data={"name": "photos", "image_size": 8, "max_corrupt_share": 0.1}, batch_size=8, epochs=2)
    return write_run(folder, spec=spec, dataset={"kind": "folder", "path": str(root)})


def test_corrupt_images_are_named_and_the_run_continues(tmp_path: Path) -> None:
    folder = photo_run(tmp_path / "run", photos(tmp_path / "photos", 4))
    assert ends(folder)[0] == "succeeded"
    warnings = [record for record in of(folder, "warning") if record["reason"] == "corrupt_image"]
    assert sorted(record["message"].split(":")[0] for record in warnings) == [
        "a/00.png",
        "a/02.png",
        "b/01.png",
        "b/03.png",
    ]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: photos(path, 5), "5 of 40 image files cannot be decoded"),
        (lambda path: path.mkdir(), "no image files"),
        (lambda path: None, "does not exist"),
    ],
    ids=["too much of it corrupt", "empty", "absent"],
)
def test_bad_data_is_no_infrastructure_failure(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    prepare(tmp_path / "photos")
    outcome, reason, text = ends(photo_run(tmp_path / "run", tmp_path / "photos"))
    assert (outcome, reason) == ("failed", "bad_data")
    assert message in text


def test_less_data_than_a_batch_is_bad_data(tmp_path: Path) -> None:
    outcome, reason, text = ends(write_run(tmp_path / "a", spec=small.fields(batch_size=5000)))
    assert (outcome, reason) == ("failed", "bad_data")
    assert "batch_size is 5000" in text


@pytest.mark.slow
def test_data_that_has_changed_since_the_submission_is_refused(tmp_path: Path) -> None:
    spec = small.fields(epochs=2)
    pinned = DIGITS | {"digest": small.digits().digest}
    assert ends(write_run(tmp_path / "a", spec=spec, dataset=pinned))[0] == "succeeded"
    changed = DIGITS | {"digest": "0" * 64}
    assert ends(write_run(tmp_path / "b", spec=spec, dataset=changed))[:2] == ("failed", "bad_data")


def test_a_missing_checkpoint_fails_the_attempt(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", resume=str(tmp_path / "none.safetensors"))
    outcome, reason, text = ends(folder)
    assert (outcome, reason) == ("failed", "missing_checkpoint")
    assert "none.safetensors" in text
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_a_file_that_changed_since_its_worker_read_it_is_no_missing_checkpoint(tmp_path: Path) -> None:
    """The service then tries again, with an older checkpoint if that file stays as it is."""
    spec = small.fields(epochs=2)
    assert ends(write_run(tmp_path / "a", spec=spec))[0] == "succeeded"
    saved = of(tmp_path / "a", "checkpoint")[0]
    content = bytearray((tmp_path / "a" / saved["path"]).read_bytes())
    content[-1] ^= 1  # of a weight: the file can be read
    (tmp_path / "flipped").write_bytes(content)
    (tmp_path / "short").write_bytes(content[:-1])
    for name in ("flipped", "short", "absent"):
        changed = {"resume": str(tmp_path / name), "sha256": saved["sha256"]}
        assert ends(write_run(tmp_path / f"{name}-run", spec=spec, **changed))[:2] == ("failed", "damaged_checkpoint")

    as_registered = {"resume": str(tmp_path / "flipped"), "sha256": hashlib.sha256(content).hexdigest()}
    of_other = write_run(tmp_path / "other", spec=spec | {"seed": 1}, **as_registered)
    assert ends(of_other)[:2] == ("failed", "missing_checkpoint")


def test_an_evaluation_runs_and_misses_its_checkpoint(tmp_path: Path) -> None:
    spec = {"data": {"name": "digits", "image_size": 8}, "protocols": ["knn"], "threads": 1}
    pixels = spec | {"features": {"kind": "pixels"}}
    assert ends(write_run(tmp_path / "a", kind="evaluate", spec=pixels))[0] == "succeeded"
    assert of(tmp_path / "a", "evaluation")[0]["value"] > 0.9
    of_file = spec | {"features": {"kind": "checkpoint", "checkpoint_id": "0190b5a0-0000-7000-8000-000000000000"}}
    folder = write_run(tmp_path / "b", kind="evaluate", spec=of_file, checkpoint=str(tmp_path / "none"))
    assert ends(folder)[:2] == ("failed", "missing_checkpoint")
    large_k = pixels | {"knn_k": 1000}
    outcome, reason, text = ends(write_run(tmp_path / "c", kind="evaluate", spec=large_k))
    assert (outcome, reason) == ("failed", "bad_data")
    assert "knn_k = 1000" in text


def test_a_loss_that_is_not_finite_fails_the_attempt(tmp_path: Path) -> None:
    explosive = {"name": "sgd", "learning_rate": 100, "scaling": "none", "weight_decay": 1.0}
    spec = small.fields(optimizer=explosive, epochs=40, warmup_epochs=0, knn_every_epochs=0)
    outcome, reason, _ = ends(write_run(tmp_path / "a", spec=spec))
    assert (outcome, reason) == ("failed", "non_finite_loss")
    assert of(tmp_path / "a", "metrics")[-1]["values"]["train/loss"] is None


def test_a_full_disk_fails_the_attempt(small_disk: Path) -> None:
    """The disk is a real one of 256 KiB; the network's checkpoints are larger, its records are not."""
    spec = small.fields(backbone={"width": 16}, heads={"hidden_dim": 64, "output_dim": 32})
    outcome, reason, text = ends(write_run(small_disk / "a", spec=spec))
    assert (outcome, reason) == ("failed", "disk_full")
    assert "No space" in text
    assert list((small_disk / "a" / "checkpoints").iterdir()) == []


def test_a_run_without_room_for_its_report_ends_with_an_exit_code_of_its_own(small_disk: Path) -> None:
    """Its output is on the same disk, so its traceback has no room, either."""
    write_run(small_disk / "a")
    command = [parallel.python(), "-m", "wcl_core", "attempt", str(small_disk / "a")]
    with (small_disk / "a" / "output.log").open("ab") as output:
        Disk(small_disk).fill()
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, env=environment, check=False)

    assert done.returncode == DISK_FULL_EXIT
    assert (small_disk / "a" / "output.log").read_bytes() == b""


def test_a_run_whose_disk_is_read_only_ends_with_an_exit_code_of_its_own(small_disk: Path, tmp_path: Path) -> None:
    write_run(small_disk / "a")
    Disk(small_disk).make_read_only()
    command = [parallel.python(), "-m", "wcl_core", "attempt", str(small_disk / "a")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == STORAGE_FAULT_EXIT, done.stderr
    end = exit_reason(done.returncode, tmp_path, None)
    assert (end.reason, "read-only" in (end.message or "")) == ("storage_unavailable", True)


@pytest.mark.parametrize("content", [None, "", "{", '{"kind": "pretrain"}', '{"kind": "magic", "spec": {}}'])
def test_an_invalid_run_file_fails_the_attempt(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    outcome, reason, text = ends(tmp_path)
    assert (outcome, reason) == ("failed", "internal_error")
    assert "Error" in text
    assert "\n" not in text


def test_an_invalid_spec_names_its_field(tmp_path: Path) -> None:
    outcome, _, text = ends(write_run(tmp_path, spec=small.fields(epochs=0)))
    assert outcome == "failed"
    assert "epochs" in text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out_of_memory"),
        (RuntimeError("shapes do not match"), "internal_error"),
        (NonFiniteLossError("the loss is nan"), "non_finite_loss"),
        (data.DataError("no image"), "bad_data"),
        (ProtocolError("knn_k"), "bad_data"),
        (CheckpointError("gone"), "missing_checkpoint"),
        (OSError(errno.ENOSPC, "No space left"), "disk_full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "disk_full"),
        (OSError(errno.EIO, "broken"), "storage_unavailable"),
        (ValueError("other"), "internal_error"),
    ],
)
def test_every_error_has_a_reason(error: Exception, reason: str) -> None:
    assert classify(error) == reason


def test_a_real_failure_to_allocate_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert classify(caught.value) == "out_of_memory"


def test_an_error_is_one_line_of_limited_length() -> None:
    assert describe(data.DataError("no  image\n here")) == "no image here"
    assert describe(KeyError("step")) == "KeyError: 'step'"
    assert len(describe(ValueError("x" * 10_000))) == 2000


def test_a_pipe_that_cannot_be_read_counts_as_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[float] = []

    class Timer:
        daemon = False

        def __init__(self, seconds: float, *_: Any, **__: Any) -> None:
            timers.append(seconds)

        def start(self) -> None:
            timers.append(-1.0)

    monkeypatch.setattr(attempt.threading, "Timer", Timer)
    monkeypatch.setattr(attempt.Control, "_enforce", lambda _: None)  # its thread would go on beside the other tests
    read_end, write_end = os.pipe()
    os.close(write_end)
    os.close(read_end)
    control = attempt.Control(read_end)
    wait_for(lambda: len(timers) == 2, 10)
    assert control.request() == "drain"
    assert timers[0] == attempt._ORPHAN_SECONDS


@pytest.mark.process
def test_a_run_that_loses_its_supervisor_while_it_imports_ends(tmp_path: Path) -> None:
    """A run that is started by a command imports PyTorch first; here the import takes for ever."""
    (tmp_path / "torch.py").write_text(
        "import pathlib, time\npathlib.Path(__file__).with_name('reached').touch()\ntime.sleep(600)\n"
    )
    read_end, write_end = os.pipe()
    run = subprocess.Popen(
        [sys.executable, "-m", "wcl_core", "attempt", str(tmp_path), "--control-fd", str(read_end)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        pass_fds=(read_end,),
    )
    os.close(read_end)
    try:
        wait_for((tmp_path / "reached").exists)
        assert run.poll() is None
        os.close(write_end)
        assert run.wait(30) == ORPHANED_EXIT
    finally:
        run.kill()
        run.wait()


def test_a_run_without_a_pipe_gets_no_request() -> None:
    assert attempt.Control(None).request() is None
