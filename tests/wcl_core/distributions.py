"""Distributions that tests install into a temporary folder, with only the files that an installer writes."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, name: str, entry_points: str) -> None:
    """Write metadata with entry points; the caller writes the modules that they name."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def install_barlow_twins(folder: Path) -> Path:
    """Install a method like an operator does: options without torch, and the method."""
    install(folder, "wcl-test-method", _ENTRY_POINTS)
    (folder / "wcl_test_options.py").write_text(_OPTIONS)
    (folder / "wcl_test_method.py").write_text(_METHOD)
    return folder


_ENTRY_POINTS = """
[wcl.methods]
barlow-twins = wcl_test_options:BarlowTwinsOptions
no-options = wcl_test_options:NotOptions
no-method = wcl_test_options:WithoutMethod
no-heads = wcl_test_options:WithoutHeads
absent = wcl_test_options:nothing
"""
_OPTIONS = """
from pydantic import Field
from wcl_core.config import MethodOptions

class BarlowTwinsOptions(MethodOptions):
    off_diagonal_weight: float = Field(default=0.02, gt=0, le=1)
    projection_dim: int = Field(default=8, ge=2)

    def build(self, spec):
        from wcl_test_method import BarlowTwins
        return BarlowTwins(self)

class NotOptions:
    pass

class WithoutMethod(MethodOptions):
    def build(self, spec):
        return object()

class WithoutHeads(MethodOptions):
    def build(self, spec):
        from wcl_test_method import Headless
        return Headless()
"""
# The loss is scaled by a running mean of its own, which is state: a resume that lost it would go on differently.
_METHOD = '''
import torch
from torch import nn
from wcl_core.methods.base import Loss, Method

class BarlowTwins(Method):
    """Zbontar et al., ICML 2021."""

    def __init__(self, options):
        self.options = options

    @property
    def heads(self):
        return {"projection": lambda dim: nn.Linear(dim, self.options.projection_dim)}

    def prepare(self, device):
        self.scale = torch.ones((), device=device)

    def state(self):
        return {"barlow/scale": self.scale}

    def load(self, part):
        self.scale.copy_(part("barlow/")["scale"])

    def loss(self, embedded, batch, keys):
        diagonal, off = self.terms(embedded)
        total = (diagonal + self.options.off_diagonal_weight * off) / self.scale
        return Loss(total, {"diagonal": diagonal.detach(), "off_diagonal": off.detach()})

    def follow(self, embedded, batch):
        self.scale.lerp_(sum(self.terms(embedded)), 0.1)

    def terms(self, embedded):
        one, other = (view["projection"].float() for view in (embedded.first, embedded.second))
        one, other = ((z - z.mean(0)) / (z.std(0) + 1e-4) for z in (one, other))
        c = one.T @ other / len(one)
        diagonal = (1 - c.diagonal()).square()
        return diagonal.sum(), c.square().sum() - c.diagonal().square().sum()

class Headless(Method):
    @property
    def heads(self):
        return {"backbone": nn.Identity}

    def loss(self, embedded, batch, keys):
        raise NotImplementedError
'''
