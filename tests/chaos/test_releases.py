"""The previous release, from its wheel, beside this version: database, server, worker and training run."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text

from jobs.models import Attempt
from tests import releases
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.stage import Stage, Theatre
from tests.processes import outside
from tests.waiting import eventually
from tests.worker.running import ENDLESS, SHORT

pytestmark = [pytest.mark.long, pytest.mark.process, pytest.mark.server, pytest.mark.timeout(1800)]
_SECONDS = 300.0  # the former version imports PyTorch and all else at each start


class Former:
    """Processes of the previous release on a stage."""

    def __init__(self, stage: Stage, python: Path) -> None:
        self._stage, self._python = stage, python
        server, worker = stage.server("former-server"), stage.worker("former")
        stage.nodes.clear()  # this version starts none of them
        self._environments = {"api": server.start_as.environment, "worker": worker.start_as.environment}
        self.port = server.start_as.environment["WCL_PORT"]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [self._python, "-m", *words]
        environment = outside() | self._environments["api"]
        return subprocess.run(command, env=environment, cwd=self._stage.folder, capture_output=True, text=True)

    @contextmanager
    def running(self, module: str) -> Iterator[subprocess.Popen[bytes]]:
        environment = outside() | self._environments[module]
        with (self._stage.folder / f"former-{module}.log").open("ab") as log:
            command = [self._python, "-m", module]
            process = subprocess.Popen(command, env=environment, cwd=self._stage.folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(120)


def client(port: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}, timeout=60)


def wait_for_server(port: str) -> None:
    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    eventually(is_ready, f"the server on port {port}", _SECONDS)


def submit(server: httpx.Client, spec: dict[str, Any]) -> str:
    response = server.post("/v1/jobs", json={"kind": "pretrain", "spec": spec})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def count(stage: Stage, query: str, job_id: str) -> int:
    """Return a number of a job; the models of this version do not fit the former schema."""
    with stage.database.read() as session:
        return int(session.execute(text(query), {"id": job_id}).scalar_one())


def wait_for(stage: Stage, job_id: str, status: str) -> None:
    query = "SELECT count(*) FROM jobs WHERE id = :id AND status = :status"

    def is_there() -> bool:
        with stage.database.read() as session:
            return session.execute(text(query), {"id": job_id, "status": status}).scalar_one() == 1

    eventually(is_there, f"{job_id} {status}", _SECONDS)


def test_the_previous_release_and_this_version_share_jobs_through_an_upgrade(house: Theatre, tmp_path: Path) -> None:
    """Its server and worker go on with a training under the new schema, beside new ones, which take it over at last."""
    python = releases.install(releases.PREVIOUS, tmp_path)
    saved = "SELECT count(*) FROM checkpoints WHERE job_id = :id"
    with house.stage("releases", is_migrated=False, WCL_BUILTIN_DATASETS='["digits"]') as stage, ExitStack() as running:
        former = Former(stage, python)
        migrated = former.run("jobs", "migrate")
        assert migrated.returncode == 0, migrated.stderr
        key = former.run("jobs", "create-key", "admin").stdout.split()[-1]
        running.enter_context(former.running("api"))
        wait_for_server(former.port)
        old_worker = running.enter_context(former.running("worker"))
        with client(former.port, key) as old:
            assert old.get("/openapi.json").json()["info"]["version"]
            eventually(lambda: old.get("/v1/datasets").json()["items"], "the datasets of the former worker", _SECONDS)
            ended, endless = submit(old, SHORT), submit(old, ENDLESS)
            wait_for(stage, ended, "succeeded")
            eventually(lambda: count(stage, saved, endless), "a checkpoint of the former release", _SECONDS)

            stage.database.migrate()
            before = count(stage, saved, endless)
            eventually(lambda: count(stage, saved, endless) > before, "a checkpoint of it on the new schema", _SECONDS)
            refused = former.run("jobs", "migrate")
            assert refused.returncode != 0, "the former release must not touch a newer schema"

            server = stage.server("server").start()
            port = server.start_as.environment["WCL_PORT"]
            wait_for_server(port)
            with client(port, key) as new:
                by_old, by_new = submit(old, SHORT | {"seed": 1}), submit(new, SHORT | {"seed": 2})
                for each in (old, new):
                    assert {job["id"] for job in each.get("/v1/jobs").json()["items"]} == {
                        ended,
                        endless,
                        by_old,
                        by_new,
                    }
                worker = stage.worker("new", trains=True).start()
                stage.wait_for_workers("former", "new")
                for job_id in (by_old, by_new):
                    wait_for(stage, job_id, "succeeded")
                assert stage.job(endless).status == "running"

                old_worker.send_signal(signal.SIGTERM)
                assert old_worker.wait(120) == 0
                eventually(lambda: stage.job(endless).attempt == 2, "the new worker takes the training over", _SECONDS)
                eventually(
                    lambda: count(stage, saved, endless) > before + 1, "a checkpoint of the new release", _SECONDS
                )
                assert old.post(f"/v1/jobs/{endless}/cancel").status_code in (200, 202)
                wait_for(stage, endless, "cancelled")
                worker.end(signal.SIGTERM)
                curve = new.get(f"/v1/jobs/{endless}/metrics").json()
        with stage.database.read() as session:
            workers = session.execute(
                select(Attempt.number, Attempt.worker_name, Attempt.start_step)
                .where(Attempt.job_id == endless)
                .order_by(Attempt.number)
            ).all()
        assert [(number, name) for number, name, _ in workers] == [(1, "former"), (2, "new")]
        assert workers[1][2], "the second attempt continued from a checkpoint of the first one"
        assert curve
        jobs = [Accepted(each, 0, None, frozenset({"succeeded"})) for each in (ended, by_old, by_new)]
        jobs.append(Accepted(endless, 0, None, frozenset({"cancelled"})))
        assert Ledger(stage.database, stage.checkpoints_dir).problems(jobs) == []
