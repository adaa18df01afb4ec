"""Extensions under a real worker: an installed method trains, and a planned evaluation uses a fixed label list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs import queries
from jobs.database import Database
from jobs.models import Job
from tests.waiting import eventually
from tests.wcl_core.distributions import install_barlow_twins
from tests.worker.conftest import StartWorker
from tests.worker.running import SHORT, Jobs

pytestmark = pytest.mark.timeout(300)


def test_an_installed_method_trains_and_is_measured_on_a_list(
    sqlite_database: Database, jobs: Jobs, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install_barlow_twins(tmp_path / "site")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    few = tmp_path / "few.txt"
    few.write_text("\n".join(map(str, range(60))))
    worker = start_worker(sqlite_database, WCL_LABEL_LISTS=json.dumps({"digits": {"few": str(few)}}))
    tuning = {"lists": ["few"], "splits": 2, "epochs": 1}
    method = {"method": "barlow-twins", "method_options": {"projection_dim": 4}}
    job_id = jobs.submit(
        SHORT | method | {"evaluations": [{"protocols": ["semi_supervised"], "semi_supervised": tuning}]}
    )

    assert jobs.wait_for(job_id, "succeeded", "failed").status == "succeeded", jobs.log(job_id) + worker.log()

    with sqlite_database.read() as session:
        measuring = session.execute(select(Job.id).where(Job.parent_id == job_id)).scalar_one()
    assert jobs.wait_for(measuring, "succeeded", "failed").status == "succeeded", jobs.log(measuring)
    with sqlite_database.read() as session:
        (dataset,) = queries.datasets(session)
        (evaluation,) = queries.evaluations(session, measuring)
        assert (evaluation.params["list"], evaluation.params["labels"]) == ("few", 60)
        assert evaluation.details is not None
        assert evaluation.details["splits"] == [dataset.label_lists["few"]["digest"]]
        assert queries.workers(session)[0].memory_bytes
    eventually(worker.is_idle, "the worker's rest")
