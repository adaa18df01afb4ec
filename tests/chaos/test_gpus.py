"""A short round on two machines with stand-in devices; `./run chaos gpus` is the long one."""

from __future__ import annotations

import pytest

from tests.chaos.gpus import Round, absent_kinds
from tests.chaos.stage import Theatre
from tests.chaos.test_storm import UNBREAKABLE


def test_a_kind_of_fault_that_did_not_happen_is_a_problem() -> None:
    assert absent_kinds({"run": 3, "worker killed": 1, "worker stopped": 2}) == []
    assert absent_kinds({"worker killed": 1, "worker stopped": 0}) == ["run", "worker stopped"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.long)])
def test_no_two_runs_share_a_device_and_no_job_starves(house: Theatre, kind: str) -> None:
    with house.stage(f"gpus-{kind}", kind, **UNBREAKABLE) as stage:
        outcome = Round(stage, 3, num_jobs=30, pause_seconds=1.0, num_faults=6, num_waves=1).run()

    assert outcome.problems == []
    assert outcome.jobs == {"succeeded": 32}
    assert outcome.most_at_once > 1
    assert outcome.on_several > 0
