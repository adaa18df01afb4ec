"""Going on: more epochs after the end of a run, and runs that start from the weights of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.wcl_core import small
from tests.wcl_core.small import STEPS_PER_EPOCH
from tests.wcl_core.training.test_pretrain import files, last_file, run, stopped_after
from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import PretrainSpec
from wcl_core.export import backbone_file
from wcl_core.reporter import MemoryReporter
from wcl_core.schedule import learning_rate, restarted_rate
from wcl_core.training import pretrain as pretrain_module
from wcl_core.training.pretrain import pretrain

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

# Every state there is, and no interval that divides the three epochs of the first part.
ALL_STATE: dict[str, Any] = {
    "queue_size": 192,
    "momentum_decay": 0.9,
    "multi_crop": {"crops": 2, "neighbours": 3, "ramp_fraction": 0.5},
    "loss": {"exclude_mates": True, "weak_ramp_fraction": 0.5},
    "log_every_steps": 5,
    "knn_every_epochs": 2,
    "monitor_every_epochs": 2,
    "checkpoints": {"every_epochs": 10, "first_epoch": True},
}


def test_a_continued_run_has_the_bytes_of_one_run_with_the_restart(tmp_path: Path) -> None:
    """Also from an earlier checkpoint, and when it is interrupted within an epoch."""
    _, first = run(small.spec(**ALL_STATE), tmp_path / "first")
    longer = small.spec(**ALL_STATE | {"epochs": 5, "restarts": [3]})
    _, whole = run(longer, tmp_path / "whole")
    end, expected = last_file(tmp_path / "first"), files(tmp_path / "whole")
    assert end.name == f"step-{3 * STEPS_PER_EPOCH:08d}.safetensors"
    assert list(expected) == [f"step-{epoch * STEPS_PER_EPOCH:08d}.safetensors" for epoch in (1, 3, 5)]

    outcome, rest = run(longer, tmp_path / "rest", resume=end)
    stopped_after(longer, tmp_path / "part", STEPS_PER_EPOCH + 2, end)
    run(longer, tmp_path / "interrupted", resume=last_file(tmp_path / "part"))
    run(longer, tmp_path / "earlier", resume=sorted((tmp_path / "first" / "checkpoints").glob("*"))[0])

    assert outcome == "succeeded"
    for folder in ("rest", "interrupted", "earlier"):
        name = last_file(tmp_path / folder).name
        assert (name, files(tmp_path / folder)[name]) == list(expected.items())[-1], folder
    assert small.curves(first.records) | small.curves(rest.records) == small.curves(whole.records)


def test_only_the_run_that_ends_at_the_restart_is_continued(tmp_path: Path) -> None:
    run(small.spec(), tmp_path / "first")
    end = last_file(tmp_path / "first")

    for restarts in ([2], []):
        with pytest.raises(CheckpointError, match="these fields differ: epochs"):
            run(small.spec(epochs=5, restarts=restarts), tmp_path / "other", resume=end)


def test_each_part_of_the_learning_rate_is_a_warm_up_and_a_cosine() -> None:
    spec = small.spec(epochs=43, restarts=[3, 23], warmup_epochs=1)
    rates = [restarted_rate(spec, step, 4, 0.5) for step in range(43 * 4)]

    assert rates[: 3 * 4] == [learning_rate(step, 3 * 4, 4, 0.5) for step in range(3 * 4)]
    assert rates[3 * 4 : 23 * 4] == [learning_rate(step, 20 * 4, 4, 0.5) for step in range(20 * 4)]
    assert rates[23 * 4 :] == [learning_rate(step, 20 * 4, 4, 0.5) for step in range(20 * 4)]
    short = small.spec(epochs=5, restarts=[3], warmup_epochs=2)
    assert [restarted_rate(short, step, 10, 1.0) for step in (30, 31, 32)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("restarts", [[3], [4], [2, 2], [2, 1], [0]])
def test_restarts_are_epochs_in_ascending_order_before_the_last_one(restarts: list[int]) -> None:
    with pytest.raises(ValueError, match="restarts"):
        small.spec(epochs=3, restarts=restarts)


def test_a_warm_up_ends_before_the_first_restart() -> None:
    with pytest.raises(ValueError, match="the first restart is after 2 epochs, but warmup_epochs is 2"):
        small.spec(epochs=9, warmup_epochs=2, restarts=[2])


# --- weights to start from -------------------------------------------------------------------------------------------

DIGEST = "0" * 64


def started(spec: PretrainSpec, folder: Path, weights: Path, resume: Path | None = None) -> MemoryReporter:
    reporter = MemoryReporter(lambda _: None)
    data = small.few_digits()
    pretrain(spec, reporter, dataset=data, output_dir=folder, weights=weights, resume=resume)
    return reporter


def first_model(spec: PretrainSpec, folder: Path, weights: Path) -> dict[str, torch.Tensor]:
    arguments = (spec, MemoryReporter(lambda _: None), small.few_digits(), folder, None)
    begun = pretrain_module._Run(*arguments, pretrain_module.SINGLE, weights)
    return begun.learner.state()


def test_a_run_starts_from_the_network_and_the_heads_of_a_checkpoint(tmp_path: Path) -> None:
    run(small.spec(), tmp_path / "first")
    native = last_file(tmp_path / "first")
    saved = checkpoint.read(native).part("model/")
    other = small.spec(weights=DIGEST, seed=7, momentum_decay=0.9, epochs=2, data={"name": "other", "image_size": 8})

    state = first_model(other, tmp_path, native)

    for part in ("model/", "momentum/"):
        names = [name for name in saved if part == "model/" or f"momentum/{name}" in state]
        assert names
        assert all(torch.equal(state[f"{part}{name}"], saved[name]) for name in names), part


def test_an_exported_backbone_leaves_the_heads_as_they_are(tmp_path: Path) -> None:
    run(small.spec(), tmp_path / "first")
    backbone_file(last_file(tmp_path / "first"), tmp_path / "backbone.safetensors")
    saved = checkpoint.read(last_file(tmp_path / "first")).part("model/")
    spec = small.spec(weights=DIGEST, epochs=2)

    state = first_model(spec, tmp_path, tmp_path / "backbone.safetensors")

    drawn = small.model(spec).state_dict()
    for name, tensor in saved.items():
        expected = tensor if name.startswith("backbone.") else drawn[name]
        assert torch.equal(state[f"model/{name}"], expected), name


def test_an_interrupted_run_from_weights_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    run(small.spec(), tmp_path / "first")
    native = last_file(tmp_path / "first")
    spec = small.spec(weights=DIGEST, seed=7)
    reporter = started(spec, tmp_path / "whole", native)
    remaining = iter([None] * 6)

    stopped = MemoryReporter(lambda _: next(remaining, "drain"))
    pretrain(spec, stopped, dataset=small.few_digits(), output_dir=tmp_path / "part", weights=native)
    run(spec, tmp_path / "rest", resume=last_file(tmp_path / "part"))

    assert files(tmp_path / "rest").items() <= files(tmp_path / "whole").items()
    assert last_file(tmp_path / "rest").name == last_file(tmp_path / "whole").name
    assert any("backbone, instance_head, weak_head" in record["message"] for record in reporter.of("log"))


def test_before_the_first_step_a_run_measures_the_weights_that_it_starts_from(tmp_path: Path) -> None:
    _, first = run(small.spec(), tmp_path / "first")
    earlier = {step: value for (name, step), value in small.curves(first.records).items() if name == "eval/knn_top1"}

    second = started(small.spec(weights=DIGEST, seed=7), tmp_path / "second", last_file(tmp_path / "first"))

    measured = small.curves(second.records)["eval/knn_top1", 0]
    assert measured == earlier[max(earlier)]
    assert measured != earlier[0]


def test_weights_that_cannot_be_started_from_are_refused(tmp_path: Path) -> None:
    run(small.spec(epochs=2), tmp_path / "first")
    native = last_file(tmp_path / "first")
    spoilt = safetensors.torch.load_file(native)
    spoilt["model/backbone.conv1.weight"][0, 0, 0, 0] = torch.nan
    safetensors.torch.save_file(spoilt, tmp_path / "nan.safetensors")
    (tmp_path / "short.safetensors").write_bytes(native.read_bytes()[:-100])
    spec = small.spec(weights=DIGEST)
    wider = small.spec(weights=DIGEST, backbone={"name": "tiny", "width": 8})

    for named, file, message in [
        (spec, tmp_path / "nan.safetensors", "hold NaN or infinity"),
        (spec, tmp_path / "short.safetensors", "cannot be read"),
        (spec, tmp_path / "absent", "cannot be read"),
        (wider, native, r"of another backbone: conv1.weight is 4x3x3x3, expected 8x3x3x3"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            started(named, tmp_path / "out", file)
    with pytest.raises(CheckpointError, match="no file is given"):
        run(spec, tmp_path / "out")
