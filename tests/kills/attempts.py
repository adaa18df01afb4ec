"""Attempts of a run: real training processes, forked from one that has imported torch, and their files."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (otherwise every attempt imports it, at a second each)
import torch
import torch._dynamo

from tests.wcl_core.small import curves
from wcl_core.__main__ import main
from wcl_core.protocol import RunFile

torch.set_num_threads(1)  # threads do not survive a fork


class Attempt:
    """An attempt as a worker starts it: one process for each rank, and a pipe to each.

    Args:
        folder: the attempt's own; it does not exist yet.
        fields: the run's spec.
        resume: the checkpoint to go on from.
        prepare: called in each rank's process, with the rank, before anything else.
    """

    def __init__(
        self, folder: Path, fields: dict[str, Any], resume: Path | None, prepare: Callable[[int], None] = lambda _: None
    ) -> None:
        folder.mkdir(parents=True)
        source = {"kind": "builtin", "path": None}
        identity = {"job_id": "job", "attempt": 1, "host": "here", "kind": "pretrain"}
        RunFile.model_validate(identity | {"spec": fields, "dataset": source, "resume": resume}).write(folder)
        self.folder = folder
        self._size = int(fields.get("processes", 1))
        self._pipes: list[int] = []
        self._pids = [self._fork(rank, prepare) for rank in range(self._size)]

    def kill(self) -> None:
        """Send SIGKILL to every rank, before `wait`."""
        self._kill(set(self._pids))

    def is_over(self) -> bool:
        """Return whether a rank has ended; `wait` still reaps it."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return any(os.waitid(os.P_PID, pid, options) is not None for pid in self._pids)

    def wait(self) -> list[int]:
        """Return the exit code of each rank, negative for a signal; after a failure the other ranks are killed."""
        codes: dict[int, int] = {}
        while len(codes) < self._size:
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid]:
                self._kill(set(self._pids) - codes.keys())
        for pipe in self._pipes:
            os.close(pipe)
        return [codes[pid] for pid in self._pids]

    def records(self) -> list[dict[str, Any]]:
        """Return the complete lines of the report."""
        spool = self.folder / "report.jsonl"
        lines = spool.read_bytes().split(b"\n")[:-1] if spool.exists() else []
        return [json.loads(line) for line in lines]

    def last_step(self) -> int:
        """Return the latest reported step; -1 before the run has started."""
        steps = [record.get("step", 0) for record in self.records() if record["type"] in ("started", "metrics")]
        return steps[-1] if steps else -1

    def output(self) -> str:
        """Return the output of the processes."""
        return (self.folder / "output.log").read_text()

    @staticmethod
    def _kill(pids: set[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def _fork(self, rank: int, prepare: Callable[[int], None]) -> int:
        read_end, write_end = os.pipe()
        self._pipes.append(write_end)
        if child := os.fork():
            os.close(read_end)
            return child
        status = 1
        atexit._clear()  # they would remove the folder of this command
        try:
            for pipe in self._pipes:  # the end of the pipe means that the command has ended
                os.close(pipe)
            output = os.open(self.folder / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            if self._size > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(self._size), "GLOO_SOCKET_IFNAME": "lo"}
            prepare(rank)
            status = main(["attempt", str(self.folder), "--control-fd", str(read_end)])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


@dataclass(frozen=True)
class Left:
    """The records and files of an ended attempt.

    Attributes:
        records: its reported records.
        files: digest of each file that carries a checkpoint's name.
        num_parts: files that were begun and carry none.
        checkpoint: the newest one that was reported.
        step: of that checkpoint; 0 without one.
    """

    records: list[dict[str, Any]]
    files: dict[str, str]
    num_parts: int
    checkpoint: Path | None
    step: int

    @staticmethod
    def by(attempt: Attempt) -> Left:
        """Read the attempt's folder."""
        folder, records = attempt.folder / "checkpoints", attempt.records()
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        whole = [name for name in names if not name.endswith(".part")]
        files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in whole}
        reported = [record for record in records if record["type"] == "checkpoint"]
        newest = reported[-1] if reported else None
        return Left(
            records,
            files,
            len(names) - len(whole),
            None if newest is None else attempt.folder / newest["path"],
            0 if newest is None else newest["step"],
        )

    @property
    def outcome(self) -> str | None:
        """Return the outcome in the attempt's `end` record; None if it was killed."""
        return self.records[-1].get("outcome") if self.records else None

    @property
    def num_points(self) -> int:
        """Return the number of the reported points of the loss."""
        return len({step for name, step in self.curves if name == "train/loss"})

    def is_extra(self, name: str, whole: Left) -> bool:
        """Return whether a file is the checkpoint of an orderly stop, at a step where an undisturbed run has none."""
        is_of_stop = self.checkpoint is not None and name == self.checkpoint.name
        return is_of_stop and self.outcome in ("drained", "paused") and name not in whole.files

    @property
    def curves(self) -> dict[tuple[str, int], float | None]:
        """Return every reported metric by name and step."""
        return curves(self.records)


def differences(lives: list[Left], whole: Left) -> list[str]:
    """Return the differences between a stopped run and an undisturbed one.

    Args:
        lives: the remains of its attempts, in their order; the last one ended by itself.
        whole: the undisturbed run.
    """
    result = []
    for number, left in enumerate(lives):
        for name, digest in left.files.items():
            if whole.files.get(name) != digest and not left.is_extra(name, whole):
                result.append(f"attempt {number}: {name} has other bytes")
        for (name, step), value in left.curves.items():
            if (name, step) not in whole.curves or whole.curves[name, step] != value:
                result.append(f"attempt {number}: {name} at step {step} is {value}")
        result += [f"attempt {number}: {r['message']}" for r in left.records if r["type"] == "warning"]
    if surviving(lives) != whole.curves:
        result.append("the curves of the steps that survived are not those of the whole run")
    if max(whole.files) not in lives[-1].files:
        result.append("there is no last checkpoint")
    return result


def surviving(lives: list[Left]) -> dict[tuple[str, int], float | None]:
    """Return a job's curves: the points of each attempt up to the step where the next one resumed."""
    joined: dict[tuple[str, int], float | None] = {}
    resumed_at = 0
    for left in lives:
        joined = {key: value for key, value in joined.items() if key[1] <= resumed_at} | left.curves
        resumed_at = left.step or resumed_at
    return joined
