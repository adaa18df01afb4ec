"""Weights in the forms of other programs compute the features of the network that they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from wcl_core.__main__ import main
from wcl_core.config import BackboneConfig
from wcl_core.digests import canonical_json
from wcl_core.networks.backbones import build_backbone
from wcl_core.networks.timm import timm_name, torchvision_name
from wcl_core.networks.weights import load_backbone


def backbone_file(path: Path, size: int, **fields: object) -> Path:
    """Write an exported backbone with random weights and statistics."""
    torch.manual_seed(1)
    config = BackboneConfig.model_validate(fields)
    network = build_backbone(config, size)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    facts = {"backbone": config.model_dump(), "data": {"image_size": size}}
    safetensors.torch.save_file(network.state_dict(), path, metadata={"wcl": canonical_json(facts)})
    return path


def assert_equal_features(file: Path, other: nn.Module, size: int) -> None:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, features = load_backbone(file)(images), other(images)
    torch.testing.assert_close(features, expected, rtol=0, atol=float(1e-4 * expected.abs().max()))


@pytest.mark.slow
def test_an_onnx_graph_takes_any_number_of_images(tmp_path: Path) -> None:
    file = backbone_file(tmp_path / "tiny.safetensors", 32, name="tiny", width=8)

    assert main(["export", str(file), str(tmp_path / "tiny.onnx"), "--form=onnx"]) == 0

    graph = onnx.load(tmp_path / "tiny.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {each.key: each.value for each in graph.metadata_props}["image_size"] == "32"
    session = onnxruntime.InferenceSession(tmp_path / "tiny.onnx")
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        (features,) = session.run(["features"], {"images": images.numpy()})
        with torch.inference_mode():
            expected = load_backbone(file)(images)
        torch.testing.assert_close(
            torch.from_numpy(features), expected, rtol=0, atol=float(1e-4 * expected.abs().max())
        )


@pytest.mark.slow
def test_the_graph_of_a_transformer_has_no_fixed_number_of_images(tmp_path: Path) -> None:
    network = load_backbone(backbone_file(tmp_path / "vit.safetensors", 32, name="vit_small", patch_size=16))
    batch = torch.export.Dim("batch", min=1, max=64)

    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))

    assert program.module()(torch.zeros(5, 3, 32, 32)).shape == (5, 384)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"name": "resnet18", "stem": "imagenet"}, 64),
        ({"name": "vit_small", "patch_size": 16}, 32),
        ({"name": "timm", "variant": "resnet10t"}, 32),
    ],
    ids=["resnet18", "vit_small", "timm"],
)
def test_timm_loads_the_folder(tmp_path: Path, fields: dict[str, object], size: int) -> None:
    file, folder = backbone_file(tmp_path / "b.safetensors", size, **fields), tmp_path / "folder"
    (tmp_path / "about.md").write_text("## Results\n")

    assert main(["export", str(file), str(folder), "--form=timm", f"--about={tmp_path / 'about.md'}"]) == 0

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_equal_features(file, network, size)
    shape = timm.data.resolve_model_data_config(network)
    assert (shape["input_size"], tuple(shape["mean"])) == ((3, size, size), (0.485, 0.456, 0.406))
    assert (folder / "README.md").read_text().endswith("## Results\n")
    stated = json.dumps(json.loads((folder / "config.json").read_text()))
    assert "license" not in stated
    assert "in1k" not in stated  # of weights of timm's own
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_the_names_of_timm_lead_back() -> None:
    with torch.device("meta"):
        names = list(build_backbone(BackboneConfig(name="vit_small"), 32).state_dict())

    assert [torchvision_name(timm_name(name)) for name in names] == names
    assert len({timm_name(name) for name in names} - set(names)) == len(names)


def test_what_timm_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = backbone_file(tmp_path / "small.safetensors", 32, name="resnet18", stem="small")
    (tmp_path / "there").mkdir()

    assert main(["export", str(small), str(tmp_path / "new"), "--form=timm"]) == 1
    assert "timm has no resnet18 with the stem small" in capsys.readouterr().err
    assert main(["export", str(small), str(tmp_path / "there"), "--form=timm"]) == 1
    assert "there exists" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["small.safetensors", "there"]
