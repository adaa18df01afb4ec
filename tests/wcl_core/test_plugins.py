"""Plugins as installed distributions on a search path that belongs to the test."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.wcl_core import small
from tests.wcl_core.distributions import install
from wcl_core import data, plugins
from wcl_core.config import BackboneConfig
from wcl_core.data import DataError
from wcl_core.networks.backbones import build_backbone
from wcl_core.plugins import PluginError
from wcl_core.reporter import MemoryReporter, NullReporter

torch.set_num_threads(1)

MODULE = """
import torch
from torch import nn
from wcl_core.data.builtin import Source

class Mean(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.feature_dim = channels
        self.linear = nn.Linear(3, channels)

    def forward(self, images):
        return self.linear(images.mean(dim=(2, 3)))

def build(config, image_size):
    return Mean(image_size if config.variant is None else int(config.variant))

def without_dim(config, image_size):
    return nn.Flatten()

def load(cache):
    images = torch.arange(20 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(20, 3, 8, 8)
    labels = torch.arange(20) % 2
    return Source((images[:14], labels[:14]), (images[14:], labels[14:]), ("even", "odd"))

def broken(cache):
    raise OSError("the archive is gone")
"""
ENTRY_POINTS = """
[wcl.backbones]
mean-colour = wcl_test_plugin:build
no-dim = wcl_test_plugin:without_dim
absent = wcl_test_plugin:nothing
needs-extra = wcl_test_plugin:build [nosuchdistribution]
[wcl.datasets]
stripes = wcl_test_plugin:load
broken-stripes = wcl_test_plugin:broken
"""


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    install(folder, "wcl-test-plugin", ENTRY_POINTS)
    (folder / "wcl_test_plugin.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wcl_test_plugin", raising=False)
    return folder


def test_names_come_from_metadata_alone(site_packages: Path) -> None:
    assert {"mean-colour", "no-dim", "absent"} <= set(plugins.names("wcl.backbones"))
    assert set(plugins.names("wcl.datasets")) >= {"stripes", "broken-stripes"}
    assert "wcl_test_plugin" not in sys.modules


def test_an_entry_point_whose_extra_is_not_installed_does_not_count(site_packages: Path) -> None:
    assert "needs-extra" not in plugins.names("wcl.backbones")
    install(site_packages / "more", "nosuchdistribution", "")
    sys.path.insert(0, str(site_packages / "more"))
    try:
        assert "needs-extra" in plugins.names("wcl.backbones")
    finally:
        sys.path.remove(str(site_packages / "more"))


def test_a_spec_names_a_plugin_only_where_it_is_installed(site_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small.spec(backbone={"name": "mean-colour"}).backbone.name == "mean-colour"
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site_packages)])
    with pytest.raises(ValidationError, match="there is no backbone mean-colour; expected one of tiny, "):
        small.spec(backbone={"name": "mean-colour"})


@pytest.mark.process
def test_validating_a_spec_imports_neither_plugin_nor_torch(site_packages: Path) -> None:
    code = (
        "import sys\n"
        "from wcl_core.config import parse_spec\n"
        "parse_spec('pretrain', {'data': {'name': 'digits'}, 'backbone': {'name': 'mean-colour'}})\n"
        "assert not {'torch', 'wcl_test_plugin'} & set(sys.modules)\n"
    )
    paths = [str(site_packages), str(Path(__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_backbone_is_built_with_its_variant_and_the_images_side(site_packages: Path) -> None:
    assert build_backbone(BackboneConfig(name="mean-colour"), 24).feature_dim == 24
    network = build_backbone(BackboneConfig(name="mean-colour", variant="5"), 24)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(("name", "message"), [("no-dim", "feature_dim"), ("absent", "cannot be imported.*nothing")])
def test_a_backbone_that_is_none_is_named(site_packages: Path, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=f"plugin {name} of wcl.backbones.*{message}"):
        build_backbone(BackboneConfig(name=name), 8)


def test_a_name_that_two_distributions_bring_is_refused(site_packages: Path) -> None:
    install(site_packages, "wcl-other-plugin", "[wcl.backbones]\nmean-colour = wcl_other:build\n")
    plugins._entries.cache_clear()
    with pytest.raises(PluginError, match="two distributions provide it: wcl_other:build, wcl_test_plugin:build"):
        plugins.load("wcl.backbones", "mean-colour")
    with pytest.raises(PluginError, match="is not installed here"):
        plugins.load("wcl.backbones", "nothing")


def test_a_run_trains_a_plugins_backbone_on_a_plugins_images(site_packages: Path, tmp_path: Path) -> None:
    from wcl_core.training.pretrain import pretrain

    stripes = data.load("stripes", "builtin", tmp_path, 8, 0.0, NullReporter())
    assert (stripes.classes, len(stripes.train), len(stripes.test)) == (("even", "odd"), 14, 6)
    assert data.describe("stripes", "builtin", tmp_path).digest == stripes.digest
    spec = small.spec(data={"name": "stripes", "image_size": 8}, backbone={"name": "mean-colour"}, batch_size=4)
    assert pretrain(spec, MemoryReporter(), dataset=stripes, output_dir=tmp_path) == "succeeded"


def test_a_dataset_that_cannot_be_loaded_is_named(site_packages: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset broken-stripes: .*the archive is gone"):
        data.load("broken-stripes", "builtin", tmp_path, 8, 0.0, NullReporter())


needs_timm = pytest.mark.skipif(
    not entry_points(group="wcl.backbones", name="timm"), reason="this project is not installed, so timm is no plugin"
)


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "size"), [("resnet10t", 32), ("vit_tiny_patch16_224", 48)])
def test_a_spec_names_one_of_timms_networks(variant: str, size: int) -> None:
    spec = small.spec(data={"name": "digits", "image_size": size}, backbone={"name": "timm", "variant": variant})
    network = build_backbone(spec.backbone, size)
    assert network(torch.randn(2, 3, size, size)).shape == (2, network.feature_dim)


@needs_timm
def test_a_network_that_timm_lacks_is_named() -> None:
    with pytest.raises(PluginError, match=r"backbone\.variant no-such-net"):
        build_backbone(BackboneConfig(name="timm", variant="no-such-net"), 32)
    with pytest.raises(PluginError, match=r"backbone\.variant is missing"):
        build_backbone(BackboneConfig(name="timm"), 32)
