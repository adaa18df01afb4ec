"""A thousand writes of superseded attempts, of every kind, are all refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from jobs import damage, transitions
from jobs.checked_files import Damaged
from jobs.checkpoints import CheckpointRef
from jobs.database import Database
from jobs.errors import Superseded
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, claim, running

_NUM_TRIES = 1000
Write = Callable[[Run, int], object]


def _record(record: dict[str, Any]) -> Write:
    return lambda run, seq: run.send(rows.numbered([record], first=seq))


def _end(outcome: str, reason: str | None) -> Write:
    return lambda run, seq: run.end(outcome, reason)


def _damage(run: Run, seq: int) -> object:
    result = CheckpointRef(
        rows.checkpoints(run.database, run.job_id)[0].id, 1, "job/1/step-1.safetensors", rows.SHA, 10
    )
    return run.database.write(lambda session: damage.skip(session, run.attempt, result, Damaged("flipped")))


WRITES: dict[str, Write] = {
    "state: started": _record(rows.started(7)),
    "state: succeeded": _end("succeeded", None),
    "state: failed": _end("failed", "killed"),
    "state: paused": _end("paused", None),
    "state: drained": _end("drained", None),
    "state by record": _record(rows.end("succeeded")),
    "metric": _record(rows.metrics(2, loss=0.5)),
    "progress": _record(rows.progress(2)),
    "checkpoint": _record(rows.checkpoint(2)),
    "artifact": _record(rows.artifact()),
    "groups": _record(rows.groups(1, [0, 0])),
    "log": _record(rows.log("words")),
    "output": lambda run, seq: run.send([], [(seq, "words")]),
    "evaluation": _record(rows.evaluation()),
    "warning": _record({"type": "warning", "reason": "odd", "message": "words"}),
    "lease": lambda run, seq: run.send([]),
    "damage": _damage,
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_writes_of_superseded_attempts_change_nothing(database: Database) -> None:
    """The attempts were reaped, replaced or ended; each late write is refused, under every number."""
    add_dataset(database)
    late: list[Run] = []
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(1))
    for _ in range(2):  # the first and second attempts of the job
        run.end("drained")
        late.append(run)
        run = Run(database, claim(database))
        run.deliver(rows.started(1), rows.metrics(2, loss=2.0))
    ended = Run(database, running(database))
    ended.deliver(rows.started(), rows.checkpoint(1))
    ended.end("cancelled")
    late.append(ended)
    before = rows.contents(database)
    draw, refused, tried = random.Random(0), Counter[str](), 0

    names = list(WRITES)
    for tried in range(1, _NUM_TRIES + 1):
        name = names[tried % len(names)]
        who = draw.choice(late)
        try:
            WRITES[name](who, draw.randint(1, 6))
        except Superseded:
            refused[name] += 1

    assert tried == sum(refused.values()) == _NUM_TRIES
    assert set(refused) == set(WRITES)
    assert rows.contents(database) == before
    assert transitions.Requests(False, False, False) == run.send([]), "the rightful attempt still writes"
