"""`wcl demo`: every step once, on real images, through REST.

start the service ─► train WCL and SimCLR (same seed) ─► evaluate four sets of features ─► table
                             └─► pair precision of the weak labels ─► download the last checkpoint
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wcl_client import comparison
from wcl_client.address import find_address
from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.processes import die_with_parent, module_environment
from wcl_client.progress import watch
from wcl_client.registration import START_SECONDS, pending, refusals, report_lines, summary
from wcl_client.responses import Evaluation, Job
from wcl_client.terminal import Terminal, bold
from wcl_client.up import free_port
from wcl_core.text import file_size

SERVICE_SECONDS = 90.0
DATASET_SECONDS = 180.0


class DemoError(WclError):
    """The demo cannot continue; the message gives the reason."""


@dataclass(frozen=True)
class DemoData:
    """The dataset of the demo: its name, and its folder if it is not a built-in one."""

    name: str
    folder: Path | None = None

    @property
    def preset(self) -> str:
        return "digits-cpu" if self.name == "digits" else "cifar10-cpu"

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return 8 if self.name == "digits" else 32


def choose_data(text: str) -> DemoData:
    """Return the dataset for `digits`, `cifar10`, or an image folder.

    Raises:
        DemoError: the text is neither a built-in dataset nor a folder.
    """
    if text in ("digits", "cifar10"):
        return DemoData(text)
    folder = Path(text)
    with contextlib.suppress(RuntimeError):  # this user has no home folder
        folder = folder.expanduser()
    if not folder.is_dir():
        raise DemoError(f"--data {text}: expected digits, cifar10, or the path of an image folder")
    from wcl_core.config.fields import proposed_name  # here, as it takes longer than the rest of `wcl`

    return DemoData(f"{proposed_name(folder.resolve().name)[:48]}-demo", folder.resolve())


def run_demo(data: str, data_dir: Path, *, keep: bool, epochs: int | None, terminal: Terminal) -> None:
    """Run the demo and print each step.

    Raises:
        DemoError: the service does not start, the dataset is missing, or a job failed.
    """
    started_at = time.monotonic()
    chosen = choose_data(data)
    # SIGTERM acts as Ctrl-C, so that the service is stopped in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _service(chosen, data_dir, terminal) as client:
        _wait_for_dataset(client, chosen, data_dir)
        if chosen.folder:
            dataset = client.dataset(chosen.name)
            terminal.say("\n  ".join([f"Dataset {chosen.name}: {summary(dataset)}", *report_lines(dataset)]))
        Demo(client, chosen, data_dir / "demo", epochs, terminal).run()
        terminal.say(f"\nFinished in {time.monotonic() - started_at:.0f} s.")
        if keep:
            terminal.say("Page         ", bold(client.page_link(terminal.is_terminal)))
            terminal.say("The service keeps running. Press Ctrl-C to stop it.")
            _wait_for_interrupt()
        else:
            terminal.say("To see these runs in the browser: ", bold(f"wcl up --data-dir {data_dir}"))


class Demo:
    """The steps of the demo, in their order."""

    def __init__(self, client: WclClient, data: DemoData, folder: Path, epochs: int | None, terminal: Terminal) -> None:
        self._client = client
        self._data = data
        self._folder = folder
        self._epochs = epochs
        self._terminal = terminal
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Train, evaluate, print the results and download the checkpoint."""
        self._terminal.say("Page: ", bold(self._client.page_link(self._terminal.is_terminal)), "\n")
        wcl, simclr = self._train()
        rows = self._evaluate(wcl, simclr)
        self._terminal.say("")
        self._terminal.show(comparison.table(rows))
        self._print_differences(rows)
        self._print_weak_labels(wcl)
        self._download(wcl)

    # ---- training

    def _train(self) -> list[Job]:
        self._terminal.say(bold("Training"), " WCL and SimCLR: same seed, same data order, same views")
        preset = self._data.preset
        jobs = [
            self._client.submit("pretrain", self._spec(method), preset=preset, name=name, tags=("demo",))
            for method, name in (("wcl", "WCL"), ("simclr", "SimCLR"))
        ]
        return self._wait_for(jobs)

    def _spec(self, method: str) -> dict[str, Any]:
        """Return the fields that override the preset; a small folder needs a smaller batch."""
        spec: dict[str, Any] = {
            "method": method,
            "data": {"name": self._data.name, "image_size": self._data.image_size},
            "threads": 1,
        }
        if self._data.folder:
            num_train = self._client.dataset(self._data.name)["counts"]["train"]
            if num_train < 1024:
                spec["batch_size"] = max(2, min(256, num_train // 4))
        if self._epochs is not None:
            warmup = max(1, self._epochs // 10)
            spec |= {"epochs": self._epochs, "warmup_epochs": warmup, "weak_augmentation_epochs": warmup}
        return spec

    def _wait_for(self, jobs: Sequence[Job]) -> list[Job]:
        """Show the progress of jobs until they end, and return the ended jobs.

        Raises:
            DemoError: a job did not succeed.
        """
        ended = watch(self._client, jobs, self._terminal)
        for job in ended:
            if job["status"] != "succeeded":
                reason = job["status_message"] or job["status_reason"] or "no reason given"
                raise DemoError(f"job {job['name']} {job['status']}: {reason}; see `wcl logs {job['id']}`")
        return ended

    # ---- evaluation

    def _evaluate(self, wcl: Job, simclr: Job) -> dict[str, list[Evaluation]]:
        self._terminal.say(
            "\n", bold("Evaluating"), " four sets of features with the same protocols and the same labels"
        )
        features: dict[str, dict[str, Any]] = {
            "raw pixels": {"kind": "pixels"},
            "untrained": {"kind": "untrained", "backbone": wcl["spec"]["backbone"]},
            "SimCLR": {"kind": "checkpoint", "checkpoint_id": self._last_checkpoint(simclr)},
            "WCL": {"kind": "checkpoint", "checkpoint_id": self._last_checkpoint(wcl)},
        }
        data = {"name": self._data.name, "image_size": self._data.image_size}
        jobs = [
            self._client.submit(
                "evaluate",
                {"data": data, "features": source, "threads": 1},
                name=f"evaluate {name}",
                tags=("demo",),
            )
            for name, source in features.items()
        ]
        ended = self._wait_for(jobs)
        return {name: self._client.evaluations(job["id"]) for name, job in zip(features, ended, strict=True)}

    def _last_checkpoint(self, job: Job) -> str:
        return self._client.checkpoints(job["id"])[-1]["id"]

    def _print_differences(self, rows: dict[str, list[Evaluation]]) -> None:
        self._terminal.say("WCL minus SimCLR (one seed each; noise is twice the combined standard error):")
        for line in comparison.differences(rows["WCL"], rows["SimCLR"]):
            self._terminal.say(f"  {line}")
        self._terminal.say("One seed does not show which method is better. Compare several seeds.")

    # ---- weak labels

    def _print_weak_labels(self, wcl: Job) -> None:
        groups = self._client.weak_groups(wcl["id"])
        first = self._client.weak_groups(wcl["id"], epoch=groups["epochs"][0])
        self._terminal.say("\n", bold("Weak labels"), ": share of pairs with one weak label that have the same class")
        rows = {
            f"epoch {first['epoch']}": first["pair_precision"],
            f"epoch {groups['epoch']}": groups["pair_precision"],
            "chance": groups["pair_precision_chance"],
        }
        for name, precision in rows.items():
            self._terminal.say(f"  {name:<9} {'–' if precision is None else f'{precision:.1%}'}")
        self._terminal.say(f"  images    {self._client.url}/jobs/{wcl['id']}/weak-labels")

    def _download(self, job: Job) -> None:
        target = self._folder / f"wcl-{job['id'][-8:]}-last.safetensors"
        path = self._client.download(self._last_checkpoint(job), target).path
        self._terminal.say(f"Checkpoint   {path.resolve()} ({file_size(path.stat().st_size)}, sha256 verified)")


@contextmanager
def _service(data: DemoData, data_dir: Path, terminal: Terminal) -> Iterator[WclClient]:
    """Yield a client of the service in `data_dir`; start the service if none runs, and stop it at the end."""
    address = find_address(data_dir)
    running = WclClient(address.url, address.key)
    if running.is_ready() and (os.environ.get("WCL_URL") or (data_dir / "server.json").exists()):
        terminal.say(f"Using the service at {address.url}")
        with running:
            yield running
        return
    running.close()
    port = free_port()
    process = _start(data, data_dir, port)
    try:
        with _connected(process, data_dir, port) as client:
            terminal.say(f"Service started at {client.url}, data in {data_dir.resolve()}")
            yield client
    finally:
        process.terminate()
        process.wait(timeout=40)


def _start(data: DemoData, data_dir: Path, port: int) -> subprocess.Popen[bytes]:
    workers = min(2, os.cpu_count() or 1)
    command = [sys.executable, "-m", "wcl_client", "up", "--data-dir", str(data_dir)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    if data.name != "digits":
        command += ["--dataset", f"{data.name}={data.folder}" if data.folder else data.name]
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "up.log").open("wb") as log:
        # In its own session the service gets no Ctrl-C: the demo gets it and stops the service in order.
        return subprocess.Popen(
            command,
            env=module_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _connected(process: subprocess.Popen[bytes], data_dir: Path, port: int) -> WclClient:
    """Return a client once the service is ready and has written its key.

    Raises:
        DemoError: the service ended, or is not ready after 90 s.
    """
    deadline = time.monotonic() + SERVICE_SECONDS
    key_path = data_dir / "key"
    while time.monotonic() < deadline and process.poll() is None:
        if key_path.exists():
            client = WclClient(f"http://127.0.0.1:{port}", key_path.read_text(encoding="utf-8").strip())
            if client.is_ready():
                return client
            client.close()
        time.sleep(0.2)
    process.terminate()
    log_path = data_dir / "up.log"
    raise DemoError(
        f"the service did not start; the end of {log_path}:\n{log_path.read_text(errors='replace').strip()[-2000:]}"
    )


def _wait_for_dataset(client: WclClient, data: DemoData, data_dir: Path) -> None:
    """Wait until a live worker has the dataset; a worker reads a new folder once to compute its digest.

    Raises:
        DemoError: no worker has the dataset.
    """
    started_at = time.monotonic()
    while True:
        workers = [worker for worker in client.workers() if worker["is_live"]]
        if any(data.name in worker["datasets"] for worker in workers):
            return
        if reasons := [reason for reason in refusals(workers) if reason.startswith(f"dataset {data.name} ")]:
            raise DemoError(reasons[0])
        limit = START_SECONDS if workers else DATASET_SECONDS  # a worker names its datasets when it starts
        if data.name not in pending(workers) and time.monotonic() - started_at > limit:
            break
        time.sleep(0.3)
    problem = "could not be downloaded" if data.name == "cifar10" else "is not available"
    raise DemoError(
        f"the dataset {data.name} {problem}; see the worker's log in {data_dir / 'logs'}. "
        "To use your own images: --data FOLDER, with train/CLASS/* and test/CLASS/*"
    )


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
