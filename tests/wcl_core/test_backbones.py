"""Backbones against torchvision's own networks, and the tiny one's shape."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from wcl_core.backbones import build_backbone
from wcl_core.config import BackboneConfig

torch.set_num_threads(1)


def config(name: str, stem: str = "small", width: int = 64) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": name, "stem": stem, "width": width})


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_names_shapes_and_features_are_torchvisions(name: str, dim: int) -> None:
    ours = build_backbone(config(name, "imagenet")).eval()
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.eval()(images))
    assert ours.feature_dim == dim


def test_resnet101_has_torchvisions_names() -> None:
    with torch.device("meta"):
        ours = build_backbone(config("resnet101", "imagenet")).state_dict()
        theirs = torchvision.models.resnet101(weights=None).state_dict()
    shapes = {name: p.shape for name, p in theirs.items() if not name.startswith("fc.")}
    assert {name: p.shape for name, p in ours.items()} == shapes


@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("stride2", 16), ("imagenet", 8)])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_stems(name: str, stem: str, side: int) -> None:
    network = build_backbone(config(name, stem))
    sides: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_hook(lambda _m, inputs, _o: sides.append(inputs[0].shape[2:]))
    features = network(torch.randn(2, 3, 32, 32))
    assert sides == [(side, side)]
    assert features.shape == (2, network.feature_dim)


def test_tiny_has_three_stages_of_one_block() -> None:
    network = build_backbone(config("tiny", width=8))
    channels = [network.state_dict()[f"layer{s}.0.conv2.weight"].shape[0] for s in (1, 2, 3)]
    assert channels == [8, 16, 32]
    assert network.feature_dim == 32
    assert not any(name.startswith(("layer4", "fc", "layer1.1")) for name in network.state_dict())
    assert network(torch.randn(3, 3, 8, 8)).shape == (3, 32)


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = build_backbone(config("resnet18"))
    for name, p in network.named_parameters():
        if p.ndim == 4:
            fan_out = p.shape[0] * p.shape[2] * p.shape[3]
            assert p.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
        else:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name


def test_the_seed_decides_the_weights() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_backbone(config("tiny", width=8)))
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a, b)
