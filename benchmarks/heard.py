"""Benchmark of the time from a cancel to the end of its job in each phase of a run, on a live service.

    python benchmarks/heard.py FOLDER [--phases WORD ...] [--port 8000]

FOLDER holds small images in `train` and `test`, for example CIFAR-10 as JPEG files.  `wcl up` serves them from an empty
data folder, and is started by command.  Each job is cancelled once the service shows its phase.  Then a run and its
worker are killed while they prepare the dataset, and jobs run with a cache that is too small.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the service of the tests

from measure.report import save_results, setting

from tests.acceptance.service import Service
from wcl_client.api import WclClient

NAME = "images"
_LIMIT_SECONDS = 900.0
_POLL_SECONDS = 0.02
_ENDED = ("succeeded", "failed", "cancelled")

TINY: dict[str, Any] = {
    "epochs": 1,
    "warmup_epochs": 0,
    "weak_augmentation_epochs": 0,
    "backbone": {"name": "tiny", "stem": "stride2", "width": 4},
    "heads": {"hidden_dim": 32, "output_dim": 16},
    "batch_size": 512,
    "knn_every_epochs": 0,
}
# A gigabyte of weights and momentum, so that a checkpoint takes a while; a step of two images does not.
LARGE = TINY | {
    "batch_size": 8,
    "epochs": 100,
    "backbone": {"name": "resnet18", "stem": "small"},
    "heads": {"hidden_dim": 8192, "output_dim": 128},
}
LONG_STEP = TINY | {"batch_size": 1024, "backbone": {"name": "resnet18", "stem": "small"}}
COMPILED = TINY | {"execution": "compiled", "epochs": 20}


def _evaluation(protocol: str, **changes: Any) -> dict[str, Any]:
    features = {"kind": "untrained", "backbone": TINY["backbone"]}
    return {"protocols": [protocol], "features": features} | changes


@dataclass(frozen=True)
class Phase:
    """A phase of a run, and how a job gets there.

    Args:
        title: of its row.
        spec: of the job, without its data.
        shown: the phase as the service shows it; "" is a run that has reported nothing.
        step: the progress that is reached then; of an evaluation 0 is the features and 1 the protocol.
        size: the side of the images; a size that no other job has is prepared anew.
        is_paused: whether a pause asks for a checkpoint first.
    """

    title: str
    spec: dict[str, Any] = field(default_factory=lambda: TINY)
    shown: str = "evaluate"
    step: int = 1
    size: int = 32
    is_paused: bool = False

    @property
    def kind(self) -> Any:
        return "evaluate" if "features" in self.spec else "pretrain"

    def is_reached(self, job: Any) -> bool:
        if job["status"] in _ENDED:
            raise RuntimeError(f"the job ended as {job['status']} before its phase: {job['status_message']}")
        progress = job["progress"] or {}
        is_there = progress.get("phase", "") == self.shown and progress.get("step", 0) >= self.step
        return job["status"] == "running" and is_there


PHASES = [
    Phase("start of the run", shown="", step=0),
    Phase("preparing the images", shown="prepare", step=0, size=31),
    Phase("compilation", COMPILED, "compile", 0),
    Phase("a long step", LONG_STEP, "train", 0),
    Phase("saving a large checkpoint", LARGE, "save", is_paused=True),
    Phase("features", _evaluation("knn"), step=0),
    Phase("kNN", _evaluation("knn", features={"kind": "pixels"})),
    Phase("linear probe", _evaluation("linear", features={"kind": "pixels"})),
    Phase("linear probe by SGD", _evaluation("linear_sgd")),
    Phase("retrieval", _evaluation("retrieval", features={"kind": "pixels"})),
    Phase("few labels, logistic", _evaluation("few_labels", few_labels_classifiers=["linear"], draws=500)),
    Phase("fine-tuning", _evaluation("semi_supervised")),
    Phase("t-SNE map", _evaluation("map", features={"kind": "pixels"})),
    Phase("export of features", _evaluation("embed", features={"kind": "pixels"})),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of small images, in train and test")
    parser.add_argument("--phases", nargs="*", default=None, help="only those whose titles have one of these words")
    parser.add_argument("--port", type=int)
    parser.add_argument("--without", nargs="*", default=[], choices=["kills", "small-cache"])
    options = parser.parse_args()
    chosen = [each for each in PHASES if options.phases is None or any(word in each.title for word in options.phases)]
    rows: list[tuple[str, str, str]] = []

    def add(title: str, seconds: str, shown: str) -> None:
        rows.append((title, seconds, shown))
        print(f"| {title} | {seconds} | {shown} |", flush=True)

    with tempfile.TemporaryDirectory(prefix="wcl-heard-") as name:
        with _Served(Path(name) / "service", options) as served:
            add("registration of the folder", f"{served.read_seconds:.1f} s", "")
            if options.phases is None:
                add("first job, submission to its end", *served.run(TINY))
                add("second job, submission to its end", *served.run(TINY))
            for phase in chosen:
                with suppress_failure(phase.title, add):
                    add(f"cancel: {phase.title}", *served.cancelled(phase))
            if "kills" not in options.without:
                add(
                    "kill -9 of the run while it prepares, to the end of the job",
                    *served.killed(30, "wcl_core", "attempt"),
                )
                add("kill -9 of the worker while it prepares, to the end of the job", *served.killed(29, "worker"))
        if "small-cache" not in options.without:
            with _Served(Path(name) / "small", options, WCL_CACHE_BYTES="50000000") as served:
                add("first job, a cache of 50 MB", *served.run(TINY))
                add("second job, a cache of 50 MB", *served.run(TINY))
    facts = setting() | {"rows": rows}
    table = [
        "| measured | seconds | what the page says |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    load = f"Load average {facts['load_average'][0]} on {facts['cores']} cores."
    save_results("heard", facts, "\n".join([*table, "", load]))


class suppress_failure:  # noqa: N801 (a context, as those of contextlib)
    """Write a row in place of a phase that a job did not reach."""

    def __init__(self, title: str, add: Callable[[str, str, str], None]) -> None:
        self._title, self._add = title, add

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if isinstance(error, RuntimeError | TimeoutError):
            self._add(f"cancel: {self._title}", "not reached", str(error))
            return True
        return False


class _Served:
    """A service of its own with the folder, which its worker has read."""

    def __init__(self, data_dir: Path, options: argparse.Namespace, **settings: str) -> None:
        self._service = Service(
            data_dir, WCL_LOOK_SECONDS="5", WCL_LEASE_SECONDS="60", WCL_CLAIM_SECONDS="1", **settings
        )
        self._service.is_forked = False
        if options.port:
            self._service.port = options.port
        self._service.options += ["--dataset", f"{NAME}={options.folder.absolute()}"]

    def __enter__(self) -> _Served:
        began = time.monotonic()
        self._service.spawn()
        _until(self._service._serves)
        self._client: WclClient = self._service.client()
        _until(lambda: any(each["name"] == NAME and each["state"] == "ready" for each in self._client.datasets()))
        self.read_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop()

    def _submit(self, kind: Any, spec: dict[str, Any], size: int) -> str:
        return str(self._client.submit(kind, spec | {"data": {"name": NAME, "image_size": size}})["id"])

    def run(self, spec: dict[str, Any], size: int = 32) -> tuple[str, str]:
        """Run a job to its end; return its seconds, and those to its first step."""
        began, job_id = time.monotonic(), self._submit("pretrain", spec, size)
        _until(lambda: ((self._client.job(job_id)["progress"] or {}).get("step") or 0) > 0)
        first = time.monotonic() - began
        job = self._end(job_id)
        return f"{time.monotonic() - began:.1f} s", f"{job['status']}; the first step after {first:.1f} s"

    def _end(self, job_id: str) -> Any:
        _until(lambda: self._client.job(job_id)["status"] in _ENDED)
        return self._client.job(job_id)

    def cancelled(self, phase: Phase) -> tuple[str, str]:
        """Cancel a job in a phase; return the seconds to its end, and what the service said meanwhile."""
        job_id = self._submit(phase.kind, phase.spec, phase.size)
        if phase.is_paused:
            _until(lambda: ((self._client.job(job_id)["progress"] or {}).get("step") or 0) > 0)
            self._client.pause(job_id)
        _until(lambda: phase.is_reached(self._client.job(job_id)))
        time.sleep(0.5 if phase.shown not in ("", "save") else 0.0)  # into its middle
        began, said = time.monotonic(), set()
        self._client.cancel(job_id)
        while (job := self._client.job(job_id))["status"] not in _ENDED:
            said.add(job["pending"] or "")
            time.sleep(_POLL_SECONDS)
        return f"{time.monotonic() - began:.1f} s", f"{job['status']}; {', '.join(sorted(said - {''}))}"

    def killed(self, size: int, *words: str) -> tuple[str, str]:
        """Kill a process while a job prepares its images; return the seconds to the job's end, and its attempts."""
        job_id = self._submit("pretrain", TINY, size)
        _until(lambda: ((self._client.job(job_id)["progress"] or {}).get("share") or 0) > 0.1)
        share = self._client.job(job_id)["progress"]["share"]
        self._service.kill(*words)
        began = time.monotonic()
        job = self._end(job_id)
        attempts = [each["end_reason"] or "ended" for each in self._client.attempts(job_id)]
        return (
            f"{time.monotonic() - began:.1f} s",
            f"{job['status']}; killed at {share:.0%}; attempts: {', '.join(attempts)}",
        )


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_LIMIT_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    main()
