"""Several attempts of one worker at once: each has its own devices, and none disturbs the others."""

from __future__ import annotations

import contextlib
import signal

import psutil
import pytest

from jobs import transitions
from jobs.audit import audit
from jobs.database import Database
from tests.waiting import eventually
from tests.worker.conftest import StartWorker
from tests.worker.running import ENDLESS, SHORT, Jobs, RunningWorker
from wcl_core.limits import num_cores

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


def runs(worker: RunningWorker) -> dict[str, psutil.Process]:
    """Return the training processes of the worker by the job that each is of."""
    result = {}
    for process in worker.runs():
        with contextlib.suppress(psutil.Error):  # it has just ended
            command = process.cmdline()
            result[command[command.index("attempt") + 1].split("/")[-2]] = process
    return result


def test_attempts_run_at_once_and_each_ends_alone(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker
) -> None:
    worker = start_worker(sqlite_database, WCL_DEVICES="3")
    one, two, cpu = (jobs.submit(ENDLESS | {"seed": gpus}, gpus=gpus) for gpus in (1, 2, 0))
    waiting = jobs.submit(SHORT, gpus=2)
    eventually(lambda: all(jobs.num_checkpoints(job_id) for job_id in (one, two, cpu)), "three runs at once", 120)
    before = runs(worker)
    assert before.keys() == {one, two, cpu}
    assert {process.environ()["CUDA_VISIBLE_DEVICES"] for process in before.values()} == {""}
    threads = {job_id: int(process.environ()["OMP_NUM_THREADS"]) for job_id, process in before.items()}
    assert threads == {job: max(1, num_cores() * part // 4) for job, part in ((one, 1), (two, 2), (cpu, 1))}
    assert jobs.get(waiting).status == "queued"

    before[one].send_signal(signal.SIGKILL)  # its job is queued again, and the others are not disturbed
    eventually(lambda: jobs.get(one).failures == 1, "the end of the killed run")
    sqlite_database.write(lambda session: transitions.cancel(session, two))
    jobs.wait_for(two, "cancelled")
    assert jobs.wait_for(waiting, "succeeded").attempt == 1
    assert runs(worker)[cpu].pid == before[cpu].pid
    jobs.wait_for(one, "running")

    worker.stop()

    assert [(job.status, job.status_reason) for job in map(jobs.get, (one, cpu))] == [("queued", "worker_stopped")] * 2
    assert audit(sqlite_database).findings == []
    ends = [line.partition("attempt 1 of job ")[2] for line in worker.whole_log().splitlines() if " ended: " in line]
    assert {f"{waiting} ended: succeeded", f"{cpu} ended: drained"} <= set(ends), worker.log()
    assert any(line.startswith(f"{one} ended: failed, killed, ") for line in ends), worker.log()
    assert not any(process.is_running() for process in before.values())
