"""Store the records of a run: metrics with their rollups, checkpoints, artifacts, weak labels, evaluations, logs.

`transitions.deliver` calls `store` behind its fence, in its transaction.  Nothing here reads a status.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import case, func, select, update
from sqlalchemy.orm import Session

from jobs import checkpoints, events, planned_evaluations, point_blocks
from jobs.database import Signal, insert, new_id, now_ms, signal
from jobs.models import (
    TRAINING,
    Artifact,
    Attempt,
    Checkpoint,
    Evaluation,
    Grouping,
    Job,
    JobEvaluation,
    Log,
    Point,
    Rollup,
    Series,
)
from jobs.webhooks import outbox
from wcl_core.digests import digest_of
from wcl_core.protocol import (
    ArtifactRecord,
    CheckpointRecord,
    EndRecord,
    EvaluationRecord,
    LogRecord,
    MetricsRecord,
    ProgressRecord,
    StartedRecord,
    WarningRecord,
    WeakLabelRecord,
)

ROLLUP_WIDTHS = {level: 8**level for level in (1, 2, 3, 4, 5)}  # steps per bucket
_MEASURED: Final = "eval/"  # how names of measurements begin
MAX_LOG_LINE = 4_000
MAX_SERIES_NAME = 100
MAX_SERIES = 2_000  # of a job: lists of jobs hold the latest value of each
_CHECKPOINTS_OF = {"pretrain": TRAINING, "evaluate": "embeddings"}  # kinds of checkpoints by kind of job
_SIZES = ("batch_size", "micro_batch_size")  # of a spec that may be `auto`
T = TypeVar("T")


@dataclass(frozen=True)
class StoredFile:
    """The record of a checkpoint or an artifact whose file is in the storage.

    The record names the file by its place in the run's folder (`file`).  Rows and events name it by the key in the
    storage: `storage_key` in Python, `path` in the database and in the JSON of events, which are older.
    """

    record: CheckpointRecord | ArtifactRecord
    storage_key: str

    @property
    def seq(self) -> int:
        """The number of the record."""
        return self.record.seq


# A record as it is delivered: one that names a file only after the file is in the storage.
Delivered: TypeAlias = (
    StartedRecord
    | MetricsRecord
    | ProgressRecord
    | WeakLabelRecord
    | EvaluationRecord
    | WarningRecord
    | LogRecord
    | EndRecord
    | StoredFile
)


def fitting(session: Session, job: Job, number: int, records: Sequence[Delivered]) -> Sequence[Delivered]:
    """Return the records, with a warning in place of each one that does not fit its attempt.

    A record is data of a run: one that no run of this kind writes, or a second checkpoint of a step, is refused and
    costs the attempt nothing else.
    """
    files = [each.record for each in records if isinstance(each, StoredFile)]
    steps = {file.step for file in files if isinstance(file, CheckpointRecord)}
    if not steps and not any(isinstance(each, EvaluationRecord | WeakLabelRecord) for each in records):
        return records
    of_attempt = select(Checkpoint.step).where(Checkpoint.job_id == job.id, Checkpoint.attempt == number)
    registered = set(session.execute(of_attempt.where(Checkpoint.step.in_(steps))).scalars())
    return [_fitting(each, job.kind, registered) for each in records]


def _fitting(delivered: Delivered, kind: str, registered: set[int]) -> Delivered:
    """Return a record or the warning that replaces it; a fitting checkpoint is added to the registered steps."""
    record = delivered.record if isinstance(delivered, StoredFile) else delivered
    problem: str | None = None
    match record:
        case CheckpointRecord() if record.kind != _CHECKPOINTS_OF[kind]:
            problem = f"a job of kind {kind} registers no checkpoint of kind {record.kind}"
        case CheckpointRecord() if record.step in registered:
            problem = f"its attempt has registered a checkpoint of step {record.step} before"
        case CheckpointRecord():
            registered.add(record.step)
        case EvaluationRecord() if kind != "evaluate":
            problem = f"a job of kind {kind} measures no checkpoint"
        case WeakLabelRecord() if kind != "pretrain":
            problem = f"a job of kind {kind} has no weak labels"
    if problem is None:
        return delivered
    message = f"record {record.seq} of the run, of type {record.type}, is refused: {problem}"
    return WarningRecord(seq=record.seq, reason=f"refused_{record.type}", message=message)


def store(
    session: Session, job: Job, number: int, records: Sequence[Delivered], output: Sequence[tuple[int, str]]
) -> EndRecord | None:
    """Store records of every type.

    Args:
        session: a writing transaction, behind the fence.
        job: whose run has reported them.
        records: in the order of the spool.
        output: numbered lines of stdout and stderr.

    Returns:
        The `end` record if there is one.
    """
    job_id = job.id
    for started in _of(records, StartedRecord):
        _keep_sizes(session, job, started)
    _metrics(session, job, number, _of(records, MetricsRecord))
    _logs(session, job_id, number, _of(records, LogRecord), output)
    for record in records:
        match record:
            case StoredFile(CheckpointRecord() as checkpoint, storage_key):
                _checkpoint(session, job_id, number, checkpoint, storage_key)
            case StoredFile(ArtifactRecord() as artifact, storage_key):
                _artifact(session, job_id, number, artifact, storage_key)
            case WeakLabelRecord():
                _weak_labels(session, job_id, number, record)
            case EvaluationRecord():
                _evaluation(session, job, record)
            case StartedRecord():
                _started(session, job_id, number, record)
    if progress := _of(records, ProgressRecord):
        session.execute(update(Job).where(Job.id == job_id).values(progress=progress[-1].fields()))
    ends = _of(records, EndRecord)
    return ends[-1] if ends else None


def _of(records: Sequence[Delivered], kind: type[T]) -> list[T]:
    return [record for record in records if isinstance(record, kind)]


def _started(session: Session, job_id: str, number: int, record: StartedRecord) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == number)
        .values(start_step=record.start_step, environment=record.environment)
    )


def _keep_sizes(session: Session, job: Job, started: StartedRecord) -> None:
    """Replace `auto` in the job's spec by the sizes that its first run has found; later attempts then have them too."""
    reported = started.environment
    sizes = {name: reported[name] for name in _SIZES if job.spec.get(name) == "auto" and _is_size(name, reported)}
    if sizes:
        session.execute(update(Job).where(Job.id == job.id).values(spec=job.spec | sizes))


def _is_size(name: str, reported: Mapping[str, Any]) -> bool:
    value = reported.get(name, "none")
    if value is None:
        return name == "micro_batch_size"
    return isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 65_536


def _metrics(session: Session, job: Job, number: int, records: list[MetricsRecord]) -> None:
    """Store values: measurements, which are read one by one, as rows, and all others in blocks."""
    if not records:
        return
    reported = [(record, _values(record)) for record in records]
    series = _series(session, job.id, number, {name for _, values in reported for name in values})
    if not series:
        return
    points: list[dict[str, Any]] = []
    reports: list[point_blocks.Report] = []
    for record, values in reported:
        own: dict[int, float | None] = {}
        for name, value in values.items():
            if name not in series:
                continue
            if name.startswith(_MEASURED):
                place = {"attempt": number, "step": record.step, "seq": record.seq}
                points.append({"series_id": series[name].id, **place, "value": value})
            else:
                own[series[name].number] = value
        if own:
            reports.append(point_blocks.Report(record.seq, record.step, own))
    if points:
        session.execute(insert(session, Point), points)
        if rollups := _rollups(points):
            _merge_rollups(session, rollups)
    if reports:
        point_blocks.store(session, job.id, number, reports, stride=job.spec.get("log_every_steps") or 1)
    latest = dict(job.latest_metrics or {})
    for _, values in reported:
        latest |= {name: value for name, value in values.items() if name in series}
    session.execute(update(Job).where(Job.id == job.id).values(latest_metrics=latest))
    outbox.on_metrics(session, job.id, number, [(record.seq, record.step, values) for record, values in reported])


def _values(record: MetricsRecord) -> dict[str, float | None]:
    return {name[:MAX_SERIES_NAME]: value for name, value in record.values.items()}


class _Series(NamedTuple):
    id: str
    number: int


def _series(session: Session, job_id: str, number: int, names: set[str]) -> dict[str, _Series]:
    """Return series by name; missing ones are added, up to `MAX_SERIES` of a job.

    A job's attempts deliver one at a time, so there is no race.
    """
    statement = select(Series.name, Series.id, Series.number).where(Series.job_id == job_id, Series.name.in_(names))
    existing = {name: (series_id, place) for name, series_id, place in session.execute(statement)}
    missing = sorted(names - existing.keys())
    without = [name for name, (_, place) in existing.items() if place is None]  # of an earlier version
    if missing or without:
        of_job = select(func.count(), func.max(Series.number)).where(Series.job_id == job_id)
        count, last = session.execute(of_job).one()
        following = itertools.count(0 if last is None else last + 1)
        for name in without:
            series_id, _ = existing[name]
            existing[name] = series_id, next(following)
            numbered = update(Series).where(Series.id == series_id).values(number=existing[name][1])
            session.execute(numbered)
        new = {name: (new_id(), next(following)) for name in missing[: MAX_SERIES - count]}
        if new and count + len(new) == MAX_SERIES:
            message = f"the run has reported {MAX_SERIES} metrics, the most of a job; further names are not stored"
            data = {"attempt": number, "reason": "refused_metrics", "message": message}
            events.record(session, job_id, "warning", data)
        if new:
            rows = [
                {"id": each, "job_id": job_id, "name": name, "number": place} for name, (each, place) in new.items()
            ]
            session.execute(insert(session, Series), rows)
        existing |= new
    return {name: _Series(series_id, place) for name, (series_id, place) in existing.items() if place is not None}


def _rollups(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    buckets: dict[tuple[str, int, int, int], dict[str, Any]] = {}
    for point in points:
        value = point["value"]
        if value is None:
            continue
        for level, width in ROLLUP_WIDTHS.items():
            key = (point["series_id"], point["attempt"], level, point["step"] // width)
            if bucket := buckets.get(key):
                bucket["n"] += 1
                bucket["min"], bucket["max"] = min(bucket["min"], value), max(bucket["max"], value)
                bucket["last"] = value
            else:
                names = dict(zip(("series_id", "attempt", "level", "bucket"), key, strict=True))
                buckets[key] = names | {"n": 1} | dict.fromkeys(("min", "max", "first", "last"), value)
    return list(buckets.values())


def _merge_rollups(session: Session, rollups: list[dict[str, Any]]) -> None:
    statement = insert(session, Rollup)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["series_id", "attempt", "level", "bucket"],
        set_={
            "n": Rollup.n + new.n,
            "min": case((new.min < Rollup.min, new.min), else_=Rollup.min),
            "max": case((new.max > Rollup.max, new.max), else_=Rollup.max),
            "last": new.last,
        },
    )
    session.execute(statement, rollups)


def _logs(
    session: Session, job_id: str, number: int, records: list[LogRecord], output: Sequence[tuple[int, str]]
) -> None:
    if not records and not output:
        return
    attempt = session.execute(
        select(Attempt.log_seq, Attempt.output_lines).where(Attempt.job_id == job_id, Attempt.number == number)
    ).one()
    entries = [("run", record.message) for record in records]
    new_output = [(index, text) for index, text in output if index > attempt.output_lines]
    entries += [("output", text) for _, text in new_output]
    rows = [
        {
            "job_id": job_id,
            "attempt": number,
            "seq": attempt.log_seq + offset,
            "stream": stream,
            "line": text[:MAX_LOG_LINE],
        }
        for offset, (stream, text) in enumerate(entries, start=1)
    ]
    if rows:
        session.execute(insert(session, Log), rows)
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == number)
        .values(
            log_seq=attempt.log_seq + len(rows),
            output_lines=new_output[-1][0] if new_output else attempt.output_lines,
        )
    )


def _checkpoint(session: Session, job_id: str, number: int, record: CheckpointRecord, storage_key: str) -> None:
    checkpoint_id = new_id()
    session.execute(
        insert(session, Checkpoint).values(
            id=checkpoint_id,
            job_id=job_id,
            attempt=number,
            kind=record.kind,
            step=record.step,
            epoch=record.epoch,
            storage_key=storage_key,
            sha256=record.sha256,
            size=record.size,
            metrics=record.metrics,
            checked_at=now_ms(),  # the worker has read the file back
        )
    )
    signal(session, Signal.MET)
    planned_evaluations.at_checkpoint(session, job_id, checkpoint_id)
    checkpoints.expire(session, job_id)  # last, so that an evaluation just submitted keeps its checkpoint


def _artifact(session: Session, job_id: str, number: int, record: ArtifactRecord, storage_key: str) -> None:
    file = {"storage_key": storage_key, "sha256": record.sha256, "size": record.size, "media_type": record.media_type}
    statement = insert(session, Artifact).values(id=new_id(), job_id=job_id, attempt=number, name=record.name, **file)
    replaced = statement.on_conflict_do_update(
        index_elements=["job_id", "attempt", "name"], set_=file | {"created_at": now_ms()}
    )
    session.execute(replaced)


def _weak_labels(session: Session, job_id: str, number: int, record: WeakLabelRecord) -> None:
    values = {"step": record.step, "labels": record.labels}
    statement = insert(session, Grouping).values(job_id=job_id, attempt=number, epoch=record.epoch, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "attempt", "epoch"], set_=values))


def _evaluation(session: Session, job: Job, record: EvaluationRecord) -> None:
    """Store a value and link it to the job; a value that another job has measured before is only linked.

    Its details are replaced if they are of the same value: those of an older version lack which images were right.
    """
    features, checkpoint_id = _features_digest(session, job.spec)
    identity = {
        "features_digest": features,
        "params_digest": digest_of(record.params),
        "protocol": record.protocol,
        "protocol_version": record.protocol_version,
        "dataset_digest": record.dataset_digest,
        "split_digest": record.split_digest,
        "seed": record.seed,
        "metric": record.metric,
    }
    values = {name: getattr(record, name) for name in ("params", "value", "stderr", "n", "details")}
    statement = insert(session, Evaluation).values(id=new_id(), checkpoint_id=checkpoint_id, **identity, **values)
    # The update locks the row, so that no deletion of another job hides or removes it before it is linked.
    details = case((Evaluation.value == record.value, statement.excluded.details), else_=Evaluation.details)
    statement = statement.on_conflict_do_update(
        index_elements=list(identity), set_={"hidden_at": None, "details": details}
    )
    evaluation_id = session.execute(statement.returning(Evaluation.id)).scalar_one()
    link = insert(session, JobEvaluation).values(job_id=job.id, evaluation_id=evaluation_id)
    session.execute(link.on_conflict_do_nothing())


def _features_digest(session: Session, spec: dict[str, Any]) -> tuple[str, str | None]:
    features = spec["features"]
    if checkpoint_id := features.get("checkpoint_id"):
        return session.execute(select(Checkpoint.sha256).where(Checkpoint.id == checkpoint_id)).scalar_one(), str(
            checkpoint_id
        )
    return digest_of({"features": features, "seed": spec["seed"], "image_size": spec["data"]["image_size"]}), None
