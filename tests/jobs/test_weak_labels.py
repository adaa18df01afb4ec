"""Weak labels of the monitor batch: cut where a later attempt resumed; groups and precision as in `wcl_core`."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from jobs import weak_labels as jobs_weak_labels
from jobs.database import Database
from jobs.weak_labels import Moment, Quality, weak_groups
from tests.jobs import rows
from tests.jobs.rows import Run, add_dataset, claim, running
from wcl_core.methods import weak_labels
from wcl_core.protocol import MonitorBatchFacts


def test_reports_beyond_the_step_of_a_resume_are_left_out(database: Database) -> None:
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
        reported = jobs_weak_labels.moments(session, first.job_id)
        labels = jobs_weak_labels.labels(session, first.job_id, reported)

    assert reported == [Moment(1, 10, 1), Moment(2, 20, 1), Moment(3, 30, 3), Moment(4, 40, 3)]
    assert [labels[moment][0] for moment in reported] == [1, 2, 8, 9]


def test_a_run_that_starts_over_shows_only_its_new_reports(database: Database) -> None:
    add_dataset(database)
    first = Run(database, running(database))
    first.deliver(rows.started(), rows.groups(1, [0, 0]), rows.groups(2, [0, 0]))
    first.end("drained")
    second = Run(database, claim(database))
    second.deliver(rows.started(0), rows.groups(1, [1, 1]))

    with database.read() as session:
        assert jobs_weak_labels.moments(session, first.job_id) == [Moment(1, 10, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_their_precision_equal_those_of_wcl_core(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 30, (64,), generator=draw)
    classes = torch.randint(0, 4, (64,), generator=draw)
    result = weak_groups(labels.tolist(), classes.tolist())

    assert sorted(place for group in result for place in group.members) == list(range(64))
    for group in result:
        assert len(set(labels[group.members].tolist())) == 1
        assert group.classes == Counter(classes[group.members].tolist())
        alone = weak_labels.pair_precision(labels[group.members], classes[group.members])
        assert group.precision == (None if len(group.members) == 1 else pytest.approx(float(alone)))
    assert len(result) == len(set(labels.tolist()))
    assert [len(group.members) for group in result] == sorted((len(group.members) for group in result), reverse=True)
    assert jobs_weak_labels.pair_precision(result) == pytest.approx(float(weak_labels.pair_precision(labels, classes)))
    assert jobs_weak_labels.chance(classes.tolist()) == pytest.approx(float(weak_labels.pair_precision_chance(classes)))


NAMES = ("components", "largest_share", "view_agreement", "pair_precision", "pair_precision_chance")
GOOD = {"components": 90.0, "largest_share": 0.05, "view_agreement": 0.3, "pair_precision": 0.5}


def quality_of(database: Database, epoch: float, **values: float | None) -> Quality | None:
    add_dataset(database)
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.progress(10, epoch=epoch, total_epochs=50))
    run.deliver(rows.metrics(10, **{f"weak/{name}": value for name, value in values.items()}))
    return jobs_weak_labels.quality(rows.job(database, run.job_id))


def test_a_warning_needs_several_reports_in_a_row(database: Database) -> None:
    add_dataset(database)
    run = Run(database, running(database))
    run.deliver(rows.started(), rows.progress(10, epoch=25, total_epochs=50))
    shown = []
    for step, agreement in enumerate((0.05, 0.3, *[0.05] * 5, 0.3), start=1):
        run.deliver(rows.metrics(step, **{"weak/view_agreement": agreement, "weak/largest_share": 0.1}))
        with database.read() as session:
            result = jobs_weak_labels.lasting_quality(session, rows.job(database, run.job_id))
        assert result is not None
        assert result.view_agreement == agreement
        shown.append(result.warning is not None)
    assert shown == [True, False, False, False, False, False, True, False]


@pytest.mark.parametrize(
    ("epoch", "values", "warning"),
    [
        (25, {}, None),
        (25, {"pair_precision": 0.3}, None),
        (
            25,
            {"pair_precision": 0.055, "pair_precision_chance": 0.012},
            "Only 5.5% of the pairs with one weak label are of one class (chance 1.2%). ",
        ),
        (25, {"pair_precision": 0.299}, "Only 29.9% of the pairs with one weak label are of one class."),
        (10, {"pair_precision": 0.055}, "Only 5.5% of the pairs"),
        (9.9, {"pair_precision": 0.055}, None),
        (
            25,
            {"largest_share": 0.9, "view_agreement": 0.0},
            None,
        ),  # true classes are known, and say that the labels are good
        (25, {"pair_precision": None, "largest_share": 0.2}, None),
        (25, {"pair_precision": None, "largest_share": 0.23}, "23.0% of a batch has the same weak label"),
        (25, {"pair_precision": None, "view_agreement": 0.1}, None),
        (25, {"pair_precision": None, "view_agreement": 0.08}, "The weak labels of the two views agree by 8.0% only."),
        (25, {"pair_precision": None, "view_agreement": None}, None),
        (9.9, {"pair_precision": None, "largest_share": 0.23}, None),
        (25, {"pair_precision": None, "largest_share": None}, None),
    ],
)
def test_noisy_weak_labels_are_warned_of(
    database: Database, epoch: float, values: dict[str, float | None], warning: str | None
) -> None:
    quality = quality_of(database, epoch, **{**GOOD, **values})

    assert quality is not None
    assert [getattr(quality, name) for name in NAMES] == [{**GOOD, **values}.get(name) for name in NAMES]
    if warning is None:
        assert quality.warning is None
    else:
        assert (quality.warning or "").startswith(warning)
        assert "method simclr" in (quality.warning or "")


def test_a_run_without_weak_labels_has_no_quality(database: Database) -> None:
    assert quality_of(database, 25, other=1.0) is None


def test_without_classes_there_is_no_precision() -> None:
    (pair, single) = weak_groups([5, 5, 1], None)

    assert (pair.members, pair.classes, pair.precision) == ([0, 1], None, None)
    assert single.members == [2]
    assert jobs_weak_labels.pair_precision([pair, single]) is None
    assert jobs_weak_labels.chance(None) is None
    facts = {"indices": [3, 4], "class_names": ["a"], "tile": 8, "columns": 2}
    assert MonitorBatchFacts.model_validate(facts | {"classes": [0, None]}).known_classes is None
    assert MonitorBatchFacts.model_validate(facts | {"classes": [0, 0]}).known_classes == [0, 0]
