"""`wcl submit --seeds`, `wcl group` and the preset in `wcl show`, against a real server."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.api.served import Served
from tests.jobs import rows
from wcl_client.cli import app


def wcl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_seeds_submit_a_seed_group_with_results(server: Served) -> None:
    group = json.loads(wcl("submit", "--preset", "digits-cpu", "--seeds", "0,1", "--set", "epochs=20", "--json").stdout)
    for place in range(2):
        rows.Run(server.database, rows.claim(server.database)).deliver(
            rows.started(), rows.checkpoint(10, f"{place}" * 64), rows.end("succeeded")
        )
    for job, value in zip(group["items"], (0.25, 0.75), strict=True):
        checkpoint = rows.checkpoints(server.database, job["id"])[0].id
        rows.submit(server.database, "evaluate", {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint}})
        run = rows.Run(server.database, rows.claim(server.database))
        run.deliver(rows.started(), rows.evaluation(value), rows.end("succeeded"))

    shown = json.loads(wcl("group", group["group_id"], "--json").stdout)
    by_job = json.loads(wcl("group", group["items"][1]["id"], "--json").stdout)

    assert [job["name"][-6:] for job in group["items"]] == ["seed 0", "seed 1"]
    assert shown == by_job
    assert [job["status"] for job in shown["items"]] == ["succeeded"] * 2
    assert shown["results"][0]["mean"] == 0.5
    table = wcl("group", group["group_id"]).stdout
    assert "50.00%" in table
    assert "2 seeds are too few" in table  # for an interval that says anything


def test_show_lists_the_deviations_from_the_preset(server: Served) -> None:
    job_id = json.loads(wcl("submit", "--preset", "digits-cpu", "--set", "epochs=20", "--json").stdout)["id"]
    plan = json.loads(wcl("submit", "--preset", "digits-cpu", "--seeds", "1,2", "--dry-run", "--json").stdout)

    shown = wcl("show", job_id)

    assert shown.exit_code == 0
    for words in ("digits-cpu (deviations: 1)", "/epochs", "Deviations from the preset"):
        assert words in shown.stdout
    assert [entry["pointer"] for entry in plan["deviations"]] == ["/seed"]


@pytest.mark.usefixtures("server")
def test_seeds_are_described_as_a_single_job_is() -> None:
    submitted = wcl("submit", "--preset", "digits-cpu", "--seeds", "0,1", "--set", "epochs=20")
    group = json.loads(wcl("group", submitted.stdout.strip(), "--json").stdout)

    first, second = (job["id"] for job in group["items"])
    for words in ("2 jobs, one for each seed", f"/jobs/{first}", " an epoch", "in the queue of pool"):
        assert words in submitted.stderr
    assert f"follow them: wcl watch {first[-12:]} {second[-12:]}" in submitted.stderr


def test_seeds_that_are_not_numbers_are_wrong_usage(server: Served) -> None:
    assert wcl("submit", "--preset", "digits-cpu", "--seeds", "0,x").exit_code == 2
