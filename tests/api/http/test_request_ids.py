"""The id of a request, in the response, the log, the job and the worker's claim; and the log of requests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jobs.database import Database
from tests.api.served import SPEC, Served
from tests.jobs import rows

JOB = {"kind": "pretrain", "spec": SPEC}


def test_the_id_of_a_request_goes_to_the_job_and_its_worker(served: Served) -> None:
    client = served.client()
    answered = client.get("/v1/jobs")
    submitted = client.post("/v1/jobs", json=JOB, headers={"X-Request-ID": "from.a-proxy"})
    refused = client.post("/v1/jobs", json={}, headers={"X-Request-ID": "two words"})
    claim = rows.claim(served.database)

    assert len(answered.headers["x-request-id"]) == 32
    assert answered.headers["x-request-id"] != client.get("/v1/jobs").headers["x-request-id"]
    assert submitted.headers["x-request-id"] == "from.a-proxy"
    assert len(refused.headers["x-request-id"]) == 32
    assert submitted.json()["request_id"] == "from.a-proxy"
    assert (claim.job_id, claim.request_id) == (submitted.json()["id"], "from.a-proxy")


@pytest.mark.server
def test_the_log_of_requests_has_no_secret(
    sqlite_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows.add_dataset(sqlite_database)
    served = Served(sqlite_database, tmp_path / "data", access_log=True)
    served.start()
    key, client = served.key(), served.client()
    with caplog.at_level(logging.INFO, "access"):
        job_id = client.post("/v1/jobs", json=JOB).json()["id"]
        path = client.post("/v1/shares", json={"jobs": [job_id], "days": 1}).json()["url"].removeprefix(served.url)
        served.bare().get(path)
        served.bare().get("/sign-in?token=" + "x" * 43)
        served.bare().get("/v1/jobs?q=private", headers={"Authorization": f"Bearer {key}"})
        served.bare().get("/v1/nothing/there")
        served.stop()  # the line of a request follows its response
    lines = [record.getMessage().rsplit(" ", 1) for record in caplog.records if record.name == "access"]
    text = "\n".join(" ".join(line) for line in lines)

    assert len(lines) == 6
    assert "GET /shared/{secret} 200" in text
    assert "GET /sign-in " in text
    assert "GET /v1/jobs 200" in text
    assert text.count(" test") == 3  # the name of the key
    assert "/v1/nothing/there 401" in text
    assert not any(secret in text for secret in ("xxx", "private", key, path.rsplit("/", 1)[-1]))
