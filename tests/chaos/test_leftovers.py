"""Leftovers of a killed worker delay neither its next process nor other jobs, and no job runs beside an orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import transitions
from jobs.attempts import AttemptRef
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, Theatre, arm, spec
from tests.waiting import eventually
from wcl_core.protocol import RunFile
from worker.attempt_folder import mark_of, place_of
from worker.process import MARK

_ENDLESS = 100_000  # epochs
_PATIENT = {"WCL_LEASE_SECONDS": "60"}  # no attempt is declared lost here, however long it is delayed


def attempts_dir(worker: Node) -> Path:
    return Path(worker.start_as.environment["WCL_DATA_DIR"]) / "attempts"


def num_heartbeats(stage: Stage, pid: int) -> int:
    return sum(row.heartbeats for row in stage.workers() if row.pid == pid)


def test_a_worker_is_there_at_once_and_takes_no_job_beside_an_orphan(house: Theatre) -> None:
    with house.stage("orphan", "sqlite", **_PATIENT) as stage:
        worker = stage.worker("worker", orphan_seconds=300)
        attempt = AttemptRef.new("left", 1)
        folder = attempts_dir(worker) / attempt.folder
        folder.mkdir(parents=True)
        place = place_of(folder)
        identity = {"job_id": "left", "attempt": 1, "token": attempt.token, "host": "worker", "place": place}
        source = {"kind": "pretrain", "spec": {}, "dataset": {"kind": "builtin"}}
        RunFile.model_validate(identity | source).write(folder)
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)"],
            env=os.environ | {MARK: mark_of(attempt, place)},
        )
        try:
            job_id = stage.submit(spec(1))
            worker.start()
            eventually(
                lambda: num_heartbeats(stage, worker.pid) > 5, "heartbeats of the worker"
            )  # it has polled twice meanwhile
            assert stage.job(job_id).status == "queued", "it runs beside the orphan"
            assert orphan.poll() is None
        finally:
            orphan.kill()
            orphan.wait()
        stage.wait_for(job_id, "succeeded")
        eventually(lambda: not folder.exists(), "the end of the orphan's folder")


@pytest.mark.parametrize("trouble", ["hang", pytest.param("error", marks=pytest.mark.long)])
def test_a_slow_storage_delays_no_other_job(house: Theatre, trouble: str) -> None:
    """A checkpoint is not stored yet when the worker dies; the storage then hangs, or is full."""
    with house.stage(f"leftovers-{trouble}", "sqlite", **_PATIENT) as stage:
        worker = stage.worker("worker")
        failpoints = stage.failpoints(worker)
        arm(failpoints, "storage.before_rename hang 300")
        worker.start()
        stage.wait_for_workers("worker")
        left = stage.submit(spec(1, _ENDLESS, 30))
        eventually((failpoints / "fired").exists, "a checkpoint")
        worker.end(signal.SIGKILL)
        (failpoints / "fired").unlink()

        arm(failpoints, f"storage.before_rename {trouble} 300")
        worker.start()
        eventually((failpoints / "fired").exists, "the delivery of what is left")
        stage.wait_for(stage.submit(spec(2)), "succeeded")
        if trouble == "error":
            assert stage.wait_for(left, "paused").status_reason == "disk_full"  # and continues by itself
        else:
            assert stage.job(left).status == "running"
            (failpoints / "release").touch()

        again = eventually(lambda: job if (job := stage.job(left)).attempt == 2 else None, "the second attempt")
        assert again.failures == (trouble == "hang")
        stage.database.write(lambda session: transitions.cancel(session, left))
        stage.wait_for(left, "cancelled")
