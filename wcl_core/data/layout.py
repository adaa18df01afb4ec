"""The layouts of an image folder: which of its files are images of which split and class, and which are left out.

    ROOT/train/CLASS/FILE   and   ROOT/{test,val}/CLASS/FILE     ImageNet's layout
    ROOT/CLASS/FILE         one split only: a fixed fifth of each class, chosen by digest, is the test split
    ROOT/unlabelled/FILE    beside train/: further images without labels, for pretraining

Files may lie at any depth below a class folder.  Case does not matter in the names of the splits, and `_ALIASES` has
their other spellings.  A single folder around such a tree is passed over.  Where a folder may be read in two ways, it
is refused with both.  docs/datasets.md has the rules for users.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from wcl_core.data.image_file import ENDINGS, MAX_BYTES
from wcl_core.data.images import DataError
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
_EXPECTED = "train/CLASS/FILE and test/CLASS/FILE, or CLASS/FILE"
_MAX_WRAPPERS = 8
_MAX_REMARKS = 20
_MAX_EXAMPLES = 5
_MAX_CHARACTERS = 200  # of a remark, and of an example

HIDDEN = "hidden files and folders, and those of systems"
LINK_OUT = "links that lead out of the folder; copy their targets into it"
LINK_NOWHERE = "links that lead nowhere"
LINK_AGAIN = "links to a folder that is read already"
LINK_READ = "links to folders within the folder, which are read"
NO_IMAGES = "folders without an image"
NO_CLASS = "images outside of a class folder"
BESIDE = "folders beside train/ that are no split"
TOO_LARGE = f"files of more than {MAX_BYTES >> 30} GiB"
NOT_OPENED = "folders that cannot be opened"
NOT_REGULAR = "entries that are neither file nor folder"
NAME_NOT_UTF8 = "class names that are not UTF-8; their other bytes are shown as \\x.."


def shown(name: str) -> str:
    """Return a file name as text: bytes that are not UTF-8, and control characters, become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(each if each >= " " and each != "\x7f" else f"\\x{ord(each):02x}" for each in text)


class Remarks:
    """Remarks on files, counted by their text, with a few examples of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, text: str, *examples: str) -> None:
        """Count one more file, or several."""
        text = text[:_MAX_CHARACTERS]
        if text not in self._counts and len(self._counts) >= _MAX_REMARKS:
            text = "others"
        self._counts[text] = self._counts.get(text, 0) + len(examples)
        kept = self._examples.setdefault(text, [])
        kept.extend(shown(each)[:_MAX_CHARACTERS] for each in examples[: _MAX_EXAMPLES - len(kept)])

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
        """The files by name of the split; `unlabelled` only if it has files."""
        both = {"train": self.train, "test": self.test}
        return both | {"unlabelled": self.unlabelled} if self.unlabelled else both

    @property
    def count(self) -> int:
        """The number of files."""
        return sum(map(len, self.splits.values()))


def list_files(name: str, root: Path) -> Files:
    """Return the image files of a tree, in the order of their names.

    Raises:
        DataError: the tree has none of the layouts above, or may be read in two ways.
    """
    if not root.is_dir():
        raise DataError(f"dataset {name}: folder {root} does not exist")
    return _Listing(name, root).files()


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

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root
        self._real_root = os.path.realpath(root)
        self._left_out, self._odd = Remarks(), Remarks()
        self._levels: dict[str, _Level] = {}
        self._remarked: set[tuple[str, str]] = set()

    def files(self) -> Files:
        """Return the files, as `list_files`."""
        level = self._without_wrappers(self._level(""))
        if level.folder:
            inner = _Listing(self._name, self._root / level.folder)
            inner._left_out = self._left_out
            files = inner.files()
            return replace(files, layout=f"{files.layout}, in {self._place(level.folder)}")
        roles = self._roles(level)
        if self._is_split_by_folders(level, roles):
            return self._two_splits(level, roles)
        return self._one_split(level)

    # --- the layout ---

    def _without_wrappers(self, level: _Level) -> _Level:
        """Return the level of the splits or classes: folders around it are passed over.

        Raises:
            DataError: the only folder may be a class as well as a folder around the classes.
        """
        inner = level
        for _ in range(_MAX_WRAPPERS):
            if inner.images or len(inner.folders) != 1 or _role(inner.folders[0]):
                break
            inner = self._level(inner.folders[0])
        if inner is level or any(_role(each) == "train" for each in inner.folders):
            return inner
        if len(inner.folders) > 1 and not inner.images:
            inside = ", ".join(shown(_last(each)) for each in inner.folders[:5])
            raise self._error(
                f"{self._place(level.folders[0])} is its only folder. It may be the only class, or a folder around the "
                f"classes {inside}. Register {self._place(inner.folder)} for these classes; for one class, move "
                "its images directly into its folder"
            )
        return level

    def _roles(self, level: _Level) -> dict[str, str]:
        """Return the folders that are named as a split, by role.

        Raises:
            DataError: two folders have one role.
        """
        roles: dict[str, str] = {}
        for folder in level.folders:
            if (role := _role(folder)) is None:
                continue
            if role in roles:
                both = f"{self._place(roles[role])} and {self._place(folder)}"
                raise self._error(f"both {both} may be the {role} split; keep or rename one of them")
            roles[role] = folder
        return roles

    def _is_split_by_folders(self, level: _Level, roles: dict[str, str]) -> bool:
        """Return whether the folders are splits; otherwise they are classes.

        Raises:
            DataError: they may be both, or neither is complete.
        """
        others = [folder for folder in level.folders if _role(folder) is None]
        has_classes = {role: bool(self._level(folder).folders) for role, folder in roles.items()}
        names = ", ".join(self._place(folder) for folder in roles.values())
        other_names = ", ".join(self._place(folder) for folder in others[:5])
        has_labelled_test = has_classes.get("test") or has_classes.get("val")
        if has_classes.get("train") and (has_labelled_test or not others):
            return True
        if not roles:
            return False
        if others:
            raise self._error(
                f"{names} may be splits, or classes beside {other_names}. For splits, train/ and test/ need class "
                f"folders, and {other_names} must go; for classes, rename {names}"
            )
        if "train" not in roles:
            raise self._error(f"it has {names} but no train/; expected {_EXPECTED}")
        count = len(self._level(roles["train"]).images)
        raise self._error(
            f"{self._place(roles['train'])} has {_images(count)} and no class folders; expected {_EXPECTED}. "
            "Images without classes can lie in one class folder"
        )

    def _two_splits(self, level: _Level, roles: dict[str, str]) -> Files:
        labelled = [role for role in ("test", "val") if role in roles and self._level(roles[role]).folders]
        if not labelled:
            flat = [f"{self._place(roles[role])} has no class folders" for role in ("test", "val") if role in roles]
            reason = f" ({'; '.join(flat)})" if flat else ""
            raise self._error(
                f"it has train/ and no test split{reason}; expected test or val with class "
                "folders, or no train/ and the class folders in its place; a fifth of each class is then the test split"
            )
        chosen = labelled[0]
        for role in {"test", "val"} & roles.keys() - {chosen}:
            reason = "is the test split" if role in labelled else "has the class folders that it lacks"
            text = f"images of {self._place(roles[role])}, because {self._place(roles[chosen])} {reason}"
            self._left_out.add(text, *self._images(roles[role]))
        self._leave_out(NO_CLASS, level.images)
        self._leave_out(BESIDE, [folder for folder in level.folders if _role(folder) is None])
        train, test = self._level(roles["train"]), self._level(roles[chosen])
        self._leave_out(NO_CLASS, train.images + test.images)
        classes = [_last(folder) for folder in train.folders]
        if extra := sorted({_last(folder) for folder in test.folders} - set(classes)):
            raise self._error(
                f"{self._place(test.folder)} has classes that train/ lacks: {', '.join(map(shown, extra))}; expected "
                "the same class folders in both"
            )
        unlabelled = [(path, -1) for path in self._images(roles["unlabelled"])] if "unlabelled" in roles else []
        layout = f"{self._place(train.folder)} is the train split, {self._place(test.folder)} the test split"
        return self._result(self._labelled(train, classes), self._labelled(test, classes), classes, layout, unlabelled)

    def _one_split(self, level: _Level) -> Files:
        self._leave_out(NO_CLASS, level.images if level.folders else ())
        classes = [_last(folder) for folder in level.folders]
        both = self._labelled(level, classes)
        held_out = _held_out_files(both, len(classes))
        train = [entry for entry in both if entry[0] not in held_out]
        test = [entry for entry in both if entry[0] in held_out]
        if level.images and not level.folders:
            raise self._error(
                f"it has {_images(len(level.images))} and no class folders; expected {_EXPECTED}. "
                "Images without classes can lie in one class folder"
            )
        return self._result(train, test, classes, "a fixed fifth of each class is the test split")

    def _result(
        self, train: list[Entry], test: list[Entry], classes: list[str], layout: str, unlabelled: Iterable[Entry] = ()
    ) -> Files:
        if not train or not test:
            left_out = "; ".join(f"{each.count} {each.text}" for each in self._left_out.list()[:5])
            message = (
                f"it has no image files below class folders in {'test' if train else 'train'}; expected {_EXPECTED}"
            )
            raise self._error(message + (f". Left out: {left_out}" if left_out else ""))
        for each in classes:
            if shown(each) != each:
                self._odd.add(NAME_NOT_UTF8, each)
        names = tuple(map(shown, classes))
        return Files(self._name, self._root, train, test, names, list(unlabelled), layout, self._left_out, self._odd)

    def _labelled(self, level: _Level, classes: list[str]) -> list[Entry]:
        folders = {_last(folder): folder for folder in level.folders}
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
                if entry.is_link and (real in visited or _holds(real, real_base) or _holds(real_base, real)):
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
            path = f"{folder}/{each.name}" if folder else each.name
            entry = _Entry(path, each.is_dir(), each.is_symlink())
            if reason := self._reason_to_skip(each):
                if reason == LINK_OUT and entry.is_folder:
                    yield replace(entry, leads_out=True)
                self._remark(self._left_out, reason, path)
            else:
                yield entry

    def _reason_to_skip(self, entry: os.DirEntry[str]) -> str | None:
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
            return HIDDEN
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not Path(target).exists():
                return LINK_NOWHERE
            if not _holds(self._real_root, target):
                return LINK_OUT
        if entry.is_dir():
            return None
        if not entry.is_file():
            return NOT_REGULAR
        if (ending := Path(entry.name).suffix.lower()) not in ENDINGS:
            return f"files with the ending {shown(ending)}" if ending else "files without an ending"
        return TOO_LARGE if entry.stat().st_size > MAX_BYTES else None

    # --- remarks and errors ---

    def _remark(self, remarks: Remarks, text: str, path: str) -> None:
        """Remark on a path once, however often it is passed."""
        if (text, path) not in self._remarked:
            self._remarked.add((text, path))
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


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _role(folder: str) -> str | None:
    return _ROLE_OF.get(_last(folder).lower())


def _holds(outer: str, inner: str) -> bool:
    """Return whether a real path is another one or lies below it."""
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def _held_out_files(entries: list[Entry], num_classes: int) -> set[str]:
    """Return a fifth of each class, by the digest of the paths: equal on every machine, stable under additions."""
    by_class: list[list[str]] = [[] for _ in range(num_classes)]
    for path, label in entries:
        by_class[label].append(path)
    chosen: set[str] = set()
    for paths in by_class:
        paths.sort(key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
        chosen.update(paths[: max(1, len(paths) // 5)] if len(paths) > 1 else [])
    return chosen
