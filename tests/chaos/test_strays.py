"""Processes that a run leaves behind: without its mark, in a session of their own, with an ended parent."""

from __future__ import annotations

import signal
from contextlib import suppress

import psutil

from jobs import transitions
from tests.chaos import body
from tests.chaos.stage import Theatre, spec
from tests.waiting import eventually


def strays(job_id: str, attempt: int) -> list[psutil.Process]:
    """Return live processes of an attempt that have nothing of its environment."""
    result = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_of_it = any(f"{job_id}/{attempt}-" in word for word in process.cmdline())
            if is_of_it and not process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                result.append(process)
    return result


def test_processes_that_hide_their_origin_end_with_their_attempt(house: Theatre) -> None:
    """The run is killed in one case, and receives a request to end in the other."""
    with house.stage("strays", "sqlite") as stage:
        worker = stage.worker("worker").start()
        stage.wait_for_workers("worker")
        job_id = stage.submit(spec(1, 100_000, 30, body.LITTERS))
        try:
            eventually(lambda: strays(job_id, 1), "a process left behind")
            for training in worker.trainings():
                training.send_signal(signal.SIGKILL)
            eventually(lambda: not strays(job_id, 1), "its end after the run was killed")

            eventually(lambda: strays(job_id, 2), "one of the second attempt")
            stage.database.write(lambda session: transitions.cancel(session, job_id))
            stage.wait_for(job_id, "cancelled")
            eventually(lambda: not strays(job_id, 2), "its end after the run was cancelled")
            eventually(lambda: not psutil.Process(worker.pid).children(), "the burial of both")
        finally:
            for left in strays(job_id, 1) + strays(job_id, 2):
                left.kill()
