"""Submissions, replays, dry runs, changes and requests of jobs by REST."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import event

from jobs import transitions, workers
from jobs.database import Database, new_id
from jobs.models import IdempotencyKey, Job
from jobs.status import Status
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows
from wcl_core.config import EvaluateSpec, PretrainSpec, resolve_spec
from wcl_core.presets import presets

JOB: dict[str, Any] = {"kind": "pretrain", "spec": SPEC}


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect the statements that read or write rows."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            sent.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    event.remove(database.engine, "before_cursor_execute", note)


def test_a_submitted_job_is_there(served: Served) -> None:
    client = served.client()
    needed = client.post("/v1/jobs", json=JOB).json()["id"]
    body = JOB | {
        "name": " first ",
        "priority": 5,
        "pool": "big",
        "gpus": 2,
        "tags": ["a", "b", "a"],
        "after": [needed, needed],
    }

    answer = client.post("/v1/jobs", json=body)

    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    read = client.get(answer.headers["location"]).json()
    busy = {"busy": job["expected_time"]["busy"]}  # on a busy machine it differs from moment to moment
    assert read | {"expected_time": read["expected_time"] | busy} == job
    assert (job["name"], job["priority"], job["pool"], job["gpus"]) == ("first", 5, "big", 2)
    assert job["tags"] == ["a", "b"]
    assert job["status"] == "blocked"
    assert job["dataset"] == {"name": "digits", "digest": rows.DIGEST}
    assert job["spec_sent"] == SPEC
    assert job["spec"]["epochs"] == 100
    assert job["created_at"].endswith("Z")
    assert rows.status(served.database, job["id"]) == "blocked"


def test_a_submission_reads_workers_and_dataset_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))  # on a busy machine the running jobs are counted
    client = served.client()
    served.database.write(lambda session: workers.register(session, rows.WORKER, 1, ()))
    client.post("/v1/jobs", json=JOB)  # notes the use of the key

    with statements(served.database) as sent:
        answer = client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "k"})

    assert answer.json()["waiting"]["cause"] == "jobs_ahead"
    tables = [name for each in sent for name in re.findall(r"FROM (\w+)", each)]
    assert tables.count("workers") == tables.count("datasets") == 1, "the response takes those of the check"
    is_postgres = served.database.engine.dialect.name == "postgresql"  # adds all rows of a job by one statement
    assert len([each for each in sent if "keys SET" not in each]) <= (12 if is_postgres else 14)


BATCH: dict[str, Any] = {"jobs": [JOB | {"name": f"run {number}", "tags": ["a", "b"]} for number in range(3)]}


def test_a_batch_is_submitted_once_and_in_order(served: Served) -> None:
    client = served.client()
    needed = client.post("/v1/jobs", json=JOB).json()["id"]
    batch = {"jobs": [*BATCH["jobs"], JOB | {"name": "last", "after": [needed]}]}

    answer = client.post("/v1/jobs:batch", json=batch, headers={"Idempotency-Key": "k"})
    again = client.post("/v1/jobs:batch", json=batch, headers={"Idempotency-Key": "k"})

    items = answer.json()["items"]
    assert answer.status_code == 201
    assert [item["name"] for item in items] == ["run 0", "run 1", "run 2", "last"]
    assert [item["status"] for item in items] == ["queued", "queued", "queued", "blocked"]
    assert (again.status_code, again.headers["idempotency-replayed"], again.json()) == (200, "true", answer.json())
    assert_problem(client.post("/v1/jobs:batch", json=BATCH, headers={"Idempotency-Key": "k"}), 422, "")
    assert len(rows.rows_of(served.database, Job)) == 5
    assert client.get(f"/v1/jobs/{items[1]['id']}").json()["tags"] == ["a", "b"]
    assert [entry.type for entry in rows.events(served.database, items[2]["id"])] == ["submitted"]
    claimed = [rows.claim(served.database).attempt.job_id for _ in range(4)]
    assert claimed == [needed, *(item["id"] for item in items[:3])]


def test_the_statements_of_a_batch_do_not_grow_with_its_jobs(served: Served) -> None:
    client = served.client()
    client.post("/v1/jobs:batch", json=BATCH)
    counts = []
    for number in (1, 60):
        with statements(served.database) as sent:
            assert client.post("/v1/jobs:batch", json={"jobs": [JOB] * number}).status_code == 201
        counts.append(len([each for each in sent if "keys SET" not in each]))

    assert counts[1] <= counts[0] + 1  # the places in the queue
    assert counts[1] <= (7 if served.database.engine.dialect.name == "postgresql" else 9)


def test_a_batch_with_a_wrong_job_adds_none_and_names_it(served: Served) -> None:
    client = served.client("read", "submit")
    good, absent = JOB, {"kind": "pretrain", "spec": {"data": {"name": "nix", "image_size": 8}}}

    def pointers(*jobs: dict[str, Any]) -> list[str]:
        answer = client.post("/v1/jobs:batch", json={"jobs": list(jobs)}, headers={"Idempotency-Key": "k"})
        return [error["pointer"] for error in assert_problem(answer, 422)["errors"]]

    assert pointers(good, absent, absent) == ["/jobs/1/spec/data/name", "/jobs/2/spec/data/name"]
    assert pointers(good, {"kind": "pretrain", "spec": SPEC | {"epochs": 0}}) == ["/jobs/1/spec/epochs"]
    assert pointers(good, JOB | {"preset": "nix"}) == ["/jobs/1/preset"]
    assert pointers(good, JOB | {"seeds": [1]}) == ["/jobs/1/seeds"]
    assert pointers(good, JOB | {"priority": 1}) == ["/jobs/1/priority"]
    assert pointers() == ["/jobs"]
    assert pointers(*[JOB] * 1001) == ["/jobs"]
    assert rows.rows_of(served.database, Job) == rows.rows_of(served.database, IdempotencyKey) == []


def test_a_spec_overrides_fields_of_its_preset(small: Served) -> None:
    client = small.client()
    digits = resolve_spec(presets()["digits-cpu"])

    body = {"kind": "pretrain", "preset": "digits-cpu", "spec": {"seed": 7, "loss": {"temperature": 0.5}}}
    spec = client.post("/v1/jobs", json=body).json()["spec"]

    assert spec == digits | {"seed": 7, "loss": digits["loss"] | {"temperature": 0.5}}
    problem = assert_problem(client.post("/v1/jobs", json=body | {"preset": "digit-cpu"}), 422, "/preset")
    assert "digits-cpu" in problem["detail"]
    assert_problem(client.post("/v1/jobs", json=body | {"kind": "evaluate"}), 422, "/preset")


def test_a_dry_run_returns_the_plan_and_creates_nothing(served: Served) -> None:
    client = served.client()

    answer = client.post("/v1/jobs", params={"dry_run": "true"}, json=JOB, headers={"Idempotency-Key": "k"})

    plan = answer.json()
    assert answer.status_code == 200
    assert plan["spec"]["data"]["name"] == "digits"
    assert plan["total_steps"] == 1000 // 256 * 100
    assert plan["warnings"] == [
        "no running worker fits; the job would wait for one",
        "300 steps in all, too few to learn much, so this is a trial; use at least 1,000, that is epochs = 334, or "
        "continue it for 234 epochs",
    ]
    assert rows.rows_of(served.database, Job) == []
    assert rows.rows_of(served.database, IdempotencyKey) == []
    assert_problem(client.post("/v1/jobs?dry_run=true", json={"kind": "pretrain", "spec": {}}), 422, "/spec/data")


# --- idempotency ---------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_replay_the_first_answer(served: Served) -> None:
    client, header = served.client(), {"Idempotency-Key": "run-1"}

    first = client.post("/v1/jobs", json=JOB | {"tags": ["x"]}, headers=header)
    again = client.post("/v1/jobs", json={"tags": ["x"], **JOB}, headers=header)
    other_body = client.post("/v1/jobs", json=JOB, headers=header)
    other_key = served.client().post("/v1/jobs", json=JOB, headers=header)

    assert (first.status_code, again.status_code) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    # The expected time is that of the moment: other work may use the machine by now.
    assert again.json() | {"expected_time": None} == first.json() | {"expected_time": None}
    assert_problem(other_body, 422)
    assert other_key.status_code == 201
    assert other_key.json()["id"] != first.json()["id"]


def test_a_refused_body_does_not_use_the_key_up(served: Served) -> None:
    client, header = served.client(), {"Idempotency-Key": "run-1"}

    assert_problem(client.post("/v1/jobs", json=JOB | {"after": [new_id()]}, headers=header), 422, "/after/0")

    assert client.post("/v1/jobs", json=JOB, headers=header).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 201, "ä", "a\tb"])
def test_a_strange_key_is_refused(shared: Served, key: str) -> None:
    answer = shared.client().post("/v1/jobs", json=JOB, headers={"Idempotency-Key": key.encode("latin-1")})

    assert_problem(answer, 422)


def test_twins_at_the_same_time_make_one_job(served: Served) -> None:
    secret = served.key()
    clients = [served.bare({"Authorization": f"Bearer {secret}", "Idempotency-Key": "twin"}) for _ in range(8)]

    answers = rows.at_once(8, lambda number: clients[number].post("/v1/jobs", json=JOB))

    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(rows.rows_of(served.database, Job)) == 1


# --- wrong fields --------------------------------------------------------------------------------------------------


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "train"}, "/kind"),
    ({"kind": None}, "/kind"),
    ({"spec": []}, "/spec"),
    ({"extra": 1}, "/extra"),
    ({"a/b~c": 1}, "/a~1b~0c"),
    ({"priority": 1e9}, "/priority"),
    ({"priority": 10**30}, "/priority"),
    ({"pool": "../x"}, "/pool"),
    ({"gpus": -1}, "/gpus"),
    ({"name": ""}, "/name"),
    ({"name": "a\nb"}, "/name"),
    ({"name": "x" * 201}, "/name"),
    ({"tags": ["ok", ""]}, "/tags/1"),
    ({"tags": [f"t{n}" for n in range(51)]}, "/tags"),
    ({"after": ["nonsense"]}, "/after/0"),
    ({"after": [new_id()]}, "/after/0"),
    ({"spec": {}}, "/spec/data"),
    ({"spec": {"data": {"name": "absent"}}}, "/spec/data/name"),
    ({"spec": {"data": {"name": "../etc"}}}, "/spec/data/name"),
    ({"spec": SPEC | {"epoch": 3}}, "/spec/epoch"),
    ({"spec": SPEC | {"loss": {"temperature": "hot"}}}, "/spec/loss/temperature"),
    ({"spec": SPEC | {"epochs": 5, "warmup_epochs": 5}}, "/spec/warmup_epochs"),
    ({"spec": SPEC | {"batch_size": 2048}}, "/spec/batch_size"),
    ({"spec": SPEC | {"spec_version": 99}}, "/spec/spec_version"),
    ({"kind": "evaluate", "spec": SPEC}, "/spec/features"),
    ({"kind": "evaluate", "spec": SPEC | {"features": {}}}, "/spec/features/kind"),
    ({"kind": "evaluate", "spec": SPEC | {"features": {"kind": "x"}}}, "/spec/features/kind"),
    ({"kind": "evaluate", "spec": SPEC | {"features": {"kind": "checkpoint"}}}, "/spec/features/checkpoint_id"),
    (
        {"kind": "evaluate", "spec": SPEC | {"features": {"kind": "checkpoint", "checkpoint_id": new_id()}}},
        "/spec/features/checkpoint_id",
    ),
    (
        {"kind": "evaluate", "spec": SPEC | {"features": {"kind": "untrained", "backbone": {"name": "x"}}}},
        "/spec/features/backbone/name",
    ),
    ({"kind": "evaluate", "spec": SPEC | {"features": {"kind": "pixels", "pixels": 1}}}, "/spec/features/pixels"),
    (
        {"kind": "evaluate", "spec": SPEC | {"features": {"kind": "pixels"}, "protocols": ["knn", "x"]}},
        "/spec/protocols/1",
    ),
]


@pytest.mark.parametrize(("change", "pointer"), WRONG, ids=[f"{pointer}-{n}" for n, (_, pointer) in enumerate(WRONG)])
def test_a_wrong_field_is_named_by_its_pointer(shared: Served, change: dict[str, Any], pointer: str) -> None:
    problem = assert_problem(shared.client().post("/v1/jobs", json=JOB | change), 422)

    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert all(error["detail"] for error in problem["errors"])


def test_several_wrong_fields_are_all_named_with_what_was_expected(shared: Served) -> None:
    spec = {"data": {"name": "digits", "imagesize": 8}, "method": "moco", "epochs": "many"}

    problem = assert_problem(
        shared.client().post("/v1/jobs", json={"kind": "pretrain", "spec": spec}),
        422,
        "/spec/data/imagesize",
        "/spec/method",
        "/spec/epochs",
    )

    details = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert "did you mean 'image_size'" in details["/spec/data/imagesize"]
    assert details["/spec/method"].startswith("there is no method moco; expected one of wcl, simclr")


def test_an_unknown_field_names_the_one_that_was_meant_wherever_it_is(shared: Served) -> None:
    meant = {
        "temperature": "loss.temperature",
        "image_size": "data.image_size",
        "learning_rat": "optimizer.learning_rate",
        "loss.temperature": "loss.temperature",
        "batchsize": "batch_size",
    }
    spec = {"data": {"name": "digits"}, "backbone": {"epochs": 2}} | dict.fromkeys(meant, 1)
    problem = assert_problem(shared.client().post("/v1/jobs", json={"kind": "pretrain", "spec": spec}), 422)
    details = {error["pointer"].removeprefix("/spec/"): error["detail"] for error in problem["errors"]}
    for field, expected in (meant | {"backbone/epochs": "epochs"}).items():
        assert f"did you mean {expected!r}" in details[field]
    spec = {"data": {"name": "digits"}, "features": {"kind": "pixels"}, "weak_weight": 1}
    problem = assert_problem(shared.client().post("/v1/jobs", json={"kind": "evaluate", "spec": spec}), 422)
    assert "did you mean" not in problem["errors"][0]["detail"], "an evaluation has no such field"


def test_tagged_unions_stand_only_where_pointers_expect_them() -> None:
    """`field_errors` drops the tag of a discriminated union that is a field of its own, not one inside a list."""

    def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from fields(field.annotation)

    tagged = [name for model in (PretrainSpec, EvaluateSpec) for name, field in fields(model) if field.discriminator]
    assert tagged == ["EvaluateSpec.features"]


# --- changing and steering -------------------------------------------------------------------------------------------


def test_a_job_changes_its_name_tags_and_priority(served: Served) -> None:
    client = served.client()
    job_id = client.post("/v1/jobs", json=JOB | {"tags": ["old"]}).json()["id"]

    answer = client.patch(f"/v1/jobs/{job_id}", json={"name": "new", "priority": 3, "tags": ["x", "x", "y"]})

    job = client.get(f"/v1/jobs/{job_id}").json()
    assert answer.json() == job
    assert (job["name"], job["priority"], job["tags"]) == ("new", 3, ["x", "y"])
    assert client.patch(f"/v1/jobs/{job_id}", json={"tags": []}).json()["tags"] == []
    assert_problem(client.patch(f"/v1/jobs/{job_id}", json={}), 422)
    assert_problem(client.patch(f"/v1/jobs/{job_id}", json={"status": "succeeded"}), 422, "/status")
    assert_problem(client.patch(f"/v1/jobs/{new_id()}", json={"name": "x"}), 404)
    rows.claim(served.database)
    assert_problem(client.patch(f"/v1/jobs/{job_id}", json={"priority": 1}), 409)


@pytest.mark.parametrize("before", list(Status))
@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry", "clone"])
def test_a_verb_succeeds_or_returns_the_reason(small: Served, before: Status, verb: str) -> None:
    client = small.client()
    job_id = rows.job_in(small.database, before)
    ends = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)
    allowed = {
        "cancel": [status for status in Status if status not in ends],
        "pause": [Status.QUEUED, Status.RUNNING],
        "resume": [Status.PAUSED],
        "retry": [Status.FAILED, Status.CANCELLED],
        "clone": list(Status),
    }[verb]

    answer = client.post(f"/v1/jobs/{job_id}/{verb}")

    if before in allowed:
        assert answer.status_code == (201 if verb in ("retry", "clone") else 200)
        assert (answer.json()["parent_id"] == job_id) == (verb in ("retry", "clone"))
    else:
        assert before in assert_problem(answer, 409)["detail"]
    assert_problem(client.post(f"/v1/jobs/{new_id()}/{verb}"), 404)


def test_a_running_job_receives_requests(served: Served) -> None:
    client = served.client()
    run = rows.Run(served.database, rows.running(served.database))

    job = client.post(f"/v1/jobs/{run.job_id}/cancel").json()

    assert job["status"] == "running"
    assert job["cancel_requested_at"] is not None
    assert run.deliver(rows.started()).cancel is True


def test_a_retry_starts_from_the_last_checkpoint_and_a_clone_from_scratch(served: Served) -> None:
    client = served.client()
    job_id = client.post("/v1/jobs", json=JOB | {"name": "first", "tags": ["t"]}).json()["id"]
    run = rows.Run(served.database, rows.claim(served.database))
    run.deliver(rows.started(), rows.checkpoint(5), rows.end("failed", "bad_data"))

    retried = client.post(f"/v1/jobs/{job_id}/retry").json()
    cloned = client.post(f"/v1/jobs/{job_id}/clone", json={"spec": {"seed": 9}}).json()

    checkpoint = client.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"][0]["id"]
    assert (retried["resume_checkpoint_id"], cloned["resume_checkpoint_id"]) == (checkpoint, None)
    assert (retried["name"], cloned["name"], cloned["tags"], cloned["spec"]["seed"]) == ("first-2", "first-3", ["t"], 9)
    named, again = [client.post(f"/v1/jobs/{job_id}/clone", json={"name": "mine"}).json() for _ in range(2)]
    assert named["name"] == again["name"] == "mine"
    warning = "another job has the name mine, so only ids tell them apart; mine-2 is free"
    assert (warning in named["warnings"], again["warnings"][0]) == (False, warning)
    assert (
        warning.replace("another job has", "2 other jobs have")
        in client.post("/v1/jobs?dry_run=true", json=JOB | {"name": "mine"}).json()["notes"]
    )
    assert_problem(client.post(f"/v1/jobs/{job_id}/clone", json={"spec": {"sed": 9}}), 422, "/spec/sed")
    assert_problem(client.post(f"/v1/jobs/{job_id}/clone", json={"spce": {}}), 422, "/spce")


def test_a_finished_job_goes_on_once_for_each_key(served: Served) -> None:
    client = served.client()
    job_id = client.post("/v1/jobs", json=JOB | {"name": "first"}).json()["id"]
    address = f"/v1/jobs/{job_id}/continue"
    run = rows.Run(served.database, rows.claim(served.database))
    assert "running" in assert_problem(client.post(address, json={"epochs": 5}), 409)["detail"]
    run.deliver(rows.started(), rows.checkpoint(5), rows.end("succeeded"))

    header = {"Idempotency-Key": "more"}
    new = client.post(address, json={"epochs": 5}, headers=header)
    again = client.post(address, json={"epochs": 5}, headers=header)

    assert (new.status_code, again.status_code, again.json()["id"]) == (201, 200, new.json()["id"])
    old = client.get(f"/v1/jobs/{job_id}").json()["spec"]["epochs"]
    further = math.ceil(1000 / (1000 // 256)) - old  # of `rows.add_dataset`, to 1,000 steps
    assert new.json()["schedule"].endswith(f"cosine to 0 at epoch {old + 5}")
    (origin,) = new.json()["lineage"]
    assert (origin["relation"], origin["job_id"], origin["step"]) == ("continues", job_id, 5)
    assert_problem(client.post(address, json={"epochs": 6}, headers=header), 422)
    assert client.post(address, json={}).json()["spec"]["epochs"] == old + further, "the number of the page"
    assert_problem(client.post(address, json={"epochs": 0}), 422, "/epochs")
    assert_problem(client.post(address, json={"epochs": 100_000}), 422, "/spec/epochs")
    assert_problem(client.post(address, json={"data": "none"}), 422, "/spec/data/name")
    assert "`wcl continue`" in assert_problem(client.post(f"/v1/jobs/{job_id}/retry"), 409)["detail"]
    page = served.browser("read", "submit").get(f"/jobs/{job_id}").text
    assert f'action="/jobs/{job_id}/continue"' in page
    assert f'name="epochs" min="1" max="100000" value="{further}"' in page
    page = served.browser("read").get(f"/jobs/{new.json()['id']}").text
    assert f'continues <a href="/jobs/{job_id}">first</a>, step 5' in page
    assert f"cosine to 0 at epoch {old + 5}" in page


def test_a_job_records_the_key_that_created_it(served: Served) -> None:
    client = served.client()
    key_id = client.get("/v1/keys").json()["items"][0]["id"]

    assert client.post("/v1/jobs", json=JOB).json()["created_by"] == key_id


def test_a_cancelled_need_is_refused(served: Served) -> None:
    client = served.client()
    needed = client.post("/v1/jobs", json=JOB).json()["id"]
    served.database.write(lambda session: transitions.cancel(session, needed))

    problem = assert_problem(client.post("/v1/jobs", json=JOB | {"after": [needed]}), 422, "/after/0")

    assert "cancelled" in problem["detail"]


def test_a_submission_beyond_a_limit_is_refused_with_the_time_of_the_next_try(small: Served) -> None:
    admin = small.client()
    body = {"name": "anna", "scopes": ["read", "submit"], "max_submissions": 2}
    created = admin.post("/v1/keys", json=body).json()
    anna = small.bare({"Authorization": f"Bearer {created['key']}"})
    first = anna.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "one"})
    assert anna.post("/v1/jobs", json=JOB | {"seeds": [1, 2, 3]}).status_code == 403
    assert anna.post("/v1/jobs", json=JOB).status_code == 201

    refused = anna.post(f"/v1/jobs/{first.json()['id']}/clone", json={})

    detail = assert_problem(refused, 429)["detail"]
    assert "the key anna may submit 2 jobs a minute" in detail
    assert "wcl keys change" in detail
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert anna.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "one"}).json()["id"] == first.json()["id"]
    changed = admin.patch(f"/v1/keys/{created['id']}", json={"max_submissions": 9})
    assert (changed.json()["max_submissions"], changed.json()["max_waiting"]) == (9, None)
    assert anna.post("/v1/jobs", json=JOB).status_code == 201
    assert_problem(admin.patch(f"/v1/keys/{created['id']}", json={"max_devices": 0}), 422, "/max_devices")


def test_a_form_beyond_a_limit_keeps_what_was_typed(small: Served) -> None:
    browser = small.browser("read", "submit")
    admin = small.client()
    own = next(key["id"] for key in admin.get("/v1/keys").json()["items"] if key["scopes"] == ["read", "submit"])
    admin.patch(f"/v1/keys/{own}", json={"max_waiting": 1})
    fields = {"kind": "pretrain", "spec.data.name": "digits", "spec.data.image_size": "8", "name": "kept name"}

    answers = [
        browser.post("/submit", data=fields | {"step": "submit", "key": key}, headers={"Origin": small.url})
        for key in ("a", "b")
    ]

    assert [answer.status_code for answer in answers] == [303, 429]
    assert "retry-after" in answers[1].headers
    assert "may have 1 waiting job" in answers[1].text
    assert "kept name" in answers[1].text
