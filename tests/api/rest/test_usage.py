"""Usage: devices by key and month, stored files by key and job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from jobs import keys, projects, transitions
from jobs.database import DEFAULT_PROJECT
from jobs.models import Checkpoint, DeviceUse, Key, ProjectUse
from tests.api.route_cases import Member
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from tests.jobs.rows import Run

OCTOBER_30 = 20391  # days since 1970 of 2025-10-30
DECEMBER_1 = OCTOBER_30 + 32


def test_usage_counts_running_ended_and_deleted_jobs_by_month(small: Served) -> None:
    client = small.client()
    anna = small.database.write(lambda session: keys.create(session, "=anna")[0].id)
    deleted = rows.running(small.database, created_by=anna)
    Run(small.database, deleted).end("cancelled")
    assert client.delete(f"/v1/jobs/{deleted.job_id}").status_code == 200
    rows.running(small.database, created_by=anna)

    def use(session: Session) -> None:
        for day in (OCTOBER_30, OCTOBER_30 + 1, OCTOBER_30 + 2):
            facts = {"gpu_ms": 7_200_000, "cpu_ms": 0, "jobs": 1, "attempts": 2, "updated_at": 0}
            session.add(DeviceUse(owner_id=anna, day=day, **facts))

    small.database.write(use)

    newest, november, october = client.get("/v1/usage").json()["items"]
    assert (november["month"], october["month"]) == ("2025-11", "2025-10")
    assert (october["owner"], october["gpu_hours"], october["jobs"], october["attempts"]) == ("=anna", 4.0, 2, 4)
    assert (november["gpu_hours"], newest["jobs"], newest["attempts"]) == (2.0, 2, 2)
    assert client.get("/v1/usage", params={"month": "2025-10"}).json()["items"] == [october]
    assert client.get("/v1/usage.csv", params={"month": "2025-10"}).text.splitlines() == [
        "month,owner,owner_id,gpu_hours,cpu_hours,jobs,attempts",
        f"2025-10,'=anna,{anna},4.0,0.0,2,4",
    ]
    assert_problem(client.get("/v1/usage", params={"month": "2026-13"}), 422, "month")


def test_the_storage_shows_the_largest_keys_and_jobs(small: Served) -> None:
    client = small.client()
    anna = small.database.write(lambda session: keys.create(session, "anna")[0].id)
    run = Run(small.database, rows.running(small.database, created_by=anna))
    for step in (1, 2, 3):
        small.checkpoint(bytes(10 * step), run, step)
    pinned = client.get(f"/v1/jobs/{run.job_id}/checkpoints").json()["items"][-1]["id"]
    other = Run(small.database, rows.running(small.database))
    small.checkpoint(bytes(5), other)

    storage = client.get("/v1/storage").json()
    assert (storage["size"], [each["owner"] for each in storage["owners"]]) == (65, ["anna", ""])
    assert storage["owners"][0]["num_files"] == 3
    assert [(each["job_id"], each["size"], each["removable"]) for each in storage["jobs"]] == [
        (run.job_id, 60, 10),
        (other.job_id, 5, 0),
    ]
    small.database.write(lambda session: transitions.end_attempt(session, run.attempt, "succeeded"))
    assert client.get("/v1/storage", params={"by": "anna"}).json()["jobs"][0]["removable"] == 30
    client.patch(f"/v1/checkpoints/{pinned}", json={"pinned": True})
    assert [each["removable"] for each in client.get("/v1/storage").json()["jobs"]] == [20, 0]
    needed = client.get(f"/v1/jobs/{run.job_id}/checkpoints").json()["items"][1]["id"]
    rows.submit(small.database, resume_checkpoint_id=needed)
    assert [each["removable"] for each in client.get("/v1/storage").json()["jobs"]] == [0, 0]
    assert client.delete(f"/v1/checkpoints/{needed}").status_code == 409
    assert_problem(client.get("/v1/storage", params={"by": "absent"}), 422, "by")
    assert "Storage, 65" in small.browser("read").get("/usage").text


def test_usage_and_storage_by_project_follow_the_project_of_the_jobs(small: Served) -> None:
    database = small.database
    database.write(lambda session: projects.create(session, "vision"))
    anna, boss = Member.of(small, "anna", project="vision"), small.client()
    run = Run(database, rows.running(database.acting_for(anna), created_by=anna.key_id))
    small.checkpoint(bytes(30), run)
    run.end("succeeded")
    clone = boss.post(f"/v1/jobs/{run.job_id}/clone").json()["id"]  # of another key, and in the project
    Run(database, rows.claim(database)).end("cancelled")
    rows.running(database, created_by=anna.key_id)  # in the default project, as if the key has moved

    used = {each["project"]: each for each in boss.get("/v1/usage?by=project").json()["items"]}

    assert {name: each["jobs"] for name, each in used.items()} == {"vision": 2, "default": 1}
    assert [each["project"] for each in anna.client.get("/v1/usage?by=project").json()["items"]] == ["vision"]
    own = {each["owner_id"]: each["jobs"] for each in anna.client.get("/v1/usage").json()["items"]}
    assert own[anna.key_id] == 1
    assert sum(own.values()) == 2, "the clone is a job of the project, too"
    assert boss.get(f"/v1/jobs/{clone}").json()["status"] == "cancelled"
    lines = boss.get("/v1/usage.csv?by=project").text.splitlines()
    assert lines[0] == "month,project,project_id,gpu_hours,cpu_hours,jobs,attempts"
    stored = boss.get("/v1/storage").json()["projects"]
    assert [(each["project"], each["num_jobs"], each["num_files"], each["size"]) for each in stored] == [
        ("vision", 1, 1, 30)
    ]
    page = small.browser().get("/usage?by=project").text
    assert page.count(">vision<") == 2, "by month, and of the storage"
    assert_problem(boss.get("/v1/usage?by=month"), 422, "by")


def test_usage_of_a_range_of_months_by_key_and_project(served: Served) -> None:
    database, boss = served.database, served.client()
    vision = database.write(lambda session: projects.create(session, "vision").id)
    anna, ben = (Member.of(served, name).key_id for name in ("anna", "ben"))

    def use(session: Session) -> None:
        for owner, project, day, hours in (
            (anna, vision, OCTOBER_30, 1),
            (anna, DEFAULT_PROJECT, OCTOBER_30, 2),
            (ben, vision, OCTOBER_30 + 30, 4),
            (ben, vision, DECEMBER_1, 8),
        ):
            facts = {"gpu_ms": hours * 3_600_000, "cpu_ms": 0, "jobs": 1, "attempts": 1, "updated_at": 0}
            session.add(ProjectUse(owner_id=owner, project_id=project, day=day, **facts))

    database.write(use)

    def rows_of(query: str) -> list[tuple[Any, ...]]:
        items = boss.get(f"/v1/usage?{query}").json()["items"]
        return [(each["month"], each["owner"], each["project"], each["gpu_hours"]) for each in items]

    both = rows_of("by=key,project&from=2025-10&to=2025-11")
    assert both == [
        ("2025-11", "ben", "vision", 4.0),
        ("2025-10", "anna", "default", 2.0),
        ("2025-10", "anna", "vision", 1.0),
    ]
    assert rows_of("from=2025-11") == [("2025-12", "ben", None, 8.0), ("2025-11", "ben", None, 4.0)]
    assert rows_of("by=project&to=2025-10") == [("2025-10", "", "default", 2.0), ("2025-10", "", "vision", 1.0)]
    assert boss.get("/v1/usage.csv?by=key,project&to=2025-10").text.splitlines() == [
        "month,owner,owner_id,project,project_id,gpu_hours,cpu_hours,jobs,attempts",
        f"2025-10,anna,{anna},default,{DEFAULT_PROJECT},2.0,0.0,1,1",
        f"2025-10,anna,{anna},vision,{vision},1.0,0.0,1,1",
    ]
    assert_problem(boss.get("/v1/usage?from=2025-12&to=2025-11"), 422, "/from")
    page = served.browser().get("/usage?by=key,project&from=2025-11&to=").text
    assert [text in page for text in ("2025-12", "2025-11", "2025-10")] == [True, True, False]
    assert "A CPU hour is one hour in which an attempt without GPUs runs" in page
    assert "/v1/usage.csv?by=key,project&amp;from=2025-11" in page
    database.write(lambda session: session.execute(update(Key).values(revoked_at=1).where(Key.id.in_((anna, ben)))))
    assert boss.delete(f"/v1/projects/{vision}").status_code == 204
    assert rows_of("by=key,project&from=2025-10&to=2025-11") == both, "usage keeps the name of a removed project"


def test_use_that_an_earlier_version_has_added_counts_for_the_project_of_its_key(served: Served) -> None:
    """It adds to the use of keys only, while both versions run."""
    served.database.write(lambda session: projects.create(session, "vision"))
    anna, boss = Member.of(served, "anna", project="vision"), served.client()
    facts = {"cpu_ms": 0, "jobs": 1, "attempts": 2, "updated_at": 0}

    def use(session: Session) -> None:
        for day in (OCTOBER_30, OCTOBER_30 + 1):
            session.add(DeviceUse(owner_id=anna.key_id, day=day, gpu_ms=7_200_000, **facts))
        session.add(ProjectUse(owner_id=anna.key_id, day=OCTOBER_30, gpu_ms=3_600_000, **facts))
        session.add(DeviceUse(owner_id="", day=OCTOBER_30, gpu_ms=18_000_000, **facts))  # of another project

    served.database.write(use)

    used = {each["project"]: each for each in boss.get("/v1/usage?by=project").json()["items"]}
    assert {name: (each["gpu_hours"], each["jobs"]) for name, each in used.items()} == {
        "default": (6.0, 2),
        "vision": (3.0, 1),
    }
    assert [each["project"] for each in anna.client.get("/v1/usage?by=project").json()["items"]] == ["vision"]
    of_keys = boss.get("/v1/usage?month=2025-10").json()["items"]
    assert [(each["owner"], each["gpu_hours"], each["attempts"]) for each in of_keys] == [
        ("", 5.0, 2),
        ("anna", 4.0, 4),
    ]


def test_removable_checkpoints_are_removed_with_their_files_and_nothing_else_is(small: Served) -> None:
    client = small.client()
    anna = small.database.write(lambda session: keys.create(session, "anna")[0].id)
    runs = [Run(small.database, rows.running(small.database, created_by=owner)) for owner in (anna, None)]
    files: dict[tuple[int, int], Path] = {}
    for number, run in enumerate(runs):
        for step in (1, 2, 3):
            small.checkpoint(bytes(10 * step), run, step)
        for row in client.get(f"/v1/jobs/{run.job_id}/checkpoints").json()["items"]:
            with small.database.read() as session:
                files[number, row["step"]] = small.app.state.storage.path(
                    session.get_one(Checkpoint, row["id"]).storage_key
                )
    pinned = client.get(f"/v1/jobs/{runs[0].job_id}/checkpoints").json()["items"][-1]["id"]
    client.patch(f"/v1/checkpoints/{pinned}", json={"pinned": True})

    def clean(**body: object) -> tuple[int, int, int]:
        result = client.post("/v1/storage/clean", json=body).json()
        return result["num_jobs"], result["num_checkpoints"], result["size"]

    assert clean(dry_run=True) == (1, 1, 10), "running jobs need their newest two"
    for run in runs:
        small.database.write(lambda session, run=run: transitions.end_attempt(session, run.attempt, "succeeded"))  # type: ignore[misc]
    assert clean(dry_run=True) == (2, 3, 20 + 10 + 20)
    assert all(path.exists() for path in files.values())
    assert clean(by="anna") == (1, 1, 20)
    assert {place for place, path in files.items() if not path.exists()} == {(0, 2)}
    assert small.client("read", "submit").post("/v1/storage/clean", json={}).json()["num_checkpoints"] == 0
    assert small.client("read", "submit").post("/v1/storage/clean", json={"by": "anna"}).status_code == 403
    assert clean() == (1, 2, 30)
    assert clean() == (0, 0, 0)
    assert {place for place, path in files.items() if path.exists()} == {(0, 1), (0, 3), (1, 3)}
    assert_problem(client.post("/v1/storage/clean", json={"by": "absent"}), 422, "by")
    entries = client.get("/v1/activity", params={"action": "job.clean"}).json()["items"]
    assert [entry["details"]["checkpoints"] for entry in entries] == [2, 1]
