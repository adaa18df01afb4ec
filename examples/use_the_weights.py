"""Load a trained backbone into torchvision's ResNet, and find the most similar images of a folder.

    wcl download JOB --kind weights --output backbone.safetensors
    python examples/use_the_weights.py backbone.safetensors /data/photos --size 64

The job's backbone is a ResNet with `stem: imagenet`.  It needs torch, torchvision, safetensors and Pillow only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize, ToDtype, ToImage


def load_backbone(path: Path) -> nn.Module:
    """Return torchvision's network of the file's name with its weights, and without its classifier."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["wcl"])
    if facts["backbone"]["stem"] != "imagenet":
        raise SystemExit(f"{path}: the stem is {facts['backbone']['stem']}; torchvision's networks have `imagenet`")
    network: nn.Module = getattr(torchvision.models, facts["backbone"]["name"])()
    network.fc = nn.Identity()
    network.load_state_dict(load_file(path))
    return network.eval()


@torch.inference_mode()
def features(network: nn.Module, paths: list[Path], size: int) -> Tensor:
    """Return unit rows, one for each image: (N, D)."""
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # as in training
    prepare = Compose(
        [ToImage(), Resize(size), CenterCrop(size), ToDtype(torch.float32, scale=True), Normalize(mean, deviation)]
    )
    rows = [network(prepare(Image.open(path).convert("RGB"))[None]) for path in paths]
    return nn.functional.normalize(torch.cat(rows))


def main() -> None:
    """Print the nearest other image of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels, as in training")
    options = parser.parse_args()

    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    rows = features(load_backbone(options.weights), paths, options.size)
    similarity = (rows @ rows.T).fill_diagonal_(-1)
    for path, nearest in zip(paths, similarity.argmax(dim=1).tolist(), strict=True):
        print(f"{path.relative_to(options.folder)} -> {paths[nearest].relative_to(options.folder)}")


if __name__ == "__main__":
    main()
