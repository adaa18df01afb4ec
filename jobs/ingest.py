"""Spool lines into rows: metrics with their rollups, checkpoints, artifacts, groupings, evaluations, logs.

Called by `transitions.deliver` behind its fence, in its transaction; nothing here looks at a status.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from typing import Any

from sqlalchemy import case, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs import checkpoints, planned_evaluations
from jobs.database import new_id, now_ms, storable
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

ROLLUP_WIDTHS = {level: 8**level for level in (1, 2, 3, 4, 5)}  # steps per bucket
MAX_LOG_LINE = 4_000
MAX_SERIES_NAME = 100


def insert(session: Session, table: type[Any]) -> Any:
    """The dialect's INSERT, the one that knows ON CONFLICT."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def store(
    session: Session, job_id: str, number: int, lines: list[dict[str, Any]], output: list[tuple[int, str]]
) -> dict[str, Any] | None:
    """Store lines of every type.

    Args:
        lines: already `clean`.

    Returns:
        The `end` line when there is one.
    """
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_type[line["type"]].append(line)
    _metrics(session, job_id, number, by_type["metrics"])
    _logs(session, job_id, number, by_type["log"], output)
    for line in by_type["checkpoint"]:
        _checkpoint(session, job_id, number, line)
    for line in by_type["artifact"]:
        _artifact(session, job_id, number, line)
    for line in by_type["groups"]:
        _grouping(session, job_id, number, line)
    for line in by_type["evaluation"]:
        _evaluation(session, job_id, line)
    for line in by_type["started"]:
        _started(session, job_id, number, line)
    if by_type["progress"]:
        latest = {key: value for key, value in by_type["progress"][-1].items() if key not in ("seq", "type")}
        session.execute(update(Job).where(Job.id == job_id).values(progress=latest))
    return by_type["end"][-1] if by_type["end"] else None


def clean(value: Any) -> Any:
    """A JSON value that can be stored.

    A line that no database takes would be sent again and again, and its job would never end: text becomes storable,
    a number that is not finite becomes null.
    """
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(name): clean(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [clean(entry) for entry in value]
    return value


def _started(session: Session, job_id: str, number: int, line: dict[str, Any]) -> None:
    environment = {key: value for key, value in line.items() if key not in ("seq", "type", "start_step")}
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job_id, Attempt.number == number)
        .values(start_step=line["start_step"], environment=environment)
    )


def _metrics(session: Session, job_id: str, number: int, lines: list[dict[str, Any]]) -> None:
    if not lines:
        return
    reported = [(line, _values(line)) for line in lines]
    series = _series(session, job_id, {name for _, values in reported for name in values})
    points = [
        {"series_id": series[name], "attempt": number, "step": line["step"], "seq": line["seq"], "value": value}
        for line, values in reported
        for name, value in values.items()
    ]
    if not points:
        return
    session.execute(insert(session, Point), points)
    if rollups := _rollups(points):
        _merge_rollups(session, rollups)
    latest = dict(session.execute(select(Job.latest_metrics).where(Job.id == job_id)).scalar_one() or {})
    for _, values in reported:
        latest |= values
    session.execute(update(Job).where(Job.id == job_id).values(latest_metrics=latest))


def _values(line: dict[str, Any]) -> dict[str, float | None]:
    return {name[:MAX_SERIES_NAME]: None if value is None else float(value) for name, value in line["values"].items()}


def _series(session: Session, job_id: str, names: set[str]) -> dict[str, str]:
    """Ids by name; missing series are made. The job's attempts deliver one at a time, so there is no race."""
    rows = session.execute(select(Series.name, Series.id).where(Series.job_id == job_id, Series.name.in_(names)))
    found: dict[str, str] = dict(rows.all())
    missing = {name: new_id() for name in sorted(names - found.keys())}
    if missing:
        session.execute(insert(session, Series), [{"id": i, "job_id": job_id, "name": n} for n, i in missing.items()])
    return found | missing


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
    session: Session, job_id: str, number: int, lines: list[dict[str, Any]], output: list[tuple[int, str]]
) -> None:
    if not lines and not output:
        return
    attempt = session.execute(
        select(Attempt.log_seq, Attempt.output_lines).where(Attempt.job_id == job_id, Attempt.number == number)
    ).one()
    entries = [("run", line["message"]) for line in lines]
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


def _checkpoint(session: Session, job_id: str, number: int, line: dict[str, Any]) -> None:
    checkpoint_id = new_id()
    session.execute(
        insert(session, Checkpoint).values(
            id=checkpoint_id,
            job_id=job_id,
            attempt=number,
            kind=line.get("kind", TRAINING),
            **{name: line[name] for name in ("step", "epoch", "path", "sha256", "size", "metrics")},
        )
    )
    planned_evaluations.at_checkpoint(session, job_id, checkpoint_id)
    checkpoints.expire(session, job_id)  # last, so that an evaluation just submitted keeps its checkpoint


def _artifact(session: Session, job_id: str, number: int, line: dict[str, Any]) -> None:
    file = {name: line[name] for name in ("path", "sha256", "size", "media_type")}
    statement = insert(session, Artifact).values(id=new_id(), job_id=job_id, attempt=number, name=line["name"], **file)
    replaced = statement.on_conflict_do_update(
        index_elements=["job_id", "attempt", "name"], set_=file | {"created_at": now_ms()}
    )
    session.execute(replaced)


def _grouping(session: Session, job_id: str, number: int, line: dict[str, Any]) -> None:
    found = {"step": line["step"], "labels": line["labels"]}
    statement = insert(session, Grouping).values(job_id=job_id, attempt=number, epoch=line["epoch"], **found)
    session.execute(statement.on_conflict_do_update(index_elements=["job_id", "attempt", "epoch"], set_=found))


def _evaluation(session: Session, job_id: str, line: dict[str, Any]) -> None:
    """A value that was measured before, by whichever job, is linked to this job and not stored twice."""
    spec = session.execute(select(Job.spec).where(Job.id == job_id)).scalar_one()
    features, checkpoint_id = _features_digest(session, spec)
    identity = {
        "features_digest": features,
        "params_digest": _digest(line["params"]),
        **{
            name: line[name]
            for name in ("protocol", "protocol_version", "dataset_digest", "split_digest", "seed", "metric")
        },
    }
    values = {name: line[name] for name in ("params", "value", "stderr", "n")} | {"details": line.get("details")}
    statement = insert(session, Evaluation).values(id=new_id(), checkpoint_id=checkpoint_id, **identity, **values)
    session.execute(statement.on_conflict_do_nothing())
    found = session.execute(select(Evaluation.id).filter_by(**identity)).scalar_one()
    link = insert(session, JobEvaluation).values(job_id=job_id, evaluation_id=found)
    session.execute(link.on_conflict_do_nothing())


def _features_digest(session: Session, spec: dict[str, Any]) -> tuple[str, str | None]:
    features = spec["features"]
    if checkpoint_id := features.get("checkpoint_id"):
        return session.execute(select(Checkpoint.sha256).where(Checkpoint.id == checkpoint_id)).scalar_one(), str(
            checkpoint_id
        )
    return _digest({"features": features, "seed": spec["seed"], "image_size": spec["data"]["image_size"]}), None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
