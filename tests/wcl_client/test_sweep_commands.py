"""`wcl sweep`, against a real server."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.api.served import Served
from tests.jobs import sweeping
from wcl_client.cli import app
from wcl_client.errors import ConflictError, InvalidError, NotFoundError

FILE = """
name: from a file
preset: digits-cpu
search: halving
parameters:
  loss.temperature: [0.1, 0.2, 0.4]
metric: {protocol: knn}
"""


def wcl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "sweep.yaml").write_text(FILE)
    return str(tmp_path / "sweep.yaml")


def test_a_sweep_from_a_file_to_its_best_trial(server: Served, path: str) -> None:
    plan = json.loads(wcl("sweep", "submit", path, "--dry-run", "--json").stdout)
    assert (len(plan["trials"]), plan["jobs"]) == (3, {"pretrain": 4, "evaluate": 4})

    submitted = wcl("sweep", "submit", path, "--name", "mine", "--max-parallel", "3")
    assert submitted.exit_code == 0, submitted.output
    sweep_id = submitted.stdout.split()[0]
    sweeping.play_out(server.database, sweep_id, lambda spec: 1 - spec["loss"]["temperature"])

    shown = wcl("sweep", "show", sweep_id[-8:])
    assert shown.exit_code == 0, shown.output
    for words in ("mine", "succeeded", "trial 0, 90.00%", "20% of train, held out", "3 x 20 epochs, 1 x 60 epochs"):
        assert words in shown.stdout, shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines() if line.split()[-1:] in (["finished"], ["stopped"])]
    assert [line[0] for line in lines] == ["0", "1", "2"]
    assert "mine" in wcl("sweep", "list").stdout
    assert json.loads(wcl("sweep", "show", "last", "--json").stdout)["best"]["trial"] == 0


def test_a_sweep_is_watched_until_it_ends(server: Served, path: str) -> None:
    sweep_id = wcl("sweep", "submit", path).stdout.split()[0]
    cancelled = wcl("sweep", "submit", path, "--name", "other").stdout.split()[0]
    wcl("sweep", "cancel", cancelled)
    worker = threading.Thread(
        target=sweeping.play_out, args=(server.database, sweep_id, lambda spec: 1 - spec["loss"]["temperature"])
    )
    worker.start()
    watched = wcl("sweep", "watch", sweep_id)
    worker.join()

    assert watched.exit_code == 0, watched.output
    lines = [line for line in watched.stdout.splitlines() if line.startswith("trial")]
    assert len(lines) == 4
    assert lines[0] == "trial 0, 20 epochs: 90.00%  (loss.temperature = 0.1)"
    assert lines[-1].startswith("trial 0, 60 epochs: 90.00%")
    assert wcl("sweep", "watch", cancelled, "--json").exit_code == 1
    for status, expected in (("succeeded", {sweep_id}), ("cancelled,succeeded", {sweep_id, cancelled}), ("failed", [])):
        sweeps = json.loads(wcl("sweep", "list", "--status", status, "--json").stdout)
        assert {each["id"] for each in sweeps} == set(expected)


def test_wrong_requests_raise_the_matching_error(server: Served, path: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"name": "x", "search": "grid", "parameters": {"epochs": [1]}}')
    assert isinstance(wcl("sweep", "submit", str(tmp_path / "wrong.json")).exception, InvalidError)
    assert isinstance(wcl("sweep", "show", "nothing").exception, NotFoundError)

    submitted = wcl("sweep", "submit", path, "--json")
    sweep_id = json.loads(submitted.stdout)["id"]
    assert wcl("sweep", "cancel", sweep_id).stdout == f"{sweep_id} cancelled\n"
    assert isinstance(wcl("sweep", "cancel", sweep_id).exception, ConflictError)
