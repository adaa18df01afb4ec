"""Time until a dead worker is noticed: machines die under running jobs, and the rows hold the time of the reap."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress

import psutil
from sqlalchemy import select

from jobs.models import Attempt
from tests.chaos.processes import Node
from tests.chaos.stage import Stage, spec
from tests.waiting import eventually

_ENDLESS = 100_000


def seconds_until_noticed(stage: Stage, num_workers: int, seed: int, look_seconds: float) -> list[float]:
    """Kill workers with their runs, each at another moment between two polls.

    The clock is this machine's, which is the database's too.
    """
    draw = random.Random(seed)
    stage.server("server").start()
    names = [f"w{place}" for place in range(num_workers)]
    nodes = {name: stage.worker(name).start() for name in names}
    stage.wait_for_workers(*names)
    for place in range(num_workers):
        stage.submit(spec(place, _ENDLESS, 500))
    eventually(lambda: len(_open(stage)) == num_workers, "a running job on each worker")
    died_at = {name: _die(nodes[name], draw.uniform(0, look_seconds)) for name in names}
    return list(eventually(lambda: _noticed(stage, died_at), "the notice", 300))


def _die(node: Node, after_seconds: float) -> float:
    time.sleep(after_seconds)
    trainings = node.trainings()
    node.end(signal.SIGKILL)
    died_at = time.time()
    for training in trainings:
        with suppress(psutil.Error):
            training.kill()
    return died_at


def _open(stage: Stage) -> list[Attempt]:
    with stage.database.read() as session:
        return list(
            session.execute(select(Attempt).where(Attempt.ended_at.is_(None), Attempt.delivered_seq > 0)).scalars()
        )


def _noticed(stage: Stage, died_at: dict[str, float]) -> list[float]:
    """Return the times, or an empty list until all are noticed."""
    with stage.database.read() as session:
        rows = list(session.execute(select(Attempt).where(Attempt.end_reason == "worker_lost")).scalars())
    result = {row.worker_name: row.ended_at / 1000 - died_at[row.worker_name] for row in rows if row.ended_at}
    return list(result.values()) if len(result) == len(died_at) else []
