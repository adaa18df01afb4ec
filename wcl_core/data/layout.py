"""The layouts of an image folder: which of its files are images of which split and class, and which are left out.

    ROOT/train/CLASS/FILE   and   ROOT/{test,val}/CLASS/FILE     ImageNet's layout
    ROOT/CLASS/FILE         one split only: a fixed fifth of each class, chosen by digest, is the test split
    ROOT/unlabelled/FILE    beside these: further images without labels, for pretraining
    ROOT/FILE, ROOT/A/FILE  fewer than two classes: all images are unlabelled, and none is held out

Files may lie at any depth below a class folder.  Case does not matter in the names of the splits, and `_ALIASES` has
their other spellings.  A single folder around such a tree is passed over.  Where folders may be splits as well as
classes, the tree is refused with both readings.  `listed` reads lists of images in place of a tree.
docs/datasets.md has the rules for users.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from wcl_core.data.image_file import ENDINGS, MAX_BYTES, OTHER_FORMATS
from wcl_core.data.images import DataError
from wcl_core.data.kinds import HIDDEN, LISTS
from wcl_core.protocol import Remark

Entry = tuple[str, int]  # path relative to the root, class index

_ALIASES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
_ROLE_OF = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}
_SYSTEM_NAMES = frozenset(
    {"__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
)
_EXPECTED = "images at any depth, CLASS/FILE, or train/CLASS/FILE and test/CLASS/FILE"
SPLIT_MADE = "a fixed fifth of each class is the test split"
_MAX_WRAPPERS = 8
_MAX_REMARKS = 20
_MAX_EXAMPLES = 5
_MAX_CHARACTERS = 200  # of a remark, and of an example

LEFT_OUT = ".wcl-left-out.json"  # in the folder of an unpacked archive: the remarks of `archive`
LINK_OUT = "links that lead out of the folder; copy their targets into it"
LINK_OUT_OF_LIST = "paths that lead out of the folder of the list; put the list into a folder above all images"
LINK_NOWHERE = "links that lead nowhere"
LINK_AGAIN = "links to a folder that is read already"
LINK_READ = "links to folders within the folder, which are read"
NO_IMAGES = "folders without an image"
NO_CLASS = "images outside of a class folder"
BESIDE_CLASSES = f"{NO_CLASS}; if the folders are no classes, add the dataset without labels (--without-labels)"
LIST = "lists of these images with classes or splits; to use them, give the list in place of the folder"
NESTED = "folders within a class folder; their images belong to that class"
BESIDE = "folders beside train/ that are no split"
TOO_LARGE = f"files of more than {MAX_BYTES >> 30} GiB"
NOT_OPENED = "folders that cannot be opened"
NOT_REGULAR = "entries that are neither file nor folder"
NAME_NOT_UTF8 = "class names that are not UTF-8; their other bytes are shown as \\x.."


def shown(name: str) -> str:
    """Return a file name as text: bytes that are not UTF-8, and control characters, become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each >= " " and each != "\x7f" else f"\\x{ord(each):02x}" for each in text)


_REMARKS = TypeAdapter(list[Remark])


def with_ending(ending: str) -> str:
    """Return the remark on files that are not read because of their ending, in lower case."""
    if ending in OTHER_FORMATS:
        return f"files with the ending {ending}, a format that is not read; convert them to JPEG"
    return f"files with the ending {shown(ending)}" if ending else "files without an ending"


class Remarks:
    """Remarks on files, counted by their text, with a few examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    @classmethod
    def of_archive(cls, folder: Path) -> Remarks:
        """Return what was left out of an archive that was unpacked around this folder; nothing for another folder."""
        remarks = cls()
        if place := next((each for each in (folder, *folder.parents) if each.suffix == ".unpacked"), None):
            with contextlib.suppress(OSError, ValueError):
                for each in _REMARKS.validate_json((place / LEFT_OUT).read_bytes()):
                    remarks._counts[each.text] = each.count
                    remarks._examples[each.text] = list(each.examples)
        return remarks

    def add(self, text: str, *examples: str) -> None:
        """Count one more file, or several."""
        text = text[:_MAX_CHARACTERS]
        if text not in self._counts and len(self._counts) >= _MAX_REMARKS:
            text = "others"
        self._counts[text] = self._counts.get(text, 0) + len(examples)
        kept = self._examples.setdefault(text, [])
        kept.extend(shown(each)[:_MAX_CHARACTERS] for each in examples[: _MAX_EXAMPLES - len(kept)])

    def add_all(self, text: str, files: Iterable[tuple[str, object]]) -> None:
        """Count each file of some; the second part of each does not matter."""
        if examples := [path for path, _ in files]:
            self.add(text, *examples)

    def list(self) -> list[Remark]:
        """Return them, the most frequent first."""
        ordered = sorted(self._counts, key=lambda text: (-self._counts[text], text))
        return [Remark(text=text, count=self._counts[text], examples=self._examples[text]) for text in ordered]


@dataclass(frozen=True)
class Files:
    """The image files of a folder, by split.

    Attributes:
        name: of the dataset, for messages.
        root: the folder that the paths are relative to.
        classes: names as text, in label order.
        layout: how the folder is read, as a clause.
        left_out, odd: files and folders that are not read, and those that a user should know of.
    """

    name: str
    root: Path
    train: list[Entry]
    test: list[Entry]
    classes: tuple[str, ...]
    unlabelled: list[Entry] = field(default_factory=list)
    layout: str = ""
    left_out: Remarks = field(default_factory=Remarks)
    odd: Remarks = field(default_factory=Remarks)

    @property
    def splits(self) -> dict[str, list[Entry]]:
        """The files by name of the split; `unlabelled` only if it has files, the others may then have none."""
        both = {"train": self.train, "test": self.test}
        return both | {"unlabelled": self.unlabelled} if self.unlabelled else both

    @property
    def count(self) -> int:
        """The number of files."""
        return sum(map(len, self.splits.values()))


def list_files(name: str, root: Path, *, has_labels: bool = True) -> Files:
    """Return the image files of a tree in the order of their names, or those that a list of images names.

    Args:
        root: the folder, or a list as `listed` reads it.
        has_labels: whether folders, or the list, may name classes.

    Raises:
        DataError: there is no image, or folders may be splits as well as classes.
    """
    if root.suffix.lower() in LISTS and root.is_file():
        from wcl_core.data.listed import list_listed

        return list_listed(name, root, has_labels=has_labels)
    if not root.is_dir():
        raise DataError(f"dataset {name}: folder {root} does not exist")
    return _Listing(name, root, has_labels).files()


@dataclass(frozen=True)
class _Entry:
    path: str
    is_folder: bool
    is_link: bool
    leads_out: bool = False


@dataclass(frozen=True)
class _Level:
    """The folders of a folder that have images below them, and the images directly in it."""

    folder: str
    folders: tuple[str, ...]
    images: tuple[str, ...]


class _Listing:
    """One reading of a tree.  Paths are text, relative to the root, with slashes; the root itself is empty."""

    def __init__(self, name: str, root: Path, has_labels: bool) -> None:
        self._name, self._root, self._has_labels = name, root, has_labels
        self._real_root = os.path.realpath(root)
        self._left_out, self._odd = Remarks.of_archive(root), Remarks()
        self._levels: dict[str, _Level] = {}
        self._remarked: dict[tuple[str, str], Remarks] = {}

    def files(self) -> Files:
        """Return the files, as `list_files`."""
        level = self._without_wrappers(self._level(""))
        if level.folder:
            inner = _Listing(self._name, self._root / level.folder, self._has_labels)
            for (text, path), remarks in self._remarked.items():
                if remarks is self._left_out and not holds(level.folder, path):
                    inner._left_out.add(text, path)
            files = inner.files()
            return replace(files, layout=f"{files.layout}, in {self._place(level.folder)}")
        if not self._has_labels:
            return self._unlabelled([""], "its labels are left out as requested")
        roles = self._roles(level)
        if self._is_split_by_folders(level, roles):
            return self._by_splits(level, roles)
        return self._by_classes(level, roles)

    # --- the layout ---

    def _without_wrappers(self, level: _Level) -> _Level:
        """Return the level of the splits, the classes or the images: single folders around it are passed over."""
        for _ in range(_MAX_WRAPPERS):
            if level.images or len(level.folders) != 1 or role_of(level.folders[0]):
                break
            level = self._level(level.folders[0])
        return level

    def _roles(self, level: _Level) -> dict[str, str]:
        """Return the folders that are named as a split, by role.

        Raises:
            DataError: two folders have one role.
        """
        roles: dict[str, str] = {}
        for folder in level.folders:
            if (role := role_of(folder)) is None:
                continue
            if role in roles:
                both = f"{self._place(roles[role])} and {self._place(folder)}"
                raise self._error(f"both {both} may be the {role} split; keep or rename one of them")
            roles[role] = folder
        return roles

    def _is_split_by_folders(self, level: _Level, roles: dict[str, str]) -> bool:
        """Return whether the folders are splits; otherwise they are classes.

        Raises:
            DataError: they may be both, or there is no train split.
        """
        if not roles.keys() - {"unlabelled"}:
            return False
        others = [folder for folder in level.folders if role_of(folder) is None]
        has_classes = {role: bool(self._level(folder).folders) for role, folder in roles.items()}
        names = ", ".join(self._place(folder) for folder in roles.values())
        has_labelled_test = has_classes.get("test") or has_classes.get("val")
        if others and not (has_classes.get("train") and has_labelled_test):
            other_names = ", ".join(self._place(folder) for folder in others[:5])
            raise self._error(
                f"{names} may be splits, or classes beside {other_names}. For splits, train/ and test/ need class "
                f"folders, and {other_names} must go; for classes, rename {names}"
            )
        if "train" not in roles:
            raise self._error(f"it has {names} but no train/; expected {_EXPECTED}")
        return True

    def _by_splits(self, level: _Level, roles: dict[str, str]) -> Files:
        train = self._level(roles["train"])
        self._leave_out(BESIDE, [folder for folder in level.folders if role_of(folder) is None])
        self._leave_out(NO_CLASS, level.images)
        labelled = [role for role in ("test", "val") if role in roles and self._level(roles[role]).folders]
        if not train.folders or (len(train.folders) == 1 and not labelled):
            for role in ("test", "val"):
                if role in roles:
                    text = f"images of {self._place(roles[role])}, because {self._place(train.folder)} has no classes"
                    self._left_out.add(text, *self._images(roles[role]))
            bases = [roles[role] for role in ("train", "unlabelled") if role in roles]
            return self._unlabelled(bases, self._too_few(train))
        self._leave_out(NO_CLASS, train.images)
        if not labelled:
            for role in {"test", "val"} & roles.keys():
                text = f"images of {self._place(roles[role])}, because it has no class folders"
                self._left_out.add(text, *self._images(roles[role]))
            return self._split(train, f"{self._place(train.folder)} has the classes; {SPLIT_MADE}", roles)
        chosen = labelled[0]
        for role in {"test", "val"} & roles.keys() - {chosen}:
            reason = "is the test split" if role in labelled else "has the class folders that it lacks"
            text = f"images of {self._place(roles[role])}, because {self._place(roles[chosen])} {reason}"
            self._left_out.add(text, *self._images(roles[role]))
        test = self._level(roles[chosen])
        self._leave_out(NO_CLASS, test.images)
        classes = [_last(folder) for folder in train.folders]
        if extra := sorted({_last(folder) for folder in test.folders} - set(classes)):
            raise self._error(
                f"{self._place(test.folder)} has classes that train/ lacks: {', '.join(map(shown, extra))}; expected "
                "the same class folders in both"
            )
        layout = f"{self._place(train.folder)} is the train split, {self._place(test.folder)} the test split"
        layout += "; with one class there is no accuracy" if len(classes) == 1 else ""
        return self._result(
            self._labelled(train, classes), self._labelled(test, classes), classes, layout, self._further(roles)
        )

    def _by_classes(self, level: _Level, roles: dict[str, str]) -> Files:
        classes = replace(level, folders=tuple(folder for folder in level.folders if role_of(folder) is None))
        if len(classes.folders) < 2:
            return self._unlabelled([""], self._too_few(classes))
        if level.images and len(level.images) > sum(len(self._images(folder)) for folder in classes.folders):
            return self._unlabelled([""], "most of its images lie outside of folders")
        self._leave_out(BESIDE_CLASSES, level.images)
        return self._split(classes, SPLIT_MADE, roles)

    def _split(self, level: _Level, layout: str, roles: dict[str, str]) -> Files:
        """Return the classes of a level with a test split that is made here."""
        classes = [_last(folder) for folder in level.folders]
        train, test = split_off(self._labelled(level, classes), len(classes))
        if not test:
            bases = [level.folder, *([roles["unlabelled"]] if level.folder and "unlabelled" in roles else [])]
            return self._unlabelled(bases, "no class has two images")
        return self._result(train, test, classes, layout, self._further(roles))

    def _further(self, roles: dict[str, str]) -> list[Entry]:
        return [(path, -1) for path in self._images(roles["unlabelled"])] if "unlabelled" in roles else []

    def _too_few(self, level: _Level) -> str:
        """Return why the folders of a level are no classes."""
        if level.folders:
            return f"{self._place(level.folders[0])} is the only class, and accuracy needs two"
        return "it has no class folders"

    def _unlabelled(self, bases: Sequence[str], reason: str) -> Files:
        """Return all images below some folders as unlabelled ones."""
        entries = [(path, -1) for base in bases for path in self._images(base)]
        return self._result([], [], [], f"images without labels, since {reason}; none is held out", entries)

    def _result(
        self, train: list[Entry], test: list[Entry], classes: list[str], layout: str, unlabelled: list[Entry]
    ) -> Files:
        if not (train and test) and not (unlabelled and not classes):
            left_out = "; ".join(f"{each.count} {each.text}" for each in self._left_out.list()[:5])
            where = f" in {'test' if train else 'train'}" if classes else ""
            message = f"it has no image files{where}; expected {_EXPECTED}"
            raise self._error(message + (f". Left out: {left_out}" if left_out else ""))
        if classes and unlabelled:
            layout += "; pretraining uses the unlabelled images only"
        for each in classes:
            if shown(each) != each:
                self._odd.add(NAME_NOT_UTF8, each)
        names = tuple(map(shown, classes))
        return Files(self._name, self._root, train, test, names, unlabelled, layout, self._left_out, self._odd)

    def _labelled(self, level: _Level, classes: list[str]) -> list[Entry]:
        folders = {_last(folder): folder for folder in level.folders}
        for folder in folders.values():
            for path in self._images(folder):
                if "/" in (inside := path.removeprefix(f"{folder}/")):
                    self._remark(self._odd, NESTED, f"{folder}/{inside.split('/', 1)[0]}")
        return [
            (path, label)
            for label, name in enumerate(classes)
            if name in folders
            for path in self._images(folders[name])
        ]

    # --- the tree ---

    def _level(self, folder: str) -> _Level:
        """Return the level of a folder; folders without an image are left out.

        Raises:
            DataError: a folder of splits or classes is a link that leads out of the tree.
        """
        if folder not in self._levels:
            entries = list(self._entries(folder))
            if out := [each.path for each in entries if each.is_folder and each.leads_out]:
                raise self._error(
                    f"{self._place(out[0])} is a link that leads out of the folder, and such links are not followed; "
                    "copy its images into the folder (cp -al takes no space on the same disk)"
                )
            folders = [each.path for each in entries if each.is_folder]
            with_images = [each for each in folders if next(self._walk(each), None) is not None]
            self._leave_out(NO_IMAGES, sorted(set(folders) - set(with_images)))
            images = tuple(each.path for each in entries if not each.is_folder)
            self._levels[folder] = _Level(folder, tuple(sorted(with_images, key=_last)), images)
        return self._levels[folder]

    def _images(self, folder: str) -> list[str]:
        """Return all images below a folder, in the order of their names."""
        return list(self._walk(folder))

    def _walk(self, base: str) -> Iterator[str]:
        """Yield the images below a folder; a folder that several links lead to is read once."""
        real_base = os.path.realpath(self._root / base)
        visited = {real_base}
        stack = [self._entries(base)]
        while stack:
            if (entry := next(stack[-1], None)) is None:
                stack.pop()
            elif not entry.is_folder:
                yield entry.path
            elif not entry.leads_out:
                real = os.path.realpath(self._root / entry.path) if entry.is_link else ""
                if entry.is_link and (real in visited or holds(real, real_base) or holds(real_base, real)):
                    self._remark(self._left_out, LINK_AGAIN, entry.path)
                    continue
                if entry.is_link:
                    visited.add(real)
                    self._remark(self._odd, LINK_READ, entry.path)
                stack.append(self._entries(entry.path))

    def _entries(self, folder: str) -> Iterator[_Entry]:
        """Yield the folders and images directly in a folder, by name; everything else is left out with a remark."""
        try:
            with os.scandir(self._root / folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError:
            self._remark(self._left_out, NOT_OPENED, folder)
            return
        for each in entries:
            if each.name == LEFT_OUT:
                continue
            path = f"{folder}/{each.name}" if folder else each.name
            entry = _Entry(path, each.is_dir(), each.is_symlink())
            if reason := self._reason_to_skip(each, is_at_top=not folder):
                if reason == LINK_OUT and entry.is_folder:
                    yield replace(entry, leads_out=True)
                self._remark(self._left_out, reason, path)
            else:
                yield entry

    def _reason_to_skip(self, entry: os.DirEntry[str], *, is_at_top: bool) -> str | None:
        if is_hidden(entry.name):
            return HIDDEN
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not Path(target).exists():
                return LINK_NOWHERE
            if not holds(self._real_root, target):
                return LINK_OUT
        if entry.is_dir():
            return None
        if not entry.is_file():
            return NOT_REGULAR
        if (ending := Path(entry.name).suffix.lower()) not in ENDINGS:
            if is_at_top and ending in LISTS and self._has_labels:
                from wcl_core.data.listed import has_labels_in

                if has_labels_in(Path(entry.path)):
                    return LIST
            return with_ending(ending)
        return TOO_LARGE if entry.stat().st_size > MAX_BYTES else None

    # --- remarks and errors ---

    def _remark(self, remarks: Remarks, text: str, path: str) -> None:
        """Remark on a path once, however often it is passed."""
        if (text, path) not in self._remarked:
            self._remarked[text, path] = remarks
            remarks.add(text, path)

    def _leave_out(self, text: str, paths: Iterable[str]) -> None:
        for path in paths:
            self._remark(self._left_out, text, path)

    def _place(self, folder: str) -> str:
        return f"{shown(folder)}/" if folder else str(self._root)

    def _error(self, message: str) -> DataError:
        return DataError(f"dataset {self._name}: {self._root} is not read: {message}")


def _last(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def role_of(folder: str) -> str | None:
    """Return the role of a folder or split by its name; None for a class."""
    return _ROLE_OF.get(_last(folder).lower())


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or of an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def holds(outer: str, inner: str) -> bool:
    """Return whether a real path is another one or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def split_off(entries: list[Entry], num_classes: int) -> tuple[list[Entry], list[Entry]]:
    """Return the train and test split of labelled files: a fifth of each class is the test split.

    The digests of the paths choose it: equal on every machine, stable under additions.  A class of one file has none.
    """
    by_class: list[list[str]] = [[] for _ in range(num_classes)]
    for path, label in entries:
        by_class[label].append(path)
    chosen: set[str] = set()
    for paths in by_class:
        paths.sort(key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        chosen.update(paths[: max(1, len(paths) // 5)] if len(paths) > 1 else [])
    train = [entry for entry in entries if entry[0] not in chosen]
    return train, [entry for entry in entries if entry[0] in chosen]
