"""Sweeps by REST, on both databases: dry runs, creation, reads, cancellation, and errors."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import sweeps
from jobs.models import Job, Sweep
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows, sweeping

RATE, TEMPERATURE = sweeping.RATE, sweeping.TEMPERATURE
GRID: dict[str, Any] = {
    "name": "by temperature",
    "spec": SPEC | {"epochs": 18},
    "search": "grid",
    "parameters": {TEMPERATURE: [0.1, 0.2, 0.4]},
    "metric": {"protocol": "knn", "settings": {"knn_k": 5}},
    "tags": ["search"],
}
HALVING = GRID | {
    "search": "halving",
    "eta": 3,
    "trials": 9,
    "parameters": {RATE: {"min": 0.01, "max": 1, "log": True}},
}


def test_a_sweep_is_begun_shown_and_ends_with_its_best(served: Served) -> None:
    client = served.client()

    response = client.post("/v1/sweeps", json=GRID | {"max_parallel": 2})

    assert response.status_code == 201
    sweep = response.json()
    assert response.headers["location"] == f"/v1/sweeps/{sweep['id']}"
    assert (sweep["status"], sweep["trials"], sweep["held_out_share"]) == ("running", 3, 0.2)
    assert [trial["state"] for trial in sweep["table"]] == ["unfinished", "unfinished", "waiting"]
    assert [trial["settings"] for trial in sweep["table"]] == [{TEMPERATURE: value} for value in (0.1, 0.2, 0.4)]
    job = client.get(f"/v1/jobs/{sweep['table'][0]['rungs'][0]['runs'][0]['job_id']}").json()
    assert (job["sweep_id"], job["tags"], job["name"]) == (sweep["id"], ["search"], "by temperature, trial 0")
    assert job["spec"]["data"]["held_out_share"] == 0.2
    assert [plan["knn_k"] for plan in job["spec"]["evaluations"]] == [5]

    sweeping.play_out(served.database, sweep["id"], lambda spec: 1 - abs(spec["loss"]["temperature"] - 0.2))

    shown = client.get(f"/v1/sweeps/{sweep['id']}").json()
    assert (shown["status"], shown["best_trial"]) == ("succeeded", 1)
    assert shown["best"] == {"trial": 1, "value": 1.0, "settings": {TEMPERATURE: 0.2}}
    assert [trial["state"] for trial in shown["table"]] == ["finished"] * 3
    listed = client.get("/v1/sweeps").json()
    assert [each["id"] for each in listed["items"]] == [sweep["id"]]
    assert {name: shown[name] for name in listed["items"][0]} == listed["items"][0]


def test_a_dry_run_returns_the_plan_and_creates_nothing(served: Served) -> None:
    plan = served.client().post("/v1/sweeps?dry_run=true", json=HALVING | {"seeds": [1, 2]}).json()

    assert plan["rungs"] == [{"trials": 9, "epochs": 2}, {"trials": 3, "epochs": 6}, {"trials": 1, "epochs": 18}]
    assert plan["jobs"] == {"pretrain": 26, "evaluate": 26}
    assert plan["epochs"] == 2 * (9 * 2 + 3 * 6 + 18)
    lengths = GRID | {"parameters": {"epochs": [4, 18], TEMPERATURE: [0.1, 0.2]}}
    assert served.client().post("/v1/sweeps?dry_run=true", json=lengths).json()["epochs"] == 2 * (4 + 18)
    assert len({trial["settings"][RATE] for trial in plan["trials"]}) == 9
    assert plan["held_out_share"] == 0.2
    assert rows.rows_of(served.database, Sweep) == rows.rows_of(served.database, Job) == []
    again = served.client().post("/v1/sweeps?dry_run=true", json=HALVING | {"seeds": [1, 2]}).json()
    assert again == plan


def test_concurrent_requests_with_one_key_create_one_sweep(served: Served) -> None:
    client = served.client()
    header = {"Idempotency-Key": "sweep-1"}

    answers = rows.at_once(6, lambda _: client.post("/v1/sweeps", json=GRID, headers=header))

    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(rows.rows_of(served.database, Sweep)) == 1
    other = client.post("/v1/sweeps", json=GRID | {"name": "other"}, headers=header)
    assert_problem(other, 422)


def test_a_sweep_is_cancelled_once(served: Served) -> None:
    client = served.client()
    sweep = client.post("/v1/sweeps", json=GRID).json()

    cancelled = client.post(f"/v1/sweeps/{sweep['id']}/cancel")

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert {job["status"] for job in client.get("/v1/jobs").json()["items"]} == {"cancelled"}
    assert_problem(client.post(f"/v1/sweeps/{sweep['id']}/cancel"), 409)
    assert_problem(client.post("/v1/sweeps/no-such/cancel"), 404)
    assert_problem(client.get("/v1/sweeps/no-such"), 404)


def test_a_base_spec_may_set_the_held_out_share(small: Served) -> None:
    client = small.client()
    spec = {"data": {"name": "digits", "image_size": 8, "held_out_share": 0}}

    on_test = client.post("/v1/sweeps?dry_run=true", json=GRID | {"spec": spec}).json()
    of_preset = client.post("/v1/sweeps?dry_run=true", json=GRID | {"spec": {}, "preset": "digits-cpu"}).json()
    elsewhere = GRID | {"metric": {"protocol": "linear", "data": {"name": "digits", "image_size": 8}}}

    assert (on_test["held_out_share"], of_preset["held_out_share"]) == (0, 0.2)
    assert client.post("/v1/sweeps?dry_run=true", json=elsewhere).json()["held_out_share"] == 0.2


def test_lists_continue_after_their_cursor(small: Served) -> None:
    client = small.client()
    created = [client.post("/v1/sweeps", json=GRID | {"name": name}).json()["id"] for name in ("a", "b", "c")]

    first = client.get("/v1/sweeps?limit=2").json()
    second = client.get(f"/v1/sweeps?limit=2&cursor={first['next_cursor']}").json()

    assert [each["id"] for each in first["items"] + second["items"]] == created[::-1]
    assert second["next_cursor"] is None


def test_a_list_is_filtered_by_states(small: Served) -> None:
    client = small.client()
    ended, first, second = (client.post("/v1/sweeps", json=GRID | {"name": name}).json()["id"] for name in "abc")
    client.post(f"/v1/sweeps/{ended}/cancel")

    def listed(query: str) -> list[str]:
        return [each["id"] for each in client.get(f"/v1/sweeps?{query}").json()["items"]]

    assert listed("status=running") == [second, first]
    assert listed(f"status=running&limit=1&cursor={second}") == [first]
    assert listed("status=cancelled,failed") == [ended]
    assert_problem(client.get("/v1/sweeps?status=no-such"), 422, "status")
    assert listed("status=") == [second, first, ended]


LOSS = "a series of the training, such as a loss, cannot rank"


@pytest.mark.parametrize(
    ("change", "pointers", "message"),
    [
        ({"metric": "train/loss"}, ["/metric"], LOSS),
        ({"metric": {"protocol": "train/loss"}}, ["/metric/protocol"], LOSS),
        ({"metric": {"protocol": "knn", "name": "train/loss"}}, ["/metric/name"], LOSS),
        ({"metric": {"protocol": "few_labels"}}, ["/metric/settings"], "one number"),
        ({"metric": {"protocol": "knn", "settings": {"knn_k": 0}}}, ["/metric/settings/knn_k"], "at least 1, not 0"),
        ({"metric": {"protocol": "knn", "settings": {"knn_k": 90}}}, ["/metric/settings/knn_k"], "above half"),
        ({"metric": {"protocol": "knn", "data": {"name": "absent"}}}, ["/metric/data/name"], "no dataset"),
        ({"parameters": {}}, ["/parameters"], ""),
        ({"parameters": {TEMPERATURE: []}}, [f"/parameters/{TEMPERATURE}"], ""),
        ({"parameters": {TEMPERATURE: 0.1}}, [f"/parameters/{TEMPERATURE}"], "list of values"),
        ({"parameters": {"loss.temprature": [0.1]}}, ["/parameters/loss.temprature"], "did you mean 'temperature'"),
        ({"parameters": {"a b": [1]}}, ["/parameters/a b"], "dotted name"),
        ({"parameters": {TEMPERATURE: [0.1, 0, -1]}}, [f"/parameters/{TEMPERATURE}"], "trial 1: 0"),
        ({"parameters": {TEMPERATURE: [0.1], "batch_size": [2000]}}, ["/parameters/batch_size"], "2000"),
        (
            {"parameters": {"queue_size": [512]}, "spec": SPEC | {"method": "simclr"}},
            ["/parameters/queue_size"],
            "simclr",
        ),
        ({"parameters": {"warmup_epochs": [1, 18]}}, ["/parameters/warmup_epochs"], "trial 1"),
        ({"parameters": {"data.name": ["digits"]}}, ["/parameters/data.name"], "cannot be searched"),
        (
            {"parameters": {RATE: {"min": 1, "max": 0.1}}, "trials": 2, "search": "random"},
            [f"/parameters/{RATE}/max"],
            "min",
        ),
        (
            {"parameters": {RATE: {"min": 0, "max": 1, "log": True}}, "trials": 2, "search": "random"},
            [f"/parameters/{RATE}/log"],
            "",
        ),
        ({"parameters": {RATE: {"min": 0, "maxx": 1}}}, [f"/parameters/{RATE}/max", f"/parameters/{RATE}/maxx"], ""),
        ({"parameters": {RATE: {"min": 0.1, "max": 1}}}, [f"/parameters/{RATE}"], "random draws"),
        ({"search": "random"}, ["/trials"], "required"),
        ({"search": "random", "trials": 4}, ["/trials"], "at most 3"),
        ({"trials": 3}, ["/trials"], "every combination"),
        ({"eta": 2, "rungs": [1, 2]}, ["/eta", "/rungs"], "only halving"),
        ({"search": "halving", "min_epochs": 7}, ["/min_epochs"], "only one rung"),
        ({"search": "halving", "rungs": [4, 2]}, ["/rungs"], "increasing"),
        ({"search": "halving", "rungs": [2, 4, 8]}, ["/rungs"], "at most 2"),
        ({"search": "nonsense"}, ["/search"], "grid"),
        ({"seeds": [1, 1]}, ["/seeds"], "repeat"),
        ({"seeds": [1], "spec": SPEC | {"seed": 2}}, ["/spec/seed"], "either"),
        ({"spec": SPEC | {"epochs": 0}}, ["/spec/epochs"], ""),
        ({"spec": SPEC | {"evaluations": [{"protocols": ["knn"]}] * 8}}, ["/spec/evaluations"], "at most 8"),
        ({"preset": "no-such"}, ["/preset"], "no such preset"),
        ({"parameters": {"seed": [1]}}, ["/parameters/seed"], "seeds"),
        ({"max_parallel": 0}, ["/max_parallel"], ""),
        ({"unknown": 1}, ["/unknown"], "unknown field"),
    ],
)
def test_errors_point_to_the_wrong_fields(
    shared: Served, change: dict[str, Any], pointers: list[str], message: str
) -> None:
    answer = shared.client().post("/v1/sweeps", json=GRID | change)

    body = assert_problem(answer, 422, *pointers)
    assert message in str(body["errors"]), body["errors"]
    assert rows.rows_of(shared.database, Sweep) == rows.rows_of(shared.database, Job) == []


def test_a_read_key_lists_sweeps_and_starts_none(small: Served) -> None:
    client = small.client("read")

    assert client.get("/v1/sweeps").json() == {"items": [], "next_cursor": None}
    assert_problem(client.post("/v1/sweeps", json=GRID), 403)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"data": "digits"}},
        {"spec": {"data": {"name": ["digits"]}, "loss": 3, "epochs": None}},
        {"spec": SPEC | {"epochs": True, "seed": "x"}},
        {"spec": SPEC | {"evaluations": [3, None, {"protocols": "knn"}]}},
        {"spec": SPEC | {"warmup_epochs": "ten"}, "search": "halving"},
        {"parameters": {TEMPERATURE: [None, {}, [[]], "x", 1e300]}},
        {"parameters": {"loss": [1, {"temperature": 3, "nothing": 1}], "optimizer.name.x.y": [1]}},
        {"parameters": {"method": ["wcl", "no-such"], "backbone.width": {"min": -1e12, "max": 1e12, "integer": True}}},
        {"metric": {"protocol": "semi_supervised", "settings": {"semi_supervised": "x"}}},
        {"metric": 3},
        {"metric": {"protocol": "knn", "settings": {"seed": "x", "draws": []}}},
    ],
)
def test_no_invalid_sweep_gets_a_5xx(shared: Served, change: dict[str, Any]) -> None:
    for search in ({}, {"search": "random", "trials": 2}):
        body = assert_problem(shared.client().post("/v1/sweeps", json=GRID | search | change), 422)
        assert all(error["pointer"] for error in body["errors"]), body


def test_the_example_of_the_document_is_accepted(small: Served) -> None:
    example = small.client().get("/openapi.json").json()["components"]["schemas"]["SweepBody"]["examples"][0]

    assert small.client().post("/v1/sweeps", json=example).status_code == 201


def test_the_number_of_runs_is_limited(small: Served) -> None:
    many = {"batch_size": list(range(2, 130)), TEMPERATURE: [0.1, 0.2]}
    answer = small.client().post("/v1/sweeps", json=GRID | {"parameters": many, "seeds": [0, 1, 2, 3]})

    assert_problem(answer, 422, "/parameters")
    assert sweeps.MAX_RUNS < 256 * 4
