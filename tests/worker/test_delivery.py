"""Delivery of a spool into both databases: in order, once, and each file before its row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

import worker.delivery
from jobs import checkpoints, curves, queries, transitions, workers
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts
from jobs.eligibility import WorkerFacts
from jobs.errors import Superseded
from jobs.models import Attempt, Checkpoint, Log, PointBlock, RollupBlock
from jobs.settings import Settings
from jobs.storage import KEEPING, LocalStorage
from tests.waiting import eventually, patch_clock
from tests.worker.running import SHORT, Jobs
from worker.delivery import Delivery
from worker.garbage import collect_garbage


class Spool:
    """An attempt's folder whose run is the test itself."""

    def __init__(self, database: Database, folder: Path, spec: dict[str, Any] = SHORT) -> None:
        self.database, self.folder = database, folder / "attempt"
        (self.folder / "checkpoints").mkdir(parents=True)
        self.storage = LocalStorage(folder / "storage")
        self.settings = Settings(data_dir=folder / "data")
        facts = WorkerFacts(new_id(), "w", "default", (), {"digits": "d" * 64}, (1,))
        dataset = DatasetFacts("digits", "builtin", "d" * 64, {"train": 1437, "test": 360}, list("0123456789"))
        database.write(lambda session: workers.register(session, facts, 1, [dataset]))
        self.job_id = Jobs(database).submit(spec)
        claim = database.write(lambda session: transitions.claim(session, facts))
        assert claim
        self.ref = claim.attempt
        self._seq = 0
        self.write(type="started", start_step=0)

    def write(self, **record: Any) -> None:
        self._seq += 1
        with (self.folder / "report.jsonl").open("a") as file:
            file.write(json.dumps({"seq": self._seq, **record}) + "\n")

    def write_metrics(self, count: int) -> None:
        for step in range(count):
            self.write(type="metrics", step=step, values={"train/loss": float(step)})

    def write_checkpoint(self, step: int, content: bytes, registered: bytes | None = None) -> str:
        name = f"checkpoints/step-{step:08d}.safetensors"
        (self.folder / name).write_bytes(content)
        sha256 = hashlib.sha256(registered or content).hexdigest()
        self.write(type="checkpoint", step=step, epoch=1, path=name, sha256=sha256, size=len(content), metrics={})
        return sha256

    def write_artifact(self, name: str, content: bytes, /, **changes: Any) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        path = f"{sha256[:8]}.made"
        (self.folder / path).write_bytes(content)
        facts = {"name": name, "media_type": "application/json" if name.endswith(".json") else "image/png"}
        self.write(**{"type": "artifact", "path": path, "sha256": sha256, "size": len(content), **facts, **changes})
        return sha256

    def delivery(self) -> Delivery:
        return Delivery(self.database, self.storage, self.settings, self.folder, self.ref)

    def checkpoints(self) -> list[Any]:
        with self.database.read() as session:
            return queries.checkpoints(session, self.job_id)

    def artifacts(self) -> dict[str, bytes]:
        """Return the bytes in the storage by name, each checked against its row."""
        with self.database.read() as session:
            rows = queries.artifacts(session, self.job_id)
        contents = {row.name: self.storage.path(row.storage_key).read_bytes() for row in rows}
        assert [hashlib.sha256(contents[row.name]).hexdigest() for row in rows] == [row.sha256 for row in rows]
        assert [len(contents[row.name]) for row in rows] == [row.size for row in rows]
        return contents

    def warnings(self) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return [e.data for e in queries.events_after(session, self.job_id, 0) if e.type == "warning"]

    def values(self) -> list[float | None]:
        with self.database.read() as session:
            return [p.value for p in curves.metrics(session, self.job_id, max_points=5000).get("train/loss", [])]

    def attempt(self) -> Attempt:
        with self.database.read() as session:
            return session.execute(select(Attempt).where(Attempt.job_id == self.job_id)).scalar_one()


@pytest.fixture
def spool(database: Database, tmp_path: Path) -> Spool:
    return Spool(database, tmp_path)


def deliver_all(delivery: Delivery) -> None:
    while delivery.collect():
        delivery.send()
    eventually(lambda: not delivery.is_collecting_garbage(), "the garbage collection")


def test_more_than_a_batch_arrives_whole_and_in_order(spool: Spool) -> None:
    spool.write_metrics(1234)
    deliver_all(spool.delivery())

    assert spool.values() == [float(step) for step in range(1234)]
    assert spool.attempt().delivered_seq == 1235


def test_the_lag_is_the_time_since_when_a_record_waits(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    patch_clock(monkeypatch, worker.delivery, monotonic=lambda: now)
    delivery = spool.delivery()
    assert delivery.lag_ms == 0
    delivery.collect()
    now += 3
    spool.write_metrics(1)
    delivery.collect()
    assert delivery.lag_ms == 3_000
    deliver_all(delivery)
    assert delivery.lag_ms == 0


def test_a_backup_that_was_restored_within_an_attempt_is_completed_from_the_spool(spool: Spool) -> None:
    """The attempt is the same one, and the database lacks some of its records."""
    spool.write_metrics(3)
    delivery = spool.delivery()
    deliver_all(delivery)
    for step in (3, 4, 5):
        spool.write(type="metrics", step=step, values={"train/loss": float(step)})
    spool.write_checkpoint(5, b"weights")
    (spool.folder / "output.log").write_text("one\ntwo\n")
    deliver_all(delivery)

    def go_back(session: Session) -> None:
        session.execute(update(Attempt).values(delivered_seq=4, output_lines=1))
        for later in (
            delete(PointBlock).where(PointBlock.seq > 4),
            delete(RollupBlock),
            delete(Checkpoint),
            delete(Log),
        ):
            session.execute(later)

    spool.database.write(go_back)
    spool.write(type="metrics", step=6, values={"train/loss": 6.0})
    deliver_all(delivery)

    assert spool.values() == [float(step) for step in range(7)]
    assert [row.step for row in spool.checkpoints()] == [5]
    assert spool.attempt().delivered_seq == 9
    assert spool.warnings() == []
    with spool.database.read() as session:
        assert [line.line for line in queries.logs(session, spool.job_id)] == ["two"]


def test_a_second_delivery_of_the_same_spool_changes_nothing(spool: Spool) -> None:
    """A worker that takes over the folder of a dead worker delivers the spool again."""
    spool.write_metrics(700)
    first = spool.delivery()
    first.collect()
    first.send()
    (spool.folder / "output.log").write_text("one\ntwo\n")
    deliver_all(spool.delivery())
    deliver_all(spool.delivery())

    assert spool.values() == [float(step) for step in range(700)]
    with spool.database.read() as session:
        assert [line.line for line in queries.logs(session, spool.job_id)] == ["one", "two"]


def test_a_registered_checkpoint_is_complete_in_the_storage(spool: Spool) -> None:
    sha256 = spool.write_checkpoint(5, b"weights" * 1000)
    deliver_all(spool.delivery())

    (row,) = spool.checkpoints()
    assert hashlib.sha256(spool.storage.path(row.storage_key).read_bytes()).hexdigest() == row.sha256 == sha256


@pytest.mark.parametrize("damage", ["other bytes", "absent"])
def test_a_damaged_checkpoint_is_reported_and_never_registered(spool: Spool, damage: str) -> None:
    spool.write_checkpoint(5, b"good")
    spool.write_checkpoint(10, b"flipped", registered=b"flopped")
    if damage == "absent":
        (spool.folder / "checkpoints/step-00000010.safetensors").unlink()
    spool.write_metrics(1)
    deliver_all(spool.delivery())

    assert [row.step for row in spool.checkpoints()] == [5]
    assert spool.values() == [0.0]
    assert spool.warnings()[0]["reason"] == "damaged_checkpoint"
    assert "step 10" in spool.warnings()[0]["message"]


def test_a_checkpoint_that_was_registered_and_removed_since_is_not_reported_as_damaged(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """As after the death of a worker: the next one reads the whole spool again."""
    for step in (5, 10, 15):
        spool.write_checkpoint(step, b"good")
    deliver_all(spool.delivery())
    assert [row.step for row in spool.database.write(lambda s: checkpoints.remove_spare(s, [spool.job_id]))] == [5]
    collect_garbage(spool.database, spool.storage, [spool.job_id])
    spool.write_metrics(1)

    deliver_all(spool.delivery())

    assert spool.values() == [0.0]
    assert sorted(row.step for row in spool.checkpoints()) == [10, 15]
    assert (spool.warnings(), caplog.messages) == ([], [])


def test_registered_artifacts_are_complete_in_the_storage_and_the_last_one_of_a_name_counts(spool: Spool) -> None:
    spool.write_artifact("probe.png", b"first pixels")
    deliver_all(spool.delivery())
    spool.write_artifact("probe.png", b"other pixels")
    spool.write_artifact("probe.json", b"{}")
    deliver_all(spool.delivery())
    deliver_all(spool.delivery())  # a worker that takes over the folder of a dead one

    assert spool.artifacts() == {"probe.json": b"{}", "probe.png": b"other pixels"}
    assert spool.warnings() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "damaged_artifact"),
        ({"path": "absent.made"}, "damaged_artifact"),
        ({"name": "../../escaped.png"}, "refused_artifact"),
        ({"name": "page.html"}, "refused_artifact"),
        ({"media_type": "text/html"}, "refused_artifact"),
        ({"size": 17 << 20}, "refused_artifact"),
    ],
)
def test_a_damaged_or_invalid_artifact_becomes_a_warning_and_is_not_kept(
    spool: Spool, changes: dict[str, Any], reason: str
) -> None:
    spool.write_artifact("good.png", b"good pixels")
    spool.write_artifact("bad.png", b"bad pixels", **changes)
    spool.write_metrics(1)
    deliver_all(spool.delivery())

    assert spool.artifacts() == {"good.png": b"good pixels"}
    assert [warning["reason"] for warning in spool.warnings()] == [reason]
    assert spool.values() == [0.0]


def test_a_file_that_was_stored_before_a_crash_is_registered_after_it(spool: Spool) -> None:
    sha256 = spool.write_checkpoint(5, b"weights")
    spool.storage.put(
        spool.folder / "checkpoints/step-00000005.safetensors",
        f"{spool.ref.folder}/step-00000005.safetensors",
    )
    deliver_all(spool.delivery())

    assert [row.sha256 for row in spool.checkpoints()] == [sha256]


def test_an_undelivered_batch_stays_pending(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.write_checkpoint(5, b"weights")
    delivery = spool.delivery()
    delivery.collect()

    def absent(change: Any) -> None:
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as context:
        context.setattr(spool.database, "write", absent)
        with pytest.raises(ConnectionError):
            delivery.send()
    deliver_all(delivery)

    assert [row.step for row in spool.checkpoints()] == [5]


def test_nothing_of_a_superseded_attempt_is_stored(spool: Spool) -> None:
    spool.database.write(lambda s: transitions.end_attempt(s, spool.ref, "failed", "worker_lost"))
    spool.write_metrics(3)
    spool.write_checkpoint(5, b"weights")
    spool.write_artifact("probe.png", b"pixels")
    delivery = spool.delivery()
    delivery.collect()

    with pytest.raises(Superseded):
        delivery.send()
    delivery.discard()
    eventually(lambda: not delivery.is_collecting_garbage(), "the garbage collection")

    assert spool.values() == []
    assert spool.checkpoints() == []
    assert spool.artifacts() == {}
    assert [path.name for path in spool.storage.root.rglob("*") if path.is_file() and path.name != KEEPING] == []


def test_a_superseded_attempt_keeps_what_it_registered_before(spool: Spool) -> None:
    """A later delivery reads the spool again from the start, and stores a file too late."""
    sha256 = spool.write_checkpoint(5, b"weights")
    deliver_all(spool.delivery())
    late = spool.delivery()
    spool.write_checkpoint(10, b"too late")
    late.collect()
    spool.database.write(lambda s: transitions.end_attempt(s, spool.ref, "failed", "worker_lost"))

    with pytest.raises(Superseded):
        late.send()
    late.discard()
    eventually(lambda: not late.is_collecting_garbage(), "the garbage collection")

    (row,) = spool.checkpoints()
    assert hashlib.sha256(spool.storage.path(row.storage_key).read_bytes()).hexdigest() == sha256
    assert [path.name for path in spool.storage.root.rglob("*.safetensors")] == [Path(row.storage_key).name]


def test_all_output_is_stored_before_the_end(spool: Spool) -> None:
    """After the end nothing can be stored, and one delivery takes only a part of the output."""
    (spool.folder / "output.log").write_text("".join(f"{number}\n" for number in range(1200)))
    spool.write(type="end", outcome="succeeded", reason=None, message=None)

    deliver_all(spool.delivery())

    with spool.database.read() as session:
        lines = queries.logs(session, spool.job_id, limit=2000)
    assert [line.line for line in lines] == [str(number) for number in range(1200)]


def test_an_end_record_is_noticed(spool: Spool) -> None:
    spool.write(type="end", outcome="succeeded", reason=None, message=None)
    delivery = spool.delivery()
    deliver_all(delivery)

    assert delivery.has_ended
    assert Jobs(spool.database).get(spool.job_id).status == "succeeded"
