"""A short storm in both modes; `./run chaos` is the long one."""

from __future__ import annotations

import pytest

from tests.chaos.stage import Theatre
from tests.chaos.storm import Size, Storm

# No job fails because of the faults themselves; the limit on failures has its own test.
UNBREAKABLE = {"WCL_MAX_FAILURES": "1000000"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("postgres", Size(num_jobs=60, num_trainings=2, num_workers=4, num_servers=2, pause_seconds=0.5)),
        pytest.param(
            "sqlite",
            Size(num_jobs=40, num_workers=2, num_servers=1, pause_seconds=0.5),
            marks=pytest.mark.long,
        ),
    ],
    ids=["postgres", "sqlite"],
)
def test_a_storm_loses_nothing_and_ends_nothing_twice(house: Theatre, kind: str, size: Size) -> None:
    with house.stage(f"storm-{kind}", kind, **UNBREAKABLE) as stage:
        outcome = Storm(stage, 20, size).run()

    assert outcome.problems == []
    assert sum(outcome.jobs.values()) == size.num_jobs
    assert sum(outcome.faults.values()) > 5
