"""The datasets of a worker: builtin ones, folders with a cached description, packed files; others are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select, update

from jobs import dataset_sources, transitions, workers
from jobs.database import Database
from jobs.models import Dataset, Worker
from jobs.settings import Settings
from tests import disks, parallel
from tests.jobs import rows
from tests.jobs.rows import WORKER, Run
from tests.waiting import eventually
from wcl_core.data.cache import Cache, NoRoomError
from wcl_core.data.packing import pack
from wcl_core.reporter import NullReporter
from worker import datasets, registration
from worker.cached_versions import CachedVersions
from worker.datasets import Source
from worker.registration import FolderWatch, Registration

pytestmark = pytest.mark.process


def found(settings: Settings) -> dict[str, Source]:
    """The datasets that are not refused."""
    results = dict(datasets.find(settings, threading.Event()))
    assert list(results) == datasets.names(settings)
    return {name: result for name, result in results.items() if isinstance(result, Source)}


@pytest.fixture(autouse=True)
def _forked_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that read: their imports take longer than these few images."""
    monkeypatch.setattr(datasets, "sys", SimpleNamespace(executable=parallel.python()))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for index in range(10):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_each_kind_of_dataset_is_recognised_by_its_path(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "photos.wclpack"
    pack("photos", photos, packed, 8, 0.0, NullReporter())
    places = {"flat": photos, "packed": packed, "gone": tmp_path / "gone.wclpack", "none": tmp_path / "none"}
    settings = Settings(data_dir=tmp_path / "data", datasets=places)
    commands: list[list[str]] = []
    original = datasets.subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        commands.append(command)
        return original(command, **options)

    monkeypatch.setattr(datasets.subprocess, "Popen", start)
    monkeypatch.setenv("HOME", str(tmp_path))

    sources = found(settings)

    assert {name: (source.facts.kind, source.path) for name, source in sources.items()} == {
        "digits": ("builtin", None),
        "flat": ("folder", photos),
        "packed": ("packed", packed),
    }
    assert sources["packed"].facts.counts == sources["flat"].facts.counts == {"train": 8, "test": 2}
    assert sources["packed"].facts.digest != sources["flat"].facts.digest
    assert (sources["packed"].facts.image_size, sources["flat"].facts.image_size) == (8, None)
    reports = {name: source.facts.report and source.facts.report["formats"] for name, source in sources.items()}
    assert reports == {"digits": None, "flat": {"PNG": 10}, "packed": {"PNG": 10}}
    layouts = {name: source.facts.sheet and source.facts.sheet.rows for name, source in sources.items()}
    assert layouts == {"digits": 10, "flat": 2, "packed": 2}
    assert all(source.facts.sheet and source.facts.sheet.png.startswith(b"\x89PNG") for source in sources.values())
    assert "dataset gone is refused" in caplog.text
    assert "dataset none is refused" in caplog.text
    assert [command[2] for command in commands] == ["wcl_core.registration"]  # one process for all of them
    assert (settings.descriptions_dir / "flat.files").exists()


def test_a_dataset_with_an_invalid_label_list_is_refused(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("0\n4\n")
    bad.write_text("0\n99\n")
    lists = {"flat": {"some": good}, "other": {"some": bad}, "digits": {}}
    settings = Settings(data_dir=tmp_path / "data", datasets={"flat": photos, "other": photos}, label_lists=lists)

    sources = found(settings)

    assert sources.keys() == {"digits", "flat"}
    assert (sources["flat"].lists, sources["flat"].facts.label_lists["some"]["images"]) == ({"some": good}, 2)
    assert sources["flat"].facts.class_counts == {"train": [4, 4], "test": [1, 1]}
    assert sources["digits"].lists == sources["digits"].facts.label_lists == {}
    assert "dataset other is refused" in caplog.text
    assert "list some: line 2: '99' is none of the 8 train images" in caplog.text


def test_a_builtin_dataset_is_described_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first = found(Settings(data_dir=tmp_path / "data"))
    (cache,) = (tmp_path / ".cache" / "wcl").glob("digits-*.json")

    monkeypatch.setattr(datasets.subprocess, "Popen", lambda *_, **__: pytest.fail("the dataset was described again"))
    assert found(Settings(data_dir=tmp_path / "other")) == first

    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    cache.write_bytes(b"{")
    assert found(Settings(data_dir=tmp_path / "data")) == first
    assert len(cache.read_bytes()) > 1


def test_a_refusal_gives_the_reason_without_a_path(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "only" / "test").mkdir(parents=True)
    (tmp_path / "only" / "test" / "a.png").write_bytes((photos / "a" / "0.png").read_bytes())
    (tmp_path / "list.txt").write_text("x")
    places = {"only": tmp_path / "only", "Upper Case": photos, "listed": photos, "gone": tmp_path / "gone"}
    lists = {"listed": {"some": tmp_path / "list.txt"}}
    settings = Settings(data_dir=tmp_path / "data", datasets=places, label_lists=lists, builtin_datasets=["nothing"])
    refused = {name: result for name, result in datasets.find(settings, threading.Event()) if isinstance(result, str)}
    assert "it has test/ but no train/; expected images at any depth, CLASS/FILE, or" in refused["only"]
    assert "no spec can name it; expected lower-case letters" in refused["Upper Case"]
    assert refused["Upper Case"].endswith("upper-case")
    assert refused["listed"].startswith("list some: line 1")
    assert refused["gone"] == "folder the folder does not exist"
    assert "there is no builtin dataset nothing" in refused["nothing"]
    assert not any(str(tmp_path) in reason for reason in refused.values())
    assert not any(reason.startswith(("error", "dataset")) for reason in refused.values())


def test_a_description_that_is_abandoned_ends_at_once(photos: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    settings = Settings(data_dir=tmp_path / "data", datasets={"photos": photos}, builtin_datasets=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.sys, "executable", str(_sleeper(tmp_path)))
        assert list(datasets.find(settings, stop)) == []


def test_a_reader_that_dies_refuses_what_it_has_not_read(photos: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", datasets={"photos": photos}, builtin_datasets=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.sys, "executable", "false")
        results = dict(datasets.find(settings, threading.Event()))
    assert results == {"photos": "the process that reads it has ended; the worker's log has the reason"}


def test_a_look_at_files_that_do_not_respond_holds_up_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_LOOK_SECONDS", 0.1)
    places = {name: [tmp_path / name] for name in ("a", "hung", "b", "gone")}
    for name in ("a", "hung", "b"):
        places[name][0].mkdir()
    looks = datasets.Looks()
    with disks.hung(tmp_path / "hung"):
        present = {"a": True, "hung": None, "b": True, "gone": False}
        before = set(threading.enumerate())  # a thread of an earlier test may end meanwhile
        for _ in range(3):
            assert looks.at(places) == present
            assert looks.at({"a": places["a"]}) == {"a": True}
        assert len(set(threading.enumerate()) - before) == 1, "one thread waits"

    assert eventually(lambda: looks.at(places)["hung"], "its response")


def test_a_worker_lists_reads_and_watches_its_folders(
    photos: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(registration, "_REQUEST_SECONDS", 0.05)
    settings = Settings(data_dir=tmp_path / "data", datasets={"photos": photos}, builtin_datasets=[])
    facts, stop = replace(WORKER, datasets={}), threading.Event()
    database.write(lambda session: workers.register(session, facts, 1, [], pending=["photos"]))
    calls: list[str] = []
    listed = registration.rows.list_names
    monkeypatch.setattr(registration.rows, "list_names", lambda *args: (calls.append(args[1]), listed(*args)))
    sources: dict[str, Source] = {}
    registered = Registration(database, settings, facts, sources, stop)
    thread = threading.Thread(target=registered.run)
    thread.start()
    try:
        eventually(lambda: "photos" in facts.datasets and not registered.is_awaited())
        before = facts.datasets["photos"]
        assert calls == ["photos"]
        Image.new("RGB", (9, 9)).save(photos / "a" / "new.png")
        eventually(lambda: facts.datasets.get("photos") not in (None, before))
        assert sources["photos"].facts.counts == {"train": 9, "test": 2}
        database.write(lambda session: registration.rows.read_again(session, "photos").id)
        eventually(lambda: len(calls) == 3 and "photos" in facts.datasets)
        registered.note_changed("photos")  # a run has met other content
        eventually(lambda: len(calls) == 4 and "photos" in facts.datasets)
    finally:
        stop.set()
        thread.join()


def test_a_worker_holds_the_earlier_versions_of_its_jobs_in_the_cache(
    photos: Path, tmp_path: Path, database: Database
) -> None:
    """Also of a running job, whose next attempt needs it; not of a job that has ended, and of no other size."""
    settings = Settings(data_dir=tmp_path / "data", datasets={"photos": photos}, builtin_datasets=[])
    (source,) = found(settings).values()
    earlier = "e" * 64
    rows.add_dataset(database, "photos", earlier)
    database.write(lambda session: workers.register(session, WORKER, 1, []))
    spec = {"data": {"name": "photos", "image_size": 8}}
    waiting, small, ended = (rows.submit(database, spec=spec | {"seed": seed}) for seed in range(3))
    running = rows.claim(database, replace(WORKER, datasets={"photos": earlier})).job_id
    other_size = rows.submit(database, spec={"data": {"name": "photos", "image_size": 16}})
    database.write(lambda session: transitions.cancel(session, ended))
    facts = replace(WORKER, datasets={"photos": source.facts.digest}, cached_jobs=set())
    cached = CachedVersions(database, settings, facts, lambda: ["photos"])
    cached.refresh()
    assert facts.cached_jobs == set()
    cache = Cache(settings.resolved_cache_dir, 100)
    cache.folder.mkdir(parents=True)
    path = cache.path(earlier, 8)
    path.write_bytes(b"images")

    cached.refresh()

    assert other_size not in facts.cached_jobs
    assert facts.cached_jobs == {running, waiting, small}
    with database.read() as session:
        assert session.get_one(Worker, WORKER.id).cached_jobs == sorted(facts.cached_jobs)
    with pytest.raises(NoRoomError):
        cache.make_room(99)
    assert path.exists(), "a file that a job needs is in use"
    for job_id in (waiting, small, running):
        database.write(lambda session, job_id=job_id: transitions.cancel(session, job_id))  # type: ignore[misc]
    Run(database, replace(rows.UNKNOWN_CLAIM, attempt=rows.open_attempt(database, running))).end("cancelled")
    cached.refresh()
    assert facts.cached_jobs == set()
    cache.make_room(99)
    assert not path.exists()


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_job_runs_on_an_earlier_version_while_its_changed_folder_is_refused(
    photos: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    """Also on a worker that has never read the folder; not if the folder has a list of labels, which may be wrong."""
    monkeypatch.setattr(registration, "_REQUEST_SECONDS", 0.05)
    listed, wrong = tmp_path / "listed", tmp_path / "wrong.txt"
    shutil.copytree(photos, listed)
    wrong.write_text("99\n")
    places = {"photos": photos, "listed": listed}
    lists = {"listed": {"some": wrong}}
    settings = Settings(data_dir=tmp_path / "data", datasets=places, builtin_datasets=[], label_lists=lists)
    facts = replace(WORKER, datasets={}, cached_jobs=set())
    cache = Cache(settings.resolved_cache_dir)
    cache.folder.mkdir(parents=True)
    jobs = {}
    for name in places:
        rows.add_dataset(database, name, "e" * 64)
        jobs[name] = rows.submit(database, spec={"data": {"name": name, "image_size": 8}})
    cache.path("e" * 64, 8).write_bytes(b"images")
    database.write(lambda session: workers.register(session, facts, 1, [], pending=["photos", "listed"]))
    if is_restarted:
        _damage(photos)
    sources, stop = dict[str, Source](), threading.Event()
    registered = Registration(database, settings, facts, sources, stop)
    thread = threading.Thread(target=registered.run)
    thread.start()

    def refused() -> set[str]:
        with database.read() as session:
            return set(session.get_one(Worker, WORKER.id).refused_datasets or {})

    try:
        eventually(lambda: refused() == ({"photos", "listed"} if is_restarted else {"listed"}))
        if not is_restarted:
            eventually(lambda: "photos" in facts.datasets)
            _damage(photos)
            registered.note_changed("photos")
            eventually(lambda: refused() == {"photos", "listed"})
    finally:
        stop.set()
        thread.join()
    registered._cached.refresh()

    assert facts.datasets == {}
    assert facts.cached_jobs == {jobs["photos"]}
    claim = rows.claim(database, facts)
    assert (claim.job_id, claim.dataset_digest) == (jobs["photos"], "e" * 64)
    assert (sources["photos"].path, sources["photos"].facts.kind) == (photos, "folder")


def _damage(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")


def test_a_change_is_noticed_once_the_folder_is_quiet(photos: Path) -> None:
    clock = [0.0]
    watch = FolderWatch({"photos": photos}, lambda: clock[0])

    def look() -> list[str]:
        clock[0] += registration._LOOK_SECONDS
        return watch.changed()

    assert look() == []
    (photos / "a" / "new").mkdir()
    assert look() == []
    (photos / "a" / "new" / "file").touch()
    assert look() == []
    assert watch.changed() == []
    assert look() == ["photos"]
    assert look() == []
    (photos / "a" / "new" / "file").unlink()
    assert [look(), look()] == [[], ["photos"]]


def test_a_packed_file_that_appears_or_is_replaced_is_noticed(tmp_path: Path) -> None:
    clock = [0.0]
    path = tmp_path / "photos.wclpack"
    watch = FolderWatch({"photos": path}, lambda: clock[0])
    for content in ("one", "another"):
        path.write_text(content)
        os.utime(path, (len(content), len(content)))
        results = []
        for _ in range(3):
            clock[0] += registration._LOOK_SECONDS
            results.append(watch.changed())
        assert results == [[], ["photos"], []]


def test_datasets_that_a_queued_job_waits_for_are_read_first(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, datasets={"large": tmp_path, "photos": tmp_path}, builtin_datasets=[])
    rows.add_dataset(database, "photos")
    rows.add_dataset(database, "large", digest="")
    registered = Registration(database, settings, replace(WORKER, datasets={}), {}, threading.Event())
    assert registered.is_awaited()  # `large` is new
    database.write(lambda session: session.execute(update(Dataset).values(digest=rows.DIGEST)))
    assert not registered.is_awaited()
    rows.submit(database, spec={"data": {"name": "photos", "image_size": 8}})
    assert registered.is_awaited()
    order: list[str] = []

    def find(_: object, stop: threading.Event, names: list[str], *__: object) -> list[object]:
        order.extend(names)
        stop.set()
        return []

    monkeypatch.setattr(datasets, "find", find)
    registered.run()
    assert order == ["photos", "large"]
    assert not registered.is_awaited()


def _sleeper(folder: Path) -> Path:
    path = folder / "sleeper"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    return path


def test_a_worker_follows_what_administrators_add_rename_and_remove(
    photos: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is not there, or in a folder that the settings do not allow: it is refused, and costs no job."""
    monkeypatch.setattr(registration, "_REQUEST_SECONDS", 0.05)
    (tmp_path / "elsewhere").symlink_to("/etc")
    settings = Settings(data_dir=tmp_path / "data", builtin_datasets=[], dataset_roots=[tmp_path])
    facts, stop, sources = replace(WORKER, datasets={}), threading.Event(), dict[str, Source]()
    registered = Registration(database, settings, facts, sources, stop)

    def add(name: str, path: Path, has_labels: bool = True) -> None:
        database.write(lambda session: dataset_sources.add(session, name, str(path), has_labels, None))

    def row() -> Worker:
        with database.read() as session:
            return session.execute(select(Worker)).scalar_one()

    add("early", photos)
    names = registered.names()
    database.write(lambda session: workers.register(session, facts, 1, [], pending=names))
    thread = threading.Thread(target=registered.run)
    thread.start()
    try:
        eventually(lambda: "early" in row().datasets)
        with zipfile.ZipFile(tmp_path / "late.zip", "w") as made:
            for path in photos.rglob("*.png"):
                made.write(path, path.relative_to(photos))
        add("late", tmp_path / "late.zip", has_labels=False)
        add("gone", tmp_path / "photos" / ".." / "gone")
        add("outside", tmp_path / "elsewhere")
        eventually(lambda: "late" in row().datasets and len(row().refused_datasets) == 2)
        where = tmp_path / "gone"
        assert row().refused_datasets["gone"] == f"there is no folder or file {where} on this machine"
        assert "WCL_DATASET_ROOTS" in row().refused_datasets["outside"]
        assert sources["late"].facts.counts == {"train": 0, "test": 0, "unlabelled": 10}
        assert (sources["late"].has_labels, sources["early"].has_labels) == (False, True)
        check = datasets.DatasetCheck(sources)
        check()
        assert not check.absent
        kept = sources["late"].path
        assert kept is not None
        inode = kept.stat().st_ino

        walked: list[str] = []
        walk = registration.os.walk
        monkeypatch.setattr(registration.os, "walk", lambda root: (walked.append(root), walk(root))[1])
        (tmp_path / "linked").symlink_to(tmp_path.parent)
        outside = tmp_path.parent / f"{tmp_path.name}.csv"
        outside.symlink_to(photos / "list.csv")
        (photos / "list.csv").write_text("path\n")
        add("far", tmp_path / "linked")
        add("list", outside)
        eventually(lambda: {"far", "list"} <= row().refused_datasets.keys())
        assert not {str(tmp_path / "linked"), str(outside)} & set(walked), "nothing outside is opened"
        assert all("WCL_DATASET_ROOTS" in row().refused_datasets[each] for each in ("far", "list"))
        database.write(lambda session: [dataset_sources.remove(session, each) for each in ("far", "list")])

        database.write(lambda session: dataset_sources.rename(session, "late", "later"))
        eventually(lambda: row().datasets.keys() == {"early", "later"})
        assert (sources["later"].path, kept.stat().st_ino, "late" in sources) == (kept, inode, False)
        database.write(lambda session: dataset_sources.remove(session, "later"))
        database.write(lambda session: dataset_sources.remove(session, "gone"))
        eventually(lambda: sources.keys() == {"early"} and not kept.exists())
        assert (row().datasets.keys(), row().refused_datasets.keys()) == ({"early"}, {"outside"})
        with database.read() as session:
            assert list(session.execute(select(Dataset.name)).scalars()) == ["early"]
    finally:
        stop.set()
        thread.join()


def test_a_changed_archive_leaves_its_worker_able_while_it_is_read_again(
    photos: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data", builtin_datasets=[], datasets={"zip": tmp_path / "photos.zip"})

    def pack_first(count: int) -> None:
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as made:
            for path in sorted(photos.rglob("*.png"))[:count]:
                made.write(path, path.relative_to(photos))

    pack_first(10)
    sources = dict[str, Source]()
    registered = Registration(database, settings, replace(WORKER, datasets={}), sources, threading.Event())
    registered._read(["zip"])
    first = sources["zip"].path
    assert first is not None
    pack_first(6)
    checked: list[bool] = []
    check = datasets.DatasetCheck(sources)

    def look(*_: object) -> None:
        check()
        checked.append(not check.absent and first.exists())

    monkeypatch.setattr(Registration, "listed", look)
    registered._read_again(["zip"])
    assert checked == [True], "a run may still read the images of before"
    assert (first.exists(), sum(sources["zip"].facts.counts.values())) == (False, 6)
    shutil.rmtree(sources["zip"].path or first)
    check()
    assert not check.absent, "another worker that shares the folder unpacks it again"
    (tmp_path / "photos.zip").unlink()
    check()
    assert check.absent == {"zip"}


def test_an_archive_keeps_no_folder_waiting(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as made:
        made.write(photos / "a" / "0.png", "a.png")
    requests = [
        {"name": name, "path": str(path), "cache": str(tmp_path / f"{name}.json"), "lists": {}}
        for name, path in (("zip", tmp_path / "photos.zip"), ("folder", photos))
    ]
    command = [parallel.python(), "-m", "wcl_core.registration"]
    text = "".join(f"{json.dumps(each)}\n" for each in requests)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    messages = [(line["name"], "listed" in line) for line in map(json.loads, done.stdout.splitlines())]
    assert messages == [("folder", True), ("zip", True), ("zip", False), ("folder", False)]
