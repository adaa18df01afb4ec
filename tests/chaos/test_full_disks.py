"""Real disks that fill up under running jobs, again and again."""

from __future__ import annotations

import time

import pytest

from tests.chaos.faults import LEASE
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.stage import Theatre, spec

_EPOCHS = 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_disks_that_fill_up_cost_jobs_only_time(house: Theatre, kind: str) -> None:
    with house.stage(f"full-disks-{kind}", kind) as stage:
        nodes = [stage.worker(f"w{place}") for place in range(2)]
        for node in nodes:
            stage.give_small_disk(node)
            node.start()
        if not stage.disks:
            pytest.skip("NOT TESTED HERE: a small file system needs root and the right to mount")
        stage.wait_for_workers("w0", "w1")
        ids = [stage.submit(spec(seed, _EPOCHS, 100)) for seed in range(6)]

        for disk in [*stage.disks.values()] * 2:
            filler = disk.fill()
            time.sleep(LEASE / 2)
            filler.unlink()

        jobs = [stage.wait_for_end(job_id) for job_id in ids]
        accepted = [Accepted(job_id, seed, _EPOCHS, frozenset({"succeeded"})) for seed, job_id in enumerate(ids)]
        assert [job.failures for job in jobs] == [0] * 6
        assert any(job.attempt > 1 for job in jobs), "no disk was full under a job"
        assert Ledger(stage.database, stage.checkpoints_dir).problems(accepted) == []
