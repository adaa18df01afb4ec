"""A dataset without labels: it trains, shows curves, weak labels and a map, and no number that needs labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.wcl_core import small
from tests.wcl_core.data.test_data import write_image
from wcl_core import data
from wcl_core.config import PROTOCOLS, EvaluateSpec, parse_spec
from wcl_core.data import ImageData, packing, with_held_out
from wcl_core.data.cache import Cache
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.run import evaluate
from wcl_core.evaluation.view_accuracy import recognised_by_pixels
from wcl_core.protocol import MONITOR_BATCH_FACTS, VIEW_TOP1, VIEW_TOP1_CHANCE, VIEW_TOP1_PIXELS, MonitorBatchFacts
from wcl_core.reporter import MemoryReporter, NullReporter
from wcl_core.training.pretrain import pretrain

torch.set_num_threads(1)
IMAGES = 140


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        colour = (number, 255 - number, 7 * number % 256)
        write_image(root / str(number % 3) / f"{number:03}.png", colour, size=(12, 9))
    return root


def load(folder: Path, cache: Cache | None = None) -> ImageData:
    digest = data.describe("photos", "folder", folder, has_labels=False).digest
    more: dict[str, Any] = {"has_labels": False, "cache": cache, "digest": digest}
    return data.load("photos", "folder", folder, 8, 0.0, NullReporter(), **more)


def names_of(reporter: MemoryReporter) -> set[str]:
    return {name for record in reporter.of("metrics") for name in record["values"]}


def evaluation(protocol: str) -> EvaluateSpec:
    features = {"kind": "untrained", "backbone": {"name": "tiny", "width": 4}}
    sent = {"data": {"name": "photos", "image_size": 8}, "features": features, "protocols": [protocol]}
    parsed = parse_spec("evaluate", sent)
    assert isinstance(parsed, EvaluateSpec)
    return parsed


def test_it_trains_and_reports_what_needs_no_labels(folder: Path, tmp_path: Path) -> None:
    reporter = MemoryReporter()
    data = {"name": "photos", "image_size": 8, "held_out_share": 0.25}
    spec = small.spec(data=data, epochs=2, monitor_every_epochs=1)
    assert pretrain(spec, reporter, dataset=load(folder), output_dir=tmp_path) == "succeeded"
    names = names_of(reporter)
    assert {"train/loss", "repr/rankme", "repr/uniformity", "embedding/rankme", "weak/component_share"} <= names
    assert not {name for name in names if "knn" in name or "precision" in name or "ami" in name or "purity" in name}
    views = [(record["step"], record["values"]) for record in reporter.of("metrics") if VIEW_TOP1 in record["values"]]
    assert [step for step, _ in views] == [0, *range(spec.knn_every_epochs, 2), 2]
    held_out = round(0.25 * IMAGES)
    assert {values[VIEW_TOP1_CHANCE] for _, values in views} == {1 / held_out}
    untrained = views[0][1]
    assert {VIEW_TOP1_PIXELS, "repr/rankme", "repr/uniformity"} <= untrained.keys()
    split = with_held_out(load(folder), 0.25).test
    assert untrained[VIEW_TOP1_PIXELS] == recognised_by_pixels(spec, split, torch.device("cpu")).double().mean()
    assert reporter.of("warning") == []
    (kept,) = (each for each in reporter.of("artifact") if each["name"] == MONITOR_BATCH_FACTS)
    facts = MonitorBatchFacts.model_validate_json((tmp_path / kept["path"]).read_bytes())
    assert (len(facts.indices), facts.known_classes, facts.class_names) == (64, None, [])
    assert reporter.of("started")[0]["total_steps"] == 2 * ((IMAGES - held_out) // 64)


@pytest.mark.process
def test_a_map_and_a_file_of_features_are_made_of_all_images(folder: Path, tmp_path: Path) -> None:
    reporter = MemoryReporter()
    for protocol in ("map", "embed"):
        spec, loaded = evaluation(protocol), load(folder)
        assert evaluate(spec, reporter, data=loaded, output_dir=tmp_path) == "succeeded"
    facts = json.loads((tmp_path / reporter.of("artifact")[1]["path"]).read_bytes())
    assert (facts["split"], facts["split_images"], set(facts["labels"])) == ("unlabelled", IMAGES, {None})
    assert len(facts["neighbours"]) == len(facts["tsne"]) == IMAGES
    assert facts["files"] == sorted(str(each.relative_to(folder)) for each in folder.rglob("*.png"))
    (written,) = reporter.of("checkpoint")
    tensors = load_file(tmp_path / written["path"])
    assert len(tensors.pop("unlabelled/paths").numpy().tobytes().splitlines()) == IMAGES
    assert {name: len(tensor) for name, tensor in tensors.items()} == {
        "unlabelled/features": IMAGES,
        "unlabelled/labels": IMAGES,
        "unlabelled/index": IMAGES,
    }


@pytest.mark.parametrize("protocol", [name for name, facts in PROTOCOLS.items() if facts.measures])
def test_a_measure_that_needs_labels_says_what_would_add_them(folder: Path, tmp_path: Path, protocol: str) -> None:
    with pytest.raises(ProtocolError, match=f"{protocol} needs labels; photos has no labels.*register a list"):
        evaluate(evaluation(protocol), MemoryReporter(), data=load(folder), output_dir=tmp_path)


def test_one_class_gives_no_accuracy(tmp_path: Path) -> None:
    few = small.few_digits()
    train, test = (replace(split, labels=torch.zeros_like(split.labels)) for split in (few.train, few.test))
    one = ImageData("digits", train, test, ("digit",), few.digest)
    reporter = MemoryReporter()
    assert pretrain(small.spec(epochs=2), reporter, dataset=one, output_dir=tmp_path) == "succeeded"
    assert not {name for name in names_of(reporter) if "knn" in name or "precision" in name or "ami" in name}
    with pytest.raises(ProtocolError, match="linear needs labels"):
        evaluate(evaluation("linear"), MemoryReporter(), data=one)
    held = data.with_held_out(one, 0.2)
    assert len(held.train) + len(held.test) == len(train)
    assert len(held.pretraining) == len(held.train) < len(train)


def test_the_cache_and_packed_files_hold_it(folder: Path, tmp_path: Path) -> None:
    plain = load(folder)
    cache = Cache(tmp_path / "cache", None)
    for loaded in (load(folder, cache), load(folder, cache)):
        assert loaded.pretraining.is_mapped
        assert torch.equal(loaded.pretraining.images, plain.pretraining.images)
        assert (len(loaded.train), loaded.digest, loaded.classes) == (0, plain.digest, ())
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in folder.rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    packing.pack("photos", flat, tmp_path / "photos.wclpack", 8, 0.0, NullReporter())
    described = data.describe("photos", "packed", tmp_path / "photos.wclpack")
    packed = data.load("photos", "packed", tmp_path / "photos.wclpack", 8, 0.0, NullReporter())
    assert described.counts == {"train": 0, "test": 0, "unlabelled": IMAGES}
    assert described.samples is not None
    in_order = data.load("photos", "folder", flat, 8, 0.0, NullReporter())
    assert torch.equal(packed.pretraining.images, in_order.pretraining.images)
