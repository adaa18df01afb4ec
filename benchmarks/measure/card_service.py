"""The whole service on a machine: `wcl up` with one data folder, and jobs through REST."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.up import free_port

START_SECONDS = 120.0
_POLL_SECONDS = 0.02
SHORT = {"epochs": 20, "knn_every_epochs": 0}
ENDLESS = {"epochs": 100_000, "knn_every_epochs": 0, "checkpoints": {"every_epochs": 1000}}


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    return {
        "claim to first step": lambda _: first_steps(),
        "cancel": lambda _: cancels(),
        "jobs side by side": lambda _: side_by_side(),
        "the same bytes after a kill": lambda _: killed(),
    }


@contextmanager
def service() -> Iterator[WclClient]:
    """Yield a client of a new service whose worker has registered the digits."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "wcl_client", "up", "--data-dir", folder, "--port", str(free_port())]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with _connected(Path(folder)) as client:
                    yield client
            finally:
                process.send_signal(signal.SIGINT)
                process.wait()


def _connected(folder: Path) -> WclClient:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client = WclClient.connect(folder)
            if any(dataset["name"] == "digits" for dataset in client.datasets()):
                return client
            client.close()
        except WclError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("no service with the digits")
        time.sleep(0.1)


def first_steps() -> dict[str, Any]:
    """Return the seconds from a submission to the first step, for three jobs after each other, and their devices."""
    values: dict[str, Any] = {}
    with service() as client:
        for number in range(3):
            start = time.monotonic()
            job_id = client.submit("pretrain", SHORT, preset="digits-cpu")["id"]
            while _step(client, job_id) == 0:
                time.sleep(_POLL_SECONDS)
            values[f"job {number + 1}, s"] = round(time.monotonic() - start, 2)
            client.wait(job_id)
        values["device"] = _started(client, job_id).get("device")
    return values


def cancels() -> dict[str, Any]:
    """Return the seconds from a cancel to the end of the job, of a run that was just claimed and of one that trains.

    A run on digits loads for less time than two reports are apart; the phase that the service knew stands beside.
    """
    values = {}
    with service() as client:
        for moment in ("claimed", "train"):
            job_id = client.submit("pretrain", ENDLESS, preset="digits-cpu")["id"]
            while not (client.job(job_id)["status"] == "running" if moment == "claimed" else _step(client, job_id)):
                time.sleep(_POLL_SECONDS)
            reached, start = _phase(client, job_id), time.monotonic()
            client.cancel(job_id)
            client.wait(job_id, poll_seconds=0.05)
            values[f"{moment} (phase {reached}), s"] = round(time.monotonic() - start, 2)
    return values


def side_by_side() -> dict[str, Any]:
    """Return how many jobs ran at once, and on which devices, of one more than the machine has GPUs."""
    with service() as client:
        gpus = sum(worker["gpus"] for worker in client.workers())
        jobs = [
            client.submit("pretrain", SHORT | {"seed": seed}, preset="digits-cpu", gpus=1) for seed in range(gpus + 1)
        ]
        most = 0
        while any(client.job(job["id"])["status"] in ("queued", "running") for job in jobs):
            most = max(most, sum(client.job(job["id"])["status"] == "running" for job in jobs))
            time.sleep(0.1)
        return {"gpus": gpus, "most_at_once": most, "ends": [client.job(job["id"])["status"] for job in jobs]}


def killed() -> dict[str, Any]:
    """Return whether a run that was killed ends with the bytes of an undisturbed one."""
    spec = {"epochs": 60, "checkpoints": {"every_epochs": 10}, "knn_every_epochs": 0}
    with service() as client:
        whole = client.submit("pretrain", spec, preset="digits-cpu")["id"]
        client.wait(whole)
        other = client.submit("pretrain", spec, preset="digits-cpu")["id"]
        while len(client.checkpoints(other)) < 2:
            time.sleep(_POLL_SECONDS)
        for process in filter(lambda each: _is_run(each, other), psutil.process_iter()):
            process.kill()
        client.wait(other)
        ends = [sorted((each["step"], each["sha256"]) for each in client.checkpoints(job)) for job in (whole, other)]
        return {"equal": dict(ends[0]) == dict(ends[1]), "attempts": len(client.attempts(other))}


def _is_run(process: psutil.Process, job_id: str) -> bool:
    try:
        return job_id in " ".join(process.cmdline()) and "attempt" in process.cmdline()
    except psutil.Error:
        return False


def _progress(client: WclClient, job_id: str) -> dict[str, Any]:
    return dict(client.job(job_id).get("progress") or {})


def _step(client: WclClient, job_id: str) -> int:
    return int(_progress(client, job_id).get("step") or 0)


def _phase(client: WclClient, job_id: str) -> str | None:
    return _progress(client, job_id).get("phase")


def _started(client: WclClient, job_id: str) -> dict[str, Any]:
    return next((event["data"] for event in client.events(job_id) if event["type"] == "started"), {})
