"""A message about a job reaches its receiver, although everything between them is restarted."""

from __future__ import annotations

import pytest

from tests.acceptance.service import LONG_SPEC, Service, submit_when_ready
from tests.receiver import receiving
from tests.servers import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)
ENDLESS_SPEC = LONG_SPEC | {"epochs": 10_000}


@pytest.fixture
def port() -> int:
    """The port of a receiver that is not there yet."""
    return free_port()


@pytest.mark.parametrize("service", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)], indirect=True)
def test_a_failure_at_night_is_one_signed_message_after_restarts_of_receiver_server_and_worker(
    service: Service, port: int
) -> None:
    fields = {"name": "night", "url": f"http://127.0.0.1:{port}/hook", "events": ["job.failed"]}
    with service.client() as client:
        webhook = client.add_webhook(fields)
        job_id = submit_when_ready(client, ENDLESS_SPEC, max_seconds=5)["id"]
        eventually(lambda: client.job(job_id)["status"] == "running", "the run")

        service.kill("worker")
        assert client.wait(job_id, timeout_seconds=120)["status_reason"] == "timeout"
        assert len(client.attempts(job_id)) == 2
        eventually(lambda: client.deliveries(webhook["id"])[0]["attempts"], "a try without a receiver")
        service.kill("api")

        with receiving(port) as receiver:
            eventually(lambda: receiver.requests, "the message", 120)
            eventually(client.is_ready, "the restart of the server", 60)
            eventually(lambda: client.deliveries(webhook["id"])[0]["state"] == "delivered", "its receipt")
            service.stop()
            service.start()
            eventually(client.is_ready, "the restart of the service", 60)
            client.test_webhook(webhook["id"])
            eventually(lambda: len(receiver.requests) > 1, "the message of a test")

        message, test = receiver.requests
        assert message.is_signed(webhook["secret"])
        assert (message.content["type"], message.content["data"]["job"]["reason"]) == ("job.failed", "timeout")
        assert message.content["data"]["job"]["id"] == job_id
        assert test.content["type"] != "job.failed"
