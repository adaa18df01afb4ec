"""Sweeps with simulated jobs: every claimed job ends at once, with the value that the test gives its spec."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import select

from jobs import sweeps
from jobs.database import Database
from jobs.models import Job, Sweep
from jobs.sweeps import Metric, NewSweep, Place, Range, Values
from tests.jobs import rows
from tests.jobs.rows import Run, job, try_claim

BASE: dict[str, Any] = {"data": {"name": "digits", "image_size": 8, "held_out_share": 0.2}, "epochs": 18}
RATE, TEMPERATURE = "optimizer.learning_rate", "loss.temperature"
_OTHERS = (("knn", "recall_at_1"), ("linear", "top1"))  # further values of an evaluation
_PARAMETERS: TypeAdapter[Any] = TypeAdapter(dict[str, Values | Range])


def new_sweep(parameters: dict[str, Any], **changes: Any) -> NewSweep:
    metric = Metric.model_validate(changes.pop("metric", {"protocol": "knn", "settings": {"knn_k": 5}}))
    facts: dict[str, Any] = {"name": "a sweep", "search": "grid", "base": BASE, "max_parallel": 100}
    return NewSweep(**facts | {"parameters": _PARAMETERS.validate_python(parameters), "metric": metric} | changes)


def submit(database: Database, parameters: dict[str, Any], **changes: Any) -> str:
    new = new_sweep(parameters, **changes)
    return database.write(lambda session: sweeps.submit(session, new, sweeps.designed(new)).id)


def halving(database: Database, temperatures: int = 9, **changes: Any) -> str:
    """Return a sweep with rungs of 2, 6 and 18 epochs, for 9, 3 and 1 trials."""
    values = [round(0.1 * (1 + number), 1) for number in range(temperatures)]
    return submit(database, {TEMPERATURE: values}, **{"search": "halving", "min_epochs": 2} | changes)


def sweep(database: Database, sweep_id: str) -> Sweep:
    with database.read() as session:
        return session.get_one(Sweep, sweep_id)


def places(database: Database, sweep_id: str) -> list[Place]:
    """Return the places of all its jobs, ordered by trial, rung and seed."""
    with database.read() as session:
        origins = session.execute(select(Job.origin).where(Job.sweep_id == sweep_id)).scalars()
        return sorted(Place.of(origin or "") for origin in origins)


def entered(database: Database, sweep_id: str, rung: int) -> list[int]:
    return [place.trial for place in places(database, sweep_id) if place.rung == rung]


def advance(database: Database, sweep_id: str) -> None:
    database.write(lambda session: sweeps.advance(session, sweep_id))


def play(database: Database, value_of: Callable[[dict[str, Any]], float | None]) -> int:
    """End every waiting job and return their number; a training with the value None fails."""
    count = 0
    while claimed := try_claim(database):
        count += 1
        run = Run(database, claimed)
        if claimed.kind == "evaluate":
            received = job(database, run.job_id)
            spec = job(database, received.parent_id or "").spec
            is_metric = received.origin == f"evaluations/{len(spec['evaluations']) - 1}/final"
            value = (value_of(spec) or 0.0) if is_metric else -1.0
            others = [rows.evaluation(-1.0, protocol=protocol, metric=metric) for protocol, metric in _OTHERS]
            measured = rows.evaluation(value, protocol="knn", params={"metric": is_metric})
            run.deliver(rows.started(), *others, measured, rows.end("succeeded"))
        elif value_of(claimed.spec) is None:
            run.deliver(rows.started(), rows.end("failed", "non_finite_loss"))
        else:
            saved = rows.checkpoint(1, hashlib.sha256(run.job_id.encode()).hexdigest())
            run.deliver(rows.started(), saved, rows.end("succeeded"))
    return count


def play_out(database: Database, sweep_id: str, value_of: Callable[[dict[str, Any]], float | None]) -> None:
    """Run jobs and advance the sweep until it has ended."""
    while sweep(database, sweep_id).status == "running":
        played = play(database, value_of)
        advance(database, sweep_id)
        assert played or sweep(database, sweep_id).status != "running", "it neither plays nor ends"
