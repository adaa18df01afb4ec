"""Estimates of memory, time and disk of a training run, from earlier runs of its pool.

a similar run has succeeded               its speed, and that of all its time, with preparation and measurements
only runs with other settings have        the speed of the one whose step costs most nearly as much, by arithmetic
none, or their costs differ too much      the rule of thumb of `wcl_core.recommendation` for the network
no rule for the network                   the time is unknown until the run reports its speed, in the first epoch
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs import checkpoints
from jobs.checks import pretraining_count
from jobs.database import now_ms
from jobs.devices import has_devices, process_memory
from jobs.models import Checkpoint, Job
from jobs.shared_reads import dataset_named, once, workers_of_pool
from jobs.status import TERMINAL, Status
from wcl_core.config import PretrainSpec, parse_spec, resolve_spec
from wcl_core.config.memory import SHARE, advice, image_cost, largest_batch, process_bytes
from wcl_core.limits import num_cores
from wcl_core.protocol import IMAGES_PER_SECOND
from wcl_core.recommendation import Machine, usual_speed
from wcl_core.text import counted, much_longer

UNKNOWN = "unknown until the first epoch"
_BUSY = 1.0  # running programs for each core from which a machine counts as busy
_MAX_RUNS = 200  # the search for a similar run reads so many of the newest succeeded runs
_MOST_REMEMBERED: Final = 5_000
_MOST_UNLIKE = 10.0  # ratio of the costs of an image up to which one network's speed says something of another's
_SPREAD = 2.0  # factor by which such an estimate may be wrong, at equal cost
_FEWEST_STEPS = 50  # of a run whose speed says something of another network's: that of a shorter one is of its start
# The speed of a step and the size of a checkpoint depend on these fields; seed, loss and dataset may differ.
_ALIKE = (
    "method",
    "method_options",
    "backbone",
    "heads",
    "batch_size",
    "multi_crop",
    "queue_size",
    "momentum_decay",
    "micro_batch_size",
    "precision",
    "execution",
    "threads",
    "processes",
)


def steps_per_epoch(spec: PretrainSpec, images: int) -> int | None:
    """Return the steps of an epoch of so many images; None for a run that has yet to find its batch size."""
    return images // spec.batch_size if isinstance(spec.batch_size, int) else None


def estimate(
    session: Session, spec: PretrainSpec, pool: str, gpus: int, images: int, steps_done: int = 0, own: Job | None = None
) -> dict[str, Any]:
    """Estimate memory, time and disk of a run.

    Args:
        session: for reading.
        spec, pool, gpus: of the run.
        images: training images.
        steps_done: step of the checkpoint that the run goes on from.
        own: the job of the run, if an earlier attempt of it has reported its speed.

    Returns:
        `view_bytes`: the size of a step's views in each process, a lower bound of its memory.  `memory`: see `_memory`.
        `like`: None if no similar run has succeeded, else its `job` and `name`, its `images_per_second`, and the
        estimates that follow from it: `seconds` of training, and `disk_bytes` of the kept checkpoints; None where
        unknown.  `time`: `low_seconds` and `high_seconds` of training, the `job` whose speed they follow from, and
        `text`, the same as a phrase; the first three are None where the time is unknown.  `busy` says what the other
        work of the machine costs; None while it has little.
    """
    machine = machine_of(session, pool)
    runs = _newest_runs(session, pool, gpus)
    expected = _alike(resolve_spec(spec))
    similar = _Run.of(own) if own else next((run for run in runs if run.alike == expected), None)
    steps = steps_per_epoch(spec, images)
    total_steps = None if steps is None else max(0, steps * spec.epochs - steps_done)
    like = similar and _estimates(session, similar, spec, total_steps)
    num_images = None if total_steps is None else total_steps * spec.images_per_step
    return {
        "view_bytes": spec.view_bytes,
        "memory": _memory(session, spec, pool, gpus, images),
        "like": like,
        "time": _with_load(_time(session, spec, num_images, similar, runs, machine), session, machine, pool),
    }


def slowdown(session: Session, machine: Machine, pool: str) -> float:
    """Return how many times as long a training takes beside the other work of a machine; 1 while it has little.

    Only of a machine whose CPU trains; the server's load counts.  The jobs that run in the pool are no other work: a
    new job waits for their end.
    """
    load = _other_load(session, machine, pool)
    return 1.0 if load < _BUSY * machine.cores else 1 + load / machine.cores


def _other_load(session: Session, machine: Machine, pool: str) -> float:
    load = os.getloadavg()[0]
    if machine.is_gpu or load < _BUSY * machine.cores:  # little with the jobs, which need not be counted
        return 0.0
    running = select(Job.started_at, now_ms()).where(Job.pool == pool, Job.status == Status.RUNNING, Job.gpus == 0)
    rows = once(session, ("running on the CPU", pool), lambda: session.execute(running).all())
    # The load is a mean over about a minute, so a job that has just started is hardly in it.
    jobs = sum(1 - math.exp((started - now) / 60_000) for started, now in rows if started is not None and now > started)
    return max(0.0, load - jobs * machine.cores)


def _with_load(time: dict[str, Any], session: Session, machine: Machine, pool: str) -> dict[str, Any]:
    """Return a time with the note on a busy machine; a run whose speed it follows from may have met the same load."""
    times = slowdown(session, machine, pool)
    if times == 1:
        return time | {"busy": None}
    load = f"with a load of {_other_load(session, machine, pool):.0f} for {counted(machine.cores, 'core')}"
    costs = "if it had less other work during that job, this one takes longer"
    if time["job"] is None:
        longer = "" if time["high_seconds"] is None else f", {' '.join(_rough(time['high_seconds'] * times))}"
        costs = f"while that lasts, a training takes up to {times:.0f} times as long{longer}"
    return time | {"busy": f"other work keeps this machine busy, {load}; {costs}"}


def of_job(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the `estimate` of the steps that a training has left by its newest checkpoint.

    Returns:
        None for an evaluation, for a job that has ended, and where the dataset or a plugin of the spec is gone.
    """
    dataset = dataset_named(session, job.dataset_name)
    if job.kind != "pretrain" or job.status in TERMINAL or dataset is None:
        return None
    try:
        spec = parse_spec("pretrain", job.spec)
    except ValidationError:
        return None
    assert isinstance(spec, PretrainSpec)
    is_fresh = job.attempt == 0 and job.resume_checkpoint_id is None
    start = None if is_fresh else checkpoints.resume_point(session, job.id)
    images = pretraining_count(dataset, spec.data)
    return estimate(session, spec, job.pool, job.gpus, images, start.step if start else 0, job if _speed(job) else None)


def expected_time(session: Session, job: Job) -> dict[str, Any] | None:
    """Return the `time` of a training that has yet to report how long it takes; None for other jobs."""
    has_reported = job.status == Status.RUNNING and (job.progress or {}).get("eta_seconds") is not None
    return None if has_reported else (of_job(session, job) or {}).get("time")


def longer_than_expected(session: Session, job: Job) -> str | None:
    """Return that a running training takes much longer than was expected before it began, as a phrase; else None."""
    progress, earlier = job.progress or {}, job.earlier_epochs
    if job.status != Status.RUNNING or much_longer(progress, 1e-9, earlier) is None:  # reads nothing for most jobs
        return None
    dataset = dataset_named(session, job.dataset_name)
    try:
        spec = parse_spec("pretrain", job.spec)
    except ValidationError:
        return None
    assert isinstance(spec, PretrainSpec)
    if dataset is None:
        return None
    images = pretraining_count(dataset, spec.data)
    steps_done = (steps_per_epoch(spec, images) or 0) * earlier
    expected = estimate(session, spec, job.pool, job.gpus, images, steps_done)["time"]
    return much_longer(progress, expected["high_seconds"], earlier)


def _time(
    session: Session,
    spec: PretrainSpec,
    num_images: int | None,
    similar: _Run | None,
    runs: Sequence[_Run],
    machine: Machine,
) -> dict[str, Any]:
    """Return the time for so many images: by a similar run, else by the costs of other networks, else by a rule."""
    unknown = {"low_seconds": None, "high_seconds": None, "job": None, "text": UNKNOWN}
    if num_images is None:
        return unknown
    if similar is not None and similar.speed:
        seconds = num_images / similar.speed
        longest = max(seconds, num_images / (_whole_speed(similar, spec) or similar.speed))
        return _range(seconds, longest, similar.id, f"at the speed of {similar.name(session)}")
    nearest = _nearest(spec, runs)
    if nearest is None:
        usual = usual_speed(spec, machine)
        if usual is None:
            return unknown
        first, last = num_images / usual / _SPREAD, num_images / usual * _SPREAD
        return _range(first, last, None, "by a rule of thumb; the first epoch tells more")
    spread = _SPREAD * math.exp(nearest.unlike / 4)
    seconds = num_images / nearest.speed
    source = f"by the speed of {nearest.run.name(session)}, a job with other settings"
    return _range(seconds / spread, seconds * spread, nearest.run.id, source)


@dataclass(frozen=True)
class _Run:
    """What the estimates need of a run; of an ended one it never changes.

    Attributes:
        alike: the fields of its spec on which the speed depends.
        speed: images a second that it has reported last; None if it has reported none.
        step: the last one that it has reported.
        seconds: of a whole run of one attempt, with preparation and measurements; None for another one.
        cost: `image_cost` of a run whose speed says something of other networks; else None.
    """

    id: str
    alike: list[Any]
    speed: float | None
    step: int
    seconds: float | None
    cost: float | None

    @classmethod
    def of(cls, job: Job) -> _Run:
        step = (job.progress or {}).get("step") or 0
        is_whole = job.attempt == 1 and job.resume_checkpoint_id is None and step
        seconds = None
        if is_whole and job.started_at is not None and job.ended_at is not None:
            seconds = max(1e-3, (job.ended_at - job.started_at) / 1000)
        return cls(job.id, _alike(job.spec), _speed(job), step, seconds, _cost(job))

    def name(self, session: Session) -> str:
        """Return the name that the job has now."""
        return session.execute(select(Job.name).where(Job.id == self.id)).scalar_one()


_runs: dict[str, _Run] = {}  # ended ones, by id


class _Nearest(NamedTuple):
    """The run whose step costs most nearly as much as that of a spec.

    Attributes:
        speed: images a second of the spec, by that of the run.
        unlike: logarithm of the ratio of their costs, 0 or more.
    """

    run: _Run
    speed: float
    unlike: float


def _nearest(spec: PretrainSpec, runs: Sequence[_Run]) -> _Nearest | None:
    cost = image_cost(spec)
    others = [(run.cost, run) for run in runs if run.cost]
    if cost is None or not others:
        return None
    other, run = min(others, key=lambda each: abs(math.log(cost / each[0])))
    unlike = abs(math.log(cost / other))
    return None if unlike > math.log(_MOST_UNLIKE) else _Nearest(run, (run.speed or 1.0) * other / cost, unlike)


def speeds(session: Session, pool: str, gpus: int) -> Callable[[PretrainSpec], float | None]:
    """Return a function that gives the images a second of a spec, as `estimate` takes them; None where unknown."""
    runs = _newest_runs(session, pool, gpus)

    def speed(spec: PretrainSpec) -> float | None:
        expected = _alike(resolve_spec(spec))
        similar = next((run for run in runs if run.alike == expected), None)
        if similar is not None and similar.speed:
            return similar.speed
        nearest = _nearest(spec, runs)
        return nearest.speed if nearest else None

    return speed


def _range(low: float, high: float, job_id: str | None, source: str) -> dict[str, Any]:
    text = f"about {rough_range(low, high)}, {source}"
    return {"low_seconds": low, "high_seconds": high, "job": job_id, "text": text}


def rough_range(low: float, high: float) -> str:
    """Return two times in seconds as one text: 5 to 20 min, 50 s to 3 min; one time where both read alike."""
    (first, unit), (last, last_unit) = _rough(low), _rough(high)
    start = "" if (first, unit) == (last, last_unit) else f"{first}{'' if unit == last_unit else f' {unit}'} to "
    return f"{start}{last} {last_unit}"


def _rough(seconds: float) -> tuple[str, str]:
    """Return a time in its largest unit, with the unit: 40 s, 17 min, 2.5 h, 3 d."""
    for size, most, unit in ((1, 90, "s"), (60, 90, "min"), (3_600, 36, "h")):
        if seconds < most * size:
            return (f"{seconds / size:.1f}" if unit == "h" else f"{seconds / size:.0f}").removesuffix(".0"), unit
    return f"{seconds / 86_400:,.0f}", "d"


def _speed(run: Job) -> float | None:
    """Return the images a second that a run has reported last; None if it has reported none."""
    speed = (run.latest_metrics or {}).get(IMAGES_PER_SECOND)
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None


def _whole_speed(run: _Run, spec: PretrainSpec) -> float | None:
    """Return the images a second of a whole run of one attempt, with preparation and measurements; None if unknown."""
    return None if run.seconds is None else run.step * spec.images_per_step / run.seconds


def machine_of(session: Session, pool: str) -> Machine:
    """Return the machine of a pool; the cores are those of the server, which knows no others."""
    is_gpu, workers = has_devices(session, pool), workers_of_pool(session, pool)
    memory = max(filter(None, (process_memory(each, int(is_gpu)) for each in workers)), default=None)
    return Machine(is_gpu, memory, num_cores())


def _cost(run: Job) -> float | None:
    """Return the `image_cost` of a run whose speed counts."""
    counts = _speed(run) is not None and ((run.progress or {}).get("step") or 0) >= _FEWEST_STEPS
    try:
        spec = parse_spec("pretrain", run.spec) if counts else None
    except ValidationError:  # a plugin of the spec is installed no more
        return None
    return image_cost(spec) if isinstance(spec, PretrainSpec) else None


def _memory(session: Session, spec: PretrainSpec, pool: str, gpus: int, images: int) -> dict[str, Any] | None:
    """Return the memory that a training process needs, and that of the live worker with the most for each process.

    Returns:
        None if it is unknown, else `process_bytes`; `device_bytes`, of that worker's GPU or of its share of the
        machine; `on_gpu`; `largest_batch_size`, None if no batch fits; `warning`, None if the run fits.
    """
    workers = [worker for worker in workers_of_pool(session, pool) if worker.gpus >= gpus]
    available = max(filter(None, (process_memory(each, gpus, spec.processes) for each in workers)), default=None)
    if available is None:
        return None
    on_gpu = gpus > 0
    needed = process_bytes(spec, spec.images_per_step, is_gpu=on_gpu, images=images)
    if needed is None:
        return None
    planned = int(SHARE * available)
    return {
        "process_bytes": needed,
        "device_bytes": available,
        "on_gpu": on_gpu,
        "largest_batch_size": largest_batch(spec, planned, is_gpu=on_gpu, images=images) or None,
        "warning": advice(spec, available, is_gpu=on_gpu, images=images) if needed > available else None,
    }


def _newest_runs(session: Session, pool: str, gpus: int) -> list[_Run]:
    """Return the newest succeeded runs of a pool with so many GPUs.

    A transaction reads their ids; the facts of a run are read once in a process.
    """
    newest = (
        select(Job.id, Job.gpus)
        .where(Job.status == Status.SUCCEEDED, Job.pool == pool, Job.kind == "pretrain")
        .order_by(Job.id.desc())
        .limit(_MAX_RUNS)
    )
    ids = [row.id for row in session.execute(newest) if row.gpus == gpus]
    runs = {job_id: run for job_id in ids if (run := _runs.get(job_id)) is not None}
    absent = [job_id for job_id in ids if job_id not in runs]
    if len(_runs) + len(absent) > _MOST_REMEMBERED:
        _runs.clear()
    for job in session.execute(select(Job).where(Job.id.in_(absent))).scalars() if absent else ():
        runs[job.id] = _runs[job.id] = _Run.of(job)
    return [runs[job_id] for job_id in ids]


def _alike(spec: dict[str, Any]) -> list[Any]:
    return [
        spec["data"]["image_size"],
        spec["optimizer"]["name"],
        *(spec.get(name) for name in _ALIKE),
        spec.get("nodes", 1),
    ]


def _estimates(session: Session, run: _Run, spec: PretrainSpec, total_steps: int | None) -> dict[str, Any]:
    speed = run.speed
    sizes = select(Checkpoint.size).where(Checkpoint.job_id == run.id).order_by(Checkpoint.step.desc()).limit(1)
    size = session.execute(sizes).scalar_one_or_none()
    return {
        "job": run.id,
        "name": run.name(session),
        "images_per_second": speed,
        "seconds": total_steps * spec.images_per_step / speed if speed and total_steps is not None else None,
        "disk_bytes": None if size is None else size * _num_kept(spec),
    }


def _num_kept(spec: PretrainSpec) -> int:
    """Return the number of checkpoints that a run leaves behind."""
    every, saved = spec.checkpoints.every_epochs, -(-spec.epochs // spec.checkpoints.every_epochs)
    saved += spec.checkpoints.first_epoch and every > 1 and spec.epochs > 1
    if spec.checkpoints.keep_last is None:
        return saved
    return min(saved, spec.checkpoints.keep_last + spec.checkpoints.keep_best)
