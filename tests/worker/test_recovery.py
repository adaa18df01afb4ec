"""Recovery of attempts whose worker died: what it reads is data of a run, and one bad folder costs only itself."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from jobs import checkpoints, ingest
from jobs.audit import audit
from jobs.database import Database, new_id
from jobs.ingest import Delivered
from jobs.models import AttemptNode
from tests.worker.leftovers import PRECIOUS, Leftovers, lines_of, renumbered, valid_records, write_run_file
from wcl_core.protocol import RUN_FILE, SPOOL_FILE, WarningRecord
from worker import recovery
from worker.attempt_folder import LOCK_FILE
from worker.backoff import Backoff


@pytest.fixture
def left(database: Database, tmp_path: Path) -> Leftovers:
    return Leftovers(database, tmp_path)


# Changes the folder of an attempt, given its valid records, and returns the lines of its spool.
Spoil = Callable[[Path, list[dict[str, Any]]], list[bytes]]


def recover_beside_a_good_one(left: Leftovers, spoil: Spoil) -> Any:
    """Recover two attempts, of which `spoil` has changed the first; return the job of that one."""
    (job,) = recover_all(left, {"": spoil}).values()
    return job


def recover_all(left: Leftovers, spoils: Mapping[str, Spoil]) -> dict[str, Any]:
    """Recover an attempt for each of `spoils`, and a good one after these; return the jobs of the spoiled ones."""
    # A recovery takes the folders in their order.
    *bad, good = sorted((left.attempt() for _ in range(len(spoils) + 1)), key=lambda attempt: attempt.job_id)
    left.write_spool(good, lines_of(valid_records(left.folder(good))))
    for attempt, spoil in zip(bad, spoils.values(), strict=True):
        lines = spoil(left.folder(attempt), valid_records(left.folder(attempt)))
        if not (left.folder(attempt) / SPOOL_FILE).exists():
            left.write_spool(attempt, lines)

    recovery.recover(left.database, left.storage, left.settings)

    assert left.job(good).status == "succeeded"
    assert left.precious.read_bytes() == PRECIOUS
    assert left.foreign_files() == []
    return {name: left.job(attempt) for name, attempt in zip(spoils, bad, strict=True)}


_JUNK = [
    b"5",
    b"null",
    b"[]",
    b"{}",
    b"[" * 200_000,
    b'{"seq": 2, "type": "log", "level": "info", "message": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"seq": 2, "type": "started", "start_step": 0, "x": ' + b"[" * 150 + b"]" * 150 + b"}",
    b'{"seq": 2, "type": "metrics", "step": 0, "values": {"a": 1' + b"0" * 5_000 + b"}}",
    b'{"seq": 2, "type": "metrics", "step": 1e30, "values": {"a": 1}}',
    b'{"seq": 2, "type": "metrics", "step": 0, "values": {"a": 1' + b"0" * 400 + b"}}",
    b"x" * 3_000_000,
    b"\n" * 5_000,
]


@pytest.mark.slow
def test_a_junk_line_costs_a_warning(left: Leftovers) -> None:
    def spoil(_: Path, records: list[dict[str, Any]], *, junk: bytes) -> list[bytes]:
        lines = lines_of(records)
        return [lines[0], junk, *lines[2:]]

    jobs = recover_all(left, {f"{junk[:12]!r}-{len(junk)}": partial(spoil, junk=junk) for junk in _JUNK})

    recovered = {name: (job.status, job.latest_metrics["train/loss"]) for name, job in jobs.items()}
    assert recovered == dict.fromkeys(jobs, ("succeeded", 1.5))
    assert len(jobs) == len(_JUNK)


@pytest.mark.slow
def test_a_file_outside_of_the_folder_is_not_taken(left: Leftovers) -> None:
    def spoil(folder: Path, records: list[dict[str, Any]], *, place: str) -> list[bytes]:
        path = os.path.relpath(left.precious, folder) if place == "above" else places[place]
        (folder / "linked").symlink_to(left.precious)
        (folder / "outside").symlink_to(left.precious.parent)
        for record in records:
            if "path" in record:
                record |= {"path": path, "size": len(PRECIOUS), "sha256": hashlib.sha256(PRECIOUS).hexdigest()}
        return lines_of(records)

    places = {
        "absolute": str(left.precious),
        "above": "",  # follows from the folder
        "link": "linked",
        "link to a folder": "outside/precious",
        "long": "a" * 5_000,
        "long names": "ä" * 190,
        "folder": "checkpoints",
    }
    jobs = recover_all(left, {place: partial(spoil, place=place) for place in places})

    assert {place: job.status for place, job in jobs.items()} == dict.fromkeys(places, "succeeded")


def _make_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("make", [_make_fifo, _make_folder])
@pytest.mark.parametrize("name", [SPOOL_FILE, RUN_FILE, LOCK_FILE])
def test_a_bad_folder_costs_only_itself(left: Leftovers, name: str, make: Callable[[Path], None]) -> None:
    def spoil(folder: Path, records: list[dict[str, Any]]) -> list[bytes]:
        make(folder / name)
        return lines_of(records)

    assert recover_beside_a_good_one(left, spoil).status in ("running", "paused")  # it ends with its lease


def test_an_error_of_a_folder_costs_only_itself(left: Leftovers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is none that a reader of the folder expects."""
    clear = recovery.clear

    def spoil(spoiled: Path, records: list[dict[str, Any]]) -> list[bytes]:
        def fail(folder: Path) -> None:
            if folder == spoiled:
                raise RecursionError("unexpected")
            clear(folder)

        monkeypatch.setattr(recovery, "clear", fail)
        return lines_of(records)

    assert recover_beside_a_good_one(left, spoil).status == "succeeded"


def test_a_record_that_the_database_refuses_ends_its_job(left: Leftovers, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ingest.store

    def refuse(session: Session, job_id: str, number: int, records: Sequence[Delivered], *rest: Any) -> Any:
        if any(isinstance(record, WarningRecord) and record.reason == "refuse me" for record in records):
            session.execute(text("INSERT INTO jobs (id) VALUES (NULL)"))
        return store(session, job_id, number, records, *rest)

    monkeypatch.setattr(ingest, "store", refuse)
    warning = {"seq": 2, "type": "warning", "reason": "refuse me", "message": ""}
    job = recover_beside_a_good_one(left, lambda _, records: lines_of([*records[:1], warning]))

    assert (job.status, job.status_reason) == ("failed", "internal_error")


_EVALUATION = {"type": "evaluation", "protocol": "knn", "protocol_version": 1, "dataset_digest": "d"}
_EVALUATION |= {"split_digest": "s", "params": {}, "seed": 0, "metric": "top1", "value": 1.0, "n": 10}


def test_a_record_of_another_kind_of_job_is_refused(left: Leftovers) -> None:
    def spoil(_: Path, records: list[dict[str, Any]]) -> list[bytes]:
        embeddings = [record | {"kind": "embeddings"} for record in records if record["type"] == "checkpoint"]
        return lines_of(renumbered([*records[:3], _EVALUATION, *embeddings, *records[3:]]))

    job = recover_beside_a_good_one(left, spoil)

    assert job.status == "succeeded"
    assert left.warnings(job.id) == ["refused_evaluation", "refused_checkpoint", "collapse"]


def test_a_record_that_occurs_twice_costs_nothing(left: Leftovers) -> None:
    """Only a checkpoint is of one step; of all other records the values are added, or the last one counts."""
    job = recover_beside_a_good_one(
        left, lambda _, records: lines_of(renumbered([each for record in records[:-1] for each in (record, record)]))
    )

    assert job.status == "queued"  # its worker died, and no `end` record says how it ended
    assert left.warnings(job.id) == ["collapse", "collapse", "refused_checkpoint"]


def test_another_file_of_one_name_replaces_no_checkpoint(left: Leftovers) -> None:
    def spoil(folder: Path, records: list[dict[str, Any]]) -> list[bytes]:
        (folder / "again").mkdir()
        name = "step-00000005.safetensors"
        (folder / "again" / name).write_bytes(b"other")
        again = {"step": 6, "path": f"again/{name}", "size": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
        checkpoint = next(record for record in records if record["type"] == "checkpoint")
        return lines_of(renumbered([*records[:-1], checkpoint | again, records[-1]]))

    job = recover_beside_a_good_one(left, spoil)

    assert (job.status, left.warnings(job.id)) == ("succeeded", ["collapse", "refused_checkpoint"])
    with left.database.read() as session:
        newest = checkpoints.newest(session, job.id)
    assert newest
    assert newest.step == 5
    left.storage.verify(newest.storage_key, newest.sha256, newest.size)


@pytest.mark.parametrize("ended_at", [None, 5])
def test_a_node_that_has_ended_well_does_not_end_its_attempt(left: Leftovers, ended_at: int | None) -> None:
    attempt = left.attempt()
    shutil.rmtree(left.folder(attempt))
    folder = left.settings.attempts_dir / attempt.folder_of(1)
    folder.mkdir(parents=True)
    write_run_file(folder, attempt)
    node = {"node": 1, "worker_id": new_id(), "worker_name": "w1", "address": "127.0.0.1", "renewals": 1}
    row = AttemptNode(job_id=attempt.job_id, attempt=attempt.number, ended_at=ended_at, **node)
    left.database.write(lambda session: session.add(row))

    recovery.recover(left.database, left.storage, left.settings)

    assert left.has_ended(attempt) is (ended_at is None)
    assert not folder.exists()


def test_records_after_the_end_are_not_read(left: Leftovers) -> None:
    def spoil(_: Path, records: list[dict[str, Any]]) -> list[bytes]:
        failed = {"type": "end", "outcome": "failed", "reason": "bad_data", "message": "no"}
        return lines_of(renumbered([*records, *records[:4], failed]))

    assert recover_beside_a_good_one(left, spoil).status == "succeeded"


@pytest.mark.slow
def test_a_record_that_comes_first_ends_no_job(left: Leftovers) -> None:
    def spoil(_: Path, records: list[dict[str, Any]], *, place: int) -> list[bytes]:
        return lines_of(renumbered([records[place], *records[:place], *records[place + 1 :]]))

    jobs = recover_all(left, {str(place): partial(spoil, place=place) for place in range(8)})

    assert {place: job.status for place, job in jobs.items()} == dict.fromkeys(jobs, "succeeded")
    assert len(jobs) == 8


def test_facts_of_a_run_are_no_facts_of_its_job(left: Leftovers) -> None:
    """A run may call a fact of its machine as it likes; the events of the job stay in order."""
    names = {"attempt": 99, "status": "succeeded", "reason": 5, "message": ["x"], "devices": 7, "device": {"a": 1}}

    job = recover_beside_a_good_one(left, lambda _, records: lines_of([records[0] | names, *records[1:]]))

    assert job.status == "succeeded"
    assert audit(left.database).findings == []


def test_a_storage_that_refuses_a_file_for_ever_holds_no_job(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Leftovers(database, tmp_path, stall_seconds=0.2)
    monkeypatch.setattr(Backoff, "pause", lambda _: 0.1)
    attempt = left.attempt()
    left.write_spool(attempt, lines_of(valid_records(left.folder(attempt))))

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(left.storage, "put", refuse)
    recovery.recover(left.database, left.storage, left.settings)

    assert (left.job(attempt).status, left.job(attempt).status_reason) == ("paused", "storage_unavailable")
