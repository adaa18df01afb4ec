"""Messages that all users read: they name no path of the machine that a run was on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs import workers
from jobs.database import Database
from jobs.models import Event, Job, Worker
from jobs.status import Reason
from tests.jobs import rows


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_no_message_of_a_run_names_a_path_of_its_machine(database: Database, tmp_path: Path, outcome: str) -> None:
    (tmp_path / "my data").mkdir()
    file = tmp_path / "my data" / "x.jpg"
    file.touch()
    rows.add_dataset(database)
    rows.submit(database)
    run = rows.Run(database, rows.claim(database))
    warning = {"type": "warning", "reason": "odd", "message": f"{file}: odd"}
    end = rows.end(outcome) | {"message": f"cannot read '{file}'", "reason": "bad_data"}

    run.deliver(rows.started(), warning, end)

    with database.read() as session:
        events = session.scalars(select(Event).order_by(Event.seq)).all()
        job = session.scalars(select(Job)).one()
    assert str(tmp_path) not in json.dumps([event.data for event in events])
    assert [event.data["message"] for event in events if event.type == "warning"] == ["x.jpg: odd"]
    assert job.status_message == "cannot read 'x.jpg'"


def test_no_message_of_a_worker_names_a_path_of_its_machine(database: Database, tmp_path: Path) -> None:
    unable = workers.Unable(Reason.STORAGE_UNAVAILABLE, f"it cannot write to {tmp_path}")

    database.write(lambda session: workers.register(session, rows.WORKER, 1, (), None, unable, ()))

    with database.read() as session:
        message = session.scalars(select(Worker.unable_message)).one()
    assert message == f"it cannot write to {tmp_path.name}"
