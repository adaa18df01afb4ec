"""Groupings of the probe: cut where a later attempt resumed; groups and their precision as the science has them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from jobs import weak_labels as groupings
from jobs.database import Database
from jobs.weak_labels import Moment, Probe, weak_groups
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, claim, running
from wcl_core.methods import weak_labels


def test_what_lies_beyond_the_step_of_a_resume_does_not_count(database: Database) -> None:
    add_dataset(database)
    first = Run(database, running(database))
    first.deliver(rows.started(), *(rows.groups(epoch, [epoch] * 4) for epoch in (1, 2, 3)))
    first.end("drained")
    second = Run(database, claim(database))
    second.deliver(rows.started(20), rows.groups(3, [7] * 4))
    second.end("drained")
    third = Run(database, claim(database))
    third.deliver(rows.started(25), rows.groups(3, [8] * 4), rows.groups(4, [9] * 4))

    with database.read() as session:
        seen = groupings.moments(session, first.job_id)
        labels = groupings.labels(session, first.job_id, seen)

    assert seen == [Moment(1, 10, 1), Moment(2, 20, 1), Moment(3, 30, 3), Moment(4, 40, 3)]
    assert [labels[moment][0] for moment in seen] == [1, 2, 8, 9]


def test_a_run_that_starts_over_shows_nothing_of_before(database: Database) -> None:
    add_dataset(database)
    first = Run(database, running(database))
    first.deliver(rows.started(), rows.groups(1, [0, 0]), rows.groups(2, [0, 0]))
    first.end("drained")
    second = Run(database, claim(database))
    second.deliver(rows.started(0), rows.groups(1, [1, 1]))

    with database.read() as session:
        assert groupings.moments(session, first.job_id) == [Moment(1, 10, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_their_precision_are_those_of_the_science(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 30, (64,), generator=draw)
    classes = torch.randint(0, 4, (64,), generator=draw)
    found = weak_groups(labels.tolist(), classes.tolist())

    assert sorted(place for group in found for place in group.members) == list(range(64))
    for group in found:
        assert len(set(labels[group.members].tolist())) == 1
        assert group.classes == Counter(classes[group.members].tolist())
        alone = weak_labels.pair_precision(labels[group.members], classes[group.members])
        assert group.precision == (None if len(group.members) == 1 else pytest.approx(float(alone)))
    assert len(found) == len(set(labels.tolist()))
    assert [len(group.members) for group in found] == sorted((len(group.members) for group in found), reverse=True)
    assert groupings.pair_precision(found) == pytest.approx(float(weak_labels.pair_precision(labels, classes)))
    assert groupings.chance(classes.tolist()) == pytest.approx(float(weak_labels.pair_precision_chance(classes)))


def test_without_classes_nothing_is_said_of_precision() -> None:
    (pair, single) = weak_groups([5, 5, 1], None)

    assert (pair.members, pair.classes, pair.precision) == ([0, 1], None, None)
    assert single.members == [2]
    assert groupings.pair_precision([pair, single]) is None
    assert groupings.chance(None) is None
    facts = {"indices": [3, 4], "class_names": ["a"], "tile": 8, "columns": 2}
    assert Probe.model_validate(facts | {"classes": [0, None]}).known_classes is None
    assert Probe.model_validate(facts | {"classes": [0, 0]}).known_classes == [0, 0]
