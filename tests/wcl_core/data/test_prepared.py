"""Decoded folders in the cache: the data of the folder itself, made once, checked, and removed when room is needed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.wcl_core import small
from tests.wcl_core.data.test_data import damage
from tests.wcl_core.data.test_packed import write_noise
from wcl_core import data
from wcl_core.data import DataError, ImageData, Split, decoding, packed, packing, prepared
from wcl_core.data import cache as cache_module
from wcl_core.data.cache import Cache, NoRoomError, hold_compiled
from wcl_core.data.held_out import with_held_out
from wcl_core.reporter import MemoryReporter, Reporter
from wcl_core.stop import Interrupted, interruptible
from wcl_core.training.pretrain import pretrain

torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with damaged files and one of 16 bits."""
    root = tmp_path / "photos"
    write_noise(root, {"train/cat": 15, "train/dog/small": 3, "train/dog": 12, "val/dog": 4, "unlabelled/any": 16})
    damage(root, 2)
    Image.fromarray(np.arange(80, dtype=np.uint16).reshape(8, 10) * 800).save(root / "train" / "cat" / "wide.png")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "data" / "cache")


def load(root: Path, cache: Cache | None, reporter: Reporter | None = None, share: float = 0.1) -> ImageData:
    digest = data.describe("photos", "folder", root).digest
    return data.load("photos", "folder", root, 8, share, reporter or MemoryReporter(), cache=cache, digest=digest)


def splits(loaded: ImageData) -> dict[str, Split]:
    assert loaded.unlabelled is not None
    return {"train": loaded.train, "test": loaded.test, "unlabelled": loaded.unlabelled}


def assert_same(ours: ImageData, theirs: ImageData) -> None:
    assert (ours.name, ours.classes, ours.digest) == (theirs.name, theirs.classes, theirs.digest)
    for (which, mine), other in zip(splits(ours).items(), splits(theirs).values(), strict=True):
        assert torch.equal(mine.images, other.images), which
        assert torch.equal(mine.labels, other.labels)
        assert (mine.digest, mine.files, mine.side) == (other.digest, other.files, other.side)


def warnings_of(reporter: MemoryReporter) -> list[tuple[str, str]]:
    return [(warning["reason"], warning["message"]) for warning in reporter.of("warning")]


def only_file(cache: Cache) -> Path:
    (file,) = cache.files()
    return file.path


def test_the_cache_holds_the_data_of_the_folder(photos: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    reporters = [MemoryReporter() for _ in range(3)]
    in_memory = load(photos, None, reporters[0])
    first = load(photos, cache, reporters[1])
    digest = in_memory.digest

    monkeypatch.setattr(decoding, "read_image", None)
    monkeypatch.setattr(prepared, "list_files", None)
    again = data.load("photos", "folder", photos, 8, 0.1, reporters[2], cache=cache, digest=digest)

    assert in_memory.train.is_mapped is False
    assert first.train.is_mapped is again.train.is_mapped is True
    assert_same(first, in_memory)
    assert_same(again, in_memory)
    kinds = [reason for reason, _ in warnings_of(reporters[0])]
    assert kinds == ["corrupt_image", "corrupt_image", "scaled_to_8_bits"]
    assert warnings_of(reporters[0]) == warnings_of(reporters[1]) == warnings_of(reporters[2])


@pytest.mark.slow
def test_a_run_ends_with_the_same_bytes_with_and_without_the_cache(photos: Path, cache: Cache, tmp_path: Path) -> None:
    spec = small.spec(data={"name": "photos", "image_size": 8, "held_out_share": 0.0}, batch_size=4, epochs=2)
    digests = []
    for name, use in (("none", None), ("first", cache), ("again", cache)):
        reporter = MemoryReporter()
        assert pretrain(spec, reporter, dataset=load(photos, use), output_dir=tmp_path / name) == "succeeded"
        digests.append([record["sha256"] for record in reporter.of("checkpoint")])
    assert digests[0]
    assert digests[0] == digests[1] == digests[2]


def test_images_of_the_cache_can_be_held_out(photos: Path, cache: Cache) -> None:
    ours, theirs = (with_held_out(load(photos, use), 0.25) for use in (cache, None))
    assert_same(ours, theirs)
    assert not ours.train.is_mapped


@pytest.mark.process
def test_processes_read_what_one_thread_reads(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load(photos, None)
    described = data.describe("photos", "folder", photos)
    monkeypatch.setattr(decoding, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(decoding, "_FILES_AT_ONCE", 5)
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)

    assert_same(load(photos, None), alone)
    assert data.describe("photos", "folder", photos) == described


@pytest.mark.process
@pytest.mark.parametrize("num_kills", [1, 2])
def test_a_decoder_that_is_killed_is_replaced_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, num_kills: int
) -> None:
    expected = load(photos, None)
    monkeypatch.setattr(decoding, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    read, reads = decoding._Process.read, list[int]()

    def killed(process: decoding._Process, paths: list[Path]) -> object:
        if len(reads) < num_kills:
            process.stop()
        reads.append(1)
        return read(process, paths)

    monkeypatch.setattr(decoding._Process, "read", killed)
    if num_kills == 1:
        assert_same(load(photos, None), expected)
        return
    with pytest.raises(MemoryError, match="was killed twice"):
        load(photos, None)


@pytest.mark.process
def test_a_crash_of_a_decoder_names_the_files(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    monkeypatch.setattr(decoding.sys, "executable", "false")
    with pytest.raises(DataError, match=r"photos: the decoder crashed \(exit code 1\) in one of the files from 00.png"):
        data.describe("photos", "folder", photos)


def test_other_content_than_expected_is_refused_and_not_kept(photos: Path, cache: Cache) -> None:
    with pytest.raises(DataError, match="its content has changed since the job was submitted"):
        data.load("photos", "folder", photos, 8, 0.1, MemoryReporter(), cache=cache, digest="0" * 64)
    assert cache.files() == []
    assert os.listdir(cache.folder) == []


def test_the_share_of_corrupt_files_that_a_job_allows_counts_also_for_the_cache(photos: Path, cache: Cache) -> None:
    with pytest.raises(DataError, match="2 of 51 image files"):
        load(photos, cache, share=0.0)
    load(photos, cache)
    with pytest.raises(DataError, match="2 of 51 image files"):
        load(photos, cache, share=0.0)
    assert len(cache.files()) == 1


@pytest.mark.parametrize("place", [0, 9, 40, -1, "image", "end of header"])
def test_a_damaged_file_is_made_anew(photos: Path, cache: Cache, place: int | str) -> None:
    before = load(photos, cache)
    path = only_file(cache)
    whole = path.read_bytes()
    start = 16 + int.from_bytes(whole[8:16], "little")
    header_end = len(whole[:start].rstrip(b" "))
    number = {"image": start + 500, "end of header": header_end - 1}.get(str(place), place)
    spoilt = bytearray(whole)
    spoilt[int(number)] ^= 1
    path.write_bytes(spoilt)
    reporter = MemoryReporter()

    after = load(photos, cache, reporter)

    assert "cache_damaged" in [reason for reason, _ in warnings_of(reporter)]
    assert not any(str(cache.folder) in message for _, message in warnings_of(reporter))
    assert only_file(cache).read_bytes() == whole
    assert_same(after, load(photos, None))
    del before


def test_a_file_is_read_whole_only_once_until_it_changes(
    photos: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(photos, cache)
    path, lock, checks = only_file(cache), only_file(cache).with_suffix(".lock"), list[int]()
    check = packed._check_blocks
    monkeypatch.setattr(packed, "_check_blocks", lambda *args: (checks.append(1), check(*args)))

    def num_checks() -> int:
        checks.clear()
        load(photos, cache)
        return len(checks)

    assert num_checks() == 0
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with path.open("r+b") as file:  # the same bytes, then the same times, as a copy that preserves them has
        first = file.read(1)
        file.seek(0)
        file.write(first)
    os.utime(path, ns=times)
    assert [num_checks(), num_checks()] == [1, 0]
    lock.write_text(lock.read_text()[:-3])
    assert num_checks() == 0
    lock.write_text(lock.read_text().replace("-", "_"))
    assert [num_checks(), num_checks()] == [1, 0]
    monkeypatch.setattr(cache_module, "_MARK_SECONDS", 0.0)
    assert num_checks() == 1
    lock.unlink()
    assert num_checks() == 1


def test_a_job_keeps_its_version_after_the_folder_has_changed(photos: Path, cache: Cache) -> None:
    digest = data.describe("photos", "folder", photos).digest
    before = load(photos, cache)
    write_noise(photos, {"train/cat": 40})

    after = data.load("photos", "folder", photos, 8, 0.1, MemoryReporter(), cache=cache, digest=digest)

    assert_same(after, before)
    assert load(photos, cache).digest != digest


def test_a_kill_in_the_middle_costs_nothing_but_time(photos: Path, cache: Cache) -> None:
    pid = os.fork()
    if pid == 0:
        packing._BlockWriter.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        load(photos, cache)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert any(name.endswith(".part") for name in os.listdir(cache.folder))

    assert_same(load(photos, cache), load(photos, None))
    assert sorted(path.suffix for path in cache.folder.iterdir()) == [".lock", ".wclpack"]


def test_one_process_prepares_and_others_wait(photos: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = data.describe("photos", "folder", photos).digest
    reporter, results = MemoryReporter(), list[ImageData]()
    other = threading.Thread(target=lambda: results.append(load(photos, cache, reporter)))
    with cache.writing(cache.path(digest, 8), lambda: pytest.fail("the lock is free")):
        other.start()
        while not reporter.of("progress"):
            other.join(0.01)
        assert not results
        preparation = prepared._Preparation("photos", photos, 8, 0.1, MemoryReporter(), cache, digest)
        preparation._written()
        monkeypatch.setattr(prepared, "list_files", None)
    other.join()
    assert_same(results[0], load(photos, None))
    assert reporter.of("progress")[0]["phase"] == "prepare"


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_request_ends_the_preparation(photos: Path, cache: Cache, is_waiting: bool) -> None:
    digest = data.describe("photos", "folder", photos).digest
    with ExitStack() as held:
        if is_waiting:
            held.enter_context(cache.writing(cache.path(digest, 8), lambda: pytest.fail("the lock is free")))
        with interruptible(lambda: "cancel"), pytest.raises(Interrupted):
            load(photos, cache)
    assert list(cache.folder.iterdir()) == []


def test_the_progress_of_decoding_is_reported(photos: Path, cache: Cache) -> None:
    reporter = MemoryReporter()
    load(photos, cache, reporter)
    first = reporter.of("progress")[0]
    assert (first["phase"], first["share"]) == ("prepare", round(16 / 51, 4))
    assert first["eta_seconds"] >= 0


# --- room ----------------------------------------------------------------------------------------------------------


def fill(cache: Cache, names: str, size: int = 100) -> list[Path]:
    """Write one file for each letter, the first one unused for the longest time."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    paths = [cache.path(name, 8) for name in names]
    for order, path in enumerate(paths):
        path.write_bytes(bytes(size))
        os.utime(path, (order, order))
    return paths


def left(cache: Cache) -> str:
    return "".join(sorted(file.path.name[0] for file in cache.files()))


def test_the_longest_unused_files_go_first_and_none_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=400)
    paths = fill(cache, "abcd")
    used = cache.opened(paths[1])  # it is now the newest, and in use
    cache.make_room(100)
    assert left(cache) == "bcd"
    os.utime(paths[1].with_suffix(".lock"), (0, 0))
    cache.make_room(250)
    assert left(cache) == "b"
    with pytest.raises(NoRoomError, match="more than its disk and its files in use leave"):
        cache.make_room(350)
    assert used is not None
    used.close()
    cache.make_room(350)
    assert left(cache) == ""
    with pytest.raises(NoRoomError, match=r"more than the limit of .*WCL_CACHE_BYTES"):
        cache.make_room(401)


def test_compiled_code_counts_and_goes_unless_a_run_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiler"))
    cache = Cache(tmp_path, max_bytes=400)
    fill(cache, "ab")
    held = hold_compiled()
    assert held is not None
    compiled = tmp_path / "compiler" / "fxgraph" / "code"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(bytes(150))

    cache.make_room(100)
    assert left(cache) == "b"
    os.utime(tmp_path / "compiler.lock", (0, 0))  # it is now the longest unused
    with pytest.raises(NoRoomError):
        cache.make_room(350)
    assert compiled.exists()
    (path,) = fill(cache, "a")
    os.utime(path, (1, 1))
    held.close()
    cache.make_room(200)
    assert (compiled.exists(), left(cache)) == (False, "a")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert hold_compiled() is None


def test_a_file_that_is_removed_while_it_is_opened_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, max_bytes=400)
    (path,) = fill(cache, "a")
    original = os.path.samestat

    def remove(one: os.stat_result, other: os.stat_result) -> bool:
        path.unlink()
        monkeypatch.setattr(os.path, "samestat", original)
        return False

    monkeypatch.setattr(os.path, "samestat", remove)
    assert cache.opened(path) is None


def test_unfinished_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=400)
    path = cache.path("a", 8)
    parts = [tmp_path / f".{each.name}.x.part" for each in (path, cache.path("b", 8))]
    with cache.writing(path, lambda: pytest.fail("the lock is free")):
        for part in parts:
            part.touch()
        cache.make_room(10)
        assert [part.exists() for part in parts] == [True, False]
    cache.make_room(10)
    assert not parts[0].exists()


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("reason", ["limit", "disk", "permission"])
def test_without_room_the_folder_is_decoded_into_memory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=10 if reason == "limit" else None)
    if reason == "disk":
        monkeypatch.setattr(packing._BlockWriter, "write", _full)
    if reason == "permission":
        (tmp_path / "cache").touch()
    reporter = MemoryReporter()

    loaded = load(photos, cache, reporter)

    assert_same(loaded, load(photos, None))
    (message,) = [message for kind, message in warnings_of(reporter) if kind == "cache_full"]
    assert message.startswith("the images of photos are decoded into memory, since the cache cannot hold them: ")
    assert str(tmp_path) not in message
    assert cache.files() == []


def test_a_full_disk_pauses_a_job_whose_images_do_not_fit_into_memory(
    photos: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing._BlockWriter, "write", _full)
    monkeypatch.setattr(prepared, "fits_memory", lambda _: False)
    with pytest.raises(OSError, match="No space"):
        load(photos, cache)
