"""A stand-in for a training run: it writes spool records with the standard library only, so that thousands fit.

Its spec decides its behaviour: `epochs` of three steps, each `log_every_steps` milliseconds long and reporting a value
that follows from `seed` and step, so that a lost, doubled or foreign point is seen; `threads` names a behaviour.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

STEPS_PER_EPOCH = 3
WELL, CRASHES, DEAF, LITTERS = (
    None,
    2,
    3,
    4,
)  # `threads`: exits without an `end` record; ignores requests; leaves a process behind
# Ignores SIGTERM, and its parent is not the run; the attempt's folder is one of its arguments.
_LITTER = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
time.sleep(3600)
"""
_OUTCOMES = {b"c": "cancelled", b"d": "drained", b"p": "paused"}


def value(seed: int, step: int) -> float:
    """Return the value that a run with this seed reports at a step."""
    return ((seed * 1_000_003 + step * 7_919) % 10_007) / 10_007


class Body:
    """One attempt in its folder."""

    def __init__(self, folder: Path, control: int) -> None:
        self._folder, self._control = folder, control
        run = json.loads((folder / "run.json").read_text())
        self._spec: dict[str, Any] = run["spec"]
        self._resume: str | None = run["resume"]
        self._spool = os.open(folder / "report.jsonl", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._seq = 0
        self._requested_outcome: str | None = None

    def run(self) -> int:
        if os.environ.get("RANK", "0") != "0":  # on a further node: the first one reports
            self._listen()
        if self._spec["threads"] == LITTERS:
            litter = [sys.executable, "-I", "-S", "-c", _LITTER, str(self._folder)]
            subprocess.run(litter, env={}, start_new_session=True, check=True)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._train()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._say_last_word()
        return 0

    def _train(self) -> None:
        saved = step = json.loads(Path(self._resume).read_text())["step"] if self._resume else 0
        self._report("started", start_step=step, device="none")
        total = self._spec["epochs"] * STEPS_PER_EPOCH
        while step < total and self._requested_outcome is None:
            time.sleep(self._spec["log_every_steps"] / 1000)
            step += 1
            if self._spec["threads"] == CRASHES:
                os._exit(9)
            self._report("metrics", step=step, values={"train/loss": value(self._spec["seed"], step)})
            if step % STEPS_PER_EPOCH == 0:
                self._save(step)
                saved = step
        if saved < step:
            self._save(step)
        self._report("end", outcome=self._requested_outcome or "succeeded", reason=None, message=None)

    def _say_last_word(self) -> None:
        """Report the full disk as soon as there is room for a line; a real run keeps room for it."""
        while True:
            with suppress(OSError):
                self._report("end", outcome="failed", reason="disk_full", message="No space left on device")
                return
            time.sleep(0.2)

    def _report(self, kind: str, **facts: Any) -> None:
        self._seq += 1
        size = os.fstat(self._spool).st_size
        line = (json.dumps({"seq": self._seq, "type": kind, **facts}) + "\n").encode()
        try:
            if os.write(self._spool, line) < len(line):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            os.ftruncate(self._spool, size)
            self._seq -= 1
            raise

    def _save(self, step: int) -> None:
        content = json.dumps({"seed": self._spec["seed"], "step": step}).encode()
        path = self._folder / f"step-{step}.json"
        beside = path.with_suffix(".part")
        beside.write_bytes(content)
        beside.replace(path)
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "metrics": {}}
        self._report("checkpoint", step=step, epoch=step // STEPS_PER_EPOCH, path=path.name, **facts)

    def _listen(self) -> None:
        while byte := os.read(self._control, 1):
            if self._spec["threads"] != DEAF:
                self._requested_outcome = _OUTCOMES[byte]
        os._exit(70)  # its supervisor is gone


def run(arguments: list[str]) -> int:
    """Run the attempt of a command line `… FOLDER --control-fd N`; return its exit code."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # it adopts its orphans, as a real run does
    return Body(Path(arguments[-3]), int(arguments[-1])).run()


if __name__ == "__main__":
    sys.exit(run(sys.argv))
