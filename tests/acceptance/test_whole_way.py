"""From submission to download with real processes and the real command line."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import parallel
from tests.acceptance.conftest import running
from tests.acceptance.service import LONG_SPEC, SHORT_SPEC, Service, submit_when_ready
from tests.waiting import PATIENCE, eventually
from wcl_client.api import WclClient
from wcl_client.download import Downloaded

pytestmark = pytest.mark.timeout(600)


def wcl(service: Service, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [parallel.python(), "-m", "wcl_client", *arguments],
        cwd=cwd,
        env=service.environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_submit_watch_download_by_the_command_line(service: Service, tmp_path: Path) -> None:
    words = service.log_path.read_text()
    assert f"Open     http://127.0.0.1:{service.port}" in words
    line = f"In other terminals: export WCL_DATA_DIR={service.data_dir}\n"  # after the line that the start waits for
    eventually(lambda: line in service.log_path.read_text(), f"{line}in {service.log_path}")
    assert "token=" not in words, "a file with the output of `wcl up` would keep the secret of a sign-in link"

    with service.client() as client:
        eventually(client.datasets, "a data set", 60)
    (tmp_path / "spec.json").write_text(json.dumps(SHORT_SPEC))

    submitted = wcl(service, "submit", "spec.json", "--name", "first", "--tag", "acceptance", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    watched = wcl(service, "watch", job_id, cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    assert "100%" in watched.stdout
    listed = json.loads(wcl(service, "checkpoints", job_id, "--json", cwd=tmp_path).stdout)
    fetched = wcl(service, "download", job_id, "-o", "model.safetensors", "--json", cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr

    assert [round(checkpoint["epoch"]) for checkpoint in listed] == [1, 2, 3]
    content = (tmp_path / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == listed[-1]["sha256"] == json.loads(fetched.stdout)["sha256"]
    assert len(content) == listed[-1]["size"]


@pytest.fixture(scope="module")
def one_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a started service for all tests that do not stop it."""
    yield from running(Service(tmp_path_factory.mktemp("service") / "data"))


def test_an_interrupted_download_resumes_by_range(one_service: Service, tmp_path: Path) -> None:
    with one_service.client() as client:
        job = client.wait(submit_when_ready(client, SHORT_SPEC)["id"], timeout_seconds=120)
        checkpoint = client.checkpoints(job["id"])[-1]
        target = tmp_path / "model.safetensors"
        half = checkpoint["size"] // 2
        _first_bytes(client, checkpoint["id"], target, half)

        done: Downloaded = client.download(checkpoint["id"], target)

    assert done.resumed_from == half
    assert hashlib.sha256(target.read_bytes()).hexdigest() == checkpoint["sha256"]


def _first_bytes(client: WclClient, checkpoint_id: str, target: Path, count: int) -> None:
    """Write the files of an interrupted download: the first bytes, and the version of the file."""
    import httpx

    url = f"{client.url}/v1/checkpoints/{checkpoint_id}/download?kind=native"
    headers = dict(client._http.headers) | {"Range": f"bytes=0-{count - 1}"}
    answer = httpx.get(url, headers=headers, trust_env=False, timeout=PATIENCE)
    assert answer.status_code == 206
    assert len(answer.content) == count
    target.with_name(target.name + ".part").write_bytes(answer.content)
    target.with_name(target.name + ".part.etag").write_text(answer.headers["etag"])


def test_the_service_stops_in_order_and_the_job_continues_later(small_service: Service) -> None:
    with small_service.client() as client:
        job_id = submit_when_ready(client, LONG_SPEC)["id"]
        eventually(lambda: client.checkpoints(job_id), "a checkpoint")

    seconds = small_service.stop()
    small_service.log_path.unlink()
    small_service.start()

    with small_service.client() as client:
        job = client.wait(job_id, timeout_seconds=180)
        attempts = client.attempts(job_id)
    assert seconds < 30
    assert job["status"] == "succeeded"
    assert job["failures"] == 0
    assert attempts[1]["start_step"] > 0


def test_a_cancelled_job_ends_cancelled_with_its_checkpoints(one_service: Service) -> None:
    with one_service.client() as client:
        job_id = submit_when_ready(client, LONG_SPEC)["id"]
        eventually(lambda: client.checkpoints(job_id), "a checkpoint")
        client.cancel(job_id)
        job = client.wait(job_id, timeout_seconds=60)

        assert job["status"] == "cancelled"
        assert client.checkpoints(job_id)
