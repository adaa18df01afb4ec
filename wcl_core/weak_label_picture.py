"""A picture of the weak labels: the same probe images grouped by an early and by a late checkpoint.

Every group is a component of the nearest-neighbour graph of the weak head's embeddings, without augmentation.  Frames
are blue for images of the group's commonest class and orange for all others; labels serve the picture only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.config import PretrainSpec
from wcl_core.data import ImageData, epoch_order
from wcl_core.images.augment import normalised
from wcl_core.methods import build_method
from wcl_core.methods.weak_labels import pair_precision, pair_precision_chance, weak_labels
from wcl_core.networks.model import Model

_THUMBNAIL, _GAP, _MARGIN, _HEADER, _FRAME = 40, 6, 24, 84, 3
_ROWS, _COLUMNS = 14, 10
_INK, _PALE, _PAPER, _SAME, _OTHER = "#1b1f24", "#667085", "#ffffff", "#2f6fde", "#e8833a"


@dataclass(frozen=True)
class Grouping:
    """Weak labels of the probe by one checkpoint.

    Attributes:
        epoch: of the checkpoint.
        labels: (B,) int64.
        precision: pair precision, 0..1.
    """

    epoch: int
    labels: Tensor
    precision: float


def probe_batch(data: ImageData, spec: PretrainSpec) -> tuple[Tensor, Tensor]:
    """As many train images as one batch of the run, chosen by its seed: (B, 3, H, W) uint8 and (B,) classes."""
    index = epoch_order(len(data.train), spec.seed, -1)[: spec.batch_size]
    return data.train.plain(index), data.train.labels[index]


def group(path: Path, data: ImageData) -> Grouping:
    """Group the probe by a native checkpoint.

    Raises:
        checkpoint.CheckpointError: unreadable, or of a method without a weak head.
    """
    saved = checkpoint.read(path)
    spec = saved.spec
    model = Model(spec, build_method(spec))
    if model.labels_head is None:
        raise checkpoint.CheckpointError(f"checkpoint {path.name} has no weak-label head: method {spec.method}")
    model.load_state_dict(saved.part("model/"))
    images, classes = probe_batch(data, spec)
    model.eval()
    with torch.no_grad():
        u = torch.cat([model(normalised(chunk))[model.labels_head] for chunk in images.split(256)])
    labels = weak_labels(u)
    return Grouping(int(saved.metadata["epoch"]), labels, float(pair_precision(labels, classes)))


def compare(first: Path, last: Path, data: ImageData, output: Path) -> dict[str, float]:
    """Draw both groupings side by side.

    Returns:
        `pair_precision_first`, `pair_precision_last` and the level of random pairs, `pair_precision_chance`.
    """
    spec = checkpoint.read(last).spec
    images, classes = probe_batch(data, spec)
    both = group(first, data), group(last, data)
    chance = float(pair_precision_chance(classes))
    panels = [_panel(images, classes, grouping, chance) for grouping in both]
    sheet = Image.new("RGB", (sum(p.width for p in panels) + _MARGIN, panels[0].height), _PAPER)
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (panels[0].width + _MARGIN, 0))
    sheet.save(output)
    return {
        "pair_precision_first": both[0].precision,
        "pair_precision_last": both[1].precision,
        "pair_precision_chance": chance,
    }


def _panel(images: Tensor, classes: Tensor, grouping: Grouping, chance: float) -> Image.Image:
    cell = _THUMBNAIL + _GAP
    panel = Image.new("RGB", (2 * _MARGIN + _COLUMNS * cell, _HEADER + _ROWS * (cell + _GAP) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((_MARGIN, 20), f"After epoch {grouping.epoch}", fill=_INK, font=ImageFont.load_default(20))
    caption = f"{grouping.precision:.0%} of weak pairs share a class (chance {chance:.0%})"
    draw.text((_MARGIN, 50), caption, fill=_PALE, font=ImageFont.load_default(14))
    for row, label in enumerate(grouping.labels.unique()[:_ROWS]):
        members = (grouping.labels == label).nonzero().flatten()
        commonest = classes[members].mode().values
        top = _HEADER + row * (cell + _GAP)
        for column, member in enumerate(members[:_COLUMNS].tolist()):
            left = _MARGIN + column * cell
            colour = _SAME if classes[member] == commonest else _OTHER
            draw.rectangle((left, top, left + _THUMBNAIL - 1, top + _THUMBNAIL - 1), fill=colour)
            panel.paste(_thumbnail(images[member]), (left + _FRAME, top + _FRAME))
        if len(members) > _COLUMNS:
            rest = f"+{len(members) - _COLUMNS}"
            draw.text((_MARGIN + _COLUMNS * cell, top + 12), rest, fill=_PALE, font=ImageFont.load_default(12))
    return panel


def _thumbnail(image: Tensor) -> Image.Image:
    side = _THUMBNAIL - 2 * _FRAME
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
