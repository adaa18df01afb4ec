"""Packed files: the same images as their folder, checked to the last byte, mapped and never decoded again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.wcl_core import small
from tests.wcl_core.data.test_data import damage, write_tree
from wcl_core import data
from wcl_core.__main__ import main
from wcl_core.data import DataError, ImageData, decoding, images, packing
from wcl_core.data import packed as packed_module
from wcl_core.data.cache import Cache
from wcl_core.data.label_lists import read_label_list
from wcl_core.evaluation.features import network_features, pixel_features
from wcl_core.evaluation.run import untrained_backbone
from wcl_core.reporter import MemoryReporter, NullReporter
from wcl_core.training import view_maker
from wcl_core.training.pretrain import pretrain

torch.set_num_threads(1)


def write_noise(root: Path, counts: dict[str, int]) -> None:
    """Write images that differ in every pixel."""
    generator = np.random.default_rng(0)
    for place, count in counts.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (11, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{index:02d}.png")


def pack(root: Path, out: Path, size: int = 8, max_corrupt_share: float = 0.0) -> data.Description:
    return packing.pack("photos", root, out, size, max_corrupt_share, NullReporter())


def load(path: Path, size: int = 8) -> ImageData:
    return data.load("photos", "packed", path, size, 0.0, NullReporter())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    write_noise(root, {"train/cat": 5, "train/dog/small": 3, "train/dog": 2, "val/dog": 4, "unlabelled/any": 6})
    return root


@pytest.fixture
def packed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a packed file of several blocks, of which the last one is short."""
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 1000)
    path = tmp_path / "photos.wclpack"
    pack(photos, path)
    return path


def test_a_packed_file_has_the_images_of_its_folder(photos: Path, packed: Path) -> None:
    ours, theirs = load(packed), data.load("photos", "folder", photos, 8, 0.0, NullReporter())
    assert ours.classes == theirs.classes == ("cat", "dog")
    assert ours.unlabelled is not None
    assert theirs.unlabelled is not None
    pairs = [(ours.train, theirs.train), (ours.test, theirs.test), (ours.unlabelled, theirs.unlabelled)]
    assert [len(mine) for mine, _ in pairs] == [10, 4, 6]
    for mine, other in pairs:
        assert torch.equal(mine.images, other.images)
        assert mine.images.dtype == torch.uint8
        assert torch.equal(mine.labels, other.labels)
        assert (mine.labels.dtype, mine.digest, mine.is_mapped) == (torch.int64, other.digest, True)
        assert not other.is_mapped
    assert ours.unlabelled.labels.tolist() == [-1] * 6
    assert ours.pretraining is ours.unlabelled


def test_loading_decodes_nothing(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "read_image", None)
    assert len(load(packed).train) == 10


def test_a_file_that_was_checked_is_not_read_whole_again(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, checks, check = Cache(tmp_path / "cache"), list[int](), packed_module._check_blocks
    monkeypatch.setattr(packed_module, "_check_blocks", lambda *args: (checks.append(1), check(*args)))
    for _ in range(2):
        data.load("photos", "packed", packed, 8, 0.0, NullReporter(), cache=cache)
    assert len(checks) == 1
    spoilt = bytearray(packed.read_bytes())
    spoilt[-1] ^= 1
    packed.write_bytes(spoilt)
    with pytest.raises(DataError, match="is damaged in block"):
        data.load("photos", "packed", packed, 8, 0.0, NullReporter(), cache=cache)


def test_the_description_agrees_with_loading(photos: Path, packed: Path) -> None:
    described = data.describe("photos", "packed", packed)
    assert described.digest == load(packed).digest
    assert described.counts == {"train": 10, "test": 4, "unlabelled": 6}
    assert (described.kind, described.classes) == ("packed", ("cat", "dog"))


def test_equal_folders_give_equal_files_and_changed_ones_another_digest(photos: Path, tmp_path: Path) -> None:
    digests = [pack(photos, tmp_path / name).digest for name in ("a", "b")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    digests.append(pack(photos, tmp_path / "c", size=16).digest)
    (photos / "train" / "cat" / "00.png").unlink()
    digests.append(pack(photos, tmp_path / "d").digest)
    assert len(set(digests)) == 3
    assert digests[0] == digests[1]


def test_every_byte_is_checked(packed: Path) -> None:
    """One bit anywhere: magic, length, header, its padding, images, labels."""
    whole = packed.read_bytes()
    header_end = 16 + int.from_bytes(whole[8:16], "little")
    text_end = len(whole[:header_end].rstrip(b" "))
    places = [0, 8, 20, text_end // 2, text_end - 1, text_end, header_end - 1, header_end, len(whole) // 2 + 3000]
    before = data.describe("photos", "packed", packed).digest
    for place in [*places, len(whole) - 1]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1
        packed.write_bytes(spoilt)
        try:
            digest = load(packed).digest
        except DataError:
            continue
        assert digest != before, f"byte {place}"


@pytest.mark.parametrize("content", [b"", b"WCLPACK1", b"no packed file at all, but long enough to be read as one"])
def test_a_file_that_is_no_packed_dataset(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.wclpack"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"photos: .*other\.wclpack is not a packed dataset"):
        load(path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.wclpack"
    os.mkfifo(path)

    with pytest.raises(DataError, match="no regular file"):
        load(path)
    with pytest.raises(DataError, match="no regular file"):
        read_label_list("a", path, [], torch.zeros(1, dtype=torch.int64), ["a"])


def test_a_damaged_block_is_named(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match="damaged in block 3 of 4"):
        load(packed)


@pytest.mark.parametrize("part", ["labels", "sample"])
def test_a_description_is_made_of_checked_bytes(packed: Path, part: str) -> None:
    """A wrong label would be counted, and a wrong image shown."""
    content = bytearray(packed.read_bytes())
    start = 16 + int.from_bytes(content[8:16], "little")
    content[-4 if part == "labels" else start] ^= 1
    packed.write_bytes(content)

    with pytest.raises(DataError, match="damaged in block"):
        data.describe("photos", "packed", packed)


def test_a_description_reads_no_block_without_a_label_or_a_sample(packed: Path) -> None:
    """Of a large file, the worker's start reads little."""
    header = packed_module._read_header("photos", packed)
    images = set(range(len(header.blocks)))
    labels = packed_module._blocks_of_labels(header)
    first = packed_module._blocks_of_images(header, "train", [0])

    assert labels == {len(header.blocks) - 1}
    assert first == {0}
    assert packed_module._blocks_of_images(header, "train", range(10)) <= images
    assert packed_module._blocks_of_images(header, "test", []) == set()


def test_a_list_is_read_beside_checked_labels(packed: Path, tmp_path: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-4] ^= 1
    packed.write_bytes(content)

    with pytest.raises(DataError, match="damaged in block"):
        packed_module.packed_train_labels("photos", packed)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_cut_short_or_grown_is_refused_before_it_is_mapped(packed: Path, change: int) -> None:
    content = packed.read_bytes()
    packed.write_bytes(content[:change] if change < 0 else content + b"x")
    for act in (load, lambda path: data.describe("photos", "packed", path)):
        with pytest.raises(DataError, match="its header says"):
            act(packed)


def test_errors_for_an_absent_file_and_a_small_packed_size_say_what_to_do(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / "nothing.wclpack")
    with pytest.raises(DataError, match=r"packed at 8 pixels, but data\.image_size = 16.*--size 16"):
        load(packed, size=16)
    with pytest.raises(DataError, match="expected the path of a packed file"):
        data.load("photos", "packed", None, 8, 0.0, NullReporter())


def test_stored_images_larger_than_the_views_are_cropped_for_training_and_scaled_for_evaluation(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.wclpack"
    pack(photos, path, size=24)
    large, ours = load(path, size=24), load(path, size=8)
    for split, stored in ((ours.train, large.train), (ours.test, large.test)):
        assert torch.equal(split.images, stored.images)
        assert torch.equal(stored.plain(slice(1, 3)), stored.images[1:3])
        areas = stored.images.float().unflatten(2, (8, 3)).unflatten(4, (8, 3)).mean(dim=(3, 5))
        assert (split.plain(torch.arange(len(split))).float() - areas).abs().mean() < 12
        assert split.plain(slice(2, 4)).shape == (2, 3, 8, 8)
        assert split.digest != stored.digest
    assert ours.digest == large.digest

    sources: list[tuple[int, int]] = []
    original = view_maker.view_of

    def watch(images: torch.Tensor, parameters: Any, size: int) -> torch.Tensor:
        sources.append((images.shape[-1], size))
        return original(images, parameters, size)

    monkeypatch.setattr(view_maker, "view_of", watch)
    spec = small.spec(data={"name": "photos", "image_size": 8}, batch_size=4)
    reporter = MemoryReporter()
    assert pretrain(spec, reporter, dataset=ours, output_dir=tmp_path) == "succeeded"
    assert set(sources) == {(24, 8)}
    assert {"eval/knn_top1", "repr/std"} <= {name for name, _ in small.curves(reporter.records)}
    features = network_features(untrained_backbone(spec.backbone, 0), ours, torch.device("cpu"))
    assert features.train.shape == (10, 16)
    assert pixel_features(ours).test.shape == (4, 3 * 8 * 8)


def test_corrupt_files_are_left_out_up_to_a_share(tmp_path: Path) -> None:
    write_tree(tmp_path / "in", {"a": 20, "b": 20})
    names = damage(tmp_path / "in", 4)
    reporter = MemoryReporter()
    packing.pack("photos", tmp_path / "in", tmp_path / "out", 8, 0.1, reporter)
    loaded = load(tmp_path / "out")
    assert len(loaded.train) + len(loaded.test) == 36
    assert sorted(warning["message"].split(":")[0] for warning in reporter.of("warning")) == names
    with pytest.raises(DataError, match="4 of 40"):
        pack(tmp_path / "in", tmp_path / "refused", max_corrupt_share=0.05)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_full_disk_leaves_no_partial_file(photos: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match="space"):
        pack(photos, small_disk / "out", size=128)
    assert list(small_disk.iterdir()) == []


def test_the_verb_packs_and_describes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "photos.wclpack"
    assert main(["pack", "photos", str(photos), str(out), "--size", "16"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["kind"], printed["counts"]["train"]) == ("packed", 10)
    assert main(["describe-dataset", "photos", data.kind_of(out), str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert load(out, size=16).train.images.shape == (10, 3, 16, 16)
    assert main(["pack", "photos", str(photos), str(out), "--size", "4"]) == 1
    assert "--size is 4" in capsys.readouterr().err


def test_a_folder_larger_than_the_stated_share_of_memory_is_refused_with_advice(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "memory_bytes", lambda: 2 * 20 * 3 * 8 * 8)
    assert len(data.load("photos", "folder", photos, 8, 0.0, NullReporter()).train) == 10
    with pytest.raises(DataError, match=r"50% of the .* GiB that.*wcl_core pack photos FOLDER photos.wclpack --size 9"):
        data.load("photos", "folder", photos, 9, 0.0, NullReporter())


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Replace the header of a packed file."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[8:16], "little")
    fields = json.loads(whole[16 : 16 + length])
    change(fields)
    path.write_bytes(whole[:16] + json.dumps(fields).encode().ljust(length) + whole[16 + length :])


@pytest.mark.parametrize("name", ["format_version", "rules_version"])
def test_a_file_that_was_packed_by_other_rules_is_refused_with_the_command(packed: Path, name: str) -> None:
    """Files of version 1 may hold white images of 16 bits, and sideways ones."""
    rewritten(packed, lambda fields: fields.update({name: 1}))
    for act in (load, lambda path: data.describe("photos", "packed", path)):
        with pytest.raises(DataError, match=r"other rules for pixels.*pack photos FOLDER photos.wclpack --size 8"):
            act(packed)


def test_the_report_on_the_folder_is_in_the_packed_file(photos: Path, packed: Path) -> None:
    assert data.describe("photos", "packed", packed).report == data.describe("photos", "folder", photos).report


@pytest.mark.parametrize("label", [77, -1, 2**31 - 1])
def test_labels_outside_of_the_classes_are_refused(packed: Path, label: int) -> None:
    content = bytearray(packed.read_bytes())
    labels = len(content) - 4 * (10 + 4 + 6)
    content[labels : labels + 4] = label.to_bytes(4, "little", signed=True)
    packed.write_bytes(content)
    start = 16 + int.from_bytes(content[8:16], "little")
    blocks = [hashlib.sha256(content[place : place + 1000]).hexdigest() for place in range(start, len(content), 1000)]
    rewritten(packed, lambda fields: fields.update(blocks=blocks))
    with pytest.raises(DataError, match="label outside of 0 to 1 in its train split"):
        data.describe("photos", "packed", packed)


def test_a_header_that_breaks_its_parser_is_damage(packed: Path) -> None:
    content = b"WCLPACK1" + (200_000).to_bytes(8, "little") + b"[" * 200_000
    packed.write_bytes(content)
    with pytest.raises(DataError, match="is not a packed dataset: RecursionError"):
        load(packed)


def test_a_header_with_endless_blocks_is_refused(packed: Path) -> None:
    rewritten(packed, lambda fields: fields.update(block_bytes=10**30, blocks=["0" * 64]))
    with pytest.raises(DataError, match="expected at most 1073741824"):
        data.describe("photos", "packed", packed)
