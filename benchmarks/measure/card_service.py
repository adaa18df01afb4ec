"""The whole service on a machine: `wcl up` with one data folder, jobs through REST, and a folder of small images."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.up import free_port
from worker.nvml import Nvml, Unavailable

START_SECONDS = 240.0
_POLL_SECONDS = 0.02
SHORT = {"epochs": 20, "knn_every_epochs": 0}
ENDLESS = {"epochs": 100_000, "knn_every_epochs": 0, "checkpoints": {"every_epochs": 1000}}
FILES = 60_000
_FOLDER = "images"
_TINY = {
    "epochs": 1,
    "warmup_epochs": 0,
    "weak_augmentation_epochs": 0,
    "backbone": {"name": "tiny", "stem": "stride2", "width": 4},
    "heads": {"hidden_dim": 32, "output_dim": 16},
    "knn_every_epochs": 0,
    "execution": "eager",
    "log_every_steps": 1,
}
_SEEN_SECONDS = 8.0  # of a run whose device is looked at; NVML averages the load over a second


def parts() -> dict[str, Callable[[float], dict[str, Any]]]:
    return {
        "claim to first step": lambda _: first_steps(),
        "cancel": lambda _: cancels(),
        "jobs side by side": lambda _: side_by_side(),
        "the same bytes after a kill": lambda _: killed(),
        "devices as they are shown": lambda _: devices(),
        "a folder of small images": lambda _: small_images(),
    }


@contextmanager
def service() -> Iterator[WclClient]:
    """Yield a client of a new service whose worker has registered the digits."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as client:
        yield client


@contextmanager
def served(folder: Path, *options: str, **settings: str) -> Iterator[WclClient]:
    """Yield a client of a new service with its data in a folder, once its worker has registered the digits."""
    command = [sys.executable, "-m", "wcl_client", "up", "--data-dir", str(folder), "--port", str(free_port())]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, *options], env=os.environ | settings, **quiet) as process:  # type: ignore[call-overload]
        try:
            with _connected(folder) as client:
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


def devices(seconds: float = _SEEN_SECONDS) -> dict[str, Any]:
    """Return each device as the service shows it while a job trains on it, and what NVML can report of faults."""
    most: dict[str, dict[str, Any]] = {}
    with service() as client:
        gpus = sum(worker["gpus"] for worker in client.workers())
        jobs = [
            client.submit("pretrain", ENDLESS | {"seed": n}, preset="digits-cpu", gpus=1)["id"] for n in range(gpus)
        ]
        while any(_step(client, job_id) == 0 for job_id in jobs):
            time.sleep(_POLL_SECONDS)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            for device in (each for worker in client.workers() for each in worker["devices"] or ()):
                place = f"{device['index']}: {device['name']}"
                facts = most.setdefault(place, {"problem": device["problem"], "has_job": False})
                facts["has_job"] |= device["job_id"] in jobs
                for name in ("load", "memory_used", "temperature"):
                    values = [value for value in (facts.get(name), device[name]) if value is not None]
                    facts[name] = max(values, default=None)
            time.sleep(0.25)
        for job_id in jobs:
            client.cancel(job_id)
            client.wait(job_id, poll_seconds=0.05)
    return {"devices": most, "faults": _faults()}


def _faults() -> dict[str, Any] | str:
    """Return whether NVML watches for Xids and counts ECC errors; why not, without NVML."""
    try:
        nvml = Nvml()
    except Unavailable as error:
        return str(error)
    return {"xids": nvml._events is not None, "ecc": [each.ecc_errors for each in nvml._handles]}


def small_images(count: int = FILES) -> dict[str, Any]:
    """Return the seconds until a folder is read, from claims to first steps, between jobs, and to ends on request.

    One device, so that jobs run one after the other.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, began = Path(place) / "data", time.monotonic()
        _write_images(Path(place) / _FOLDER, count)
        values: dict[str, Any] = {"files": count, "written, s": round(time.monotonic() - began, 1)}
        one = {"WCL_DEVICES": "1"} if os.environ.get("WCL_DEVICES") else {"CUDA_VISIBLE_DEVICES": "0"}
        began = time.monotonic()
        with served(folder, "--dataset", f"{_FOLDER}={Path(place) / _FOLDER}", **one) as client:
            first = _submit(client, 32, count)
            values["submission accepted, s"] = round(time.monotonic() - began, 1)
            start = _first_step(folder, first)
            values["folder read and first job claimed, s"] = round(_time(folder, first, "started_at") - _now(began), 1)
            values["claim to first step, first use, s"] = round(start - _time(folder, first, "started_at"), 2)
            client.wait(first, poll_seconds=0.1)
            jobs = [_submit(client, 32, count, seed) for seed in (1, 2)]
            starts = [_first_step(folder, each) for each in jobs]
            values["claim to first step, used before, s"] = round(starts[0] - _time(folder, jobs[0], "started_at"), 2)
            values["end to first step of the next, s"] = round(starts[1] - _time(folder, jobs[0], "ended_at"), 2)
            client.wait(jobs[1], poll_seconds=0.1)
            last = _submit(client, 40, count, epochs=10_000)  # a size that is prepared anew
            while (job := client.job(last))["status"] == "queued" or (job["progress"] or {}).get("phase") is None:
                time.sleep(_POLL_SECONDS)
            reached, began = _phase(client, last), time.monotonic()
            client.cancel(last)
            values["ends"] = [client.job(each)["status"] for each in (first, *jobs)]
            values["last"] = client.wait(last, poll_seconds=0.05)["status"]
            values[f"cancel (phase {reached}), s"] = round(time.monotonic() - began, 2)
    return values


def _write_images(folder: Path, count: int) -> None:
    """Write JPEG files of 32x32 pixels in ten classes, each with other content, and a tenth as many to test on."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (256, 8, 8, 3), dtype=np.uint8)
    for number in range(count):
        split = "test" if number % 11 == 10 else "train"
        path = folder / split / f"class{number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        image = Image.fromarray(coarse[number % 256]).resize((32, 32), Image.Resampling.BICUBIC)
        image.save(content, "JPEG", quality=90, comment=str(number).encode())
        path.write_bytes(content.getbuffer())


def _submit(client: WclClient, size: int, count: int, seed: int = 0, epochs: int = 1) -> str:
    data = {"name": _FOLDER, "image_size": size}
    spec = _TINY | {"data": data, "seed": seed, "batch_size": min(512, count // 4), "epochs": epochs}
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return client.submit("pretrain", spec)["id"]
        except WclError:  # the folder is not listed yet
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _first_step(folder: Path, job_id: str) -> float:
    """Return when the first metrics stand in the file of the run, as `start.py` does."""
    while True:
        for spool in (folder / "attempts").glob(f"{job_id}/*/report.jsonl"):
            if b'"metrics"' in spool.read_bytes():
                return time.time()
        if ended := _time(folder, job_id, "ended_at"):
            return ended  # the folder of a short run may be gone before this function sees it
        time.sleep(0.005)


def _time(folder: Path, job_id: str, column: str) -> float:
    """Return a time of the first attempt of a job; 0 while it has none."""
    with closing(sqlite3.connect(f"file:{folder / 'wcl.sqlite3'}?mode=ro", uri=True, timeout=30)) as connection:
        statement = f"SELECT {column} FROM attempts WHERE job_id = ? AND number = 1"
        row = connection.execute(statement, (job_id,)).fetchone()
    return float(row[0] or 0) / 1000 if row else 0.0


def _now(began: float) -> float:
    """Return a moment of the monotonic clock as one of the wall clock."""
    return time.time() - (time.monotonic() - began)


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
