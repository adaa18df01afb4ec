"""The whole way with a bucket: train, lose the worker, resume on another one, download, remove, and nothing is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs import audit, purge, storage_id
from jobs.database import Database
from jobs.storage import Storage
from tests.acceptance.service import SHORT_SPEC
from tests.api.served import Served
from tests.jobs.test_bucket import authenticate
from tests.waiting import eventually
from tests.worker.running import Jobs, RunningWorker
from wcl_client.api import WclClient
from worker.garbage import collect_all_garbage
from worker.process import module_environment

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]
SPEC = SHORT_SPEC | {"epochs": 8, "checkpoints": SHORT_SPEC["checkpoints"] | {"keep_last": 2, "keep_best": 0}}


@pytest.fixture
def serve(
    sqlite_database: Database, bucket: dict[str, str], tmp_path: Path
) -> Iterator[Callable[[str], tuple[Served, WclClient]]]:
    started, clients = [], []

    def start(downloads: str) -> tuple[Served, WclClient]:
        facts = {"storage_url": bucket["WCL_STORAGE_URL"], "storage_endpoint": bucket["WCL_STORAGE_ENDPOINT"]}
        served = Served(sqlite_database, tmp_path / downloads, storage_downloads=downloads, **facts)
        storage_id.connect(sqlite_database, served.app.state.storage)
        served.start()
        started.append(served)
        client = WclClient(served.url, served.key())
        clients.append(client)
        return served, client

    yield start
    for client in clients:
        client.close()
    for served in started:
        served.stop()


def test_the_whole_way_with_a_bucket(
    serve: Callable[[str], tuple[Served, WclClient]],
    sqlite_database: Database,
    bucket: dict[str, str],
    tmp_path: Path,
) -> None:
    served, client = serve("stream")
    storage: Storage = served.app.state.storage
    jobs = Jobs(sqlite_database)
    first, second = (RunningWorker(sqlite_database, tmp_path / name, **bucket) for name in ("first", "second"))
    try:
        first.start()
        eventually(first.is_idle, "the start of the worker")
        job_id = jobs.submit(SPEC)
        eventually(lambda: jobs.num_checkpoints(job_id) >= 2, f"two checkpoints\n{first.log()}")
        for process in [psutil.Process(first.pid), *first.runs()]:
            process.send_signal(signal.SIGKILL)

        second.start()
        job = jobs.wait_for(job_id, "succeeded", "failed", seconds=240)
    finally:
        for worker in (first, second):
            worker.stop()
    assert (job.status, job.attempt) == ("succeeded", 2), second.log()
    assert client.attempts(job_id)[1]["start_step"] > 0, "it began again instead of resuming from the bucket"

    # Retention and garbage collection
    collect_all_garbage(sqlite_database, storage)
    kept = client.checkpoints(job_id)
    stored = [key for key in storage.keys(job_id) if key.endswith(".safetensors")]
    assert len(stored) == len(kept) == 2
    assert not (tmp_path / "second" / "checkpoints").exists()

    # Downloads through the server, and by a redirect
    newest = kept[-1]
    through = client.download(newest["id"], tmp_path / "through.safetensors")
    backbone = client.download(newest["id"], tmp_path / "backbone.safetensors", kind="backbone")
    _, redirecting = serve("redirect")
    half = (tmp_path / "through.safetensors").read_bytes()[: newest["size"] // 2]
    (tmp_path / "direct.safetensors.part").write_bytes(half)
    (tmp_path / "direct.safetensors.part.etag").write_text(f'"{newest["sha256"]}"')
    direct = redirecting.download(newest["id"], tmp_path / "direct.safetensors")
    assert through.sha256 == direct.sha256 == newest["sha256"] != backbone.sha256
    assert direct.resumed_from == len(half)
    assert redirecting.verify(newest["id"])["damaged_at"] is None
    for artifact in client.artifacts(job_id):
        assert client.artifact(job_id, artifact["name"])

    assert audit.audit(sqlite_database, storage).findings == []
    client.delete([job_id])
    assert purge.purge_due(sqlite_database, storage, 0, threading.Event()) == 1
    assert list(storage.job_ids()) == []
    assert audit.audit(sqlite_database, storage).findings == []


def test_refused_credentials_hold_a_job_up_and_lose_nothing(
    serve: Callable[[str], tuple[Served, WclClient]],
    sqlite_database: Database,
    bucket: dict[str, str],
    bucket_server: str,
    tmp_path: Path,
) -> None:
    _, client = serve("stream")
    jobs, worker = Jobs(sqlite_database), RunningWorker(sqlite_database, tmp_path / "worker", **bucket)
    try:
        worker.start()
        eventually(worker.is_idle, "the start of the worker")
        job_id = jobs.submit(SPEC)
        eventually(lambda: jobs.num_checkpoints(job_id) >= 1, f"a checkpoint\n{worker.log()}")
        authenticate(bucket_server, "0")
        refused = eventually(lambda: worker.row().unable, f"a reason\n{worker.log()}")
        num_lines = worker.whole_log().count("refuses the credentials")
        authenticate(bucket_server, "inf")
        job = jobs.wait_for(job_id, "succeeded", "failed", seconds=240)
    finally:
        authenticate(bucket_server, "inf")
        worker.stop()
    assert refused == "storage_unavailable"
    assert (job.status, job.attempt, job.failures) == ("succeeded", 1, 0)
    assert 0 < num_lines < 20, "it retries after growing pauses"
    assert len(client.checkpoints(job_id)) == 2
    assert "secret-of-the-bucket" not in worker.whole_log()


def test_a_run_gets_no_credentials(bucket: dict[str, str]) -> None:
    assert not [name for name in module_environment() if name.startswith("AWS_")]
