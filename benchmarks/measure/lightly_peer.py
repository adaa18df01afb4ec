"""lightly's SimCLR as in its example: for each line on stdin it trains some steps and prints seconds per image.

Its transform processes one PIL image at a time in the loader's processes; the loader stays alive between rounds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wcl_core.config import BackboneConfig
from wcl_core.networks.backbones import build_backbone


class Pictures(Dataset[list[Tensor]]):
    def __init__(self, count: int) -> None:
        pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
        self._images = [Image.fromarray(image.numpy()) for image in pixels]
        self._transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self._transform(self._images[index])
        return views


class SimCLR(nn.Module):
    def __init__(self, backbone: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = build_backbone(BackboneConfig(**backbone), 32)
        dim = self.backbone.feature_dim
        self.projection_head = SimCLRProjectionHead(dim, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z


def batches(batch_size: int, steps: int, num_workers: int) -> Iterator[list[Tensor]]:
    loader = DataLoader(
        Pictures(batch_size * steps),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    while True:
        yield from loader


def main(backbone: dict[str, Any], batch_size: int, steps: int, threads: int) -> None:
    torch.set_num_threads(threads)
    model, criterion = SimCLR(backbone), NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    stream = batches(batch_size, steps, num_workers=threads if threads > 1 else 0)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(steps):
            x0, x1 = next(stream)
            loss = criterion(model(x0), model(x1))
            loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps((time.perf_counter() - start) / (steps * batch_size)), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
