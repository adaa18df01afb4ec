"""Every backbone of a weight file loads in one line, with the features that the run had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

import wcl_core
from tests.wcl_core.data.test_data import write_tree
from wcl_core import checkpoint, data
from wcl_core.__main__ import main
from wcl_core.checkpoint import CheckpointError
from wcl_core.config import parse_spec, resolve_spec
from wcl_core.export import backbone_file
from wcl_core.images.augment import normalised
from wcl_core.networks.backbones import build_backbone
from wcl_core.reporter import NullReporter

torch.set_num_threads(1)

BACKBONES: list[dict[str, Any]] = [
    {"name": "tiny", "width": 4},
    {"name": "tiny", "width": 8, "stem": "stride2"},
    {"name": "resnet18", "stem": "small"},
    {"name": "resnet18", "stem": "imagenet"},
    {"name": "vit_small", "patch_size": 8},
]
_WIDE = pytest.param({"name": "wide_resnet50_2", "stem": "imagenet"}, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [*BACKBONES, _WIDE], ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_backbone_file_loads_in_the_lines_that_it_names(tmp_path: Path, fields: dict[str, Any]) -> None:
    spec = parse_spec("pretrain", {"data": {"name": "digits", "image_size": 24}, "backbone": fields, "batch_size": 8})
    torch.manual_seed(0)
    trained = build_backbone(spec.backbone, 24).eval()  # type: ignore[union-attr]
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        expected = trained(images)
    tensors = {f"model/backbone.{name}": value for name, value in trained.state_dict().items()}
    native = checkpoint.write(
        tmp_path / "native.safetensors", tensors, {"spec": resolve_spec(spec), "step": 1, "epoch": 1}
    )
    backbone_file(native.path, tmp_path / "backbone.safetensors")
    with safe_open(tmp_path / "backbone.safetensors", framework="pt") as file:
        lines = json.loads(file.metadata()["wcl"])["load"]
    assert len(lines) == (2 if fields.get("stem") == "imagenet" else 1)
    for line in lines:
        names: dict[str, Any] = {}  # each line works alone, as it is copied
        exec(line.replace("backbone.safetensors", str(tmp_path / "backbone.safetensors")), names)  # noqa: S102
        with torch.no_grad():
            assert torch.equal(names["network"].eval()(images), expected), line
    loaded = wcl_core.load_backbone(native.path)
    assert (loaded.training, loaded.feature_dim) == (False, expected.shape[1])
    with torch.no_grad():
        assert torch.equal(loaded(images), expected)


def test_a_file_without_a_backbone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("none")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    facts = {"backbone": {"name": "tiny", "width": 4}}
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "other", metadata={"wcl": json.dumps(facts)})
    for name in ("none", "text", "foreign", "other"):
        with pytest.raises(CheckpointError, match=str(tmp_path / name)):
            wcl_core.load_backbone(tmp_path / name)


def test_features_of_new_images_are_those_of_the_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = parse_spec(
        "pretrain", {"data": {"name": "digits", "image_size": 8}, "backbone": BACKBONES[0], "batch_size": 8}
    )
    torch.manual_seed(0)
    trained = build_backbone(spec.backbone, 8).eval()  # type: ignore[union-attr]
    tensors = {f"model/backbone.{name}": value for name, value in trained.state_dict().items()}
    facts = {"spec": resolve_spec(spec), "step": 1, "epoch": 1}
    native = checkpoint.write(tmp_path / "native.safetensors", tensors, facts).path
    write_tree(tmp_path / "photos", {"a": 3, "b/c": 2})
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"none")
    for name in ("features.csv", "features.npy"):
        assert main(["features", str(native), str(tmp_path / "photos"), str(tmp_path / name)]) == 0
    printed = capfd.readouterr()
    assert ("features of 5 of 6 images; 1 left out: 1, its content is" in printed.out, "cut.jpg" in printed.err) == (
        True,
        True,
    )
    loaded = data.load("photos", "folder", tmp_path / "photos", 8, 1.0, NullReporter(), has_labels=False).pretraining
    with torch.no_grad():
        expected = trained(normalised(loaded.images)).numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), expected)
    assert tuple((tmp_path / "features.txt").read_text().splitlines()) == loaded.files
    rows = [line.split(",") for line in (tmp_path / "features.csv").read_text().splitlines()]
    assert rows[0][:3] == ["path", "f0", "f1"]
    assert tuple(row[0] for row in rows[1:]) == loaded.files
    np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], np.float32), expected)
    assert main(["features", str(native), str(tmp_path / "photos"), str(tmp_path / "features.xlsx")]) == 1
    assert "expected a name that ends in .csv, .parquet or .npy" in capfd.readouterr().err
    (tmp_path / "list.txt").write_text("photos/a/00.png\n")
    assert main(["features", str(native), str(tmp_path / "list.txt"), str(tmp_path / "list.npy")]) == 1
    assert "would replace the list" in capfd.readouterr().err
    assert (tmp_path / "list.txt").read_text() == "photos/a/00.png\n"


@pytest.mark.slow
def test_images_smaller_than_a_patch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"data": {"name": "x", "image_size": 32}, "backbone": {"name": "vit_small"}, "batch_size": 8}
    spec = parse_spec("pretrain", fields)
    network = build_backbone(spec.backbone, 32)  # type: ignore[union-attr]
    tensors = {f"model/backbone.{name}": value for name, value in network.state_dict().items()}
    file = checkpoint.write(tmp_path / "native.safetensors", tensors, {"spec": resolve_spec(spec), "step": 1}).path
    write_tree(tmp_path / "photos", {"a": 1})
    arguments = ["features", str(file), str(tmp_path / "photos"), str(tmp_path / "x.csv"), "--size=8"]
    assert main(arguments) == 1
    assert "cuts images into patches of 16 pixels; expected 16 at least" in capsys.readouterr().err
