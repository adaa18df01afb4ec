"""`wcl export` to TensorBoard, MLflow, Weights & Biases and timm, read again by each tool's own library."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from jobs.database import Database
from tests import servers
from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import PATIENCE, patch_clock
from wcl_client import trackers
from wcl_client.api import WclClient
from wcl_client.cli import app

TRACKERS = Path(sys.prefix) / "trackers"  # `./run test` installs MLflow and Weights & Biases there


def resumed(database: Database, steps: int = 8) -> rows.Run:
    """Return the running second attempt of a job that went back from step 8 to its checkpoint of step 5."""
    first = rows.Run(database, rows.running(database))
    first.deliver(rows.started(), *(rows.metrics(step, **{"train/loss": 10.0 - step}) for step in range(1, 9)))
    first.deliver(rows.checkpoint(5), rows.end("drained"))
    second = rows.Run(database, rows.claim(database))
    second.deliver(rows.started(5), *(rows.metrics(step, **{"train/loss": 1.0 * step}) for step in range(6, steps + 1)))
    return second


def finish(run: rows.Run, last: int, value: float | None = 0.5) -> str:
    progress = {
        "type": "progress",
        "step": last,
        "total_steps": last,
        "epoch": 1.0,
        "total_epochs": 1,
        "phase": "train",
    }
    run.deliver(rows.metrics(last, **{"train/loss": value}), progress, rows.checkpoint(last, "b" * 64))  # type: ignore[dict-item]
    run.deliver(rows.end("succeeded"))
    return run.job_id


def losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Scalars("train/loss")
    assert len({each.step for each in scalars}) == len(scalars)
    return {each.step: each.value for each in scalars}


def test_tensorboard_reads_each_step_once_also_after_a_second_export(server: Served, tmp_path: Path) -> None:
    job_id = finish(resumed(server.database), 9, None)

    for _ in range(2):
        done = CliRunner().invoke(app, ["export", "tensorboard", job_id, "-o", str(tmp_path)])
        assert done.exit_code == 0, done.output

    folder = Path(done.stdout.strip())
    values = losses(folder)
    assert math.isnan(values.pop(9))
    assert values == {1: 9, 2: 8, 3: 7, 4: 6, 5: 5, 6: 6, 7: 7, 8: 8}
    spec = EventAccumulator(str(folder)).Reload().Tensors("spec")[0].tensor_proto.string_val[0].decode()
    assert '"method": "' in spec
    assert len(list(folder.iterdir())) == 1


def test_every_reported_point_is_read_from_a_long_run(server: Served) -> None:
    run = rows.Run(server.database, rows.running(server.database))
    run.deliver(rows.started(), *(rows.metrics(step, **{"train/loss": 1.0 * step}) for step in range(1, 2_500)))
    job_id = finish(run, 2_500)

    with WclClient.connect() as client:
        points = list(trackers.points(client, job_id))

    assert [point.step for point in points] == list(range(1, 2_501))
    assert [point.value for point in points[:-1]] == [float(step) for step in range(1, 2_500)]


def test_a_job_is_followed_to_its_end(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = resumed(server.database, 6)
    run.deliver(rows.progress(6))
    polled = threading.Event()
    monkeypatch.setattr(trackers, "_POLL_SECONDS", 0.05)
    patch_clock(monkeypatch, trackers, sleep=lambda _seconds: polled.set())

    def go_on() -> None:
        assert polled.wait(60)
        run.deliver(rows.end("drained"))  # and back to the checkpoint of step 5
        third = rows.Run(server.database, rows.claim(server.database))
        third.deliver(rows.started(5), *(rows.metrics(step, **{"train/loss": 100.0 + step}) for step in (6, 7, 8)))
        finish(third, 9)

    thread = threading.Thread(target=go_on)
    thread.start()
    with WclClient.connect() as client:
        folder = trackers.to_tensorboard(client, client.job(run.job_id), tmp_path, follow=True)
    thread.join()

    assert losses(folder) == {1: 9, 2: 8, 3: 7, 4: 6, 5: 5, 6: 106, 7: 107, 8: 108, 9: 0.5}


def test_a_tool_that_is_not_installed_is_named(server: Served, tmp_path: Path) -> None:
    job_id = finish(resumed(server.database), 9)

    done = CliRunner().invoke(app, ["export", "wandb", job_id, "-o", str(tmp_path)])

    assert "pip install 'wcl-service[wandb]'" in str(done.exception)


# --- MLflow and Weights & Biases -------------------------------------------------------------------------------------

_INSTALLED = pytest.mark.skipif(not TRACKERS.is_dir(), reason="MLflow and Weights & Biases are not installed")


def with_trackers(*arguments: str) -> str:
    """Run Python with the tools' libraries, and return its output."""
    environment = os.environ | {"PYTHONPATH": str(TRACKERS), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    port = servers.free_port()
    environment = os.environ | {"PYTHONPATH": str(TRACKERS), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db", f"--artifacts-destination={tmp_path}/artifacts"]
    with (tmp_path / "mlflow.log").open("w") as log:
        process = subprocess.Popen([*command, *places], env=environment, stdout=log, stderr=log, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 250
        while not _responds(f"{url}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail((tmp_path / "mlflow.log").read_text())
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _responds(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


@_INSTALLED
@pytest.mark.process
@pytest.mark.long
def test_a_run_is_found_in_an_mlflow_server_with_its_artifacts(
    server: Served, mlflow_server: str, tmp_path: Path
) -> None:
    run = resumed(server.database, 6)
    run.deliver(rows.progress(6))
    command = ["-m", "wcl_client", "export", "mlflow", run.job_id, "--to", mlflow_server, "--no-weights"]
    first = with_trackers(*command)
    run.deliver(rows.metrics(7, **{"train/loss": 7.0}), rows.metrics(8, **{"train/loss": 8.0}))
    finish(run, 9)

    assert with_trackers(*command) == first

    get = httpx.Client(base_url=f"{mlflow_server}/api/2.0/mlflow", timeout=PATIENCE)
    found = get.get("/runs/get", params={"run_id": first}).json()["run"]
    assert found["info"]["status"] == "FINISHED"
    assert {each["key"]: each["value"] for each in found["data"]["params"]}["data.name"] == "digits"
    history = get.get("/metrics/get-history", params={"run_id": first, "metric_key": "train/loss"}).json()["metrics"]
    assert sorted((int(each["step"]), each["value"]) for each in history) == [
        *((1, 9), (2, 8), (3, 7), (4, 6), (5, 5), (6, 6), (7, 7), (8, 8), (9, 0.5))
    ]
    files = get.get("/artifacts/list", params={"run_id": first}).json()["files"]
    assert [each["path"] for each in files] == ["spec.json"]


@_INSTALLED
@pytest.mark.process
@pytest.mark.long
def test_an_offline_run_of_wandb_holds_the_curves(server: Served, tmp_path: Path) -> None:
    job_id = finish(resumed(server.database), 9)
    command = ["-m", "wcl_client", "export", "wandb", job_id, "-o", str(tmp_path)]
    with_trackers(*command)

    folder = Path(with_trackers(*command))

    assert [each.name for each in (tmp_path / "wandb").glob("offline-run-*")] == [folder.name]
    read = """
import json, sys
from wandb.proto import wandb_internal_pb2
data, place, record, found = open(sys.argv[1], "rb").read(), 7, b"", []
while place < len(data):  # LevelDB's log: blocks of 32 KiB with fragments of a checksum, a length and a type
    if (left := 32768 - place % 32768) < 7:
        place += left
        continue
    length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
    record += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last fragment
        parsed, record = wandb_internal_pb2.Record.FromString(record), b""
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in parsed.history.item}
        found += [(parsed.history.step.num, values["train/loss"])] if values else []
print(json.dumps(found))
"""
    found = json.loads(with_trackers("-c", read, str(next(folder.glob("*.wandb")))))
    assert found == [[1, 9], [2, 8], [3, 7], [4, 6], [5, 5], [6, 6], [7, 7], [8, 8], [9, 0.5]]
