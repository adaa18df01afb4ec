"""Sheets of samples: each class in its row, spread over its images, never larger than the limit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wcl_core import data
from wcl_core.data import builtin, samples
from wcl_core.data.samples import MAX_BYTES, Samples, samples_of_files, samples_of_images


def tiles(sheet: Samples | None) -> np.ndarray:
    """Return the tiles as an array (rows, columns, side, side, 3)."""
    assert sheet is not None
    picture = np.asarray(Image.open(io.BytesIO(sheet.png)).convert("RGB"))
    assert picture.shape == (sheet.rows * sheet.side, sheet.columns * sheet.side, 3)
    return picture.reshape(sheet.rows, sheet.side, sheet.columns, sheet.side, 3).transpose(0, 2, 1, 3, 4)


def numbered(count: int, side: int) -> Tensor:
    """Return images whose colour is their index."""
    places = torch.arange(count)
    return (
        torch.stack((places % 256, places // 256, places * 0), dim=1)[:, :, None, None].repeat(1, 1, side, side).byte()
    )


def test_each_class_has_its_row_with_images_from_all_over_it() -> None:
    labels = torch.tensor([2] * 3 + [0] * 40 + [-1] * 5 + [3] + [0] * 40)
    drawn = tiles(samples_of_images(numbered(len(labels), 6), labels, 4))

    assert drawn.shape == (4, 8, 6, 6, 3)
    colours = drawn[:, :, 3, 3, 0]
    assert colours[0].tolist() == [3, 13, 23, 33, 49, 59, 69, 79]
    assert colours[1].tolist() == [0] * 8  # without an image in train
    assert colours[2].tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert colours[3].tolist() == [48, 0, 0, 0, 0, 0, 0, 0]


def test_digits_are_shown_as_they_are() -> None:
    digits = builtin.load_builtin("digits", None, None)
    drawn = tiles(samples_of_images(digits.train.images, digits.train.labels, 10))

    assert drawn.shape == (10, 8, 8, 8, 3)
    for label in range(10):
        first = digits.train.images[digits.train.labels == label][0].permute(1, 2, 0).numpy()
        assert (drawn[label, 0] == first).all()


@pytest.mark.parametrize(
    ("classes", "layout"), [(1, (1, 8, 48)), (10, (10, 8, 48)), (30, (30, 6, 32)), (1000, (100, 3, 24))]
)
def test_the_worst_picture_is_small_enough(classes: int, layout: tuple[int, int, int]) -> None:
    """Noise cannot be compressed."""
    noise = torch.randint(0, 256, (300, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = samples_of_images(noise, torch.arange(300) % min(classes, 100), classes)

    assert sheet is not None
    assert (sheet.rows, sheet.columns, sheet.side) == layout
    assert len(sheet.png) <= MAX_BYTES
    assert tiles(sheet)[-1, 0].std() > 10


def test_files_are_scaled_and_damaged_ones_stay_black(tmp_path: Path) -> None:
    for place, size in enumerate(((300, 100), (9, 9))):
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / f"{place}.jpg", quality=95)
    (tmp_path / "2.jpg").write_bytes(b"no picture")
    sheet = samples_of_files(tmp_path, [("0.jpg", 0), ("2.jpg", 0), ("1.jpg", 1)], 2)

    drawn = tiles(sheet)
    assert drawn.shape[:3] == (2, 8, 48)
    for red in (drawn[0, 0], drawn[1, 0]):
        assert np.abs(red.astype(int) - (200, 10, 10)).max() < 6
    assert drawn[0, 1].max() == 0


def test_without_classes_there_is_no_picture() -> None:
    assert samples_of_images(numbered(3, 8), torch.full((3,), -1), 0) is None


def test_cached_samples_equal_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            Image.new("RGB", (5, 5), (10, 200, 10)).save(tmp_path / "tree" / split / name / "0.png")
    cache = tmp_path / "tree.json"
    monkeypatch.setattr("wcl_core.data.file_index.REST_NS", -(10**18))  # the files may be as young as they are
    first = data.describe("tree", "folder", tmp_path / "tree", cache)
    assert first.samples is not None
    monkeypatch.setattr(samples, "read_image", lambda *_, **__: pytest.fail("an image was decoded again"))

    assert data.describe("tree", "folder", tmp_path / "tree", cache) == first
    monkeypatch.undo()
    text = cache.read_text()
    cache.write_text(text.replace('"samples"', '"other"'))  # as another version may keep it
    assert data.describe("tree", "folder", tmp_path / "tree", cache) == first
