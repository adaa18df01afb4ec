"""Reports on the monitor batch: its images, and their groups by weak labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.config import PretrainSpec
from wcl_core.images.augment import normalised
from wcl_core.methods.weak_labels import weak_labels
from wcl_core.protocol import Request
from wcl_core.reporter import MemoryReporter
from wcl_core.training.pretrain import pretrain

pytestmark = pytest.mark.slow


def run(spec: PretrainSpec, folder: Path, *, stop: int = 0, resume: Path | None = None) -> MemoryReporter:
    def request(records: list[dict[str, object]]) -> Request | None:
        return "drain" if stop and any(record.get("step") == stop for record in records) else None

    reporter = MemoryReporter(request)
    pretrain(spec, reporter, dataset=small.few_digits(), output_dir=folder, resume=resume)
    return reporter


def artifact(reporter: MemoryReporter, folder: Path, name: str) -> bytes:
    (record,) = (record for record in reporter.of("artifact") if record["name"] == name)
    path: str = record["path"]
    return (folder / path).read_bytes()


def tiles(png: bytes, tile: int, columns: int, count: int) -> torch.Tensor:
    """Return the images of a sheet as a page cuts them out: (count, 3, tile, tile) uint8."""
    picture = np.asarray(Image.open(io.BytesIO(png)))
    places = [(place // columns * tile, place % columns * tile) for place in range(count)]
    return torch.tensor(np.stack([picture[y : y + tile, x : x + tile] for y, x in places])).permute(0, 3, 1, 2)


def test_groups_are_the_weak_labels_of_the_images_that_are_shown(tmp_path: Path) -> None:
    """The test computes them again from public files: the picture, and the checkpoints of the same steps."""
    spec = small.spec(checkpoints={"every_epochs": 1})
    reporter = run(spec, tmp_path)
    facts = json.loads(artifact(reporter, tmp_path, "probe.json"))
    images = tiles(artifact(reporter, tmp_path, "probe.png"), facts["tile"], facts["columns"], spec.batch_size)

    train = small.few_digits().train
    assert torch.equal(images, train.images[facts["indices"]])
    assert facts["classes"] == train.labels[facts["indices"]].tolist()
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    assert [(record["epoch"], record["step"]) for record in reporter.of("groups")] == [(1, 4), (2, 8), (3, 12)]
    for record, saved in zip(reporter.of("groups"), reporter.of("checkpoint"), strict=True):
        model = small.model(spec)
        model.load_state_dict(checkpoint.read(tmp_path / saved["path"]).part("model/"))
        model.eval()
        with torch.no_grad():
            rows = model(normalised(images))
        assert model.labels_head is not None
        assert record["labels"] == weak_labels(rows[model.labels_head]).tolist()
    assert len({tuple(record["labels"]) for record in reporter.of("groups")}) > 1
    places = [place for place, record in enumerate(reporter.records) if record["type"] == "groups"]
    assert all("weak/ami" in reporter.records[place + 1]["values"] for place in places), "who sees these finds those"


def test_a_resumed_run_shows_the_same_images_and_the_groups_that_were_missing(tmp_path: Path) -> None:
    spec = small.spec()
    whole = run(spec, tmp_path / "whole")
    before = run(spec, tmp_path / "before", stop=6)
    saved = tmp_path / "before" / before.of("checkpoint")[-1]["path"]
    after = run(spec, tmp_path / "after", resume=saved)

    assert before.of("groups") + after.of("groups") == whole.of("groups")
    assert before.of("artifact") == after.of("artifact") == whole.of("artifact")


def test_runs_without_weak_labels_or_monitoring_report_no_groups(tmp_path: Path) -> None:
    for spec in (small.spec(method="simclr"), small.spec(monitor_every_epochs=0)):
        reporter = run(spec, tmp_path)
        assert reporter.of("artifact") == reporter.of("groups") == []


def test_an_image_without_a_class_is_reported_without_one(tmp_path: Path) -> None:
    data = small.few_digits()
    labels = data.train.labels.clone()
    labels[::2] = -1
    train = type(data.train)(data.train.images, labels, data.train.digest)
    reporter = MemoryReporter()
    pretrain(
        small.spec(epochs=1, warmup_epochs=0, knn_every_epochs=0),
        reporter,
        dataset=type(data)(data.name, train, data.test, data.classes, data.digest),
        output_dir=tmp_path,
    )
    facts = json.loads(artifact(reporter, tmp_path, "probe.json"))
    assert [label is None for label in facts["classes"]] == [index % 2 == 0 for index in facts["indices"]]
