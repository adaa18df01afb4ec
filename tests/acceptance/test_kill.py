"""`kill -9` of any process in the middle of a run: the job resumes from its checkpoint and finishes, in both modes."""

from __future__ import annotations

import pytest

from tests.acceptance.service import LONG_SPEC, Service, submit_when_ready
from tests.waiting import eventually
from wcl_client.api import WclClient
from wcl_client.responses import Job

pytestmark = pytest.mark.timeout(600)


def start_long_run(client: WclClient) -> str:
    """Start a job and wait for its first two checkpoints."""
    job_id = submit_when_ready(client, LONG_SPEC)["id"]
    eventually(lambda: len(client.checkpoints(job_id)) >= 2, "two checkpoints", 90)
    assert client.job(job_id)["status"] == "running"
    return job_id


def assert_whole(client: WclClient, job: Job) -> None:
    """Check that the job ended once, with one gapless curve and all of its checkpoints."""
    assert job["status"] == "succeeded", job
    ends = [event for event in client.events(job["id"]) if event["data"].get("status") == "succeeded"]
    assert len(ends) <= 1
    (series,) = client.metrics(job["id"], ["train/loss"])
    steps = [point["step"] for point in series["points"]]
    assert steps == sorted(set(steps)), "the curve is not one line"
    checkpoints = client.checkpoints(job["id"])
    assert round(checkpoints[-1]["epoch"]) == LONG_SPEC["epochs"]


@pytest.mark.parametrize(
    ("service", "victim"),
    [
        ("sqlite", "training process"),
        ("postgres", "worker"),
        pytest.param("sqlite", "worker", marks=pytest.mark.long),
        pytest.param("postgres", "training process", marks=pytest.mark.long),
    ],
    indirect=["service"],
)
def test_killed_run_resumes_and_finishes(service: Service, victim: str) -> None:
    with service.client() as client:
        job_id = start_long_run(client)

        service.kill(*{"training process": ("wcl_core", "attempt"), "worker": ("worker",)}[victim])

        job = client.wait(job_id, timeout_seconds=240)
        attempts = client.attempts(job_id)
        assert_whole(client, job)
        assert len(attempts) == 2
        assert attempts[1]["start_step"] > 0, "it began again instead of resuming"


@pytest.mark.parametrize("service", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True)
def test_killed_server_restarts_and_the_run_continues(service: Service) -> None:
    with service.client() as client:
        job_id = start_long_run(client)
        pid = service.kill("api")

        eventually(lambda: client.is_ready() and _is_other(service, pid), "the restart of the server")
        job = client.wait(job_id, timeout_seconds=240)

        assert_whole(client, job)
        assert len(client.attempts(job_id)) == 1, "the run itself never stopped"


def _is_other(service: Service, pid: int) -> bool:
    server = service.process("api")
    return server is not None and server.pid != pid


def test_the_run_of_a_killed_worker_ends_by_itself(small_service: Service) -> None:
    with small_service.client() as client:
        job_id = start_long_run(client)
        run = small_service.process("wcl_core", "attempt")
        assert run is not None

        small_service.kill("worker")

        eventually(lambda: not run.is_running(), "the end of the orphaned run")
        assert_whole(client, client.wait(job_id, timeout_seconds=240))
