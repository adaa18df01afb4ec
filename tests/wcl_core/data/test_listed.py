"""Lists of images: text files and tables, as people and other programs write them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from tests.wcl_core.data.test_data import write_image, write_tree
from wcl_core import data
from wcl_core.data import DataError, layout, listed
from wcl_core.data.layout import Files, list_files


def files_of(root: Path, text: str | bytes, name: str = "list.csv") -> Files:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_files("photos", root / name)


def counts(files: Files) -> tuple[int, int, int]:
    return len(files.train), len(files.test), len(files.unlabelled)


def left_out(files: Files) -> dict[str, int]:
    return {remark.text: remark.count for remark in files.left_out.list()}


def table(rows: int, separator: str = ",", header: str = "path,label") -> str:
    lines = [header, *(f"all/{number:02}.png,{('cat', 'dog')[number % 2]}" for number in range(rows))]
    return "\n".join(line.replace(",", separator) for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        table(10),
        table(10, ";"),
        table(10, "\t"),
        table(10, header="Filename,Category"),
        table(10, header="\ufeffImage Path,Class"),
        table(10).replace("\n", "\r\n"),
        table(10, header="path,label").replace("all/", '"all/').replace(".png", '.png"'),
        table(10).replace("all/", "all\\"),
        table(10).replace("all/", "./all/../all/"),
        table(10).encode("utf-16"),
        table(10).split("\n", 1)[1],
    ],
)
def test_tables_of_other_programs_are_read(tmp_path: Path, text: str | bytes) -> None:
    write_tree(tmp_path, {"all": 10})
    files = files_of(tmp_path, text)
    assert (files.classes, counts(files)) == (("cat", "dog"), (8, 2, 0))
    assert "a fixed fifth of each class is the test split" in files.layout
    assert {path for path, _ in files.train + files.test} == {f"all/{number:02}.png" for number in range(10)}
    assert left_out(files) == {}


@pytest.mark.parametrize(
    ("line", "classes"),
    [("all/{}.png", ()), ("all/{}.png {}", ("0", "1")), ("all/{}.png\t{}", ("0", "1")), ("all/{}.png,{}", ("0", "1"))],
)
def test_text_files_have_a_path_a_line_and_perhaps_a_class(tmp_path: Path, line: str, classes: tuple[str, ...]) -> None:
    write_tree(tmp_path, {"all": 10})
    text = "# images\n\n" + "\n".join(line.format(f"{number:02}", number % 2) for number in range(10))
    files = files_of(tmp_path, text, "images.txt")
    assert files.classes == classes
    assert counts(files) == ((8, 2, 0) if classes else (0, 0, 10))


def test_names_with_spaces_and_commas_are_paths_in_a_text_file(tmp_path: Path) -> None:
    for name in ("my photo.png", "a, b.png", "1 2.png"):
        write_image(tmp_path / name)
    files = files_of(tmp_path, "my photo.png\na, b.png\n1 2.png", "images.txt")
    assert [path for path, _ in files.unlabelled] == ["my photo.png", "a, b.png", "1 2.png"]


def test_the_splits_of_a_table_count_and_images_without_a_class_are_trained_on(tmp_path: Path) -> None:
    write_tree(tmp_path, {"all": 10})
    splits = ["train", "Training", "train", "train", "valid", "test", "test", "unlabelled", "", "other"]
    labels = ["1", "10", "2", "", "1", "10", "", "", "1", "1"]
    rows = [f"all/{number:02}.png,{labels[number]},{splits[number]}" for number in range(10)]
    files = files_of(tmp_path, "\n".join(["path,label,split", *rows]))
    assert files.classes == ("1", "2", "10")
    assert files.train == [("all/08.png", 0), ("all/00.png", 0), ("all/01.png", 2), ("all/02.png", 1)]
    assert files.test == [("all/05.png", 2)]
    assert [path for path, _ in files.unlabelled] == [f"all/0{number}.png" for number in (8, 0, 1, 2, 3, 7)]
    assert left_out(files) == {
        listed.OTHER_SPLIT: 1,
        "images of the split val, because test is the test split": 1,
        "images of the split test without a class of train": 1,
    }
    assert "2 images without a class are for pretraining" in files.layout


@pytest.mark.parametrize(
    ("in_folder", "in_list", "encoding"),
    [
        (unicodedata.normalize("NFD", "für zwei.png"), "für zwei.png", "utf-8"),
        ("für zwei.png", unicodedata.normalize("NFD", "für zwei.png"), "utf-8"),
        ("für zwei.png", "für zwei.png", "cp1252"),
        (unicodedata.normalize("NFD", "für zwei.png"), "für zwei.png", "cp1252"),
        (os.fsdecode("für zwei.png".encode("latin-1")), "für zwei.png", "latin-1"),
    ],
)
@pytest.mark.parametrize(("row", "ending"), [("path;label\n{};cat", "csv"), ("{} cat", "txt")])
def test_umlauts_of_other_systems_name_the_file_that_is_there(
    tmp_path: Path, in_folder: str, in_list: str, encoding: str, row: str, ending: str
) -> None:
    for place in (in_folder, "other.png"):
        write_image(tmp_path / place)
    text = row.format(in_list).encode(encoding) + b"\n" + row.format("other.png").splitlines()[-1].encode()
    files = files_of(tmp_path, text, f"list.{ending}")
    assert {path for path, _ in files.unlabelled} == {in_folder, "other.png"}
    assert "cat is the only class" in files.layout


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n00.png,cat\n01.png,dog\n02.png,cat\n03.png,dog",
        "id,breed\n00,cat\n01,dog\n02,cat\n03,dog",
        "breed,image_id\ncat,00\ndog,01\ncat,02\ndog,03",
        "split,id,breed\ntrain,00,cat\ntrain,01,dog\ntest,02,cat\ntest,03,dog",
    ],
)
def test_a_list_above_the_folder_of_its_paths_is_read_whatever_its_columns_are_called(
    tmp_path: Path, text: str
) -> None:
    write_tree(tmp_path, {"all": 4, "empty": 0})
    files = files_of(tmp_path, text)
    assert {path for path, _ in (*files.train, *files.test)} == {f"all/0{number}.png" for number in range(4)}
    assert files.classes == ("cat", "dog")


def test_a_column_of_words_that_hardly_repeat_is_no_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {".": 4})
    files = files_of(tmp_path, "file,taken\n00.png,one\n01.png,one\n02.png,two\n03.png,three")
    assert (files.classes, len(files.unlabelled)) == ((), 4)


def test_classes_of_a_spreadsheet_on_windows_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, {".": 4})
    rows = "\n".join(f"0{number}.png;{'Bäume' if number % 2 else 'Straße'}" for number in range(4))
    assert files_of(tmp_path, f"path;label\n{rows}".encode("cp1252")).classes == ("Bäume", "Straße")


def test_a_message_names_no_file_elsewhere(tmp_path: Path) -> None:
    for path in ("../../secret.png", str(tmp_path.parent / "secret.png")):  # a message names no file elsewhere
        write_image(tmp_path.parent / "secret.png")
        with pytest.raises(DataError) as caught:
            files_of(tmp_path, f"path,label\n{path},cat")
        assert "secret.png" not in str(caught.value)


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write_tree(root, {"all": 4})
    write_tree(tmp_path, {"private": 2})
    (root / "all" / "link.png").symlink_to(tmp_path / "private" / "00.png")
    paths = ["all/00.png", str(root / "all" / "01.png"), "all/00.png", "all/99.png", "", "notes.pdf", "all", "a\0.png"]
    paths += ["../private/00.png", str(tmp_path / "private" / "01.png"), "all/link.png", "/etc/passwd", "~/x.png"]
    (root / "notes.pdf").write_bytes(b"none")
    files = files_of(root, "path,note\n" + "\n".join(f'"{path}",x' for path in paths))
    assert files.unlabelled == [("all/00.png", -1), ("all/01.png", -1)]
    assert left_out(files) == {
        listed.AGAIN: 1,
        listed.ABSENT: 3,
        listed.BLANK: 1,
        "files with the ending .pdf": 1,
        layout.NOT_REGULAR: 1,
        layout.LINK_OUT_OF_LIST: 4,
    }
    shown = {example for remark in files.left_out.list() for example in remark.examples}
    assert "passwd" in shown, "users of the service see no folder of a worker"
    assert not [example for example in shown if example.startswith("/")]


@pytest.mark.parametrize("text", ["", "id,age\n1,2\n", "path\nnone.png\n", "\n\n#\n", b"\xff\xfe", b"\x00\x01\x02"])
def test_a_list_without_an_image_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(DataError, match="expected a path a line, or a header with a column path"):
        files_of(tmp_path, text)


def test_one_class_is_no_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {"all": 5})
    files = files_of(tmp_path, table(10).replace("dog", "cat"))
    assert counts(files) == (0, 0, 5)
    assert "cat is the only class" in files.layout


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_list_without_labels_keeps_the_images_of_all_splits(tmp_path: Path, split: str) -> None:
    write_tree(tmp_path, {"all": 4})
    rows = ["path,split", "all/00.png,train", f"all/01.png,{split}", f"all/02.png,{split}", "all/03.png,unlabelled"]
    files = files_of(tmp_path, "\n".join(rows))
    assert (counts(files), left_out(files)) == ((0, 0, 4), {})
    files = files_of(tmp_path, f"path,label,split\nall/00.png,cat,{split}\nall/01.png,dog,{split}")
    assert (counts(files), left_out(files)) == ((0, 0, 2), {}), "no train image has a class"


@pytest.mark.parametrize(
    "quoted", ['all/01.png,"dog', '"all/01.png,dog', 'all/01.png,"dog\nall/02.png,cat\nall/03.png,dog"']
)
def test_a_quote_that_is_not_closed_swallows_no_row(tmp_path: Path, quoted: str) -> None:
    write_tree(tmp_path, {"all": 10})
    text = table(10).replace("all/01.png,dog", quoted, 1)
    files = files_of(tmp_path, text)
    images = {path for path, _ in [*files.train, *files.test, *files.unlabelled]}
    assert len(images) + sum(left_out(files).values()) >= 10, left_out(files)
    assert len(images) >= 9


def test_a_cell_that_is_not_read_may_hold_lines(tmp_path: Path) -> None:
    write_tree(tmp_path, {"all": 4})
    rows = [f'all/0{number}.png,{"ab"[number % 2]},"two\nlines"' for number in range(4)]
    files = files_of(tmp_path, "\n".join(["path,label,caption", *rows]))
    assert (counts(files), left_out(files)) == ((2, 2, 0), {})


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_a_path_may_begin_with_the_mark_of_comments(tmp_path: Path, name: str) -> None:
    for each in ("#1.png", "#2.png", "3.png"):
        write_image(tmp_path / each)
    header = "path\n" if name.endswith("csv") else ""
    files = files_of(tmp_path, f"# three images\n{header}#1.png\n#2.png\n3.png\n#4.png", name)
    assert [path for path, _ in files.unlabelled] == ["#1.png", "#2.png", "3.png"]
    assert left_out(files) == {listed.ABSENT: 1}


def test_other_names_of_the_classes_are_another_description(tmp_path: Path) -> None:
    write_tree(tmp_path, {"all": 10})
    for names in (("cat", "dog"), ("lynx", "wolf")):
        text = table(10).replace("cat", names[0]).replace("dog", names[1])
        (tmp_path / "list.csv").write_text(text)
        described = data.describe("photos", "folder", tmp_path / "list.csv", tmp_path / "cache.json")
        assert described.classes == names


def test_a_list_is_described_and_loaded_like_a_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", {"cat": 5, "dog": 5})
    rows = [f"{name}/0{number}.png,{name}" for name in ("cat", "dog") for number in range(5)]
    (tmp_path / "photos" / "list.csv").write_text("\n".join(["path,label", *rows]))
    described = data.describe(
        "photos", data.kind_of(tmp_path / "photos" / "list.csv"), tmp_path / "photos" / "list.csv"
    )
    assert described.kind == "folder"
    assert described.digest == data.describe("photos", "folder", tmp_path / "photos").digest
    cached = tmp_path / "cache.json"
    again = [data.describe("photos", "folder", tmp_path / "photos" / "list.csv", cached).digest for _ in range(2)]
    assert again == [described.digest] * 2
