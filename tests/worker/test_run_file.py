"""The checkpoint file that an attempt starts from: a damaged one is skipped for an older good one."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import update

from jobs import checkpoints, queries, transitions
from jobs.damage import LostFiles
from jobs.database import Database
from jobs.errors import Superseded
from jobs.models import Checkpoint
from jobs.storage import StorageUnavailable, UnreadableFile, digest_of_open
from tests.disks import under_modes
from tests.worker.test_delivery import Spool, deliver_all
from worker import run_file
from worker.exit_reason import is_of_job
from worker.run_file import MissingCheckpoint, Resume

BYTES = random.Random(0).randbytes(4000)


@pytest.fixture
def spool(sqlite_database: Database, tmp_path: Path) -> Spool:
    """Return the spool of a running attempt with checkpoints of steps 5 and 10."""
    connection = sqlite_database.engine.raw_connection()
    connection.cursor().execute("PRAGMA synchronous=OFF")  # a thousand commits, and no crash among them
    connection.close()
    spool = Spool(sqlite_database, tmp_path)
    spool.write_checkpoint(5, b"older" + BYTES)
    spool.write_checkpoint(10, BYTES)
    deliver_all(spool.delivery())
    return spool


def begin(spool: Spool, must_resume: bool = False) -> Path | None:
    return resume.file if (resume := chosen(spool, must_resume)) else None


def chosen(spool: Spool, must_resume: bool = False) -> Resume | None:
    with spool.database.read() as session:
        resume = checkpoints.resume_point(session, spool.job_id)
    claim = transitions.Claim(spool.ref, "pretrain", {}, "digits", "d" * 64, resume, None, must_resume=must_resume)
    return run_file.resume_file(spool.database, spool.storage, claim, spool.folder)


def file_of(spool: Spool, step: int) -> Path:
    return next(spool.storage.path(row.storage_key) for row in spool.checkpoints() if row.step == step)


def forget_damage(database: Database) -> None:
    database.write(lambda session: session.execute(update(Checkpoint).values(damaged_at=None)) and None)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_every_damage_is_detected_and_the_older_checkpoint_is_used(spool: Spool, damage: str) -> None:
    """500 flipped bits, one at a time, and 50 truncations, the empty file among them."""
    newest, older = file_of(spool, 10), file_of(spool, 5)
    bits = [divmod(place, 8) for place in random.Random(1).sample(range(8 * len(BYTES)), 500)]
    lengths = [0, len(BYTES) - 1, *random.Random(2).sample(range(1, len(BYTES) - 1), 48)]
    flipped = (BYTES[:byte] + bytes([BYTES[byte] ^ 1 << bit]) + BYTES[byte + 1 :] for byte, bit in bits)
    truncated = (BYTES[:length] for length in lengths)

    count = 0
    for content in flipped if damage == "flip" else truncated:
        newest.write_bytes(content)
        assert begin(spool) == older
        assert newest.read_bytes() == content
        forget_damage(spool.database)
        count += 1

    assert count == {"flip": 500, "truncate": 50}[damage]
    newest.write_bytes(BYTES)
    assert begin(spool) == newest


def test_a_marked_checkpoint_is_never_read_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark stays when the bytes are restored; each file is hashed once."""
    newest, older = file_of(spool, 10), file_of(spool, 5)
    newest.write_bytes(BYTES[:-1] + b"?" if BYTES[-1:] != b"?" else BYTES[:-1] + b"!")
    hashed: list[Path] = []

    def watched(file: BinaryIO) -> str:
        hashed.append(Path(file.name))
        return digest_of_open(file)

    monkeypatch.setattr("jobs.storage.digest_of_open", watched)

    assert begin(spool) == older
    newest.write_bytes(BYTES)
    assert begin(spool) == older

    assert hashed == [newest, older, older]
    with spool.database.read() as session:
        warnings = [e.data for e in queries.events_after(session, spool.job_id, 0) if e.type == "warning"]
    assert len(warnings) == 1
    assert "resumes from step 5" in warnings[0]["message"]


def test_without_a_good_one_a_job_starts_over_and_a_retry_fails(spool: Spool) -> None:
    for step in (5, 10):
        file_of(spool, step).write_bytes(b"other bytes")

    assert begin(spool) is None
    with pytest.raises(MissingCheckpoint):
        begin(spool, must_resume=True)


def test_all_files_missing_at_once_are_a_storage_that_is_not_there(spool: Spool) -> None:
    folder = file_of(spool, 5).parent
    folder.rename(folder.with_name("elsewhere"))

    for must_resume in (False, True):
        with pytest.raises(LostFiles, match=spool.job_id):
            begin(spool, must_resume)

    assert [row.flaw for row in spool.checkpoints()] == [None, None]
    folder.with_name("elsewhere").rename(folder)
    assert begin(spool) == file_of(spool, 10)


def test_a_file_that_the_account_may_not_read_concerns_its_job_only(spool: Spool) -> None:
    """No older checkpoint takes its place: the newest one may be good."""
    newest = file_of(spool, 10)
    for place in (newest, newest.parent):
        place.chmod(0)
        with under_modes(), pytest.raises(UnreadableFile, match="Permission denied") as raised:
            begin(spool)
        place.chmod(0o700)
        assert is_of_job(raised.value)

    assert [row.flaw for row in spool.checkpoints()] == [None, None]
    assert begin(spool) == newest


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LostFiles("job", "no file"), True),
        (StorageUnavailable("the folder is not mounted"), False),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), True),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (OSError(errno.ENOSPC, "No space left"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (ValueError("of the code"), False),
    ],
)
def test_faults_of_one_job_are_told_from_those_of_the_worker(error: Exception, expected: bool) -> None:
    assert is_of_job(error) == expected


def test_a_missing_file_that_is_there_again_is_resumed_from(spool: Spool) -> None:
    newest, older = file_of(spool, 10), file_of(spool, 5)
    newest.rename(newest.with_name("elsewhere"))
    assert begin(spool) == older
    assert [row.flaw for row in spool.checkpoints()] == ["missing", None]
    assert begin(spool) == older

    newest.write_bytes(b"other bytes")
    assert begin(spool) == older
    newest.with_name("elsewhere").rename(newest)

    assert begin(spool) == newest
    assert [row.flaw for row in spool.checkpoints()] == [None, None]
    with spool.database.read() as session:
        events = [e.data["reason"] for e in queries.events_after(session, spool.job_id, 0) if e.type == "warning"]
    assert events == ["missing_checkpoint", "restored_checkpoint"]


def test_the_checkpoint_of_the_file_is_the_one_of_its_step_whatever_else_is_missing(spool: Spool) -> None:
    """The other nodes of an attempt find the file by the id of the checkpoint."""
    older = file_of(spool, 5)
    file_of(spool, 10).unlink()

    resume = chosen(spool)

    assert resume
    assert (resume.file, resume.checkpoint.step) == (older, 5)
    assert resume.checkpoint.id == next(row.id for row in spool.checkpoints() if row.step == 5)


def test_a_superseded_attempt_marks_nothing(spool: Spool) -> None:
    file_of(spool, 10).unlink()
    spool.database.write(lambda s: transitions.end_attempt(s, spool.ref, "failed", "worker_lost"))

    with pytest.raises(Superseded):
        begin(spool)

    assert [row.flaw for row in spool.checkpoints()] == [None, None]
