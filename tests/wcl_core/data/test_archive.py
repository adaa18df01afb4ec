"""Archives of image folders: unpacked once, with nothing outside of the folder."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.wcl_core.data.test_data import write_tree
from wcl_core.data import DataError, archive, unpacked
from wcl_core.data.layout import list_files

TREE = {"cat": 5, "dog": 5}


def zipped(root: Path, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as made:
        for path in sorted(root.rglob("*")):
            made.write(path, path.relative_to(root))


def tarred(root: Path, file: Path) -> None:
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as made:
        made.add(root, ".")


def listed(file: Path, place: Path) -> tuple[tuple[str, ...], int, dict[str, int]]:
    files = list_files("photos", archive.source("photos", archive.unpacked("photos", file, place)))
    return files.classes, files.count, {remark.text: remark.count for remark in files.left_out.list()}


@pytest.mark.parametrize(("name", "pack"), [("photos.zip", zipped), ("photos.TAR", tarred), ("photos.tar.gz", tarred)])
def test_an_archive_is_read_as_the_folder_that_was_packed(
    tmp_path: Path, name: str, pack: Callable[[Path, Path], None]
) -> None:
    write_tree(tmp_path / "photos", TREE | {"__MACOSX": 1})
    (tmp_path / "photos" / "notes.pdf").write_bytes(b"none")
    pack(tmp_path / "photos", tmp_path / name)
    classes, count, left_out = listed(tmp_path / name, tmp_path / "made" / "photos")
    assert (classes, count) == (("cat", "dog"), 10)
    assert left_out == {"files with the ending .pdf": 1, archive.HIDDEN: 1}
    first = archive.unpacked("photos", tmp_path / name, tmp_path / "made" / "photos")
    inode = first.stat().st_ino
    assert archive.unpacked("photos", tmp_path / name, tmp_path / "made" / "photos").stat().st_ino == inode


def test_another_content_of_an_archive_takes_the_place_of_the_first(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", TREE)
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    first = archive.unpacked("photos", tmp_path / "photos.zip", tmp_path / "made" / "photos")
    write_tree(tmp_path / "photos", {"bird": 2})
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    assert listed(tmp_path / "photos.zip", tmp_path / "made" / "photos")[:2] == (("bird", "cat", "dog"), 12)
    assert first.exists(), "a run may read it"
    second = archive.unpacked("photos", tmp_path / "photos.zip", tmp_path / "made" / "photos")
    unpacked.keep_only(tmp_path / "made" / "photos", second / "cat")
    assert list((tmp_path / "made").iterdir()) == [second]


def test_one_of_two_workers_unpacks_and_removes_only_what_is_of_this_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "photos", TREE)
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    place = tmp_path / "made"
    for name in (
        "photos.killed_1.unpacking",
        "photos.0123456789abcdef.unpacked",
        "photos.small.0123456789abcdef.unpacked",
    ):
        (place / name).mkdir(parents=True)
    calls: list[str] = []
    unpack, has_begun = archive._unpack, threading.Event()

    def slowly(name: str, file: Path, folder: Path) -> None:
        calls.append(name)
        has_begun.set()
        time.sleep(0.3)  # enough for the other one to come to the same place
        unpack(name, file, folder)

    monkeypatch.setattr(archive, "_unpack", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(archive.unpacked, "photos", tmp_path / "photos.zip", place / "photos")
        assert has_begun.wait(30)
        second = pool.submit(archive.unpacked, "photos", tmp_path / "photos.zip", place / "photos")
        folder = first.result()

    assert second.result() == folder
    assert calls == ["photos"]
    unpacked.keep_only(place / "photos", folder)
    names = {path.name for path in place.iterdir()}
    assert names == {folder.name, "photos.small.0123456789abcdef.unpacked"}


def test_a_list_at_the_top_of_an_archive_names_the_classes(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos" / "shots", {"all": 10})
    rows = [f"all/0{number}.png,{'ab'[number % 2]}" for number in range(10)]
    (tmp_path / "photos" / "shots" / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "photos" / "shots" / "README.txt").write_text("Photos of a and b.")
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    assert listed(tmp_path / "photos.zip", tmp_path / "photos")[:2] == (("a", "b"), 10)


MEMBERS = ("../out.png", "/out.png", "a/../../out.png", "..\\out.png", "\\out.png", "C:\\out.png", "a/..")


@pytest.mark.parametrize("member", MEMBERS)
def test_a_path_that_leads_out_makes_an_archive_refused(tmp_path: Path, member: str) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as place:
        place.writestr("cat/00.png", b"none")
        place.writestr(member, b"none")
    with tarfile.open(tmp_path / "photos.tar", "w") as made_tar:
        entry = tarfile.TarInfo(member)
        entry.size = 4
        made_tar.addfile(entry, io.BytesIO(b"none"))
    for name in ("photos.zip", "photos.tar"):
        with pytest.raises(DataError, match="is refused, because its member .* leads out of it"):
            archive.unpacked("photos", tmp_path / name, tmp_path / "made" / "photos")
    assert list((tmp_path / "made").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "photos.tar", "photos.zip"]


def test_links_and_devices_of_an_archive_are_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", TREE)
    (tmp_path / "photos" / "cat" / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "photos" / "up").symlink_to("../..")
    os.mkfifo(tmp_path / "photos" / "cat" / "pipe.png")
    os.link(tmp_path / "photos" / "cat" / "00.png", tmp_path / "photos" / "cat" / "hard.png")
    tarred(tmp_path / "photos", tmp_path / "photos.tar")
    classes, count, left_out = listed(tmp_path / "photos.tar", tmp_path / "made" / "photos")
    assert (classes, count, left_out) == (("cat", "dog"), 10, {archive.LINK: 4})
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as place:
        for number in range(3):
            place.write(tmp_path / "photos" / "cat" / "01.png", f"{number}.png")
        link = zipfile.ZipInfo("4.png")
        link.external_attr = 0o120777 << 16
        place.writestr(link, "/etc/passwd")
    assert listed(tmp_path / "link.zip", tmp_path / "made" / "link") == ((), 3, {archive.LINK: 1})


def test_a_damaged_an_encrypted_and_a_lying_archive_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", TREE)
    zipped(tmp_path / "photos", tmp_path / "good.zip")
    content = (tmp_path / "good.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.tar.gz").write_bytes(b"none")
    encrypted = bytearray(content)
    for place in (index for index in range(len(content)) if content[index : index + 4] == b"PK\x01\x02"):
        encrypted[place + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(encrypted)
    lying = content.replace((tmp_path / "photos" / "cat" / "00.png").read_bytes()[-30:], b"x" * 30)
    (tmp_path / "lying.zip").write_bytes(lying)
    for name in ("cut.zip", "text.tar.gz", "encrypted.zip", "lying.zip"):
        with pytest.raises(DataError, match="cannot be unpacked"):
            archive.unpacked("photos", tmp_path / name, tmp_path / "made" / "photos")
        assert list((tmp_path / "made").iterdir()) == []


def test_an_archive_that_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "photos", TREE)
    zipped(tmp_path / "photos", tmp_path / "photos.zip")
    monkeypatch.setattr(archive, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(DataError, match="does not fit on the disk"):
        archive.unpacked("photos", tmp_path / "photos.zip", tmp_path / "made" / "photos")
    assert list((tmp_path / "made").iterdir()) == []
