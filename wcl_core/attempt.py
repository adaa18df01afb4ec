"""One attempt of a job, in a folder that a worker made: `run.json` in, `report.jsonl` and checkpoints out.

The worker holds the only write end of a control pipe; each of several ranks has a pipe of its own.  A byte on it is a
request (`protocol.REQUEST_LETTERS`).  The end of the pipe means that the worker is gone.

    request ──► the work ends at its next `stop.check`, or, in training, saves after the step
            └─► a moment later, a run that owes no save, or is cancelled, is ended in the middle of its work
    pipe ends ──► as for a drain; a few seconds later the process ends in any case

Every failure becomes an `end` record with a reason.  A process that ends without an `end` record was killed, or its
disk does not take the record: then its exit code is `DISK_FULL_EXIT` or `STORAGE_FAULT_EXIT`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from wcl_core import data, files, limits
from wcl_core import device as devices
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import PretrainSpec, Spec, parse_spec
from wcl_core.config.memory import advice
from wcl_core.data.cache import Cache
from wcl_core.data.images import content_changed
from wcl_core.device import CudaReason, DeviceError
from wcl_core.distributed import PeerLostError, Ranks, TooFewGpusError, joined
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.run import evaluate
from wcl_core.protocol import (
    DISK_FULL_EXIT,
    ORPHANED_EXIT,
    OUTCOME_OF,
    PEER_LOST_EXIT,
    REQUEST_LETTERS,
    SPOOL_FILE,
    STORAGE_FAULT_EXIT,
    DeviceFault,
    Failure,
    FailureReason,
    Outcome,
    Request,
    RunFile,
    device_fault_file,
    failure_file,
    lost_peer_file,
)
from wcl_core.reporter import NullReporter, Reporter, SpoolReporter
from wcl_core.stop import Interrupted, interruptible
from wcl_core.training.collapse import StoppedError
from wcl_core.training.pretrain import pretrain

_ORPHAN_SECONDS = 5.0
_HEAR_SECONDS = 0.2  # between a request and the end of a run that owes no save, or is cancelled
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator")  # torch has no exception of its own for it
_OF_CUDA: dict[CudaReason, str] = {
    "device_failed": "the GPU is broken",
    "device_assert": "a check in a GPU kernel failed, a fault of the code; with device: cpu the error names the line",
    "device_error": "CUDA reported an error, of the code or of the GPU; the log has the traceback",
}
_EXIT_OF: dict[FailureReason, int] = {"disk_full": DISK_FULL_EXIT, "storage_unavailable": STORAGE_FAULT_EXIT}
_REQUEST_OF: dict[bytes, Request] = {letter: request for request, letter in REQUEST_LETTERS.items()}


def run_attempt(folder: Path, control_fd: int | None) -> int:
    """Run the attempt that `folder/run.json` describes; of several ranks, run this process's part of it.

    Returns:
        0 when the spool ends with an `end` record, also one of failure.  Under several ranks the first one writes the
        spool.  Another rank that fails leaves a failure file and exits with 1.  A rank that only lost the others exits
        with `PEER_LOST_EXIT`; the file that it leaves counts if no rank knows the cause.  `DISK_FULL_EXIT` when the
        disk has no room for the report of the end, and `STORAGE_FAULT_EXIT` when it refuses it otherwise.
    """
    try:
        return _run_attempt(folder, control_fd)
    except OSError as error:  # of the report itself; every other one is in it
        if (code := _EXIT_OF.get(classify(error))) is None:
            raise
        if "RANK" in os.environ:
            _exit(code)
        return code


def _run_attempt(folder: Path, control_fd: int | None) -> int:
    control = Control(control_fd)
    rank = int(os.environ.get("RANK", "0"))
    reporter: Reporter = NullReporter()
    if rank == 0:
        reporter = spool = SpoolReporter(folder / SPOOL_FILE, control.request)
        control.on_request(lambda request: spool.abandon(OUTCOME_OF[request], 0))
    try:
        run = RunFile.read(folder)
        if run.request_id is not None:
            reporter.log(f"request {run.request_id}")
        spec = parse_spec(run.kind, run.spec)
        with joined(rendezvous=run.rendezvous or folder / "rendezvous", choice=spec.device, held=run.gpus) as ranks:
            outcome = _run(run, spec, folder, reporter, ranks)
    except PeerLostError as error:
        _print_traceback()
        reason = "killed" if devices.is_lost_peer(error) else "device_error"
        _leave(folder / lost_peer_file(rank), Failure(outcome="failed", reason=reason, message=describe(error)))
        _exit(PEER_LOST_EXIT)
    except Interrupted as interrupted:
        reporter.end(OUTCOME_OF[interrupted.request])
    except Exception as error:  # every failure becomes the job's reason
        _print_traceback()
        outcome = error.outcome if isinstance(error, StoppedError) else "failed"
        error = _change_behind(error, folder) or error
        reason, message = classify(error), _message(error, folder)
        if reason == "device_failed":
            is_whole = isinstance(error, DeviceError) and error.is_whole_machine
            local = int(os.environ.get("LOCAL_RANK", rank))  # the place of its device on this worker
            if isinstance(error, DeviceError) and error.index is not None:
                local = error.index
            _leave(folder / device_fault_file(local), DeviceFault(message=message, is_whole_machine=is_whole))
        if rank > 0:
            _leave(folder / failure_file(rank), Failure(outcome=outcome, reason=reason, message=message))
        else:
            reporter.end(outcome, reason, message)
        if "RANK" in os.environ:
            _exit(min(rank, 1))
    else:
        reporter.end(outcome)
    return 0


def _exit(code: int) -> None:
    """Exit at once: the threads of a broken process group would abort an orderly exit."""
    flush_output()
    os._exit(code)


def _print_traceback() -> None:
    """Print the traceback of the present error, if the disk of the output has room: the report of the end follows."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def flush_output() -> None:
    """Write what the streams still hold, if the disk of the output has room: the exit code must stay."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _leave(path: Path, left: Failure | DeviceFault) -> None:
    files.write_bytes(path, left.model_dump_json().encode())


def _run(run: RunFile, spec: Spec, folder: Path, reporter: Reporter, ranks: Ranks) -> Outcome:
    reporter.progress(step=0, total_steps=0, epoch=0, total_epochs=0, phase="load")
    source = run.dataset
    if not ranks.is_first:
        ranks.agreed(0)  # the first rank decodes what is not decoded yet; it alone hears requests
    with interruptible(reporter.request):
        dataset = data.load(
            spec.data.name,
            source.kind,
            source.path,
            spec.data.image_size,
            spec.data.max_corrupt_share,
            reporter,
            cache=None if source.cache is None else Cache(source.cache.folder, source.cache.max_bytes),
            digest=source.digest,
            has_labels=source.has_labels,
        )
    if ranks.is_first:
        ranks.agreed(0)
    if source.digest not in (None, dataset.digest):
        raise content_changed(dataset.name)
    _check_start_file(run)
    if isinstance(spec, PretrainSpec):
        start = {"resume": run.resume, "weights": run.weights}
        return pretrain(spec, reporter, dataset=dataset, output_dir=folder, ranks=ranks, **start)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    used = {name: source.list_digests.get(name) for name in spec.semi_supervised.lists}
    dataset = data.with_label_lists(dataset, source.lists, used)
    return evaluate(spec, reporter, data=dataset, checkpoint_path=run.evaluated, output_dir=folder, ranks=ranks)


class ChangedFileError(CheckpointError):
    """The file that the run starts from or evaluates has other bytes than those that its worker has read."""


def _check_start_file(run: RunFile) -> None:
    """Compare the file that the run starts from or evaluates with its digest: its worker may have done so minutes ago.

    Raises:
        ChangedFileError: it has other bytes, or cannot be read.
    """
    if run.start_file is None or run.sha256 is None:
        return
    try:
        with run.start_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ChangedFileError(f"{run.start_file.name} cannot be read: {error.strerror or error}") from error
    if digest != run.sha256:
        raise ChangedFileError(f"{run.start_file.name} has other bytes than those registered")


def _change_behind(error: Exception, folder: Path) -> ChangedFileError | None:
    """Return the change of the file that the run could not start from; None if that is not why it failed."""
    if isinstance(error, CheckpointError):
        try:
            _check_start_file(RunFile.read(folder))
        except ChangedFileError as change:
            return change
    return None


def classify(error: Exception) -> FailureReason:
    """Return the reason of a failed attempt; the service decides by it whether the job is retried."""
    if devices.is_out_of_memory(error):
        return "out_of_memory"
    if (reason := devices.cuda_reason(error)) is not None:
        return reason
    match error:
        case MemoryError():
            return "out_of_memory"
        case RuntimeError() if _OUT_OF_MEMORY.search(str(error)):
            return "out_of_memory"
        case StoppedError():
            return error.reason
        case data.DataError() | ProtocolError():
            return "bad_data"
        case ChangedFileError():
            return "damaged_checkpoint"
        case CheckpointError():
            return "missing_checkpoint"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return "disk_full"
        case OSError(errno=errno.EROFS | errno.ESTALE | errno.EIO):
            return "storage_unavailable"
        case OSError(errno=errno.EMFILE | errno.ENFILE | errno.EADDRINUSE | errno.EADDRNOTAVAIL):
            return "no_resources"
        case _:
            return "internal_error"


def _message(error: Exception, folder: Path) -> str:
    """Return the description of an error; if memory is full, preceded by what was needed and what fits."""
    text = describe(error)
    if classify(error) != "out_of_memory" or isinstance(error, MemoryError):  # torch raises others for tensors
        return text
    with contextlib.suppress(Exception):  # the advice is an extra
        run = RunFile.read(folder)
        spec = parse_spec(run.kind, run.spec)
        is_gpu = spec.device != "cpu" and torch.cuda.is_available()
        if isinstance(spec, PretrainSpec):
            available = torch.cuda.mem_get_info()[1] if is_gpu else limits.memory_bytes() // spec.processes
            return f"{advice(spec, available, is_gpu=is_gpu)} ({text})"[:2000]
    return text


def describe(error: Exception) -> str:
    """Return an error as one line for people, with its type unless the error is one of our own."""
    ours = StoppedError | data.DataError | ProtocolError | CheckpointError | TooFewGpusError | DeviceError
    if isinstance(error, ours):
        text = str(error)
    elif (reason := devices.cuda_reason(error)) is not None:
        text = f"{_OF_CUDA[reason]}: {devices.first_line(error)}"
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:2000]


class Control:
    """A reader of the control pipe on a thread: it keeps the latest request, and ends the process when the pipe ends.

    Args:
        descriptor: read end of the pipe; None for a run without a worker.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._request: Request | None = None
        self._abandon: Callable[[Request], None] = lambda _: None
        if descriptor is not None:
            threading.Thread(target=self._listen, args=(descriptor,), daemon=True, name="control").start()

    def request(self) -> Request | None:
        return self._request

    def on_request(self, abandon: Callable[[Request], None]) -> None:
        """Call `abandon` with the latest request again and again while there is one, from a moment after the first."""
        self._abandon = abandon

    def _listen(self, descriptor: int) -> None:
        # A descriptor that cannot be read counts as closed: without a worker this process must not stay.
        with contextlib.suppress(OSError):
            while byte := os.read(descriptor, 1):
                if (request := _REQUEST_OF.get(byte)) is not None:
                    self._take(request)
        # The worker is gone: the run saves a checkpoint if it can, and stops even if the loop hangs.
        self._take(self._request or "drain")
        timer = threading.Timer(_ORPHAN_SECONDS, os._exit, args=(ORPHANED_EXIT,))
        timer.daemon = True
        timer.start()

    def _take(self, request: Request) -> None:
        if self._request is None:
            threading.Thread(target=self._enforce, daemon=True, name="enforce").start()
        self._request = request

    def _enforce(self) -> None:
        while True:  # the run may owe a save now and none later
            time.sleep(_HEAR_SECONDS)
            if self._request is not None:
                self._abandon(self._request)
