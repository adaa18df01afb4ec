"""Seed groups by REST, and a job's deviations from its preset."""

from __future__ import annotations

from typing import Any

import pytest

from api.rest.presets import between
from jobs.database import new_id
from jobs.models import Job
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_core.config import resolve_spec
from wcl_core.presets import presets

BODY: dict[str, Any] = {"kind": "pretrain", "spec": SPEC, "seeds": [3, 0, 5], "name": "three", "tags": ["trial"]}


def test_seeds_make_a_group_of_jobs_that_differ_in_the_seed_alone(served: Served) -> None:
    client = served.client()

    answer = client.post("/v1/jobs", json=BODY)

    group = answer.json()
    assert answer.status_code == 201
    assert group.keys() == {"group_id", "items", "warnings"}
    assert group["warnings"] == []
    assert answer.headers["location"] == f"/v1/groups/{group['group_id']}"
    assert [job["name"] for job in group["items"]] == ["three, seed 3", "three, seed 0", "three, seed 5"]
    assert {job["group_id"] for job in group["items"]} == {group["group_id"]}
    assert {tuple(job["tags"]) for job in group["items"]} == {("trial",)}
    specs = [client.get(f"/v1/jobs/{job['id']}").json()["spec"] for job in group["items"]]
    assert [spec.pop("seed") for spec in specs] == [3, 0, 5]
    assert specs[0] == specs[1] == specs[2]
    shown = client.get(answer.headers["location"]).json()
    assert shown == group | {"results": []}


def test_the_same_key_answers_with_the_same_group(served: Served) -> None:
    client, header = served.client(), {"Idempotency-Key": "group-1"}

    first = client.post("/v1/jobs", json=BODY, headers=header)
    again = client.post("/v1/jobs", json=BODY, headers=header)
    other = client.post("/v1/jobs", json=BODY | {"seeds": [3, 0]}, headers=header)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert_problem(other, 422)
    assert len(rows.rows_of(served.database, Job)) == 3


def test_a_name_that_others_have_gives_a_warning_also_for_seeds_and_batches(served: Served) -> None:
    client = served.client()
    client.post("/v1/jobs", json=BODY)

    group = client.post("/v1/jobs", json=BODY | {"seeds": [5, 6]}).json()
    unnamed = [client.post("/v1/jobs", json={key: BODY[key] for key in ("kind", "spec", "seeds")}) for _ in range(2)]
    job = {"kind": "pretrain", "spec": SPEC}
    names = ["three, seed 5", "new", "twice", "twice"]
    batch = client.post("/v1/jobs:batch", json={"jobs": [job, *(job | {"name": name} for name in names)]}).json()

    ends = "so only ids tell them apart"
    assert group["warnings"] == [f"another job has the name three, seed 5, {ends}"]
    assert [each.json()["warnings"] for each in unnamed] == [[], []], "the service chose these names"
    assert [each["warnings"] for each in batch["items"]] == [
        [],
        [f"2 other jobs have the name three, seed 5, {ends}"],
        [],
        *[[f"another job has the name twice, {ends}"]] * 2,
    ]


def test_a_job_that_was_cancelled_before_it_began_keeps_no_name(served: Served) -> None:
    client, named = served.client(), {"kind": "pretrain", "spec": SPEC, "name": "mine"}
    first = client.post("/v1/jobs", json=named).json()
    client.post(f"/v1/jobs/{first['id']}/cancel")
    second = client.post("/v1/jobs", json=named).json()
    third = client.post("/v1/jobs", json=named).json()

    assert not any("the name" in text for text in second["warnings"])
    assert "another job has the name mine, so only ids tell them apart; mine-2 is free" in third["warnings"]
    assert client.post(f"/v1/jobs/{first['id']}/clone").json()["name"] == "mine-2"


def test_a_group_that_is_wrong_makes_nothing(served: Served) -> None:
    client = served.client()

    assert_problem(client.post("/v1/jobs", json=BODY | {"seeds": [1, 1]}), 422, "/seeds")
    assert_problem(client.post("/v1/jobs", json=BODY | {"seeds": []}), 422, "/seeds")
    assert_problem(client.post("/v1/jobs", json=BODY | {"seeds": list(range(33))}), 422, "/seeds")
    assert_problem(client.post("/v1/jobs", json=BODY | {"seeds": [0, -1]}), 422, "/seeds/1")
    assert_problem(client.post("/v1/jobs", json=BODY | {"spec": SPEC | {"seed": 1}}), 422, "/spec/seed")
    assert_problem(client.post("/v1/jobs", json=BODY | {"spec": SPEC | {"batch_size": 5000}}), 422, "/spec/batch_size")
    assert_problem(client.get(f"/v1/groups/{new_id()}"), 404)
    plan = client.post("/v1/jobs?dry_run=true", json=BODY).json()
    assert (plan["seeds"], plan["spec"]["seed"]) == ([3, 0, 5], 3)
    assert rows.rows_of(served.database, Job) == []


def test_numbers_over_the_seeds_by_the_client(served: Served) -> None:
    with WclClient(served.url, served.key()) as client:
        group = client.submit_group("evaluate", {**SPEC, "features": {"kind": "pixels"}}, seeds=[0, 1])
        for seed, value in ((0, 0.4), (1, 0.6)):
            run = rows.Run(served.database, rows.claim(served.database))
            record = rows.evaluation(value, seed=seed, details={"C": 10.0 * seed})
            run.deliver(rows.started(), record, rows.end("succeeded"))
        shown = client.group(group["group_id"])
        details = client.evaluations(group["items"][1]["id"])[0]["details"]

    assert details == {"C": 10.0}
    result = shown["results"][0]
    assert [job["status"] for job in shown["items"]] == ["succeeded", "succeeded"]
    assert (result["seeds"], result["values"], result["mean"]) == ([0, 1], [0.4, 0.6], pytest.approx(0.5))
    assert result["title"] == "Linear probe accuracy"
    assert result["deviation"] == pytest.approx(0.1414, abs=1e-4)
    assert result["interval"] is None  # 0.5 ± 1.27: two seeds that differ so much say nothing


# --- presets -------------------------------------------------------------------------------------------------------


def test_a_job_lists_its_deviations_from_its_preset(small: Served) -> None:
    client = small.client()
    spec = {"epochs": 50, "loss": {"temperature": 0.5}}
    body = {"kind": "pretrain", "preset": "digits-cpu", "spec": spec}
    digits = resolve_spec(presets()["digits-cpu"])

    job = client.post("/v1/jobs", json=body).json()

    expected = [
        {"pointer": "/epochs", "preset": digits["epochs"], "job": 50},
        {"pointer": "/loss/temperature", "preset": digits["loss"]["temperature"], "job": 0.5},
    ]
    assert job["preset"] == "digits-cpu"
    assert job["deviations"] == expected
    assert client.get(f"/v1/jobs/{job['id']}").json()["deviations"] == expected
    plan = client.post("/v1/jobs?dry_run=true", json=body).json()
    assert (plan["preset"], plan["deviations"]) == ("digits-cpu", expected)
    assert client.post("/v1/jobs", json=body | {"spec": {}}).json()["deviations"] == []
    assert client.post("/v1/jobs", json={"kind": "pretrain", "spec": SPEC}).json()["deviations"] is None
    clone = client.post(f"/v1/jobs/{job['id']}/clone", json={"spec": {"seed": 9}}).json()
    assert clone["deviations"][0] == {"pointer": "/seed", "preset": digits["seed"], "job": 9}


def test_a_preset_of_the_past_has_no_deviations(small: Served) -> None:
    job_id = rows.submit(small.database, preset="once-known")

    answer = small.client().get(f"/v1/jobs/{job_id}").json()

    assert (answer["preset"], answer["deviations"]) == ("once-known", None)


def test_differences_are_leaves_and_lists_as_a_whole() -> None:
    deviations = between({"a": {"b~/c": 1, "d": [1, 2]}, "e": {"f": 1}}, {"a": {"b~/c": 2, "d": [1, 3]}, "e": None})

    assert [(d["pointer"], d["preset"], d["job"]) for d in deviations] == [
        ("/a/b~0~1c", 1, 2),
        ("/a/d", [1, 2], [1, 3]),
        ("/e", {"f": 1}, None),
    ]
