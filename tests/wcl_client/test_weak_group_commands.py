"""`wcl weak-labels` against a real server."""

from __future__ import annotations

import json

from typer.testing import CliRunner, Result

from tests.api.rest.test_weak_labels import FACTS, run_of
from tests.api.served import Served
from tests.jobs import rows
from wcl_client.cli import app


def wcl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_groups_of_an_epoch_with_their_classes(server: Served) -> None:
    run = run_of(server, FACTS | {"class_names": ["cat", "[red]dog"]})

    last, first = wcl("groups", run.job_id), wcl("groups", run.job_id, "--epoch", "1")
    assert "epoch 2: 2 groups of 5 images, pair precision 100.00% (chance 52.00%)" in last.stdout
    assert "cat (2), [red]dog (1)" in first.stdout
    assert json.loads(wcl("groups", run.job_id, "--json").stdout)["groups"][0]["classes"] == {"[red]dog": 3}
    wrong = wcl("groups", run.job_id, "--epoch", "9")
    assert wrong.exit_code != 0


def test_show_reports_the_quality_of_the_weak_labels(server: Served) -> None:
    run = rows.Run(server.database, rows.running(server.database))
    run.deliver(rows.started(), rows.progress(50, epoch=1))
    assert "weak labels" not in wcl("show", run.job_id).stdout
    latest = {"components": 125.0, "largest_share": 0.23, "view_agreement": 0.21, "pair_precision": 0.055}
    run.deliver(rows.metrics(50, **{f"weak/{name}": value for name, value in latest.items()}))

    shown = " ".join(wcl("show", run.job_id).stdout.split())
    assert "125 components, largest 23.0% of a batch, view agreement 21.0%, pair precision 5.5%" in shown
    assert "Only 5.5% of the pairs with one weak label are of one class." in shown
    assert "Train the same spec with method simclr" in shown

    run.deliver(rows.metrics(60, **{"weak/pair_precision": 0.5, "weak/pair_precision_chance": 0.1}))
    shown = " ".join(wcl("show", run.job_id).stdout.split())
    assert "pair precision 50.0%, chance 10.0%" in shown
    assert "method simclr" not in shown


def test_a_run_without_weak_labels_has_no_groups(server: Served) -> None:
    job_id = rows.submit(server.database)

    assert "no groups: the run has not reported weak labels yet" in wcl("groups", job_id).stdout
