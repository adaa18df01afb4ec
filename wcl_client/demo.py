"""`wcl demo`: the whole way once, on real images, through REST.

start the service ─► WCL and its SimCLR twin (same seed) ─► evaluate four sets of features ─► table
                                   └─► pair precision of the weak labels ─► download the last checkpoint
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from wcl_client import comparison
from wcl_client.address import find_address
from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.output import size
from wcl_client.progress import watch
from wcl_client.responses import Evaluation, Job
from wcl_client.up import die_with_parent, free_port, module_environment

START_SECONDS = 90.0
DATASET_SECONDS = 180.0


class DemoError(WclError):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class DemoData:
    """What the demo trains on: a registered name, and the folder to register under it."""

    name: str
    folder: Path | None = None

    @property
    def preset(self) -> str:
        return "digits-cpu" if self.name == "digits" else "cifar10-cpu"

    @property
    def image_size(self) -> int:
        return 8 if self.name == "digits" else 32


def choose_data(text: str) -> DemoData:
    """`digits`, `cifar10`, or an image folder, which is registered under its own name."""
    if text in ("digits", "cifar10"):
        return DemoData(text)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise DemoError(f"--data {text}: neither digits nor cifar10 nor a folder")
    name = re.sub(r"[^a-z0-9_.-]+", "-", folder.resolve().name.lower()).strip("-._") or "images"
    return DemoData(f"{name[:48]}-demo", folder.resolve())


def run_demo(data: str, data_dir: Path, *, keep: bool, epochs: int | None, console: Console) -> None:
    """The demo from start to end; prints as it goes.

    Raises:
        DemoError: the service does not start, the data set is not there, or a job failed.
    """
    began = time.monotonic()
    chosen = choose_data(data)
    # An ordinary kill unwinds as Ctrl-C does, so that the service below is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _service(chosen, data_dir, console) as client:
        _wait_for_dataset(client, chosen, data_dir)
        Demo(client, chosen, data_dir / "demo", epochs, console).run()
        console.print(f"\nAll in {time.monotonic() - began:.0f} s.")
        if keep:
            console.print(f"Page         [bold]{client.sign_in_link()}[/bold]", soft_wrap=True)
            console.print("The service goes on; stop it with Ctrl-C here, or by ending this process.")
            _wait_for_interrupt()
        else:
            console.print(f"The page of these runs: [bold]wcl up --data-dir {data_dir}[/bold]", soft_wrap=True)


class Demo:
    """The steps, in the order they are shown."""

    def __init__(self, client: WclClient, data: DemoData, folder: Path, epochs: int | None, console: Console) -> None:
        self._client = client
        self._data = data
        self._folder = folder
        self._epochs = epochs
        self._console = console
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        self._console.print(f"Page: [bold]{self._client.sign_in_link()}[/bold]\n", soft_wrap=True)
        trained = self._train()
        wcl, simclr = trained
        rows = self._evaluate(wcl, simclr)
        self._console.print()
        self._console.print(comparison.table(rows))
        self._say_differences(rows)
        self._show_weak_labels(wcl)
        self._download(wcl)

    # ---- training

    def _train(self) -> tuple[Job, Job]:
        self._console.print("[bold]Training[/bold] WCL and its SimCLR twin: same seed, same data order, same views")
        jobs = [self._submit_training(method) for method in ("wcl", "simclr")]
        wcl, simclr = self._finished(jobs)
        return wcl, simclr

    def _submit_training(self, method: str) -> Job:
        spec = self._overrides() | {"method": method}
        names = {"wcl": "WCL", "simclr": "SimCLR"}
        return self._client.submit("pretrain", spec, preset=self._data.preset, name=names[method], tags=("demo",))

    def _overrides(self) -> dict[str, Any]:
        """What differs from the preset: the data, the threads, and sizes that a small folder needs."""
        spec: dict[str, Any] = {
            "data": {"name": self._data.name, "image_size": self._data.image_size},
            "checkpoints": {"first_epoch": True},
            "threads": 1,
        }
        num_train = self._num_train()
        if self._data.folder and num_train < 1024:
            spec["batch_size"] = max(2, min(256, num_train // 4))
        if self._epochs is not None:
            warmup = max(1, self._epochs // 10)
            spec |= {"epochs": self._epochs, "warmup_epochs": warmup, "weak_augmentation_epochs": warmup}
        return spec

    def _num_train(self) -> int:
        for entry in self._client.datasets():
            if entry["name"] == self._data.name:
                return int((entry.get("counts") or {}).get("train", 0))
        return 0

    def _finished(self, jobs: Sequence[Job]) -> list[Job]:
        ended = watch(self._client, jobs, self._console)
        for job in ended:
            if job["status"] != "succeeded":
                why = job.get("status_message") or job.get("status_reason") or "no reason given"
                raise DemoError(f"{job.get('name') or job['kind']} {job['status']}: {why} (wcl logs {job['id']})")
        return ended

    # ---- evaluation

    def _evaluate(self, wcl: Job, simclr: Job) -> dict[str, list[Evaluation]]:
        self._console.print("\n[bold]Evaluating[/bold] four sets of features under the same protocols and draws")
        features: dict[str, dict[str, Any]] = {
            "raw pixels": {"kind": "pixels"},
            "untrained": {"kind": "untrained", "backbone": wcl["spec"]["backbone"]},
            "SimCLR": {"kind": "checkpoint", "checkpoint_id": self._last_checkpoint(simclr)},
            "WCL": {"kind": "checkpoint", "checkpoint_id": self._last_checkpoint(wcl)},
        }
        jobs = [
            self._client.submit("evaluate", self._evaluation_spec(chosen), name=f"evaluate {name}", tags=("demo",))
            for name, chosen in features.items()
        ]
        ended = self._finished(jobs)
        return {name: self._client.evaluations(job["id"]) for name, job in zip(features, ended, strict=True)}

    def _evaluation_spec(self, features: dict[str, Any]) -> dict[str, Any]:
        data = {"name": self._data.name, "image_size": self._data.image_size}
        return {"data": data, "features": features, "threads": 1}

    def _last_checkpoint(self, job: Job) -> str:
        return self._client.checkpoints(job["id"])[-1]["id"]

    def _say_differences(self, rows: dict[str, list[Evaluation]]) -> None:
        self._console.print("WCL against SimCLR (one seed each; noise is twice the combined standard error):")
        for line in comparison.differences(rows["WCL"], rows["SimCLR"]):
            self._console.print(f"  {line}")
        self._console.print("One seed says little about the methods: repeat with several before concluding.")

    # ---- weak labels

    def _show_weak_labels(self, wcl: Job) -> None:
        groups = self._client.weak_groups(wcl["id"])
        first = self._client.weak_groups(wcl["id"], epoch=groups["epochs"][0])
        self._console.print("\n[bold]Weak labels[/bold]: share of grouped pairs that are of one class")
        rows = {
            f"epoch {first['epoch']}": first["pair_precision"],
            f"epoch {groups['epoch']}": groups["pair_precision"],
            "chance": groups["pair_precision_chance"],
        }
        for name, precision in rows.items():
            self._console.print(f"  {name:<9} {'–' if precision is None else f'{precision:.1%}'}")
        self._console.print(f"  images    {self._client.url}/jobs/{wcl['id']}/weak-labels", soft_wrap=True)

    def _download(self, job: Job) -> None:
        target = self._folder / f"wcl-{job['id'][-8:]}-last.safetensors"
        path = self._client.download(self._last_checkpoint(job), target).path
        self._console.print(
            f"Checkpoint   {path.resolve()} ({size(path.stat().st_size)}, sha256 verified)", soft_wrap=True
        )


# ---- the service under the demo


@contextmanager
def _service(data: DemoData, data_dir: Path, console: Console) -> Iterator[WclClient]:
    """A client of the server that runs in `data_dir`, which is started, and stopped again, when there is none."""
    address = find_address(data_dir)
    running = WclClient(address.url, address.key)
    if running.is_ready() and (os.environ.get("WCL_URL") or (data_dir / "server.json").exists()):
        console.print(f"Using the service at {address.url}")
        with running:
            yield running
        return
    running.close()
    port = free_port()
    process = _start(data, data_dir, port)
    try:
        with _connected(process, data_dir, port) as client:
            console.print(f"Service started at {client.url}, data in {data_dir.resolve()}")
            yield client
    finally:
        process.terminate()
        process.wait(timeout=40)


def _start(data: DemoData, data_dir: Path, port: int) -> subprocess.Popen[bytes]:
    workers = min(2, os.cpu_count() or 1)
    command = [sys.executable, "-m", "wcl_client", "up", "--data-dir", str(data_dir), "--port", str(port)]
    command += ["--workers", str(workers)]
    if data.name != "digits":
        command += ["--dataset", f"{data.name}={data.folder}" if data.folder else data.name]
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.log").open("wb") as log:
        # A session of its own: Ctrl-C ends the demo, which then stops the service in order.
        return subprocess.Popen(
            command,
            env=module_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _connected(process: subprocess.Popen[bytes], data_dir: Path, port: int) -> WclClient:
    """A client once the started service answers with its key in place."""
    deadline = time.monotonic() + START_SECONDS
    key_path = data_dir / "key"
    while time.monotonic() < deadline and process.poll() is None:
        if key_path.exists():
            client = WclClient(f"http://127.0.0.1:{port}", key_path.read_text(encoding="utf-8").strip())
            if client.is_ready():
                return client
            client.close()
        time.sleep(0.2)
    process.terminate()
    words = (data_dir / "up.log").read_text(errors="replace").strip()[-2000:]
    raise DemoError(f"the service did not start:\n{words}")


def _wait_for_dataset(client: WclClient, data: DemoData, data_dir: Path) -> None:
    """Workers register their data sets all at once when they start; a folder is read once for its digest."""
    deadline = time.monotonic() + DATASET_SECONDS
    while time.monotonic() < deadline:
        workers = [worker for worker in client.workers() if worker["is_live"]]
        names = [entry["name"] for entry in client.datasets()]
        if workers and data.name in names:
            return
        if workers and not any(data.name in worker["datasets"] for worker in workers):
            break
        time.sleep(0.3)
    why = "could not be fetched from here" if data.name == "cifar10" else "is not registered"
    raise DemoError(
        f"the data set {data.name} {why}: the worker's log in {data_dir / 'logs'} says more. "
        "A folder with train/CLASS/* and test/CLASS/* works everywhere: --data FOLDER"
    )


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
