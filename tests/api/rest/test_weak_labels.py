"""Weak-label groups of the monitor batch over REST: each epoch, with classes where they are known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.rest.test_artifacts import store
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient

FACTS: dict[str, Any] = {
    "indices": [40, 41, 42, 43, 44],
    "classes": [0, 0, 1, 1, 1],
    "class_names": ["cat", "<b>dog</b>"],
    "tile": 8,
    "columns": 3,
}


def run_of(served: Served, facts: dict[str, Any] | None = FACTS) -> rows.Run:
    run = rows.Run(served.database, rows.running(served.database))
    run.deliver(rows.started())
    if facts is not None:
        store(served, run, "probe.json", json.dumps(facts).encode())
    run.deliver(rows.groups(1, [3, 3, 3, 4, 4]), rows.groups(2, [0, 0, 2, 2, 2]))
    return run


def test_the_groups_of_an_epoch(served: Served) -> None:
    run = run_of(served)

    with WclClient(served.url, served.key("read")) as client:
        last, first = client.weak_groups(run.job_id), client.weak_groups(run.job_id, epoch=1)
        assert client.job(run.job_id)["links"]["groups"] == f"/v1/jobs/{run.job_id}/groups"

    assert (last["epochs"], last["epoch"], last["step"], last["attempt"]) == ([1, 2], 2, 20, 1)
    assert (last["num_images"], last["num_groups"], last["pair_precision"]) == (5, 2, 1.0)
    assert last["pair_precision_chance"] == pytest.approx((2**2 + 3**2) / 5**2)
    assert last["groups"][0] == {
        "places": [2, 3, 4],
        "images": [42, 43, 44],
        "classes": {"<b>dog</b>": 3},
        "pair_precision": 1.0,
    }
    assert first["epoch"] == 1
    assert first["groups"][0] == {
        "places": [0, 1, 2],
        "images": [40, 41, 42],
        "classes": {"cat": 2, "<b>dog</b>": 1},
        "pair_precision": pytest.approx(1 / 3),
    }
    assert first["pair_precision"] == pytest.approx((3 * (1 / 3) + 2 * 1) / 5)


def test_a_job_reports_the_quality_of_its_weak_labels(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    client = small.client("read")
    assert client.get(f"/v1/jobs/{run.job_id}").json()["weak_labels"] is None
    values = {"components": 125.0, "largest_share": 0.23, "view_agreement": 0.21, "pair_precision": 0.055}
    latest = {f"weak/{name}": value for name, value in values.items()}
    run.deliver(rows.started(), rows.progress(50, epoch=1), rows.metrics(50, **latest))

    quality = client.get(f"/v1/jobs/{run.job_id}").json()["weak_labels"]

    assert quality.pop("warning").startswith("Only 5.5% of the pairs")
    assert quality == {**values, "pair_precision_chance": None}


@pytest.mark.parametrize(
    "facts", [None, {"nonsense": True}, FACTS | {"indices": [1], "classes": [0]}], ids=["absent", "nonsense", "others"]
)
def test_without_facts_of_the_monitor_batch_only_groups_are_returned(
    small: Served, facts: dict[str, Any] | None
) -> None:
    run = run_of(small, facts)

    response = small.client("read").get(f"/v1/jobs/{run.job_id}/groups").json()

    assert response["num_groups"] == 2
    assert (response["pair_precision"], response["pair_precision_chance"]) == (None, None)
    nothing = {"images": None, "classes": None, "pair_precision": None}
    assert response["groups"] == [{"places": [2, 3, 4], **nothing}, {"places": [0, 1], **nothing}]


def test_without_true_classes_no_precision_is_claimed(small: Served) -> None:
    run = run_of(small, FACTS | {"classes": [0, 0, 1, None, 1]})

    response = small.client("read").get(f"/v1/jobs/{run.job_id}/groups").json()

    assert (response["pair_precision"], response["pair_precision_chance"]) == (None, None)
    assert response["groups"][0] == {
        "places": [2, 3, 4],
        "images": [42, 43, 44],
        "classes": None,
        "pair_precision": None,
    }


def test_a_run_without_groups_and_an_epoch_without_any(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    run.deliver(rows.started())
    client = small.client("read")

    response = client.get(f"/v1/jobs/{run.job_id}/groups").json()
    assert (response["epochs"], response["epoch"], response["groups"], response["num_images"]) == ([], None, [], 0)
    for epoch in ("1", "-1", "one", str(2**40)):
        assert_problem(client.get(f"/v1/jobs/{run.job_id}/groups", params={"epoch": epoch}), 422, "epoch")
    assert_problem(client.get("/v1/jobs/absent/groups"), 404)
