"""A part of the service is down in some state of a job: a diagonal of the cells; `./run chaos` runs all of them."""

from __future__ import annotations

import pytest

from tests.chaos.cells import Cell, run_all
from tests.chaos.stage import Theatre

DIAGONAL = [
    Cell("server", "cancelling", 20),
    Cell("worker", "checkpointing", 5),
    Cell("worker", "finishing", 60),
    Cell("PostgreSQL", "claiming", 5),
    Cell("PostgreSQL", "finishing", 300),
    Cell("Redis", "queued", 60),
    Cell("disk full", "checkpointing", 60),
]


@pytest.mark.timeout(600)
def test_the_downtime_of_a_part_has_only_its_allowed_cost(house: Theatre) -> None:
    problems_of = run_all(house, DIAGONAL, side_by_side=len(DIAGONAL))

    assert {cell: problems for cell, problems in problems_of.items() if problems} == {}
