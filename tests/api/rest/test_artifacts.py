"""Artifacts over REST: listed, served with their media type, by names that are no paths."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient

PNG = b"\x89PNG\r\n\x1a\n pixels"


def store(served: Served, run: rows.Run, name: str, content: bytes) -> None:
    """Store the file and then its row, as a worker does."""
    record = rows.artifact(name, hashlib.sha256(content).hexdigest())
    key = f"{run.attempt.folder}/{record['sha256'][:16]}-{name}"
    place = served.settings.checkpoints_dir / key
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    run.deliver(record | {"path": key, "size": len(content)})


@pytest.fixture
def run(served: Served) -> rows.Run:
    started = rows.Run(served.database, rows.running(served.database))
    started.deliver(rows.started())
    return started


def test_the_newest_attempts_files_are_listed_and_sent(served: Served, run: rows.Run) -> None:
    store(served, run, "probe.png", b"of the first attempt")
    store(served, run, "probe.json", b'{"tile": 8}')
    run.end("drained")
    second = rows.Run(served.database, rows.claim(served.database))
    second.deliver(rows.started())
    store(served, second, "probe.png", PNG)

    with WclClient(served.url, served.key("read")) as client:
        listed = client.artifacts(run.job_id)
        contents = {entry["name"]: client.artifact(run.job_id, entry["name"]) for entry in listed}
        assert client.job(run.job_id)["links"]["artifacts"] == f"/v1/jobs/{run.job_id}/artifacts"

    assert contents == {"probe.json": b'{"tile": 8}', "probe.png": PNG}
    assert [(entry["name"], entry["attempt"], entry["media_type"], entry["size"]) for entry in listed] == [
        ("probe.json", 1, "application/json", 11),
        ("probe.png", 2, "image/png", len(PNG)),
    ]
    assert all("path" not in entry for entry in listed)


def test_a_file_is_sent_with_its_media_type_and_only_once(served: Served, run: rows.Run) -> None:
    store(served, run, "probe.png", PNG)
    client, address = served.client("read"), f"/v1/jobs/{run.job_id}/artifacts/probe.png"

    sent = client.get(address)
    etag = f'"{hashlib.sha256(PNG).hexdigest()}"'
    assert (sent.status_code, sent.content, sent.headers["etag"]) == (200, PNG, etag)
    assert sent.headers["content-type"] == "image/png"
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert sent.headers["content-disposition"].startswith("inline;")
    assert "default-src 'self'" in sent.headers["content-security-policy"]
    again = client.get(address, headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head(address)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PNG)))
    assert served.client("submit").get(address).status_code == 403


@pytest.mark.parametrize(
    ("name", "status"),
    [("absent.png", 404), ("probe.html", 422), ("PROBE.PNG", 422), ("%2e%2e.png", 422), ("a%0a.png", 422)],
)
def test_an_invalid_name_is_refused(served: Served, run: rows.Run, name: str, status: int) -> None:
    store(served, run, "probe.png", PNG)

    answer: Any = served.client("read").get(f"/v1/jobs/{run.job_id}/artifacts/{name}")
    assert_problem(answer, status)


def test_a_missing_file_and_a_missing_job_are_problems(served: Served, run: rows.Run) -> None:
    store(served, run, "probe.png", PNG)
    for path in served.settings.checkpoints_dir.rglob("*-probe.png"):
        path.rename(path.with_name("elsewhere"))
    client = served.client("read")

    assert_problem(client.get(f"/v1/jobs/{run.job_id}/artifacts/probe.png"), 410)
    assert_problem(client.get("/v1/jobs/absent/artifacts"), 404)
