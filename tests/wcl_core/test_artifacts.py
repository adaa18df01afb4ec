"""Artifacts are complete before they are reported; every image is in its place on a sheet."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wcl_core import artifacts
from wcl_core.protocol import ARTIFACT_NAME
from wcl_core.reporter import MemoryReporter
from wcl_core.thumbnails import sheet


def test_a_reported_artifact_is_complete_also_after_it_was_replaced(tmp_path: Path) -> None:
    reporter = MemoryReporter()
    for content in (b"first", b"second"):
        artifacts.keep(reporter, tmp_path, "probe.png", content)

    for record, content in zip(reporter.records, (b"first", b"second"), strict=True):
        assert (tmp_path / record["path"]).read_bytes() == content
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        facts = (record["type"], record["name"], record["size"], record["media_type"])
        assert facts == ("artifact", "probe.png", len(content), "image/png")
        assert re.fullmatch(ARTIFACT_NAME, record["name"]), "a worker delivers such a name only"
    assert len(list((tmp_path / "artifacts").iterdir())) == 2


def test_an_artifact_that_cannot_be_written_becomes_a_warning(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("where the folder should be")
    reporter = MemoryReporter()
    artifacts.keep(reporter, tmp_path, "probe.png", b"pixels")

    (record,) = reporter.records
    assert (record["type"], record["reason"]) == ("warning", "artifact_not_kept")
    assert "probe.png" in record["message"]


@pytest.mark.parametrize(("count", "columns"), [(1, None), (7, None), (9, None), (7, 4), (2, 5)])
def test_every_image_is_in_its_place(count: int, columns: int | None) -> None:
    images = torch.randint(0, 256, (count, 3, 5, 5), dtype=torch.uint8)
    result = sheet(images, columns)

    picture = np.asarray(Image.open(io.BytesIO(result.png)))
    rows = -(-count // result.columns)
    assert picture.shape == (5 * rows, 5 * result.columns, 3)
    assert result.tile == 5
    assert columns in (None, result.columns)
    for place, image in enumerate(images):
        top, left = place // result.columns * 5, place % result.columns * 5
        assert np.array_equal(picture[top : top + 5, left : left + 5], image.permute(1, 2, 0).numpy())
    assert not picture[5 * (rows - 1) :, 5 * ((count - 1) % result.columns + 1) :].any()


def test_large_images_become_small_tiles() -> None:
    ramp = torch.arange(96).clamp(max=255).to(torch.uint8).expand(1, 3, 96, 96)
    result = sheet(torch.cat([ramp, 255 - ramp]))

    picture = np.asarray(Image.open(io.BytesIO(result.png))).astype(int)
    assert (result.tile, picture.shape) == (48, (48, 96, 3))
    assert np.abs(picture[:, :48, 0] - (2 * np.arange(48) + 0.5)).max() <= 1
    assert np.abs(picture[:, 48:, 0] + picture[:, :48, 0] - 255).max() <= 1
