"""Deletion over REST and the pages: what it removes is said first, and the job is absent on every route."""

from __future__ import annotations

import re

import pytest

from api.http.auth import classification
from jobs.database import new_id
from tests.api.route_cases import Member
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows
from tests.jobs.rows import Run

JOB = {"kind": "pretrain", "spec": SPEC}


def trained(served: Served, created_by: str | None = None) -> str:
    run = Run(served.database, rows.running(served.database, created_by=created_by))
    run.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(1))
    run.end("succeeded")
    return run.job_id


def test_a_deletion_is_planned_then_done_then_undone(served: Served) -> None:
    client, member = served.client(), Member.of(served, "test")
    submitter = member.client
    job_id = trained(served, member.key_id)

    plan = submitter.delete(f"/v1/jobs/{job_id}?dry_run=true").json()
    assert (plan["num_checkpoints"], plan["size"], plan["restorable_days"]) == (1, 10, 7)
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200

    assert submitter.delete(f"/v1/jobs/{job_id}").json() == plan
    assert_problem(submitter.delete(f"/v1/jobs/{job_id}"), 404)
    (record,) = client.get("/v1/deletions").json()["items"]
    assert (record["job_id"], record["deleted_by_name"], record["purged_at"]) == (job_id, "test", None)

    assert_problem(submitter.post(f"/v1/jobs/{job_id}/restore"), 403)
    assert client.post(f"/v1/jobs/{job_id}/restore").json()["status"] == "succeeded"
    assert len(client.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]) == 1
    assert client.get("/v1/audit").json()["findings"] == []


def test_a_deleted_job_is_absent_on_every_route(small: Served) -> None:
    client = small.client()
    job_id = trained(small)
    checkpoint_id = client.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"][0]["id"]
    client.delete(f"/v1/jobs/{job_id}")

    for route in classification(small.app):
        method, path = route.split(" ", 1)
        if ("{job_id}" not in path and "{checkpoint_id}" not in path) or path.endswith("/restore"):
            continue
        address = path.replace("{job_id}", job_id).replace("{checkpoint_id}", checkpoint_id)
        address = re.sub(r"\{verb\}", "cancel", address).replace("{pin}", "pin")
        deleted = client.request(method, address)
        absent = client.request(method, address.replace(job_id, new_id()).replace(checkpoint_id, new_id()))
        assert deleted.status_code == absent.status_code, route
        assert deleted.status_code in (404, 422), route
    for address in ("/v1/jobs", "/", "/checkpoints", "/leaderboard", f"/?q={job_id}"):
        assert job_id not in client.get(address).text.replace(f'value="{job_id}"', "").replace(f"q={job_id}", "")


def test_a_running_job_is_not_deleted(served: Served) -> None:
    job_id = rows.running(served.database).attempt.job_id

    body = assert_problem(served.client().delete(f"/v1/jobs/{job_id}"), 409)

    assert "cancel it first" in body["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"jobs": []},
        {"filter": {}},
        {"jobs": ["nothing"]},
        {"jobs": [new_id()], "filter": {"tag": "a"}},
        {"filter": {"tag": "a", "age": 3}},
        {"jobs": [new_id()], "dry_run": "yes"},
        {"filter": {"kind": "sweep"}},
    ],
)
def test_a_wrong_selection_is_refused(shared: Served, body: dict[str, object]) -> None:
    assert_problem(shared.client().post("/v1/jobs/delete", json=body), 422)


def test_many_are_deleted_beside_a_running_job(served: Served) -> None:
    client = served.client()
    run = Run(served.database, rows.running(served.database, tags=("trial",)))
    for _ in range(250):
        rows.submit(served.database, tags=("trial",))
    other = rows.submit(served.database)

    chosen = {"filter": {"tag": "trial"}}
    plan = client.post("/v1/jobs/delete", json=chosen | {"dry_run": True}).json()
    done = client.post("/v1/jobs/delete", json=chosen).json()

    assert plan == done
    assert (len(done["jobs"]), done["num_waiting"]) == (250, 250)
    assert [each["job_id"] for each in done["refused"]] == [run.job_id]
    run.deliver(rows.started(), rows.metrics(1, loss=1.0))
    assert {job["id"] for job in client.get("/v1/jobs").json()["items"]} == {run.job_id, other}


def test_the_page_says_what_is_deleted_and_the_button_deletes_it(small: Served) -> None:
    browser = small.browser()
    job_id = trained(small)
    running = rows.running(small.database, name="<b>busy</b>").attempt.job_id
    headers = {"Origin": small.url}

    assert f'href="/delete?job={job_id}"' in browser.get(f"/jobs/{job_id}").text
    shown = browser.get(f"/delete?job={job_id}&job={running}").text
    assert "1 checkpoint, files of 10 B" in shown
    assert "&lt;b&gt;busy&lt;/b&gt;</a>: it runs" in shown
    assert f'name="job" value="{running}"' not in shown
    done = browser.post("/delete", data={"job": [job_id]}, headers=headers)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert browser.post("/delete", data={"job": [job_id]}, headers=headers).status_code == 409

    assert "Restore" in browser.get("/deleted").text
    restored = browser.post(f"/deleted/{job_id}/restore", headers=headers)
    assert (restored.status_code, restored.headers["location"]) == (303, f"/jobs/{job_id}")
    assert "restored by test" in browser.get("/deleted").text


def test_a_key_of_a_deleted_job_creates_no_other_job(small: Served) -> None:
    client = small.client()
    headers = {"Idempotency-Key": "once"}
    job_id = client.post("/v1/jobs", json=JOB, headers=headers).json()["id"]
    client.delete(f"/v1/jobs/{job_id}")

    assert "is deleted" in assert_problem(client.post("/v1/jobs", json=JOB, headers=headers), 409)["detail"]


def test_jobs_are_archived_over_rest_and_in_the_list(small: Served) -> None:
    client, browser = small.client(), small.browser()
    headers = {"Origin": small.url}
    done, waiting = trained(small), rows.submit(small.database, name="still waiting")

    assert client.post(f"/v1/jobs/{done}/archive").json()["archived_at"]
    assert_problem(client.post(f"/v1/jobs/{waiting}/archive"), 409)
    assert [job["id"] for job in client.get("/v1/jobs").json()["items"]] == [waiting]
    assert [job["id"] for job in client.get("/v1/jobs?archived=only").json()["items"]] == [done]
    assert_problem(client.get("/v1/jobs?archived=maybe"), 422)
    assert f"/jobs/{done}" not in browser.get("/").text
    assert f"/jobs/{done}" in browser.get("/?archived=only").text
    assert "Unarchive" in browser.get(f"/jobs/{done}").text

    assert f'value="{done}"' in browser.get("/change/unarchive?matching=?archived=only").text
    unarchived = browser.post("/jobs/unarchive", data={"job": [done]}, headers=headers)
    assert unarchived.headers["location"] == "/?archived=only"
    assert f"/jobs/{done}" in browser.get("/").text
    planned = browser.get(f"/change/archive?job={done}&job={waiting}").text
    assert "Archive 1 job?" in planned
    assert "cannot archive a job that is queued" in planned
    assert browser.post("/jobs/archive", data={"job": [done]}, headers=headers).status_code == 303
    assert [job["id"] for job in client.get("/v1/jobs").json()["items"]] == [waiting]
