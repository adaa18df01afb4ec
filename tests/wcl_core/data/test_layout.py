"""Layouts of image folders: understood, or refused with the reason; what is left out is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wcl_core.data.test_data import load, write_image, write_tree
from wcl_core import data
from wcl_core.data import DataError, layout
from wcl_core.data.layout import Files, list_files
from wcl_core.protocol import DatasetReport
from wcl_core.reporter import NullReporter

SPLITS = {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 2}


def report(root: Path) -> DatasetReport:
    described = data.describe("photos", "folder", root)
    assert described.report is not None
    return described.report


def left_out(files: Files) -> dict[str, int]:
    return {remark.text: remark.count for remark in files.left_out.list()}


@pytest.mark.parametrize(
    ("tree", "layout_text"),
    [
        ({"Train/cat": 3, "Train/dog": 3, "TEST/dog": 2}, "Train/ is the train split, TEST/ the test split"),
        ({"training/cat": 3, "training/dog": 3, "testing/dog": 2}, "training/ is the train split, testing/ the"),
        ({"train/cat": 3, "train/dog": 3, "valid/dog": 2}, "train/ is the train split, valid/ the test split"),
        ({"train/cat": 3, "train/dog": 3, "val/dog": 2, "test": 4}, "train/ is the train split, val/ the test split"),
        ({"train/cat": 3, "train/dog": 3, "test/dog": 2, "validation/cat": 4}, "test/ the test split"),
        ({"pets/train/cat": 3, "pets/train/dog": 3, "pets/test/dog": 2}, "test/ the test split, in pets/"),
        ({"a/b/c/train/cat": 3, "a/b/c/train/dog": 3, "a/b/c/test/dog": 2}, "in a/b/c/"),
    ],
)
def test_other_spellings_and_folders_around_the_splits_are_understood(
    tmp_path: Path, tree: dict[str, int], layout_text: str
) -> None:
    write_tree(tmp_path, tree)
    loaded, _ = load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.test.labels.tolist() == [1, 1]
    assert layout_text in report(tmp_path).layout


def test_a_folder_around_the_splits_changes_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path / "plain", SPLITS)
    write_tree(tmp_path / "wrapped" / "pets", SPLITS)
    assert load(tmp_path / "plain")[0].digest == load(tmp_path / "wrapped")[0].digest


@pytest.mark.parametrize(
    ("tree", "readings"),
    [
        ({"train/cat": 2, "Train/cat": 2, "test/cat": 1}, ["both Train/ and train/ may be the train split"]),
        ({"train/cat": 2, "training/cat": 2, "test/cat": 1}, ["both train/ and training/ may be the train split"]),
        ({"train/cat": 2, "bus": 2, "car": 2}, ["train/ may be splits, or classes beside bus/, car/"]),
        ({"train": 2, "bus": 2, "car": 2}, ["train/ may be splits, or classes beside bus/, car/"]),
        ({"cat": 2, "dog": 2, "test": 2}, ["test/ may be splits, or classes beside cat/, dog/"]),
        ({"test/cat": 2, "val/cat": 2}, ["it has test/, val/ but no train/"]),
        ({"empty": 0}, ["it has no image files; expected images at any depth, CLASS/FILE, or train/CLASS/FILE"]),
    ],
)
def test_a_folder_with_two_readings_or_none_is_refused_with_both(
    tmp_path: Path, tree: dict[str, int], readings: list[str]
) -> None:
    write_tree(tmp_path, tree)
    with pytest.raises(DataError) as caught:
        list_files("photos", tmp_path)
    assert all(reading in str(caught.value) for reading in readings), str(caught.value)


@pytest.mark.parametrize(
    ("tree", "count", "reason"),
    [
        ({".": 5}, 5, "it has no class folders"),
        ({"all": 5}, 5, "it has no class folders; none is held out, in all/"),
        ({"a/b/c": 5}, 5, "in a/b/c/"),
        ({"unlabelled": 5}, 5, "it has no class folders"),
        ({"unlabelled/2024": 3, "unlabelled/2025": 2}, 5, "it has no class folders"),
        ({"unlabelled": 2, "cat": 3}, 5, "cat/ is the only class, and accuracy needs two"),
        ({"photos/unlabelled": 5}, 5, "in photos/"),
        ({"train": 5}, 5, "it has no class folders"),
        ({"train": 5, "test": 2}, 5, "it has no class folders"),
        ({"train": 3, "unlabelled": 2}, 5, "it has no class folders"),
        ({"train/cat": 5, "val": 2}, 5, "train/cat/ is the only class"),
        ({".": 4, "best": 1}, 5, "best/ is the only class"),
        ({".": 3, "a": 1, "b": 1}, 5, "most of its images lie outside of folders"),
        ({"a": 1, "b": 1}, 2, "no class has two images"),
    ],
)
def test_images_without_two_classes_are_all_unlabelled_and_none_is_held_out(
    tmp_path: Path, tree: dict[str, int], count: int, reason: str
) -> None:
    write_tree(tmp_path, tree)
    files = list_files("photos", tmp_path)
    assert (files.classes, files.train, files.test) == ((), [], [])
    assert [label for _, label in files.unlabelled] == [-1] * count
    assert reason in files.layout
    assert len({path for path, _ in files.unlabelled}) == count
    in_test = sum(number for name, number in tree.items() if name.split("/")[0] in ("test", "val"))
    assert sum(left_out(files).values()) == in_test


@pytest.mark.parametrize(
    ("tree", "counts", "layout_text"),
    [
        ({"cat": 5, "dog": 10}, {"train": 12, "test": 3}, "a fixed fifth of each class is the test split"),
        ({"pets/cat": 5, "pets/dog": 5}, {"train": 8, "test": 2}, "the test split, in pets/"),
        ({"train/cat": 5, "train/dog": 5}, {"train": 8, "test": 2}, "train/ has the classes; a fixed fifth of each"),
        ({"train/cat": 5, "train/dog": 5, "val": 3}, {"train": 8, "test": 2}, "train/ has the classes; a fixed fifth"),
        (
            {"cat": 5, "dog": 5, "unlabelled": 3},
            {"train": 8, "test": 2, "unlabelled": 3},
            "pretraining uses the unlabelled images only",
        ),
    ],
)
def test_a_test_split_that_is_made_here_is_said(
    tmp_path: Path, tree: dict[str, int], counts: dict[str, int], layout_text: str
) -> None:
    write_tree(tmp_path, tree)
    files = list_files("photos", tmp_path)
    assert {which: len(entries) for which, entries in files.splits.items()} == counts
    assert (files.classes, layout_text in files.layout) == (("cat", "dog"), True), files.layout


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, {"2024": 3, "2025": 2, "test": 1})
    files = list_files("photos", tmp_path, has_labels=False)
    assert (files.classes, len(files.unlabelled), files.count) == ((), 6, 6)


def test_a_dataset_without_labels_has_one_split_and_a_row_of_samples(tmp_path: Path) -> None:
    write_tree(tmp_path, {"2024": 3, "2025": 2})
    described = data.describe("photos", "folder", tmp_path, has_labels=False)
    loaded = data.load("photos", "folder", tmp_path, 8, 0.0, NullReporter(), has_labels=False)
    assert described.counts == {"train": 0, "test": 0, "unlabelled": 5}
    assert (described.classes, described.class_counts) == ((), {"train": [], "test": []})
    assert described.samples is not None
    assert (described.samples.rows, described.digest) == (1, loaded.digest)
    assert (len(loaded.train), len(loaded.test), len(loaded.pretraining), loaded.has_labels) == (0, 0, 5, False)
    assert described.digest != data.describe("photos", "folder", tmp_path).digest


def test_images_beside_folders_that_may_be_no_classes_name_the_way_out(tmp_path: Path) -> None:
    write_tree(tmp_path, {"2024": 3, "2025": 2, ".": 1})
    files = list_files("photos", tmp_path)
    assert (files.classes, left_out(files)) == (("2024", "2025"), {layout.BESIDE_CLASSES: 1})
    assert "add the dataset without labels" in layout.BESIDE_CLASSES


@pytest.mark.parametrize(
    ("tree", "place", "text", "is_list"),
    [
        ({".": 4}, "labels.csv", "filename,label\n00.png,cat\n01.png,dog\n", True),
        ({".": 4}, "labels.TXT", "00.png cat\n01.png dog\n", True),
        ({".": 4}, "labels.csv", "path,label\n" + "none.png,cat\n" * 9_000, False),
        ({".": 4}, "labels.csv", "path,label\n" + "00.png,cat\n" * 9_000, True),
        ({".": 4}, "splits.csv", "path,split\n00.png,test\n", True),
        ({".": 4}, "features.csv", "path,f0,f1\n00.png,0.1,0.2\n", False),
        ({".": 4}, "labels.csv", "name,age\nx,3\n", False),
        ({".": 4}, "read-me.txt", "00.png is a photo\n", False),
        ({"all": 4}, "labels.csv", "path,label\nall/00.png,cat\n", True),
        ({"all": 4}, "labels.csv", "path,label\n00.png,cat\n", True),
        ({"all": 4}, "all/labels.csv", "path,label\n00.png,cat\n", True),
        ({"cat": 4, "dog": 4}, "labels.csv", "path,label\ncat/00.png,tabby\n", True),
        ({"cat": 4, "dog": 4}, "cat/labels.csv", "path,label\n00.png,tabby\n", False),
    ],
)
def test_a_list_of_labels_in_a_folder_is_named_with_what_to_do(
    tmp_path: Path, tree: dict[str, int], place: str, text: str, is_list: bool
) -> None:
    write_tree(tmp_path, tree)
    (tmp_path / place).write_text(text)
    ending = Path(place).suffix.lower()
    assert left_out(list_files("photos", tmp_path)) == {
        layout.LIST if is_list else f"files with the ending {ending}": 1
    }
    without = left_out(list_files("photos", tmp_path, has_labels=False))
    assert without == {f"files with the ending {ending}": 1}
    assert "give the list in place of the folder" in layout.LIST


def test_folders_within_a_class_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"photos/dog/beagle": 3, "photos/dog/pug/old": 2, "photos/cat": 4, "photos/cat/empty": 0})
    files = list_files("photos", tmp_path)
    assert files.classes == ("cat", "dog")
    assert [(each.text, each.examples) for each in files.odd.list()] == [(layout.NESTED, ["dog/beagle", "dog/pug"])]


def test_a_file_left_out_beside_or_in_a_single_folder_counts_once(tmp_path: Path) -> None:
    write_tree(tmp_path, {"photos/cat": 3, "photos/dog": 3})
    for place in ("notes.md", "photos/notes.md", "photos/cat/notes.md"):
        (tmp_path / place).write_text("none")
    remarks = list_files("photos", tmp_path).left_out.list()
    assert [(each.text, each.count) for each in remarks] == [("files with the ending .md", 3)]


def test_hidden_and_system_folders_are_no_classes_and_have_no_images(tmp_path: Path) -> None:
    names = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information")
    write_tree(tmp_path, SPLITS)
    for name in names:
        write_tree(tmp_path, {f"train/{name}": 2, f"train/cat/{name}/000.jpg": 2, name: 1})
    for name in (".DS_Store", "Thumbs.db", "._000.png", "desktop.ini"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"none")
    files = list_files("photos", tmp_path)
    assert files.classes == ("cat", "dog")
    assert (len(files.train), len(files.test)) == (6, 3)
    assert left_out(files) == {layout.HIDDEN: 3 * len(names) + 4}


def test_files_and_folders_that_are_not_read_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, SPLITS | {"train/empty": 0, "others/cat": 2})
    (tmp_path / "train" / "empty").mkdir()
    for name in ("a.heic", "b.HEIC", "notes.txt", "no ending"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"none")
    write_image(tmp_path / "train" / "loose.png")
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    files = list_files("photos", tmp_path)
    assert left_out(files) == {
        "files with the ending .heic, a format that is not read; convert them to JPEG": 2,
        "files with the ending .txt": 1,
        "files without an ending": 1,
        layout.NO_IMAGES: 1,
        layout.NO_CLASS: 1,
        layout.BESIDE: 1,
        layout.NOT_REGULAR: 1,
    }
    assert files.classes == ("cat", "dog")


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "jfif", "ppm", "pgm", "pbm", "webp", "tif", "bmp", "gif", "png"])
def test_every_ending_of_a_format_is_read(tmp_path: Path, ending: str) -> None:
    write_tree(tmp_path, {"a": 4})
    (tmp_path / "a" / "00.png").rename(tmp_path / "a" / f"00.{ending}")
    assert sum(len(entries) for entries in list_files("photos", tmp_path).splits.values()) == 4


def test_classes_that_evaluations_may_not_like_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, SPLITS | {"train/rare": 1})
    remarks = {remark.text: remark.examples for remark in report(tmp_path).odd}
    assert remarks["classes with a single train image"] == ["rare"]
    assert remarks["classes without a test image"] == ["rare"]


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x1b[31mb"])
def test_class_names_are_text_that_every_page_can_show(tmp_path: Path, name: bytes) -> None:
    write_tree(tmp_path, {"a": 5, os.fsdecode(name): 5})
    described = data.describe("photos", "folder", tmp_path)
    assert set(described.classes) - {"a"} == {"caf\\xe9" if b"\xe9" in name else "a\\x1b[31mb"}
    described.report.model_dump_json().encode()  # type: ignore[union-attr]
    assert described.counts == {"train": 8, "test": 2}


# --- links ---------------------------------------------------------------------------------------------------------


def test_links_within_the_folder_are_followed_once(tmp_path: Path) -> None:
    write_tree(tmp_path / "root", SPLITS | {"more/cats": 4, "more/cats/deep": 1})
    (tmp_path / "root" / "train" / "cat" / "linked").symlink_to(tmp_path / "root" / "more" / "cats")
    (tmp_path / "root" / "train" / "cat" / "again").symlink_to(tmp_path / "root" / "more" / "cats")
    (tmp_path / "root" / "train" / "cat" / "up").symlink_to(tmp_path / "root" / "train")
    (tmp_path / "root" / "train" / "cat" / "self").symlink_to(tmp_path / "root" / "train" / "cat")
    (tmp_path / "root" / "train" / "dog" / "gone.png").symlink_to("/nowhere.png")
    files = list_files("photos", tmp_path / "root")
    assert [label for _, label in files.train] == [0] * 8 + [1] * 3
    found = left_out(files)
    assert (found[layout.LINK_AGAIN], found[layout.LINK_NOWHERE]) == (3, 1)
    assert {remark.text for remark in files.odd.list()} == {layout.LINK_READ, layout.NESTED}


def test_links_that_fan_out_are_read_once_each(tmp_path: Path) -> None:
    """Two links in each of 30 folders lead to the next one: a billion paths to the last one."""
    write_tree(tmp_path, {"a/x": 3, "b": 3, "chain/30": 2})
    for number in range(30):
        (tmp_path / "chain" / str(number)).mkdir()
        for name in ("one", "two"):
            (tmp_path / "chain" / str(number) / name).symlink_to(tmp_path / "chain" / str(number + 1))
    (tmp_path / "a" / "start").symlink_to(tmp_path / "chain" / "0")
    files = list_files("photos", tmp_path)
    assert sum(path.startswith("a/start/") for path, _ in files.train + files.test) == 2


def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    write_tree(tmp_path / "root", SPLITS)
    write_tree(tmp_path / "private", {"secrets": 3})
    (tmp_path / "root" / "train" / "cat" / "folder").symlink_to(tmp_path / "private")
    (tmp_path / "root" / "train" / "cat" / "file.png").symlink_to(tmp_path / "private" / "secrets" / "00.png")
    files = list_files("photos", tmp_path / "root")
    assert len(files.train) == 6
    assert left_out(files) == {layout.LINK_OUT: 2}


def test_a_class_or_split_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "root", SPLITS)
    write_tree(tmp_path / "elsewhere", {"bird": 3})
    (tmp_path / "root" / "train" / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    with pytest.raises(DataError, match=r"train/bird/ is a link that leads out of the folder.*copy its images"):
        list_files("photos", tmp_path / "root")


def test_a_root_that_is_a_link_is_read(tmp_path: Path) -> None:
    write_tree(tmp_path / "real", SPLITS)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert len(list_files("photos", tmp_path / "root").train) == 6


# --- the report and the digest -------------------------------------------------------------------------------------


def test_the_report_counts_formats_modes_and_sizes(tmp_path: Path) -> None:
    write_tree(tmp_path, SPLITS)
    write_image(tmp_path / "train" / "cat" / "wide.jpg", size=(40, 10))
    (tmp_path / "train" / "cat" / "cut.png").write_bytes((tmp_path / "train" / "cat" / "00.png").read_bytes()[:50])
    (tmp_path / "train" / "cat" / "page.jpg").write_bytes(b"<html>")
    described = data.describe("photos", "folder", tmp_path)
    made = report(tmp_path)
    assert (described.counts, described.class_counts["train"]) == ({"train": 7, "test": 3}, [4, 3])
    assert (made.formats, made.modes) == ({"PNG": 9, "JPEG": 1}, {"RGB": 10})
    assert (made.smallest, made.median, made.largest) == ((12, 9), (12, 9), (40, 10))
    assert made.unreadable == 2
    assert [remark.examples for remark in made.left_out] in (
        [["train/cat/cut.png"], ["train/cat/page.jpg"]],
        [["train/cat/page.jpg"], ["train/cat/cut.png"]],
    )


def oriented(path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


@pytest.mark.parametrize("change", [oriented, lambda path: path.write_bytes(b"none")])
def test_the_digest_has_the_version_of_the_rules_where_version_1_read_other_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """A folder of plain images keeps its digest, so that jobs on it continue."""
    write_tree(tmp_path, SPLITS)
    digests = []
    for version in (2, 3):
        monkeypatch.setattr(data.folder, "RULES_VERSION", version)
        digests.append(data.describe("photos", "folder", tmp_path).digest)
    assert digests[0] == digests[1] == load(tmp_path)[0].digest
    change(tmp_path / "train" / "cat" / "00.png")
    for version in (2, 3):
        monkeypatch.setattr(data.folder, "RULES_VERSION", version)
        digests.append(data.describe("photos", "folder", tmp_path).digest)
    assert len(set(digests[1:])) == 3
    assert digests[3] == load(tmp_path, 0.5)[0].digest
