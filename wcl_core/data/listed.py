"""Lists of images: text files with a path a line, and tables (CSV) with paths and optional classes and splits.

    a text file     PATH, or PATH and CLASS with a tab, a comma or a space between them
    a table         a header names the columns: path; label or class; split.  Separated by commas, semicolons or tabs

Where no column has such a name, that of the paths is the one that names images, and that of the classes the only other
one, if its words repeat.  Paths are relative to the folder of the list or to a folder beside it, or absolute paths in
it; their endings may be missing.  A path that leads out of the list's folder is left out, as a link is.

Without a column of splits, a fixed fifth of each class is the test split.  Images without a class are unlabelled, and
pretraining uses them together with the train images.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from wcl_core.data.image_file import ENDINGS, MAX_BYTES
from wcl_core.data.images import DataError
from wcl_core.data.layout import (
    LINK_OUT_OF_LIST,
    NAME_NOT_UTF8,
    NOT_REGULAR,
    SPLIT_MADE,
    TOO_LARGE,
    Files,
    Remarks,
    holds,
    role_of,
    shown,
    split_off,
    with_ending,
)

_MAX_BYTES = 1 << 28
_PATHS = ("path", "file", "filename", "filepath", "image", "image_path", "img", "img_path", "image_file", "files")
_LABELS = ("label", "class", "category", "target", "class_name", "labels")
_SPLITS = ("split", "set", "subset", "partition")
_EXPECTED = "a path a line, or a header with a column path (file, image), and perhaps columns label (class) and split"
_IMAGE_ENDINGS = "|".join(re.escape(each) for each in ENDINGS)
_NOT_WORD = re.compile(r"[^a-z]+")

ABSENT = "files of the list that are not there"
AGAIN = "files that the list names again"
OTHER_SPLIT = "files of a split other than train, test, val and unlabelled"
BLANK = "rows without a path"

_FIRST_BYTES = 1 << 16  # of a file that may be a list
_FIRST_ROWS = 20
_MAX_FOLDERS = 1_000  # beside a list, in which its images are searched


@dataclass(frozen=True)
class _Row:
    """A row of a list: the path as written, the class or an empty text, and the role of its split."""

    path: str
    label: str = ""
    split: str | None = None


@dataclass
class _Listed:
    """The files of a list while they are collected: paths relative to the folder, with class names, by split."""

    left_out: Remarks
    by_split: dict[str | None, list[tuple[str, str]]] = field(default_factory=dict)


def list_listed(name: str, path: Path, *, has_labels: bool = True) -> Files:
    """Return the image files that a list names, in its order.

    Args:
        name: of the dataset.
        has_labels: whether classes count.

    Raises:
        DataError: the list cannot be read, names no column of paths, or no image that is there.
    """
    text = _text(name, path)
    root = path.parent
    listed = _Listed(Remarks.of_archive(root))
    seen: set[str] = set()
    real_root = os.path.realpath(root)
    base = _base(root, _rows(name, path, text))
    for row in _rows(name, path, text):
        place, reason = _place(root, real_root, f"{base}{row.path}")
        reason = reason or (AGAIN if place in seen else None)
        reason = reason or (OTHER_SPLIT if row.split == "" else None)
        if reason:
            listed.left_out.add(reason, _public(root, row.path))
            continue
        seen.add(place)
        listed.by_split.setdefault(row.split, []).append((place, row.label if has_labels else ""))
    if not seen:
        left_out = "; ".join(f"{each.count} {each.text}" for each in listed.left_out.list()[:5])
        message = f"dataset {name}: {path} names no image that can be read; expected {_EXPECTED}"
        message += f". Left out: {left_out}" if left_out else ""
        raise DataError(message)
    return _files(name, root, listed)


def has_labels_in(path: Path) -> bool:
    """Return whether a file is a list of images that are there, with a class or split; only its beginning is read."""
    try:
        with path.open("rb") as file:
            content = file.read(_FIRST_BYTES)
        if len(content) == _FIRST_BYTES:
            content = content[: content.rfind(b"\n") + 1]
        rows = list(islice(_rows("", path, _decoded(content)), _FIRST_ROWS))
    except (OSError, UnicodeError, DataError):
        return False
    real_root = os.path.realpath(path.parent)
    labelled = [row for row in rows if row.label or row.split]
    is_there = any(_place(path.parent, real_root, row.path)[1] is None for row in labelled)
    return is_there or bool(labelled and _folder_of(path.parent, labelled[0].path))


def _base(root: Path, rows: Iterator[_Row]) -> str:
    """Return the folder beside a list that its paths are relative to, with a slash; empty for that of the list."""
    first = next((row.path for row in rows if row.path), "")
    with contextlib.suppress(OSError, ValueError):
        if not _existing(root, first).is_file() and (folder := _folder_of(root, first)):
            return f"{folder}/"
    return ""


def _folder_of(root: Path, path: str) -> str:
    """Return the name of a folder beside a list that has a path of the list; empty if there is none."""
    if path and not Path(path).is_absolute() and ".." not in Path(path).parts:
        with contextlib.suppress(OSError, ValueError):
            for folder in islice(root.iterdir(), _MAX_FOLDERS):
                if _existing(folder, path).is_file():
                    return folder.name
    return ""


def _public(root: Path, path: str) -> str:
    """Return a path of a list without folders of this machine: below the list's folder, otherwise its last part."""
    place = Path(path)
    if not place.is_absolute():
        return path
    return str(place.relative_to(root)) if place.is_relative_to(root) else place.name


# --- splits and classes ----------------------------------------------------------------------------------------------


def _files(name: str, root: Path, listed: _Listed) -> Files:
    by_split, left_out = listed.by_split, listed.left_out
    measured = "test" if "test" in by_split else "val"
    train = [*by_split.get(None, ()), *by_split.get("train", ())]
    further = by_split.get("unlabelled", [])
    classes = sorted({label for _, label in train if label}, key=_order)
    numbers = {label: number for number, label in enumerate(classes)}
    labelled = [(place, numbers[label]) for place, label in train if label]
    test = [(place, numbers[label]) for place, label in by_split.get(measured, ()) if label in numbers]
    layout = f"a list with the splits {', '.join(each for each in by_split if each)}"
    if measured not in by_split:
        labelled, test = split_off(labelled, len(classes))
        layout = f"a list; {SPLIT_MADE}"
    if len(classes) < 2 or not test:
        layout = f"a list of images without labels, since {_too_few(classes)}; none is held out"
        unlabelled = [(place, -1) for rows in by_split.values() for place, _ in rows]
        return Files(name, root, [], [], (), unlabelled, layout, left_out)
    if measured == "test":
        left_out.add_all("images of the split val, because test is the test split", by_split.get("val", ()))
    others = [each for each in by_split.get(measured, ()) if each[1] not in numbers]
    left_out.add_all(f"images of the split {measured} without a class of train", others)
    unlabelled = []
    if num_without := len(further) + sum(not label for _, label in train):
        held = {place for place, _ in test}
        unlabelled = [(place, -1) for place, _ in [*train, *further] if place not in held]
        layout += f"; {num_without:,} images without a class are for pretraining, together with the train images"
    odd = Remarks()
    odd.add_all(NAME_NOT_UTF8, [(each, "") for each in classes if shown(each) != each])
    return Files(name, root, labelled, test, tuple(map(shown, classes)), unlabelled, layout, left_out, odd)


def _too_few(classes: list[str]) -> str:
    if len(classes) == 1:
        return f"{shown(classes[0])} is the only class, and accuracy needs two"
    return "no class has two images" if classes else "it names no classes to train with, in a column label or class"


def _order(label: str) -> tuple[int, int, str]:
    """Return the place of a class among others: numbers by value, before words."""
    is_number = label.isdecimal() and len(label) < 16
    return (0, int(label), label) if is_number else (1, 0, label)


# --- one file --------------------------------------------------------------------------------------------------------


def _place(root: Path, real_root: str, path: str) -> tuple[str, str | None]:
    """Return the path of an image relative to the folder of the list, and why it is left out."""
    if not path:
        return path, BLANK
    image = _existing(root, path)
    try:
        real = os.path.realpath(image)
        if not holds(real_root, real):
            return path, LINK_OUT_OF_LIST
        if not image.exists():
            return path, ABSENT
        if not image.is_file():
            return path, NOT_REGULAR
        if (ending := image.suffix.lower()) not in ENDINGS:
            return path, with_ending(ending)
        if image.stat().st_size > MAX_BYTES:
            return path, TOO_LARGE
    except (OSError, ValueError):  # a name that no file can have
        return path, ABSENT
    inside = os.path.normpath(real if ".." in image.parts else image)
    for base in (os.path.normpath(root), real_root):
        if holds(base, inside):
            return os.path.relpath(inside, base), None
    return os.path.relpath(real, real_root), None


def _existing(root: Path, path: str) -> Path:
    """Return the place of a path of a list, in the spelling that is there; as written if none is."""
    as_written = (root / each for each in _spellings(path))
    return next((each for each in (*as_written, *_with_endings(root, path)) if each.exists()), root / path)


def _with_endings(root: Path, path: str) -> Iterator[Path]:
    """Yield the images that a path without an ending may mean."""
    if path and Path(path).suffix.lower() not in ENDINGS:
        for ending in ENDINGS:
            yield from (root / f"{path}{ending}", root / f"{path}{ending.upper()}")


def _spellings(path: str) -> Iterator[str]:
    """Yield a path as written, then as other programs write it.

    Windows has backslashes, and spreadsheets on it save in its own encoding.  Files that come from a Mac may have each
    umlaut as two characters, where the list has one.
    """
    yield path
    if "\\" in path:
        yield path.replace("\\", "/")
    if not path.isascii():
        yield unicodedata.normalize("NFC", path)
        yield unicodedata.normalize("NFD", path)
    if any("\udc80" <= each <= "\udcff" for each in path):  # bytes that are not UTF-8
        text = os.fsencode(path).decode("cp1252", "replace")
        yield text
        yield unicodedata.normalize("NFD", text)


# --- the text --------------------------------------------------------------------------------------------------------


def _text(name: str, path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"dataset {name}: {path} is too large; expected at most {_MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"dataset {name}: {path} cannot be read: {error.strerror or error}") from error
    return _decoded(content)


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    # Bytes that are not UTF-8 are those of file names.
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _rows(name: str, path: Path, text: str) -> Iterator[_Row]:
    """Yield the rows of a list.

    Raises:
        DataError: it is no table, or has no column of paths.
    """
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip() and not _is_comment(line)]
    if not lines:
        return
    separator = max(",;\t", key=lines[0].count)
    table = _table(lines, separator)
    header = [_NOT_WORD.sub("_", each.strip().lower()).strip("_") for each in table[0]]
    columns = _columns(path.parent, header, table)
    if columns[0] is not None:
        if any("\n" in part for cells in table[1:] for part in _parts(cells, columns)):
            table = [_cells(line, separator) for line in lines]  # a quote has swallowed rows
        yield from (_row(cells, columns) for cells in table[1:])
    elif path.suffix.lower() in (".csv", ".tsv"):
        if len(table[0]) > 2 or not _is_image(path.parent, table[0][0]):
            raise DataError(
                f"dataset {name}: the first row of {path} names no column of paths, and no column has names of images; "
                f"expected {_EXPECTED}"
            )
        yield from (_row(_cells(line, separator), [0, 1, None]) for line in lines)
    else:
        yield from (_plain(path.parent, line) for line in lines)


_COLUMNS = (_PATHS, _LABELS, _SPLITS)


def _columns(root: Path, header: list[str], table: list[list[str]]) -> list[int | None]:
    """Return the columns of paths, classes and splits: by their names, or else by what stands in them."""
    columns = [next((header.index(each) for each in names if each in header), None) for names in _COLUMNS]
    if any(_is_image(root, each) for each in table[0]):  # there is no header
        return columns
    others = [place for place in range(len(header)) if place not in columns]
    if columns[0] is None:
        first = table[1 : _FIRST_ROWS + 1]
        columns[0] = next((place for place in others if _names_images(root, first, place)), None)
    others = [place for place in others if place != columns[0]]
    if columns[0] is not None and columns[1] is None and len(others) == 1:
        words = [cells[others[0]].strip() for cells in table[1:] if len(cells) > others[0]]
        columns[1] = others[0] if 2 * len(set(words)) <= len(words) else None
    return columns


def _names_images(root: Path, rows: list[list[str]], place: int) -> bool:
    """Return whether most rows have the name of an image in a column."""
    names = [cells[place].strip() for cells in rows if len(cells) > place]
    try:
        num_images = sum(bool(_existing(root, each).is_file() or _folder_of(root, each)) for each in names if each)
    except (OSError, ValueError):  # names that no file can have
        return False
    return 2 * num_images > len(rows)


def _is_comment(line: str) -> bool:
    """Return whether a line is a comment; a path may begin with #, too, and has the ending of an image."""
    return line.startswith("#") and not re.search(rf"({_IMAGE_ENDINGS})\b", line, re.IGNORECASE)


def _table(lines: list[str], separator: str) -> list[list[str]]:
    """Return the cells of all rows; a quoted cell may hold lines.  If a quote is never closed, each line is a row."""
    csv.field_size_limit(_MAX_BYTES)
    try:
        return [
            cells for cells in csv.reader([f"{line}\n" for line in lines], delimiter=separator, strict=True) if cells
        ]
    except csv.Error:
        return [_cells(line, separator) for line in lines]


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of one line; a quote that is not closed is part of its cell."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return line.split(separator)


def _parts(cells: list[str], columns: list[int | None]) -> list[str]:
    """Return the path, class and split of a row, an empty text for each that it lacks."""
    return [cells[each].strip() if each is not None and each < len(cells) else "" for each in columns]


def _row(cells: list[str], columns: list[int | None]) -> _Row:
    path, label, split = _parts(cells, columns)
    return _Row(path, _readable(label), (role_of(split) or "") if split else None)


def _plain(root: Path, line: str) -> _Row:
    """Return the row of a text file: its whole line is a path, unless there is a class at its end."""
    line = line.strip()
    for separator in ("\t", ",", ";", None):
        path, *label = line.rsplit(separator, 1)
        if label and not _is_image(root, line) and _is_image(root, path.strip()):
            return _Row(path.strip(), _readable(label[0].strip()))
    return _Row(line)


def _readable(label: str) -> str:
    """Return a class as a spreadsheet on Windows has written it, where its bytes are not UTF-8."""
    if not any("\udc80" <= each <= "\udcff" for each in label):
        return label
    return os.fsencode(label).decode("cp1252", "replace")


def _is_image(root: Path, path: str) -> bool:
    try:
        return (root / path).suffix.lower() in ENDINGS and _existing(root, path).is_file()
    except ValueError:
        return False
