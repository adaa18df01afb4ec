"""Many jobs at once: cancel, pause, resume, by ids or by the filters of the list."""

from __future__ import annotations

from typing import Any

import httpx

from jobs import keys, transitions
from jobs.database import new_id
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from tests.jobs.rows import submit


def member(served: Served, name: str) -> tuple[str, httpx.Client]:
    row, secret = served.database.write(lambda session: keys.create(session, name))
    return row.id, served.bare({"Authorization": f"Bearer {secret}"})


def send(client: httpx.Client, verb: str, key: str | None = None, **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/jobs/{verb}", json=body, headers={"Idempotency-Key": key} if key else None)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_jobs_of_a_filter_are_cancelled_paused_and_resumed(small: Served) -> None:
    admin = small.client()
    anna, client = member(small, "anna")
    other = submit(small.database)
    jobs = [submit(small.database, created_by=anna) for _ in range(3)]
    running = rows.running(small.database, created_by=anna, priority=1).job_id

    listed = send(client, "pause", filter={"by": "anna", "status": ["queued"]}, dry_run=True)
    assert (listed["count"], rows.status(small.database, jobs[0])) == (3, "queued")
    assert [job["id"] for job in listed["jobs"]] == jobs[::-1]
    assert send(client, "pause", filter={"by": "anna", "status": ["queued"]})["count"] == 3
    assert {rows.status(small.database, job) for job in jobs} == {"paused"}
    assert send(client, "resume", filter={"by": anna})["count"] == 3
    assert send(client, "resume", filter={"by": anna})["count"] == 0
    cancelled = send(admin, "cancel", filter={"by": "anna"})
    assert (cancelled["count"], cancelled["has_more"]) == (4, False)
    assert send(admin, "cancel", filter={"by": "anna"})["count"] == 0  # the running one is requested already

    assert {rows.status(small.database, job) for job in jobs} == {"cancelled"}
    assert rows.job(small.database, running).cancel_requested_at is not None
    assert rows.status(small.database, other) == "queued"
    assert len(admin.get("/v1/jobs", params={"by": "anna"}).json()["items"]) == 4
    assert_problem(admin.get("/v1/jobs", params={"by": "absent"}), 422, "by")
    assert_problem(admin.post("/v1/jobs/cancel", json={"filter": {"by": "absent"}}), 422, "/filter/by")
    assert_problem(admin.post("/v1/jobs/cancel", json={"filter": {"status": ["halted"]}}), 422, "/filter/status")
    assert_problem(admin.get("/v1/sweeps?status=halted"), 422, "status")
    assert_problem(admin.post("/v1/jobs/cancel", json={"filter": {}}), 422)
    entries = admin.get("/v1/activity", params={"action": "jobs.cancel"}).json()["items"]
    details = [entry["details"] for entry in entries]
    assert details == [{"filter": {"by": "anna"}}] * 2, "a refused request leaves no entry"


def test_a_filter_of_a_member_leaves_other_keys_jobs_and_ids_are_refused(small: Served) -> None:
    anna, client = member(small, "anna")
    own, other, ended = submit(small.database, created_by=anna), submit(small.database), submit(small.database)
    small.database.write(lambda session: transitions.cancel(session, ended))
    absent = new_id()

    by_ids = send(client, "cancel", jobs=[own, other, absent])
    by_filter = send(client, "cancel", filter={"kind": "pretrain"})

    assert (by_ids["count"], by_filter["count"]) == (1, 0)
    assert (by_ids["num_foreign"], by_filter["num_foreign"]) == (0, 1), "the one that has ended could not be cancelled"
    assert send(small.client(), "cancel", filter={"kind": "pretrain"}, dry_run=True)["num_foreign"] == 0
    assert [each["job_id"] for each in by_ids["refused"]] == [other, absent]
    assert "of another key" in by_ids["refused"][0]["reason"]
    assert rows.status(small.database, other) == "queued"
    refused = send(small.client(), "cancel", jobs=[ended], dry_run=True)["refused"]
    assert refused[0]["reason"] == "cannot cancel a job that is cancelled"


def test_a_repeated_request_completes_the_first_one_and_touches_no_later_job(small: Served) -> None:
    admin = small.client()
    anna, _ = member(small, "anna")
    first = submit(small.database, created_by=anna)
    assert send(admin, "cancel", "night", filter={"by": "anna"})["count"] == 1

    later = submit(small.database, created_by=anna)
    again = send(admin, "cancel", "night", filter={"by": "anna"})

    assert again["count"] == 0
    assert (rows.status(small.database, first), rows.status(small.database, later)) == ("cancelled", "queued")
    other = {"filter": {"by": "anna", "tag": "x"}}
    assert_problem(admin.post("/v1/jobs/cancel", json=other, headers={"Idempotency-Key": "night"}), 422)
