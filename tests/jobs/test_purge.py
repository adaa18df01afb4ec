"""The removal of deleted jobs that an administrator requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from jobs import activity, deletions, keys, purge
from jobs.database import Database
from jobs.errors import Conflict, NotFound
from jobs.keys import Principal
from jobs.models import SEES_HIDDEN, Job
from jobs.storage import LocalStorage
from tests.jobs import rows

ROOT = Principal("root", "root", frozenset({"admin"}))


def test_a_purge_on_request_needs_no_wait_and_ends_the_restore(database: Database, tmp_path: Path) -> None:
    rows.add_dataset(database)
    storage = LocalStorage(tmp_path / "checkpoints")
    storage.root.mkdir()
    anna = database.write(lambda session: keys.create(session, "anna")[0].id)
    of_anna, other, kept = (rows.submit(database, created_by=owner) for owner in (anna, None, anna))
    database.write(lambda session: deletions.delete(session, [of_anna, other], ROOT))

    def request(*job_ids: str, owner_id: str | None = None) -> list[tuple[str, str]]:
        return database.write(lambda session: purge.request(session, job_ids, owner_id, ROOT))

    with pytest.raises(NotFound, match="no deleted job"):
        request(kept)
    with database.read() as session:
        assert [row.job_id for row in purge.requested(session, (), anna)] == [of_anna]
    chosen = [*request(owner_id=anna), *request(other)]
    assert [job_id for _, job_id in chosen] == [of_anna, other]
    with pytest.raises(Conflict, match="cannot be restored any more"):
        database.write(lambda session: deletions.restore(session, of_anna, ROOT))
    for deletion_id, job_id in chosen:
        purge.purge(database, storage, deletion_id, job_id)
    with database.read() as session:
        assert set(session.execute(select(Job.id), execution_options=SEES_HIDDEN).scalars()) == {kept}
        assert {entry.object_id for entry in activity.entries(session, action="job.purge")} == {of_anna, other}
    with pytest.raises(NotFound):
        request(of_anna)
