"""The training loop: exact resume after a stop at any step, reports, failures, and learning."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.waiting import patch_clock
from tests.wcl_core import small
from tests.wcl_core.small import EPOCHS, STEPS_PER_EPOCH, TOTAL_STEPS
from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import PretrainSpec, largest_k
from wcl_core.data import DataError, ImageData, epoch_batches
from wcl_core.evaluation.features import network_features
from wcl_core.evaluation.run import load_backbone, untrained_backbone
from wcl_core.methods import build_method
from wcl_core.networks.model import Model
from wcl_core.presets import presets
from wcl_core.protocol import Outcome, Request
from wcl_core.reporter import MemoryReporter
from wcl_core.schedule import learning_rate
from wcl_core.training import pretrain as pretrain_module
from wcl_core.training import run_metrics
from wcl_core.training import view_maker as views_module
from wcl_core.training.collapse import NonFiniteLossError
from wcl_core.training.pretrain import pretrain

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

LARS = {"name": "lars", "learning_rate": 0.3, "scaling": "none"}
ADAMW = {"name": "adamw", "learning_rate": 1e-3, "scaling": "none", "betas": [0.8, 0.9], "weight_decay": 0.05}


def run(
    spec: PretrainSpec,
    folder: Path,
    *,
    stop: tuple[int, Request] | None = None,
    resume: Path | None = None,
    dataset: ImageData | None = None,
) -> tuple[Outcome, MemoryReporter]:
    """Run with a request to stop after a step; the global generator and modes are changed on purpose."""
    torch.manual_seed(len(str(folder)) + (0 if resume is None else 1))
    torch.rand(7)

    def request(records: list[dict[str, Any]]) -> Request | None:
        torch.rand(3)  # other code of the process may draw too, and must not change the run
        last = max((record["step"] for record in records if record["type"] == "metrics"), default=0)
        return stop[1] if stop and last >= stop[0] else None

    reporter = MemoryReporter(request)
    data = small.few_digits() if dataset is None else dataset
    return pretrain(spec, reporter, dataset=data, output_dir=folder, resume=resume), reporter


def files(folder: Path) -> dict[str, str]:
    """Return the digests of the checkpoints by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "checkpoints").glob("*"))
    }


def last_file(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("*"))[-1]


# --- exact resume --------------------------------------------------------------------------------------------------

# Warm-up of half an epoch, a ramp that ends within the second one, both sets of augmentation, all operations on.
ANY_STEP = {
    "warmup_epochs": 1.5,
    "loss": {"weak_ramp_fraction": 0.5},
    "checkpoints": {"every_epochs": 2, "first_epoch": True},
}
# First steps in the warm-up, an epoch's end with and without a checkpoint of its own, right after it, the last but one.
# Two chains share these stops, so that every file is resumed, and runs go on over an epoch's end after their resume.
STOPS = ((1, STEPS_PER_EPOCH + 1, TOTAL_STEPS - 1), (2, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH))
VARIANTS = {
    "wcl-sgd": {"method": "wcl"},
    "wcl-lars": {"method": "wcl", "optimizer": LARS},
    "simclr-sgd": {"method": "simclr"},
    "simclr-lars": {"method": "simclr", "optimizer": LARS},
    "wcl-joint-full-gradient": {"loss": {"batch_norm_views": "joint", "detach_keys": False}},
    "wcl-bfloat16": {"precision": "bfloat16"},
    "wcl-without-momentum": {"optimizer": {"name": "sgd", "momentum": 0.0}},
    "wcl-adamw": {"optimizer": ADAMW},
    "wcl-queue-momentum-multicrop": {
        "queue_size": 192,  # three of an epoch's four batches, so that it wraps and holds images of the last epoch
        "momentum_decay": 0.9,
        "multi_crop": {"crops": 2, "neighbours": 3, "ramp_fraction": 0.5},
        "loss": {"exclude_mates": True, "weak_ramp_fraction": 0.5},
    },
    "wcl-all-else": {
        "micro_batch_size": 16,
        "multi_crop": {"crops": 1, "restrict_to_component": True},
        "loss": {"finch_level": 2, "decoupled": True, "weak_ramp_fraction": 0.5},
        "optimizer": LARS | {"lars_exclusion": "official-names"},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    """Checkpoints at equal steps are equal files, and the joined curves are the uninterrupted one."""
    spec = small.spec(**ANY_STEP | VARIANTS[variant])
    _, whole = run(spec, tmp_path / "whole")
    expected = files(tmp_path / "whole")
    assert len(expected) == 3
    for chain, steps in enumerate(STOPS):
        resume: Path | None = None
        digests: dict[str, str] = {}
        curves: dict[tuple[str, int], float | None] = {}
        for step in (*steps, TOTAL_STEPS):
            folder = tmp_path / f"{chain}-{step}"
            outcome, part = run(spec, folder, stop=(step, "drain"), resume=resume)
            resume = last_file(folder)
            assert outcome == ("succeeded" if step == TOTAL_STEPS else "drained")
            assert resume.name == f"step-{step:08d}.safetensors"
            assert part.of("warning") == []
            assert not curves.keys() & small.curves(part.records).keys()
            digests |= files(folder)
            curves |= small.curves(part.records)
            done = {name: digest for name, digest in expected.items() if name <= resume.name}
            assert {name: digests[name] for name in done} == done, f"stopped after step {step}"
        assert done == expected
        assert curves == small.curves(whole.records)


def test_a_run_stopped_at_every_step_ends_with_the_same_bytes(tmp_path: Path) -> None:
    spec = small.spec(**ANY_STEP)
    run(spec, tmp_path / "whole")
    resume, joined = None, {}
    for step in range(1, TOTAL_STEPS):
        folder = tmp_path / str(step)
        run(spec, folder, stop=(step, "pause"), resume=resume)
        resume = last_file(folder)
        joined |= files(folder)
    run(spec, tmp_path / "last", resume=resume)
    joined |= files(tmp_path / "last")
    expected = files(tmp_path / "whole")
    assert {name: joined[name] for name in expected} == expected


def stopped_after(spec: PretrainSpec, folder: Path, steps: int, resume: Path | None) -> MemoryReporter:
    """Drain a run after so many steps of its own; unlike `run`, this does not depend on the logs."""
    remaining = [steps + 1]  # the run also asks before its first step

    def ask(_: list[dict[str, Any]]) -> Request | None:
        remaining[0] -= 1
        return "drain" if remaining[0] <= 0 else None

    reporter = MemoryReporter(ask)
    pretrain(spec, reporter, dataset=small.few_digits(), output_dir=folder, resume=resume)
    return reporter


@pytest.mark.parametrize("log_every_steps", [3, 5, 100])
@pytest.mark.parametrize("steps", [1, 2])
def test_metrics_after_a_resume_are_those_of_an_uninterrupted_run(
    tmp_path: Path, log_every_steps: int, steps: int
) -> None:
    """Stop after every step or every other one, within and at the edge of a log window."""
    spec = small.spec(log_every_steps=log_every_steps, micro_batch_size=32)
    _, whole = run(spec, tmp_path / "whole")
    resume, records = None, []
    while not (tmp_path / f"{TOTAL_STEPS}").exists():
        folder = tmp_path / str((0 if resume is None else checkpoint.read(resume).metadata["step"]) + steps)
        records += stopped_after(spec, folder, steps, resume).records
        resume = last_file(folder)

    assert small.curves(records) == small.curves(whole.records)
    assert [(r["step"], r["metrics"]) for r in records if r["type"] == "checkpoint"][-1] == (
        TOTAL_STEPS,
        whole.of("checkpoint")[-1]["metrics"],
    )
    assert files(tmp_path / str(TOTAL_STEPS)).items() <= files(tmp_path / "whole").items()


def test_the_metrics_of_a_checkpoint_survive_a_resume(tmp_path: Path) -> None:
    """The loss was logged before the resume, and the next checkpoint reports it."""
    spec = small.spec(log_every_steps=5)
    _, whole = run(spec, tmp_path / "whole")
    stopped_after(spec, tmp_path / "a", 6, None)
    after = stopped_after(spec, tmp_path / "b", 2, last_file(tmp_path / "a"))

    expected = next(record for record in whole.of("checkpoint") if record["step"] == 8)
    assert after.of("checkpoint")[0]["metrics"] == expected["metrics"]
    assert expected["metrics"].keys() == {"train/loss", "eval/knn_top1"}


def test_a_checkpoint_of_an_older_version_resumes_without_the_state_of_metrics(tmp_path: Path) -> None:
    spec = small.spec(log_every_steps=5)
    run(spec, tmp_path / "whole")
    stopped_after(spec, tmp_path / "a", 3, None)
    saved = checkpoint.read(last_file(tmp_path / "a"))
    older = tmp_path / "older.safetensors"
    tensors = {name: tensor for name, tensor in saved.tensors.items() if not name.startswith("metrics/")}
    checkpoint.write(older, tensors, {name: value for name, value in saved.metadata.items() if name != "metrics"})

    outcome, after = run(spec, tmp_path / "b", resume=older)

    assert outcome == "succeeded"
    assert after.of("warning") == []
    ended, whole = (checkpoint.read(last_file(tmp_path / name)) for name in ("b", "whole"))
    del whole.tensors["metrics/untrained_correct"]  # which images its untrained network had right is lost
    assert ended.metadata == whole.metadata
    assert ended.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in ended.tensors.items())


def test_a_crash_resumes_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a request nothing is saved, so the steps since the last checkpoint are repeated."""
    spec = small.spec()
    run(spec, tmp_path / "whole")

    def crash(_: list[dict[str, Any]]) -> Request | None:
        if small.curves(reporter.records).keys() & {("train/loss", 6)}:
            raise ConnectionError
        return None

    reporter = MemoryReporter(crash)
    with pytest.raises(ConnectionError):
        pretrain(spec, reporter, dataset=small.few_digits(), output_dir=tmp_path / "a")
    assert last_file(tmp_path / "a").name == "step-00000004.safetensors"
    _, after = run(spec, tmp_path / "b", resume=last_file(tmp_path / "a"))
    assert after.of("started")[0]["start_step"] == 4
    joined = files(tmp_path / "a") | files(tmp_path / "b")
    assert joined == files(tmp_path / "whole")


def test_monitors_and_logs_do_not_reach_the_weights(tmp_path: Path) -> None:
    """The spec is in the file, so the tensors are compared."""
    tensors = []
    for name, changes in {
        "seen": {"knn_every_epochs": 1, "log_every_steps": 1, "monitor_every_epochs": 1},
        "unseen": {
            "knn_every_epochs": 0,
            "log_every_steps": 100,
            "monitor_every_epochs": 0,
            "checkpoints": {"every_epochs": 3},
        },
    }.items():
        run(small.spec(**changes), tmp_path / name)
        tensors.append(checkpoint.read(last_file(tmp_path / name)).tensors)
    del tensors[0]["metrics/untrained_correct"]  # a result of the measurement
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name


def test_the_loop_draws_nothing_from_the_global_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint does not hold its state, so a draw from it would be lost at a resume."""
    states: list[torch.Tensor] = []
    original = pretrain_module._Run._train_step

    def train_step(*arguments: Any) -> None:
        original(*arguments)
        states.append(torch.get_rng_state())

    monkeypatch.setattr(pretrain_module._Run, "_train_step", train_step)
    pretrain(small.spec(), MemoryReporter(), dataset=small.few_digits(), output_dir=tmp_path)
    assert len(states) == TOTAL_STEPS
    assert all(torch.equal(state, states[0]) for state in states)


def test_resuming_a_finished_run_leaves_its_result_again(tmp_path: Path) -> None:
    spec = small.spec()
    run(spec, tmp_path / "whole")
    outcome, again = run(spec, tmp_path / "again", resume=last_file(tmp_path / "whole"))
    assert outcome == "succeeded"
    assert files(tmp_path / "again").items() <= files(tmp_path / "whole").items()
    assert len(again.of("checkpoint")) == 1


def test_all_state_that_changes_is_in_the_checkpoint(tmp_path: Path) -> None:
    """Running statistics move, momentum exists for every parameter, and facts of one attempt are absent."""
    run(small.spec(), tmp_path)
    saved = checkpoint.read(last_file(tmp_path))
    model = saved.part("model/")
    assert int(model["backbone.bn1.num_batches_tracked"]) == 2 * TOTAL_STEPS  # once for each view
    assert model["backbone.bn1.running_mean"].abs().max() > 0
    weights = {name for name in model if "running_" not in name and "num_batches" not in name}
    assert {name.removesuffix("/momentum") for name in saved.part("optimizer/")} == weights
    expected = {"format_version", "spec", "dataset_digest", "step", "epoch", "environment", "metrics"}
    assert saved.metadata.keys() == expected
    assert (saved.metadata["step"], saved.metadata["epoch"]) == (TOTAL_STEPS, EPOCHS)


def test_queue_and_momentum_encoder_are_in_the_checkpoint(tmp_path: Path) -> None:
    """The queue holds the images of the latest steps; the momentum network lags behind the trained one."""
    run(small.spec(queue_size=128, momentum_decay=0.9), tmp_path, stop=(3, "drain"))
    saved = checkpoint.read(last_file(tmp_path))
    _, second, third = list(epoch_batches(270, 64, 0, 0, 0))[:3]
    queue = saved.part("queue/")
    assert torch.equal(queue["images"], torch.cat((third, second)))
    torch.testing.assert_close(queue["u"].norm(dim=2), torch.ones(2, 128))
    model, slow = saved.part("model/"), saved.part("momentum/")
    assert model.keys() == slow.keys()
    name = "backbone.conv1.weight"
    start = small.model(small.spec()).state_dict()[name]
    assert 0 < (slow[name] - start).norm() < 0.5 * (model[name] - start).norm()


def test_running_statistics_are_updated_once_for_each_pass_with_gradient(tmp_path: Path) -> None:
    for name, changes, updates in (
        ("crops", {"multi_crop": {"crops": 2}}, 3),
        ("chunks", {"micro_batch_size": 16}, 8),
        ("both", {"multi_crop": {"crops": 2}, "micro_batch_size": 32}, 6),
    ):
        run(small.spec(**changes), tmp_path / name, stop=(2, "drain"))
        saved = checkpoint.read(last_file(tmp_path / name))
        assert int(saved.tensors["model/backbone.bn1.num_batches_tracked"]) == 2 * updates, name


def test_the_multi_crop_term_is_reported_and_weighted(tmp_path: Path) -> None:
    for method in ("wcl", "simclr"):
        spec = small.spec(method=method, multi_crop={"crops": 1, "weight": 0.5})
        curves = small.curves(run(spec, tmp_path / method)[1].records)
        for step in (1, TOTAL_STEPS):
            total = curves["train/loss_instance", step] + curves.get(("train/loss_weak", step), 0.0)
            total += 0.5 * curves["train/loss_multi_crop", step]
            assert curves["train/loss", step] == pytest.approx(total, rel=1e-6)


def test_crops_have_views_and_a_size_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, float, float]] = []
    sides: list[int] = []
    draw, view_of = views_module.draw_parameters, views_module.view_of

    def watch_draw(shape: Any, config: Any, **options: Any) -> Any:
        drawn.append((options["view"], config.scale_min, options["scale_max"]))
        return draw(shape, config, **options)

    def watch(images: torch.Tensor, parameters: Any, size: int) -> torch.Tensor:
        sides.append(size)
        return view_of(images, parameters, size)

    monkeypatch.setattr(views_module, "draw_parameters", watch_draw)
    monkeypatch.setattr(views_module, "view_of", watch)
    spec = small.spec(
        data={"name": "digits", "image_size": 16},
        multi_crop={"crops": 2, "scale_min": 0.1, "scale_max": 0.3, "image_size": 8},
        weak_augmentation_epochs=0,
    )
    run(spec, tmp_path, stop=(1, "drain"))
    assert sides == [16, 16, 8, 8]
    assert drawn[:4] == [(0, 0.08, 1.0), (1, 0.08, 1.0), (2, 0.1, 0.3), (3, 0.1, 0.3)]


@pytest.mark.parametrize(
    ("changes", "field"), [({"seed": 1}, "seed"), ({"loss": {"weak_weight": 0.5}}, "loss"), ({"epochs": 4}, "epochs")]
)
def test_a_checkpoint_of_another_spec_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    run(small.spec(), tmp_path / "a", stop=(1, "drain"))
    with pytest.raises(CheckpointError, match=f"has another spec; these fields differ: {field}"):
        run(small.spec(**changes), tmp_path / "b", resume=last_file(tmp_path / "a"))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run(small.spec(), tmp_path / "a", stop=(1, "drain"))
    data = small.few_digits()
    other = ImageData(data.name, data.train, data.test, data.classes, "0" * 64)
    with pytest.raises(CheckpointError, match="other images"):
        run(small.spec(), tmp_path / "b", resume=last_file(tmp_path / "a"), dataset=other)


def test_another_environment_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small.spec(), tmp_path / "a", stop=(1, "drain"))
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    outcome, after = run(small.spec(), tmp_path / "b", resume=last_file(tmp_path / "a"))
    assert outcome == "succeeded"
    (warning,) = after.of("warning")
    assert warning["reason"] == "resume_environment_changed"
    assert "-> 0.0.1" in warning["message"]


# --- requests ------------------------------------------------------------------------------------------------------


def test_a_cancel_ends_the_run_after_the_step_without_a_further_checkpoint(tmp_path: Path) -> None:
    result, reporter = run(small.spec(), tmp_path, stop=(6, "cancel"))
    assert result == "cancelled"
    assert [record["step"] for record in reporter.of("checkpoint")] == [4]


@pytest.mark.parametrize(("verb", "outcome"), [("drain", "drained"), ("pause", "paused")])
def test_a_request_ends_the_run_after_the_step_with_a_checkpoint(tmp_path: Path, verb: Request, outcome: str) -> None:
    result, reporter = run(small.spec(), tmp_path, stop=(6, verb))
    assert result == outcome
    (*_, last) = reporter.of("checkpoint")
    assert (last["step"], last["epoch"], last["path"]) == (6, 1, "checkpoints/step-00000006.safetensors")


def test_a_request_before_the_first_step_ends_the_run_without_a_step(tmp_path: Path) -> None:
    outcome, reporter = run(small.spec(), tmp_path, stop=(0, "cancel"))
    assert outcome == "cancelled"
    assert {record["type"] for record in reporter.records} == {"started", "progress"}
    assert not (tmp_path / "checkpoints").exists()


def test_a_request_during_the_last_step_comes_too_late(tmp_path: Path) -> None:
    outcome, reporter = run(small.spec(), tmp_path, stop=(TOTAL_STEPS, "cancel"))
    assert outcome == "succeeded"
    assert [record["step"] for record in reporter.of("checkpoint")] == [4, 8, 12]


def test_a_request_ends_a_long_measurement_which_the_next_attempt_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_module, "_MEASURE_SECONDS", 0.0)
    spec = small.spec()
    _, whole = run(spec, tmp_path / "whole")
    records, resume = [], None
    for name, step in (("u", 1), ("a", 4), ("b", TOTAL_STEPS)):  # untrained, after the first epoch, and the last one
        outcome, reporter = run(spec, tmp_path / name, resume=resume, stop=(step, "drain"))
        resume = last_file(tmp_path / name)
        assert outcome == "drained"
        assert checkpoint.read(resume).metadata["step"] == step
        records += reporter.records
    outcome, reporter = run(spec, tmp_path / "c", resume=resume)

    assert outcome == "succeeded"
    assert small.curves(records + reporter.records) == small.curves(whole.records)
    last = last_file(tmp_path / "whole").name
    assert files(tmp_path / "c")[last] == files(tmp_path / "whole")[last]


def test_the_untrained_network_is_measured_right_after_the_first_step(tmp_path: Path) -> None:
    spec, dataset = small.spec(log_every_steps=1), small.few_digits()
    _, reporter = run(spec, tmp_path)
    metrics = [(record["step"], "eval/knn_top1" in record["values"]) for record in reporter.of("metrics")]
    assert metrics[:3] == [(1, False), (0, True), (2, False)]
    features = network_features(Model(spec, build_method(spec)).backbone, dataset, torch.device("cpu"))
    k = min(pretrain_module._KNN_K, largest_k(features.smallest_class))
    expected = small.knn_top1(features, k, pretrain_module._KNN_TEMPERATURE)
    assert small.curves(reporter.records)["eval/knn_top1", 0] == expected


# --- reports -------------------------------------------------------------------------------------------------------


def test_checkpoints_are_written_when_due_and_match_their_records(tmp_path: Path) -> None:
    spec = small.spec(checkpoints={"every_epochs": 3, "first_epoch": True}, knn_every_epochs=2)
    _, reporter = run(spec, tmp_path)
    records = reporter.of("checkpoint")
    assert [(r["step"], r["epoch"]) for r in records] == [(4, 1), (12, 3)]
    digests = files(tmp_path)
    curves = small.curves(reporter.records)
    for record in records:
        path = tmp_path / record["path"]
        assert (digests[path.name], path.stat().st_size) == (record["sha256"], record["size"])
        assert record["metrics"]["train/loss"] == curves["train/loss", record["step"]]
        # The kNN accuracy of an earlier epoch is no metric of this checkpoint.
        assert record["metrics"].get("eval/knn_top1") == curves.get(("eval/knn_top1", record["step"]))
    assert [step for name, step in curves if name == "eval/knn_top1"] == [0, 8, 12]


def test_each_metric_is_reported_at_its_steps(tmp_path: Path) -> None:
    spec = small.spec(log_every_steps=5)
    _, reporter = run(spec, tmp_path)
    curves = small.curves(reporter.records)
    assert sorted(step for name, step in curves if name == "train/loss") == [5, 10, 12]
    names = {name for name, _ in curves if not name.startswith(("repr/", "embedding/"))}
    assert names == {
        "train/loss",
        "train/loss_instance",
        "train/loss_weak",
        "train/lr",
        "weak/components",
        "weak/largest_share",
        "weak/view_agreement",
        "weak/pair_precision",
        "weak/pair_precision_chance",
        "weak/component_share",
        "weak/ami",
        "eval/knn_top1",
        "eval/knn_top1_gained",
        "eval/knn_top1_lost",
    }
    gap = curves["eval/knn_top1", 12] - curves["eval/knn_top1", 0]
    gained, lost = curves["eval/knn_top1_gained", 12], curves["eval/knn_top1_lost", 12]
    assert gained - lost == pytest.approx(gap)
    assert gained > 0
    for step in (5, 10, 12):
        total = curves["train/loss_instance", step] + curves["train/loss_weak", step]
        assert curves["train/loss", step] == pytest.approx(total, rel=1e-6)
        rate = learning_rate(step - 1, TOTAL_STEPS, STEPS_PER_EPOCH, 0.06 * 64 / 256)
        assert curves["train/lr", step] == pytest.approx(rate)
        assert 2 <= curves["weak/components", step] <= 32
        assert 2 / 64 <= curves["weak/largest_share", step] <= 1


def test_a_window_is_the_mean_of_its_steps(tmp_path: Path) -> None:
    each = small.curves(run(small.spec(log_every_steps=1), tmp_path / "a")[1].records)
    windows = small.curves(run(small.spec(log_every_steps=5), tmp_path / "b")[1].records)
    for last, steps in {5: range(1, 6), 10: range(6, 11), 12: range(11, 13)}.items():
        mean = sum(each["train/loss", step] for step in steps) / len(steps)
        assert windows["train/loss", last] == pytest.approx(mean, rel=1e-6)


def test_simclr_is_wcl_without_the_weak_head(tmp_path: Path) -> None:
    """Same start, same views: the instance loss of the first step is the same."""
    wcl = small.curves(run(small.spec(), tmp_path / "wcl")[1].records)
    simclr = small.curves(run(small.spec(method="simclr"), tmp_path / "simclr")[1].records)
    assert simclr["train/loss", 1] == wcl["train/loss_instance", 1]
    assert not any(name.startswith("weak/") or name == "train/loss_weak" for name, _ in simclr)
    assert ("repr/rankme", 4) in simclr
    assert not any("weak_head" in name for name in checkpoint.read(last_file(tmp_path / "simclr")).tensors)


def test_each_part_has_a_seed_of_its_own() -> None:
    """The heads start from the same weights under another stem, and the two heads from different ones."""
    one, other = (small.model(small.spec(backbone={"width": 4, "stem": stem})) for stem in ("small", "imagenet"))
    weak = {name: tensor for name, tensor in one.state_dict().items() if name.startswith("weak_head")}
    assert torch.equal(one.instance_head.output.weight, other.instance_head.output.weight)
    assert torch.equal(weak["weak_head.output.weight"], other.state_dict()["weak_head.output.weight"])
    assert not torch.equal(one.instance_head.output.weight, weak["weak_head.output.weight"])


def test_progress_starts_at_the_first_step_and_ends_at_the_last(tmp_path: Path) -> None:
    _, reporter = run(small.spec(), tmp_path)
    records = reporter.of("progress")
    assert (records[0]["step"], records[0]["phase"]) == (0, "train")
    assert (records[-1]["step"], records[-1]["epoch"], records[-1]["phase"]) == (TOTAL_STEPS, EPOCHS, "train")
    assert {record["phase"] for record in records} == {"train", "evaluate", "save"}
    assert all(record["total_steps"] == TOTAL_STEPS and record["total_epochs"] == EPOCHS for record in records)
    assert records[-1]["images_per_second"] > 0
    assert records[-1]["eta_seconds"] == 0
    (started,) = reporter.of("started")
    assert (started["start_step"], started["total_steps"], started["threads"]) == (0, TOTAL_STEPS, 1)
    assert reporter.records[0] == started


def test_the_speed_is_that_of_the_latest_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    patch_clock(monkeypatch, run_metrics, monotonic=lambda: now[0])
    clock = run_metrics.Clock(step=10, batch_size=8)

    def steps(*seconds: float) -> float | None:
        for each in seconds:
            now[0] += each
            step[0] += 1
            clock.tick(step[0])
        return clock.images_per_second(step[0])

    step = [10]
    assert steps(9, 0.5) is None, "two steps say little"
    assert steps(0.25) == pytest.approx(8 * 2 / 0.75), "the first step is slow, and does not count"
    assert steps(*[2] * 6) == pytest.approx(4)
    with clock.stopped():
        now[0] += 1_000
    assert steps(2, 60, 2) == pytest.approx(4), "neither a measurement nor a pause changes it"
    assert steps(*[8] * 40) == pytest.approx(1), "a machine that gets slower does"


def test_the_clock_counts_training_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    patch_clock(monkeypatch, run_metrics, monotonic=lambda: now[0])
    clock = run_metrics.Clock(step=10, batch_size=8)
    now[0] += 2
    with clock.stopped():
        now[0] += 1000
    now[0] += 3
    assert clock.window_images_per_second(20) == pytest.approx(16)
    now[0] += 1
    assert clock.window_images_per_second(21) == pytest.approx(8)
    assert clock.is_due()
    assert not clock.is_due()
    now[0] += 1
    assert clock.is_due()


def test_every_step_sees_two_views_of_its_epochs_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[bool, int, int, int, int]] = []
    original = views_module.draw_parameters

    def watch(shape: Any, config: Any, **place: Any) -> Any:
        met.append((config == spec.weak_augmentation, *(place[name] for name in ("seed", "epoch", "step", "view"))))
        return original(shape, config, **place)

    monkeypatch.setattr(views_module, "draw_parameters", watch)
    spec = small.spec(weak_augmentation_epochs=2, seed=6, monitor_every_epochs=0)
    run(spec, tmp_path)
    steps = [(step // STEPS_PER_EPOCH, step, view) for step in range(TOTAL_STEPS) for view in (0, 1)]
    assert met == [(epoch < 2, 6, epoch, step, view) for epoch, step, view in steps]


# --- failures ------------------------------------------------------------------------------------------------------


def spoil(step: int, what: str) -> Callable[[Any, Any, int], None]:
    original = pretrain_module._Run._train_step

    def train_step(self: Any, index: Any, epoch: int) -> None:
        original(self, index, epoch)
        if self.step == step:
            with torch.no_grad():
                parameters = dict(self.model.named_parameters())
                parameters[what][(0,) * parameters[what].ndim] = math.nan

    return train_step


def test_a_loss_that_is_not_finite_is_reported_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_module._Run, "_train_step", spoil(5, "backbone.conv1.weight"))
    reporter = MemoryReporter()
    with pytest.raises(NonFiniteLossError, match="after step 6"):
        pretrain(small.spec(), reporter, dataset=small.few_digits(), output_dir=tmp_path)
    (*_, last) = reporter.of("metrics")
    assert (last["step"], last["values"]["train/loss"]) == (6, None)
    assert reporter.of("warning")[-1]["reason"] == "non_finite_metric"
    assert list(files(tmp_path)) == ["step-00000004.safetensors"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights become infinite in the last step of the epoch, whose loss is still finite."""
    monkeypatch.setattr(pretrain_module._Run, "_train_step", spoil(8, "instance_head.output.bias"))
    with pytest.raises(NonFiniteLossError, match="not finite after step 8"):
        run(small.spec(knn_every_epochs=0), tmp_path)
    assert list(files(tmp_path)) == ["step-00000004.safetensors"]


def test_fewer_images_than_a_batch_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="batch_size is 271.*270"):
        run(small.spec(batch_size=271), tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_checkpoint_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "one.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"one\.safetensors"):
        run(small.spec(), tmp_path, resume=path)


# --- learning ------------------------------------------------------------------------------------------------------


def test_an_untrained_network_is_where_the_run_starts(tmp_path: Path) -> None:
    """With a learning rate that is 0 at the first step of the warm-up, no weight has moved after it."""
    spec = small.spec(seed=9)
    run(spec, tmp_path, stop=(1, "drain"))
    backbone, _ = load_backbone(last_file(tmp_path))
    start = untrained_backbone(spec.backbone, seed=9)
    for name, parameter in start.named_parameters():
        assert torch.equal(parameter, backbone.get_parameter(name)), name


@pytest.mark.parametrize("method", ["wcl", "simclr"])
def test_features_of_a_short_run_are_better_than_untrained_ones(tmp_path: Path, method: str) -> None:
    preset = presets()["digits-cpu"]
    spec = preset.model_copy(
        update={
            "method": method,
            "epochs": 6,
            "warmup_epochs": 1.0,
            "weak_augmentation_epochs": 1,
            "knn_every_epochs": 6,
            "threads": 1,
            "backbone": preset.backbone.model_copy(update={"width": 8}),
        }
    )
    outcome, reporter = run(spec, tmp_path, dataset=small.digits())
    assert outcome == "succeeded"
    curves = small.curves(reporter.records)
    before, after = (curves["eval/knn_top1", step] for step in (0, 30))
    assert after > before + 0.03
    assert after > 0.9
    losses = [value for (name, _), value in sorted(curves.items(), key=lambda item: item[0][1]) if name == "train/loss"]
    assert losses[-1] < losses[0] - 0.5
    if method == "wcl":
        precision = [curves["weak/pair_precision", step] for step in (5, 30)]
        assert precision[1] > precision[0] + 0.1
        assert precision[1] > 3 * curves["weak/pair_precision_chance", 30]
