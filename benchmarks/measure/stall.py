"""The time that training stalls for a checkpoint, against torch.save of the same state to the same disk, no fsync."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from measure.rounds import Row, interleaved, seconds, share
from torchvision.models import resnet18

from wcl_core.checkpoint import BackgroundWriter

GOAL = 0.15


def rows(rounds: int) -> list[Row]:
    """Return the row for a ResNet-18, two projection heads and their momentum: about 140 MiB."""
    model = resnet18(num_classes=1).state_dict()
    heads = {f"head/{name}/{layer}": torch.randn(2048, 512 * layer) for name in "ab" for layer in (1, 4)}
    state = {f"{part}/{name}": tensor.clone() for part in ("model", "momentum") for name, tensor in model.items()}
    state |= heads
    writer = BackgroundWriter()
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> float:
            stall = seconds(lambda: writer.start(Path(folder) / "ours", state, {}))
            writer.finish()
            return stall

        times = interleaved(ours, lambda: seconds(lambda: torch.save(state, Path(folder) / "theirs")), rounds)
        writer.close()
    return [share("stall of a checkpoint", "torch.save", *times, GOAL)]
