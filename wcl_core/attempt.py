"""One attempt of a job, in a folder made by a supervisor: `run.json` in, `report.jsonl` and checkpoints out.

The supervisor holds the only write end of a pipe; of several ranks each has its own.  A byte on it is a request (`c`
cancel, `d` drain, `p` pause); its end means that the supervisor is gone, and then this process ends within a few
seconds, whatever it is doing.  Every failure becomes an `end` record with a reason; a process that ends without one was
killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, get_args

import torch

from wcl_core import data, files
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import Kind, PretrainSpec, parse_spec
from wcl_core.distributed import PeerLostError, Ranks, joined
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.run import evaluate
from wcl_core.reporter import NullReporter, Outcome, Reporter, Request, SpoolReporter
from wcl_core.training.collapse import StoppedError
from wcl_core.training.pretrain import pretrain

_ORPHAN_SECONDS = 5.0
_ORPHAN_EXIT = 70
PEER_LOST_EXIT = 71
# torch has no exception of its own for these: the CPU's allocator, and libraries on a full GPU.
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|CUDA out of memory|STATUS_ALLOC_FAILED")
_REQUESTS: dict[bytes, Request] = {b"c": "cancel", b"d": "drain", b"p": "pause"}


def run_attempt(folder: Path, control_fd: int | None) -> int:
    """Run the attempt that `folder/run.json` describes, or as one of several ranks this process's part of it.

    Returns:
        0 when the spool ends with an `end` record, also one of failure.  Under several ranks the first one writes the
        spool; another one that fails leaves `failure-<rank>.json` and returns 1, and a rank that only lost the others
        returns 71 without a word, since whoever watches all ranks knows why.
    """
    control = Control(control_fd)
    rank = int(os.environ.get("RANK", "0"))
    reporter = SpoolReporter(folder / "report.jsonl", control.request) if rank == 0 else NullReporter()
    try:
        with joined(rendezvous=folder / "rendezvous") as ranks:
            outcome = _run(json.loads((folder / "run.json").read_text()), folder, reporter, ranks)
    except PeerLostError:
        traceback.print_exc()
        _exit(PEER_LOST_EXIT)
    except Exception as error:  # whatever it is, the job has to say so
        traceback.print_exc()
        outcome = error.outcome if isinstance(error, StoppedError) else "failed"
        if rank > 0:
            _leave_word(folder / f"failure-{rank}.json", outcome, classify(error), describe(error))
        else:
            reporter.end(outcome, classify(error), describe(error))
        if "RANK" in os.environ:
            _exit(min(rank, 1))
    else:
        reporter.end(outcome)
    return 0


def _exit(code: int) -> None:
    """Leave at once: the threads of a broken process group abort an orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_word(path: Path, outcome: Outcome, reason: str, message: str) -> None:
    files.write_bytes(path, json.dumps({"outcome": outcome, "reason": reason, "message": message}).encode())


def _run(run: dict[str, Any], folder: Path, reporter: Reporter, ranks: Ranks) -> Outcome:
    if run["kind"] not in get_args(Kind):
        raise ValueError(f"run.json names an unknown kind {run['kind']!r}")
    spec = parse_spec(run["kind"], run["spec"])
    reporter.progress(step=0, total_steps=0, epoch=0, total_epochs=0, phase="load")
    source = run["dataset"]
    dataset = data.load(
        spec.data.name,
        source["kind"],
        _path(source["path"]),
        spec.data.image_size,
        spec.data.max_corrupt_share,
        reporter,
    )
    if source.get("digest", dataset.digest) != dataset.digest:
        raise data.DataError(f"dataset {dataset.name}: its content is no longer what the job pinned; register it again")
    if isinstance(spec, PretrainSpec):
        return pretrain(
            spec, reporter, dataset=dataset, output_dir=folder, resume=_path(run.get("resume")), ranks=ranks
        )
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    dataset = data.with_label_lists(dataset, {name: Path(path) for name, path in source.get("lists", {}).items()})
    return evaluate(spec, reporter, data=dataset, checkpoint_path=_path(run.get("checkpoint")), output_dir=folder)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def classify(error: Exception) -> str:
    """The reason of a failed attempt, one of a fixed list that decides whether it is tried again."""
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return "out_of_memory"
        case RuntimeError() if _OUT_OF_MEMORY.search(str(error)):
            return "out_of_memory"
        case StoppedError():
            return error.reason
        case data.DataError() | ProtocolError():
            return "bad_data"
        case CheckpointError():
            return "missing_checkpoint"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return "disk_full"
        case _:
            return "internal_error"


def describe(error: Exception) -> str:
    """One line for people; errors that are not ours carry their type."""
    ours = StoppedError | data.DataError | ProtocolError | CheckpointError
    text = str(error) if isinstance(error, ours) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:2000]


class Control:
    """Reads requests from the supervisor's pipe on a thread of its own; ends the process when the pipe does.

    Args:
        descriptor: read end of the pipe, or None to listen to nobody.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._request: Request | None = None
        if descriptor is not None:
            threading.Thread(target=self._listen, args=(descriptor,), daemon=True, name="control").start()

    def request(self) -> Request | None:
        """The latest request."""
        return self._request

    def _listen(self, descriptor: int) -> None:
        # A descriptor that cannot be read counts as closed: with no supervisor to hear, this process must not stay.
        with contextlib.suppress(OSError):
            while byte := os.read(descriptor, 1):
                self._request = _REQUESTS.get(byte, self._request)
        # Nobody is left to report to: save what can be saved, then stop even if the loop hangs.
        self._request = self._request or "drain"
        timer = threading.Timer(_ORPHAN_SECONDS, os._exit, args=(_ORPHAN_EXIT,))
        timer.daemon = True
        timer.start()
