"""Jobs in other tools for experiments: TensorBoard, MLflow, Weights & Biases.

    REST ── points of all series, by step ┬─ event files of TensorBoard
                                          ├─ a run of an MLflow server, with spec, results and weights
                                          └─ an offline run of Weights & Biases, for `wandb sync`

Each tool's own library writes; it is an optional package.  A job that is exported again adds nothing twice.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.responses import Job

_MAX_POINTS = 1000  # of a series in one response; a range of at most as many steps comes whole
_POLL_SECONDS = 5.0
_TERMINAL = ("succeeded", "failed", "cancelled")
_OURS = ".wcl"  # at the end of the names of event files that may be written anew
_MLFLOW_BATCH = 1000  # metrics of one request, the limit of MLflow


class TrackerError(WclError):
    """The tool's package is absent, or the tool refused."""


@dataclass(frozen=True)
class Point:
    """A value of a series; `at` is the time of its step in seconds since 1970, and a value may be NaN."""

    name: str
    step: int
    value: float
    at: float


def points(client: WclClient, job_id: str, first: int = 0) -> Iterator[Point]:
    """Yield every reported point of a job from a step on, by step.

    Where an attempt went back to a checkpoint, its points replace those of the attempt before.
    """
    attempts = max(1, len(client.attempts(job_id)))
    width = max(1, _MAX_POINTS // attempts)  # the server shares out the limit among the attempts of a range
    last = _last_step(client.job(job_id))
    for start in range(first, last + 1, width):
        body = client.timed_metrics(job_id, start, min(start + width - 1, last))
        at = _times(body["times"])
        values = [
            Point(
                series["name"], point["step"], math.nan if point["value"] is None else point["value"], at(point["step"])
            )
            for series in body["series"]
            for point in series["points"]
        ]
        yield from sorted(values, key=lambda point: point.step)


def _last_step(job: Job) -> int:
    progress = job.get("progress")
    return int(progress.get("step") or 0) if progress else 0


def _times(samples: Iterable[Mapping[str, Any]]) -> Callable[[int], float]:
    """Return the function from a step to its time, by the last sample before it."""
    moments = [(sample["step"], datetime.fromisoformat(sample["at"]).timestamp()) for sample in samples]

    def at(step: int) -> float:
        place = bisect.bisect_right(moments, (step, math.inf))
        return moments[max(0, place - 1)][1] if moments else time.time()

    return at


def title(job: Job) -> str:
    """Return the name of a job's run in another tool: unique, and readable in a list."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in job["name"] or job["kind"])
    return f"{name[:80]}-{job['id'][-12:]}"


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def to_tensorboard(client: WclClient, job: Job, folder: Path, *, follow: bool = False) -> Path:
    """Write event files of a job into a folder of its own below `folder`, and return that folder.

    Args:
        client: of the service.
        job: the job.
        folder: the log directory that TensorBoard reads.
        follow: go on until the job ends.

    Raises:
        TrackerError: the package `tensorboard` is absent.
        OSError: the folder cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise _absent("tensorboard") from error
    target = folder / title(job)
    target.mkdir(parents=True, exist_ok=True)
    earlier = list(target.glob(f"events.out.tfevents.*{_OURS}"))
    writer = EventFileWriter(str(target), filename_suffix=_OURS)
    try:
        spec = f"```json\n{json.dumps(job['spec'], indent=2)}\n```".encode()
        text = Summary.Value(
            tag="spec",
            metadata=create_summary_metadata("spec", "the settings of the job"),
            tensor=TensorProto(dtype=DT_STRING, string_val=[spec]),
        )
        writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[text])))
        next_step, attempt = 0, job["attempt"]
        while True:
            if (
                job["attempt"] != attempt
            ):  # the job went back to a checkpoint: TensorBoard drops the steps from there on
                start = client.attempts(job["id"])[-1].get("start_step") or 0
                attempt, next_step = job["attempt"], min(next_step, start + 1)
                begin = Event(wall_time=time.time(), step=next_step, session_log=SessionLog(status=SessionLog.START))
                writer.add_event(begin)
            for point in points(client, job["id"], next_step):
                value = Summary.Value(tag=point.name, simple_value=point.value)
                writer.add_event(Event(wall_time=point.at, step=point.step, summary=Summary(value=[value])))
                next_step = point.step + 1
            writer.flush()
            if not follow or job["status"] in _TERMINAL:
                break
            time.sleep(_POLL_SECONDS)
            job = client.job(job["id"])
        for value in _results(client, job):
            summary = Summary(value=[Summary.Value(tag=value.name, simple_value=value.value)])
            writer.add_event(Event(wall_time=value.at, step=value.step, summary=summary))
    finally:
        writer.close()
    for file in earlier:
        file.unlink(missing_ok=True)
    return target


# --- MLflow ----------------------------------------------------------------------------------------------------------


def to_mlflow(client: WclClient, job: Job, uri: str, experiment: str, weights: Path | None) -> str:
    """Write a job as a run of an MLflow server, and return the run's id; a run that is there gets what it lacks.

    Args:
        client: of the service.
        job: the job.
        uri: of the tracking server, or a folder.
        experiment: the name of the experiment; it is made if there is none.
        weights: a file to keep as the run's artifact.

    Raises:
        TrackerError: the package is absent, or the server does not respond.
    """
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for the run's id
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # by default it tries for minutes
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise _absent("mlflow") from error
    try:
        mlflow = MlflowClient(uri)
        existing = mlflow.get_experiment_by_name(experiment)
        experiment_id = existing.experiment_id if existing else mlflow.create_experiment(experiment)
        matching = mlflow.search_runs([experiment_id], f"tags.`wcl.job_id` = '{job['id']}'", max_results=1)
        if matching:
            run, next_step = matching[0], int(matching[0].data.tags["wcl.next_step"])
        else:
            tags = {"wcl.job_id": job["id"], "wcl.next_step": "0", "wcl.url": f"{client.url}/jobs/{job['id']}"}
            started = _milliseconds(job.get("started_at"))
            run, next_step = mlflow.create_run(experiment_id, started, tags, title(job)), 0
            fields = [Param(name, value) for name, value in _flat(job["spec"]).items()]
            for place in range(0, len(fields), 100):
                mlflow.log_batch(run.info.run_id, params=fields[place : place + 100])
        run_id = run.info.run_id
        pending = [*points(client, job["id"], next_step), *_results(client, job)]
        metrics = [Metric(point.name, point.value, int(point.at * 1000), point.step) for point in pending]
        for place in range(0, len(metrics), _MLFLOW_BATCH):
            mlflow.log_batch(run_id, metrics[place : place + _MLFLOW_BATCH])
        mlflow.log_batch(
            run_id, tags=[RunTag("wcl.next_step", str(_last_step(job) + 1)), RunTag("wcl.status", job["status"])]
        )
        mlflow.log_dict(run_id, dict(job["spec"]), "spec.json")
        if weights is not None:
            mlflow.log_artifact(run_id, str(weights), "weights")
        state = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}.get(job["status"])
        if state is not None:
            mlflow.set_terminated(run_id, state, _milliseconds(job.get("ended_at")))
    except MlflowException as error:
        raise TrackerError(f"MLflow at {uri}: {str(error)[:500]}") from error
    return str(run_id)


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def to_wandb(client: WclClient, job: Job, folder: Path, project: str) -> Path:
    """Write a job as an offline run of Weights & Biases, and return its folder, for `wandb sync`.

    Nothing is sent anywhere.  The run's id comes from the job's, so a run that is synced again replaces itself.

    Raises:
        TrackerError: the package `wandb` is absent.
    """
    try:
        import wandb
    except ImportError as error:
        raise _absent("wandb") from error
    place = folder / "wandb"
    for earlier in place.glob(f"offline-run-*-{job['id'][-12:]}"):
        shutil.rmtree(earlier)
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(
        project=project,
        name=title(job),
        id=job["id"][-12:],
        dir=str(folder),
        mode="offline",
        config=dict(job["spec"]),
        tags=list(job.get("tags") or ()),
        notes=f"{client.url}/jobs/{job['id']}",
        settings=settings,
    )
    values: dict[str, float] = {}
    step = 0
    for point in points(client, job["id"]):
        if point.step != step and values:
            run.log(values, step=step)
            values = {}
        step = point.step
        values[point.name] = point.value
        values["_timestamp"] = point.at
    if values:
        run.log(values, step=step)
    for result in _results(client, job):
        run.summary[result.name] = result.value
    run.finish(exit_code=0 if job["status"] != "failed" else 1)
    return Path(run.dir).parent


# --- parts -----------------------------------------------------------------------------------------------------------


def _results(client: WclClient, job: Job) -> list[Point]:
    """Return the numbers that evaluations of a job have measured, at the steps of their checkpoints."""
    steps = {each["id"]: each["step"] for each in client.checkpoints(job["id"])}
    return [
        Point(
            f"evaluation/{each['protocol']}/{each['metric']}",
            steps.get(each["checkpoint_id"] or "", _last_step(job)),
            each["value"],
            datetime.fromisoformat(each["created_at"]).timestamp(),
        )
        for each in client.evaluations(job["id"])
        if each["value"] is not None
    ]


def _flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a spec's fields by their full names, as `--set` takes them."""
    fields: dict[str, str] = {}
    for name, value in spec.items():
        if isinstance(value, Mapping):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return fields


def _milliseconds(moment: str | None) -> int | None:
    return None if moment is None else int(datetime.fromisoformat(moment).timestamp() * 1000)


def _absent(package: str) -> TrackerError:
    return TrackerError(f"this needs a package: pip install 'wcl-service[{package}]'")
