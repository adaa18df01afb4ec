"""Backbones against torchvision's own networks, and the shape of the tiny one."""

from __future__ import annotations

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import nn

from tests.wcl_core import small
from wcl_core.config import BackboneConfig, parse_spec
from wcl_core.networks.backbones import build_backbone

torch.set_num_threads(1)


def config(name: str, stem: str = "small", width: int = 64) -> BackboneConfig:
    return BackboneConfig.model_validate({"name": name, "stem": stem, "width": width})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_names_shapes_and_features_are_torchvisions(name: str, dim: int) -> None:
    ours = build_backbone(config(name, "imagenet"), 32).eval()
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.eval()(images))
    assert ours.feature_dim == dim


@pytest.mark.parametrize("name", ["resnet101", "wide_resnet50_2", "wide_resnet101_2"])
def test_large_networks_have_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(config(name, "imagenet"), 32).state_dict()
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    shapes = {name: p.shape for name, p in theirs.items() if not name.startswith("fc.")}
    assert {name: p.shape for name, p in ours.items()} == shapes


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "side"), [("small", 32), ("stride2", 16), ("imagenet", 8)])
@pytest.mark.parametrize(("name", "device"), [("tiny", "cpu"), ("resnet18", "cpu"), ("wide_resnet50_2", "meta")])
def test_stems(name: str, device: str, stem: str, side: int) -> None:
    with torch.device(device):  # the shapes of the largest one follow without its numbers
        network = build_backbone(config(name, stem), 32)
        images = torch.randn(2, 3, 32, 32)
    sides: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_hook(lambda _m, inputs, _o: sides.append(inputs[0].shape[2:]))
    features = network(images)
    assert sides == [(side, side)]
    assert features.shape == (2, network.feature_dim)


def test_tiny_has_three_stages_of_one_block() -> None:
    network = build_backbone(config("tiny", width=8), 32)
    channels = [network.state_dict()[f"layer{s}.0.conv2.weight"].shape[0] for s in (1, 2, 3)]
    assert channels == [8, 16, 32]
    assert network.feature_dim == 32
    assert not any(name.startswith(("layer4", "fc", "layer1.1")) for name in network.state_dict())
    assert network(torch.randn(3, 3, 8, 8)).shape == (3, 32)


def test_initialisation() -> None:
    torch.manual_seed(0)
    network = build_backbone(config("resnet18"), 32)
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
        networks.append(build_backbone(config("tiny", width=8), 32))
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(a, b)


# --- transformers --------------------------------------------------------------------------------------------------


def transformer(name: str, image_size: int, patch_size: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig.model_validate({"name": name, "patch_size": patch_size}), image_size)


def test_a_transformer_is_torchvisions_without_its_head() -> None:
    """At its own size bit for bit, position embeddings and all."""
    ours = transformer("vit_small", 32, patch_size=8).eval()
    theirs = torchvision.models.VisionTransformer(32, 8, 12, 6, 384, 1536)
    theirs.heads = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs.eval()(images))
    assert ours.feature_dim == 384


def test_the_base_transformer_loads_into_torchvisions_own_model() -> None:
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name="vit_base"), 224)
        theirs = torchvision.models.vit_b_16(weights=None)
    shapes = {name: p.shape for name, p in theirs.state_dict().items() if not name.startswith("heads.")}
    assert {name: p.shape for name, p in ours.state_dict().items()} == shapes
    assert ours.feature_dim == 768


def test_a_transformer_takes_other_sizes_by_interpolated_positions() -> None:
    """Of embeddings that rise linearly across the grid, a coarser grid's rise linearly too."""
    network = transformer("vit_small", 64, patch_size=8).eval()
    positions = network.encoder.pos_embedding
    ramp = torch.linspace(0, 1, 8)
    with torch.no_grad():
        positions.zero_()
        positions[:, 0] = 5.0
        positions[:, 1:, 0] = ramp.repeat(8)
    positions = network._positions(4, 4)
    assert positions.shape == (1, 17, 384)
    assert (positions[:, 0] == 5).all()
    grid = positions[0, 1:, 0].view(4, 4)
    assert torch.allclose(grid, grid[:1].expand(4, 4), atol=1e-6)  # columns run along the last axis
    assert torch.allclose(grid[0, 1:3], torch.tensor([2.5 / 7, 4.5 / 7]), atol=1e-2)
    flat = network._positions(2, 4)[0, 1:, 0].view(2, 4)
    assert torch.allclose(flat, grid[:2], atol=1e-6)  # rows first
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 40, 24)).shape == (2, 384)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"backbone": {"name": "resnet19"}}, "backbone.name"),
        ({"backbone": {"name": "vit_small", "width": 32}}, "backbone.width"),
        ({"backbone": {"name": "resnet18", "patch_size": 8}}, "backbone.patch_size"),
        ({"backbone": {"name": "vit_small", "patch_size": 1}}, "backbone.patch_size"),
        ({"backbone": {"name": "vit_small", "variant": "x"}}, "backbone.variant"),
        ({"backbone": {"name": "vit_small", "patch_size": 16}}, "backbone"),
    ],
)
def test_options_that_a_backbone_does_not_have_are_refused_by_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        small.spec(**changes)
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == field


def test_patches_that_do_not_fit_are_named() -> None:
    backbone = {"name": "vit_small", "patch_size": 5}
    for kind, sent in (
        ("pretrain", small.fields(backbone=backbone)),
        ("evaluate", {"data": {"name": "digits"}, "features": {"kind": "untrained", "backbone": backbone}}),
    ):
        with pytest.raises(ValidationError, match=r"backbone\.patch_size is 5, which does not divide data\.image_size"):
            parse_spec(kind, sent)
