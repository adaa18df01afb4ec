"""Whether a training has learned: its accuracy beside what it must beat, with intervals."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import delete

from jobs import queries, transitions
from jobs.baselines import beside, difference, interval
from jobs.comparisons import comparison
from jobs.database import Database
from jobs.datasets import DatasetFacts, announce
from jobs.models import Dataset, DatasetVersion, Evaluation
from jobs.seed_groups import results
from jobs.verdicts import Verdict, before_training, best_of, its_twin, sides, verdict
from tests.jobs import rows
from wcl_core.intervals import newcombe, paired, wilson
from wcl_core.per_image import KEY, Pairs, packed
from wcl_core.protocol import GAINED, KNN_TOP1, LOST, VIEW_TOP1, VIEW_TOP1_CHANCE, VIEW_TOP1_PIXELS


def dataset(database: Database, test: list[int], train: list[int] | None = None) -> None:
    rows.add_dataset(database)
    counts = {"test": test, "train": train or [500] * len(test)}
    database.write(lambda session: session.add(DatasetVersion(digest=rows.DIGEST, class_counts=counts)))


def judged(
    database: Database, *accuracies: float, first_step: int = 0, data: dict[str, Any] | None = None
) -> Verdict | None:
    spec = {"data": {"name": "digits", "image_size": 8} | (data or {})}
    job_id = rows.submit(database, spec=spec)
    run = rows.Run(database, rows.claim(database))
    steps = [first_step + 10 * place for place in range(len(accuracies))]
    values = [rows.metrics(step, **{KNN_TOP1: each}) for step, each in zip(steps, accuracies, strict=True)]
    run.deliver(rows.started(), *values)
    run.end("succeeded")
    with database.read() as session:
        return verdict(session, rows.job(database, job_id))


def test_a_difference_that_the_images_do_not_show_is_called_so(database: Database) -> None:
    dataset(database, [67, 40])
    result = judged(database, 0.561, 0.6, 0.617)
    assert result is not None
    assert result.sentence == (
        "No difference shown: 5.6 points above the untrained network, interval -7.5 to +18.4; 107 test images are "
        "few. kNN accuracy 61.7% (52.2% to 70.4%), untrained 56.1%, the largest class alone 62.6%. "
        "95 % interval: not paired, 107 test images."
    )
    assert (result.is_shown, result.num_images) == (False, 107)


@pytest.mark.parametrize(
    ("accuracies", "start"),
    [
        ((0.5, 0.62), "Better than the untrained network by 12.0 ± 1.4 points. kNN accuracy 62.0%"),
        ((0.62, 0.5), "Worse than the untrained network by 12.0 ± 1.4 points. kNN"),
        ((0.5, 0.5), "No difference shown: as good as the untrained network, interval -1.4 to +1.4. kNN"),
    ],
)
def test_a_difference_that_many_images_show_is_shown(
    database: Database, accuracies: tuple[float, float], start: str
) -> None:
    dataset(database, [5_000, 5_000])
    result = judged(database, *accuracies)
    assert result is not None
    assert result.sentence.startswith(start)
    assert result.is_shown == (accuracies[0] != accuracies[1])


def test_without_labels_the_view_accuracy_says_whether_it_has_learned(database: Database) -> None:
    rows.add_dataset(database)
    job_id = rows.submit(database, spec={"data": {"name": "digits", "held_out_share": 0.1}})
    run = rows.Run(database, rows.claim(database))
    values: list[dict[str, float]] = [{VIEW_TOP1: each, VIEW_TOP1_CHANCE: 1 / 512} for each in (0.16, 0.37)]
    values[0] |= {VIEW_TOP1_PIXELS: 0.12, "repr/rankme": 4.0, "repr/uniformity": -0.5}
    values[1] |= {"repr/rankme": 40.0, "repr/uniformity": -2.5}
    run.deliver(rows.started(), rows.metrics(0, **values[0]), rows.metrics(10, **values[1]))
    run.end("succeeded")
    with database.read() as session:
        result = verdict(session, rows.job(database, job_id))
    assert result is not None
    assert result.sentence == (
        "Better than the untrained network by 21.0 ± 5.2 points. View accuracy 37.0% (32.9% to 41.3%), "
        "untrained 16.0%, raw pixels 12.0%, chance 0.2%. 95 % interval: not paired, 512 images. "
        "Share of images whose random view is nearest to another view of the same image; it needs no labels. "
        "The training has not seen these images. It measures invariance to the augmentation, not classes: labels, or "
        "the map, show whether alike images are near each other. Effective rank of features 40, untrained 4; "
        "Uniformity of features -2.5, untrained -0.5: features that spread have not collapsed; that alone does not "
        "make them useful."
    )
    assert (result.low, result.high) == wilson(0.37, 512)
    assert (result.num_images, result.metric, result.contrasts) == (512, VIEW_TOP1, [])
    other_id = rows.submit(database)
    other = rows.Run(database, rows.claim(database))
    other.deliver(rows.started(), rows.metrics(10, **{VIEW_TOP1: 0.2, VIEW_TOP1_CHANCE: 1 / 512}))
    other.end("succeeded")
    with database.read() as session:
        sides = [{0: rows.job(database, each)} for each in (other_id, job_id)]
        lead = best_of(session, sides, ["other", "this"])
    assert lead is not None
    assert (lead.metric, lead.subject, lead.other, lead.is_shown) == (VIEW_TOP1, "this", "other", True)


def test_a_run_that_starts_over_is_measured_against_its_own_start(database: Database) -> None:
    dataset(database, [50, 50])
    job_id = rows.submit(database)
    first = rows.Run(database, rows.claim(database))
    first.deliver(rows.started(), rows.metrics(0, **{KNN_TOP1: 0.1}), rows.metrics(10, **{KNN_TOP1: 0.2}))
    first.end("drained")
    second = rows.Run(database, rows.claim(database))
    second.deliver(rows.started(0), rows.metrics(0, **{KNN_TOP1: 0.3}), rows.metrics(10, **{KNN_TOP1: 0.4}))
    with database.read() as session:
        result = verdict(session, rows.job(database, job_id))
    assert result is not None
    assert (result.untrained, result.accuracy) == (0.3, 0.4)


def test_held_out_images_count_where_they_are_measured(database: Database) -> None:
    dataset(database, [10, 10], [750, 250])
    result = judged(database, 0.5, 0.9, data={"held_out_share": 0.1})
    assert result is not None
    assert (result.num_images, result.chance) == (100, 0.75)


def test_an_accuracy_before_the_first_measurement_of_training_is_named_so(database: Database) -> None:
    dataset(database, [50, 50])
    for accuracies, phrase in (
        ((0.5,), "untrained network: 50.0%; first measurement of the training after epoch 10"),
        ((0.5, 0.5), None),
    ):
        job_id = rows.submit(database, spec={"knn_every_epochs": 10})
        run = rows.Run(database, rows.claim(database))
        run.deliver(rows.started(), *(rows.metrics(step, **{KNN_TOP1: each}) for step, each in enumerate(accuracies)))
        with database.read() as session:
            assert before_training(session, [rows.job(database, job_id)]).get(job_id) == phrase
        run.end("succeeded")


@pytest.mark.parametrize("case", ["one", "resumed without a start"])
def test_what_cannot_be_compared_has_no_verdict(database: Database, case: str) -> None:
    dataset(database, [50, 50])
    if case == "one":
        assert judged(database, 0.5) is None
    else:
        assert judged(database, 0.5, 0.6, first_step=10) is None


def test_a_verdict_stays_when_its_dataset_has_changed_or_is_gone(database: Database) -> None:
    facts = DatasetFacts("photos", "folder", "1" * 64, {"train": 90, "test": 10}, ["a", "b"], {"test": [7, 3]})
    for digest, test in (("1" * 64, [7, 3]), ("2" * 64, [9, 9])):
        version = replace(facts, digest=digest, class_counts={"test": test})
        database.write(lambda session, version=version: announce(session, version))  # type: ignore[misc]
        if digest == facts.digest:
            job_id = rows.submit(database, spec={"data": {"name": "photos", "image_size": 8}, "batch_size": 9})
            run = rows.Run(database, rows.claim(database, rows.worker(datasets={"photos": digest})))
            run.deliver(rows.started(), rows.metrics(0, **{KNN_TOP1: 0.1}), rows.metrics(9, **{KNN_TOP1: 0.9}))
            run.end("succeeded")
    database.write(lambda session: session.execute(delete(Dataset).where(Dataset.name == "photos")))

    with database.read() as session:
        result = verdict(session, rows.job(database, job_id))
    assert result is not None
    assert (result.num_images, result.chance) == (10, 0.7)


def trained(database: Database, curve: dict[int, float], *, method: str = "wcl", seed: int = 0, **spec: Any) -> str:
    """Return the id of a training that has measured a curve of kNN accuracy, and ended."""
    sent = {"data": {"name": "digits", "image_size": 8}, "method": method, "seed": seed} | spec
    job_id = rows.submit(database, spec=sent)
    run = rows.Run(database, rows.claim(database))
    points = [rows.metrics(step, **{KNN_TOP1: value}) for step, value in curve.items()]
    run.deliver(rows.started(), *points, rows.checkpoint(max(curve)) | {"sha256": sha256(job_id.encode()).hexdigest()})
    run.deliver(rows.end("succeeded"))
    return job_id


def evaluated(database: Database, job_id: str, *results: dict[str, Any]) -> str:
    """Return the id of an evaluation of the checkpoint of a training."""
    (checkpoint,) = rows.checkpoints(database, job_id)
    return measured(database, {"kind": "checkpoint", "checkpoint_id": checkpoint.id}, *results)


def sentences(database: Database, job_id: str) -> list[str]:
    with database.read() as session:
        result = verdict(session, rows.job(database, job_id))
    assert result is not None
    return [each.sentence for each in result.contrasts]


def test_a_run_is_compared_with_its_twin_over_paired_seeds(database: Database) -> None:
    dataset(database, [500, 500])
    ours = [trained(database, {0: 0.3, 10: 0.70 + seed / 100}, seed=seed) for seed in (0, 1, 2)]
    for seed, gain in ((0, 0.03), (1, 0.05), (2, 0.04), (7, 0.5)):
        trained(database, {0: 0.3, 10: 0.70 + seed / 100 - gain}, method="simclr", seed=seed)
    trained(database, {0: 0.3, 10: 0.1}, method="simclr", loss={"temperature": 0.5})  # other settings

    over_seeds, twin = sentences(database, ours[0])

    assert over_seeds == (
        "Better than the untrained network over all seeds by 41.0 ± 2.5 points (t-interval over 3 paired seeds)."
    )
    assert twin == "Better than its SimCLR twin by 4.0 ± 2.5 points (t-interval over 3 paired seeds)."


def test_two_trainings_are_paired_by_their_specs_before_one_has_begun(database: Database) -> None:
    rows.add_dataset(database)
    ours, other_seed = rows.submit(database, spec={"seed": 1}), rows.submit(database, spec={"seed": 2})
    evaluation = rows.submit(database, "evaluate", {"features": {"kind": "pixels"}})

    def paired_with(job_id: str) -> str | None:
        with database.read() as session:
            paired = its_twin(session, rows.job(database, job_id))
        assert paired is not None
        assert (paired.method, paired.title) == (("simclr", "SimCLR") if job_id != twin else ("wcl", "WCL"))
        return paired.job and paired.job.id

    twin = ""
    assert paired_with(ours) is None
    twin = rows.submit(database, spec={"seed": 1, "method": "simclr"})
    assert [paired_with(each) for each in (ours, other_seed, twin)] == [twin, twin, ours]
    database.write(lambda session: transitions.cancel(session, twin))
    assert paired_with(ours) is None, "a cancelled one compares nothing"
    with database.read() as session:
        assert its_twin(session, rows.job(database, evaluation)) is None


def test_a_twin_that_has_succeeded_stands_before_a_newer_one_that_has_not(database: Database) -> None:
    dataset(database, [67, 40])
    ours = trained(database, {0: 0.5, 10: 0.6})
    sent = {"data": {"name": "digits", "image_size": 8}, "method": "simclr", "seed": 0}

    def twin() -> str:
        with database.read() as session:
            _, twins = sides(session, rows.job(database, ours))
        return twins[0].id

    cancelled = [rows.submit(database, spec=sent) for _ in range(2)]
    assert twin() == cancelled[1]
    database.write(lambda session: transitions.cancel(session, cancelled[1]))
    assert twin() == cancelled[0]
    database.write(lambda session: transitions.cancel(session, cancelled[0]))
    succeeded = trained(database, {0: 0.5, 10: 0.58}, method="simclr")
    rows.submit(database, spec=sent)
    assert twin() == succeeded


def test_one_seed_is_compared_at_a_step_that_both_have_measured(database: Database) -> None:
    dataset(database, [67, 40])
    ours = trained(database, {0: 0.5, 10: 0.6, 20: 0.7})
    theirs = trained(database, {0: 0.5, 10: 0.58}, method="simclr")

    (found,) = sentences(database, ours)
    (mirrored,) = sentences(database, theirs)

    method = "Newcombe's interval of one seed on 107 test images"
    partly = f"({method}, at step 10, the last one that both have measured)"
    assert found == f"No difference shown: 2.0 points above its SimCLR twin, interval -11.0 to +14.9 {partly}."
    assert mirrored == f"No difference shown: 2.0 points below its WCL twin, interval -14.9 to +11.0 {partly}."


def test_one_seed_is_compared_image_by_image_where_both_have_evaluated_the_step(database: Database) -> None:
    dataset(database, [60, 40])
    jobs = [trained(database, {0: 0.3, 10: share}, method=method) for method, share in (("wcl", 0.8), ("simclr", 0.7))]
    for job_id, right in zip(jobs, ("1111111100", "1111111000"), strict=True):
        (sentence,) = sentences(database, jobs[0])
        assert "Newcombe's interval of one seed on 100 test images" in sentence  # until both are evaluated
        evaluated(database, job_id, result_of(right, "knn"), result_of(right, "linear"))

    (sentence,) = sentences(database, jobs[0])
    low, high = paired(Pairs(100, 10, 10))
    gap = f"+10.0 ± {50 * (high - low):.1f} points"
    assert sentence == (
        f"Better than its SimCLR twin in 2 of 2 measures (kNN accuracy {gap}, linear probe accuracy {gap}) "
        "(one seed, paired over 100 test images; Holm's correction for 2 comparisons)."
    )
    with database.read() as session:
        table = comparison(session, jobs)
    assert table.contrast is not None
    assert table.contrast.difference.method == "one seed, paired over 100 test images"
    assert [row.lead and row.lead.difference.method for row in table.rows] == [table.contrast.difference.method] * 2


def test_every_measure_counts_against_the_twin_by_one_rule(database: Database) -> None:
    """The twin is better by the linear probe, and kNN shows nothing: page, comparison and rows of it say the same."""
    dataset(database, [60, 40])
    jobs = [trained(database, {0: 0.3, 10: share}, method=method) for method, share in (("wcl", 0.6), ("simclr", 0.6))]
    for job_id, right in zip(jobs, ("1111100000", "1111111100"), strict=True):
        evaluated(database, job_id, result_of("1111110000", "knn"), result_of(right, "linear"))
    ours, theirs = [sentences(database, each)[0] for each in jobs]
    with database.read() as session:
        table = comparison(session, jobs)
        alone = comparison(session, jobs[:1], with_twin=True)
    assert ours.startswith("Worse than its SimCLR twin in 1 of 2 measures (linear probe accuracy -30.0 ± 9.0 points), ")
    assert "no difference shown in 1 (kNN accuracy +0.0 ± " in ours
    assert theirs.startswith("Better than its WCL twin in 1 of 2 measures (linear probe accuracy +30.0 ± 9.0 points), ")
    assert table.contrast is not None
    assert alone.contrast is not None
    assert table.contrast.finding == alone.contrast.finding == "better"
    assert table.contrast.sentence.partition(" is better than ")[2].startswith(
        "wcl digits tiny in 1 of 2 measures (linear probe accuracy +30.0 ± 9.0 points), no difference shown in 1"
    ), table.contrast.sentence
    assert [row.lead and row.lead.is_shown for row in table.rows] == [False, True]


def test_two_seeds_that_differ_much_have_no_interval(database: Database) -> None:
    dataset(database, [500, 500])
    jobs = [trained(database, {0: 0.3, 10: value}, seed=seed) for seed, value in enumerate((0.2, 0.9))]
    for seed, value in enumerate((0.8, 0.3)):
        trained(database, {0: 0.3, 10: value}, method="simclr", seed=seed)
    for place, job_id in enumerate(jobs):
        evaluated(database, job_id, result_of("1" * (9 - 5 * place)))
    _, twin = sentences(database, jobs[0])
    assert twin == (
        "No difference shown: as good as its SimCLR twin, too few seeds for an interval "
        "(t-interval over 2 paired seeds)."
    )
    with database.read() as session:
        (result,) = results(session, [rows.job(database, job_id) for job_id in jobs])
    assert (result.seeds, result.interval) == ([0, 1], None)


def test_without_a_step_in_common_each_side_has_its_last_one(database: Database) -> None:
    dataset(database, [500, 500])
    earlier = trained(database, {0: 0.5, 10: 0.6})
    later, unmeasured = trained(database, {15: 0.7, 20: 0.8}, seed=1), trained(database, {0: 0.5}, seed=2)
    first, second, third = ({0: rows.job(database, job_id)} for job_id in (earlier, later, unmeasured))
    with database.read() as session:
        contrast = best_of(session, [first, second], ["run", "continuation"])
        nothing = best_of(session, [first, third], ["run", "other"])
    assert contrast is not None
    assert contrast.sentence.startswith("continuation is better than run by 20.0")
    assert "each at its last measured step: 20 against 10" in contrast.sentence
    assert nothing is None


def test_a_run_that_goes_on_has_numbers_and_no_finding(database: Database) -> None:
    """Measurements on both sides of the border leave words and tone as they are; the end has the finding."""
    dataset(database, [5_000, 5_000])
    job_id = rows.submit(database)
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(), rows.metrics(0, **{KNN_TOP1: 0.5}))
    for step, accuracy, distance in (
        (10, 0.62, "12.0 points above the untrained network, interval +10.6 to +13.4"),
        (20, 0.501, "0.1 points above the untrained network, interval -1.3 to +1.5"),
        (30, 0.38, "12.0 points below the untrained network, interval -13.4 to -10.6"),
        (40, 0.62, "12.0 points above the untrained network, interval +10.6 to +13.4"),
    ):
        run.deliver(rows.metrics(step, **{KNN_TOP1: accuracy}))
        with database.read() as session:
            result = verdict(session, rows.job(database, job_id))
        assert result is not None
        assert (result.headline, result.finding, result.is_shown) == (f"So far: {distance}", "open", False)
        assert "the finding comes at its end" in result.sentence
    run.end("succeeded")
    with database.read() as session:
        ended = verdict(session, rows.job(database, job_id))
    assert ended is not None
    assert (ended.finding, ended.outlook) == ("better", "")
    assert ended.headline == "Better than the untrained network by 12.0 ± 1.4 points"


def test_only_shares_of_images_have_an_interval() -> None:
    facts = {"metric": "top1", "value": 0.617, "n": 107, "stderr": None}
    assert interval(Evaluation(**facts)) == wilson(0.617, 107)
    for change in ({"metric": "mean_average_precision"}, {"stderr": 0.1}, {"value": None}, {"n": None}):
        assert interval(Evaluation(**facts | change)) is None


# --- all measures with a baseline ------------------------------------------------------------------------------------


def measured(database: Database, features: dict[str, Any], *results: dict[str, Any]) -> str:
    spec = {"data": {"name": "digits", "image_size": 8}, "features": features}
    job_id = rows.submit(database, "evaluate", spec)
    rows.Run(database, rows.claim(database)).deliver(rows.started(), *results, rows.end("succeeded"))
    return job_id


def result_of(right: str, protocol: str = "linear", *, is_stored: bool = True, **params: Any) -> dict[str, Any]:
    """Return a result; `right` says for each of ten blocks of ten test images whether it was right."""
    hits = [int(each) for each in right for _ in range(10)]
    details = {KEY: packed(hits)} if is_stored else {}
    facts = {"protocol": protocol, "params": params, "details": details}
    return rows.evaluation(sum(hits) / 100, **facts)


def test_a_comparison_names_the_baselines_that_all_must_beat(database: Database) -> None:
    dataset(database, [60, 40])
    jobs = [trained(database, {0: 0.3, 10: 0.6}, method=method) for method in ("wcl", "simclr")]
    for job_id, right in zip(jobs, ("1111111100", "1111111000"), strict=True):
        evaluated(database, job_id, result_of(right))
    with database.read() as session:
        (before,) = comparison(session, jobs).rows
    measured(database, {"kind": "pixels"}, result_of("1110000000"))
    with database.read() as session:
        (row,) = comparison(session, jobs).rows
    assert ([*before.to_beat], [*row.to_beat]) == ([], [("raw pixels", 0.3)])


@pytest.fixture
def with_baselines(database: Database) -> tuple[str, str]:
    """Return a training and its evaluation: better by linear and few labels, unclear by kNN, worse by retrieval."""
    dataset(database, [60, 40])
    job_id = rows.submit(database)
    run = rows.Run(database, rows.claim(database))
    last = {KNN_TOP1: 0.52, KNN_TOP1 + GAINED: 0.12, KNN_TOP1 + LOST: 0.1}
    saved = rows.checkpoint(10) | {"epoch": 100}
    run.deliver(rows.started(), rows.metrics(0, **{KNN_TOP1: 0.5}), rows.metrics(10, **last), saved)
    run.deliver(rows.end("succeeded"))
    job = rows.job(database, job_id)
    (checkpoint,) = rows.checkpoints(database, job_id)
    untrained = {"kind": "untrained", "backbone": job.spec["backbone"]}
    retrieval = {"protocol": "retrieval", "metric": "recall_at_1"}
    measured(
        database,
        untrained,
        result_of("1110000000"),
        result_of("1100000000", "few_labels", labels_per_class=1),
        result_of("1111111100") | retrieval,
        result_of("1111000000", "knn"),
    )
    measured(database, {"kind": "pixels"}, result_of("1000000000"))
    evaluation_id = measured(
        database,
        {"kind": "checkpoint", "checkpoint_id": checkpoint.id},
        result_of("1111110000"),
        result_of("1101000000", "few_labels", labels_per_class=1),
        result_of("1111000000") | retrieval,
        result_of("1111100000", "knn"),
        result_of("1111000000", "linear_sgd"),  # without a baseline
    )
    return job_id, evaluation_id


def test_every_measure_with_a_baseline_counts_in_pairs(database: Database, with_baselines: tuple[str, str]) -> None:
    with database.read() as session:
        result = verdict(session, rows.job(database, with_baselines[0]))
    assert result is not None
    assert result.summary == (
        "Better than the untrained network in 2 of 4 measures, worse in 1, no difference shown in 1; 100 test images "
        "are few"
    )
    assert [(each.title, each.finding, each.is_paired) for each in result.gains] == [
        ("kNN accuracy", "unclear", True),  # that of the training: the evaluation measures the same
        ("Linear probe accuracy", "better", True),
        ("Few-label accuracy (1 a class)", "better", True),
        ("Retrieval recall at 1", "worse", True),
    ]
    knn, linear, *_ = result.gains
    assert (linear.difference.low, linear.difference.high) == pytest.approx(paired(Pairs(100, 30, 30)))
    assert (knn.difference.low, knn.difference.high) == pytest.approx(paired(Pairs(100, 2, 22)))
    assert linear.phrase == "linear probe accuracy +30.0 ± 9.0 points"
    assert linear.phrase in result.headline
    assert result.finding == "mixed"
    assert result.sentence.endswith("95 % intervals: paired over 100 test images. Holm's correction for 4 comparisons.")


def test_an_evaluation_has_a_verdict_of_its_own(database: Database, with_baselines: tuple[str, str]) -> None:
    job = rows.job(database, with_baselines[1])
    with database.read() as session:
        result = verdict(session, job)
        around = beside(session, queries.evaluations(session, job.id))
    assert result is not None
    assert [each.metric for each in result.gains] == [
        "knn/top1",
        "linear/top1",
        "few_labels/top1",
        "retrieval/recall_at_1",
    ]
    assert (result.accuracy, result.untrained, result.chance) == (0.5, 0.4, None)
    assert (0.3, 0.1) in [(each.untrained, each.pixels) for each in around.values()]


def test_results_without_stored_images_are_not_paired(database: Database) -> None:
    stored, older = (Evaluation(**_columns(result_of("1111110000", is_stored=each))) for each in (True, False))
    other = Evaluation(**_columns(result_of("1110000000")))
    ours, theirs = difference(stored, other), difference(older, other)
    assert ours is not None
    assert theirs is not None
    assert (ours.method, theirs.method) == ("paired over 100 test images", "not paired, 100 test images")
    assert (theirs.low, theirs.high) == pytest.approx(newcombe(0.6, 0.3, 100))
    assert ours.margin < theirs.margin
    broken = Evaluation(**_columns(rows.evaluation(0.3, details={KEY: {"correct": "?", "trials": 1}})))
    assert difference(stored, broken) == theirs


def test_equal_draws_of_labels_are_compared_in_pairs() -> None:
    hits = [packed([10] * 60 + [0] * 40, 20), packed([6] * 60 + [0] * 40, 20)]
    draws = [[0.28, 0.3, 0.32], [0.16, 0.18, 0.2]]
    ours, other = (
        Evaluation(**_columns(rows.evaluation(value, stderr=0.0115, details={KEY: hit, "by_draw": by_draw})))
        for value, hit, by_draw in zip((0.3, 0.18), hits, draws, strict=True)
    )
    gap = difference(ours, other)
    assert gap is not None
    assert (gap.low, gap.high) == pytest.approx(paired(Pairs(100, 12.0, 60 * 0.04)))  # the draws differ all alike
    other.seed = 1
    wider = difference(ours, other)
    assert wider is not None
    assert wider.margin > gap.margin


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "type"}
