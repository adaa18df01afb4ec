"""The activity log: each change that a person or key requests is one entry, and is named on the job."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx
import pytest

from api.http.auth import classification
from jobs import activity, keys, transitions
from jobs.access import Principal
from jobs.database import new_id
from jobs.models import Activity
from tests.api.route_cases import CASES, WITHOUT_ENTRY, Member, World
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows
from tests.jobs.rows import Run

JOB = {"kind": "pretrain", "spec": SPEC}


def named(served: Served, name: str, *scopes: str) -> httpx.Client:
    """Return a client whose key has a name of its own."""
    scopes = scopes or ("read", "submit")
    secret = served.database.write(lambda session: keys.create(session, name, scopes)[1])
    return served.bare({"Authorization": f"Bearer {secret}"})


def log(admin: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = admin.get("/v1/activity", params=filters).json()["items"]
    return items


def test_the_job_and_the_log_say_who_cancelled_it(served: Served) -> None:
    admin, anna = served.client(), named(served, "anna")
    job_id = anna.post("/v1/jobs", json=JOB).json()["id"]

    job = anna.post(f"/v1/jobs/{job_id}/cancel").json()

    assert (job["owner"], job["status"], job["status_by"]) == ("anna", "cancelled", "anna")
    events = anna.get(f"/v1/jobs/{job_id}/events").json()["items"]
    assert [(each["type"], each["data"]["by"]) for each in events] == [("submitted", "anna"), ("cancelled", "anna")]
    entries = log(admin, target=job_id)
    assert [(each["actor"], each["action"]) for each in entries] == [("anna", "job.cancel"), ("anna", "job.submit")]
    assert entries[0]["actor_id"] == job["created_by"]
    assert "Cancelled by anna" in admin.get(f"/jobs/{job_id}", headers={"Accept": "text/html"}).text


def test_the_end_of_a_running_job_names_who_requested_it(served: Served) -> None:
    member = Member.of(served, "anna")
    anna = member.client
    run = Run(served.database, rows.running(served.database, created_by=member.key_id))

    pending = anna.post(f"/v1/jobs/{run.job_id}/cancel").json()
    run.end("cancelled")

    assert pending["status_by"] is None
    job = anna.get(f"/v1/jobs/{run.job_id}").json()
    assert (job["status"], job["status_by"]) == ("cancelled", "anna")


def test_a_change_names_old_and_new_values_on_the_page_in_words(served: Served) -> None:
    admin = served.client()
    job_id = admin.post("/v1/jobs", json=JOB | {"name": "first", "tags": ["a"], "priority": 2}).json()["id"]
    admin.patch(f"/v1/jobs/{job_id}", json={"name": "second", "priority": 5, "tags": ["b", "c"], "starred": True})
    admin.patch(f"/v1/jobs/{job_id}", json={"note": "x" * 9})
    noted, changed, _ = log(admin, target=job_id)
    assert changed["title"] == "Changed job"
    assert changed["text"] == "name first → second, priority 2 → 5, starred no → yes, tags a → b, c"
    assert (changed["details"]["priority"], changed["details"]["former"]["priority"]) == (5, 2)
    assert noted["text"] == "note 9 characters"
    key = admin.post("/v1/keys", json={"name": "laptop", "scopes": ["read"]}).json()
    assert admin.patch(f"/v1/keys/{key['id']}", json={"scopes": ["read", "submit"]}).is_success
    (entry,) = log(admin, action="key.change")
    assert "scopes read → read, submit" in entry["text"]
    page = admin.get("/activity", headers={"Accept": "text/html"}).text
    cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td.*?</td>", page)]
    assert "name first → secondpriority 2 → 5starred no → yestags a → b, c" in cells
    assert re.search(r'<td class="one-line quiet numbers">\d{4}-\d\d-\d\d \d\d:\d\d:\d\d</td>', page), (
        "the time, beside the age"
    )
    assert f'<a href="/jobs/{job_id}">second</a>' in page
    assert ">Changed job</a>" in page
    assert '<option value="job">jobs</option>' in page


def test_what_no_person_causes_names_none(served: Served) -> None:
    run = Run(served.database, rows.running(served.database))
    run.deliver(rows.started())
    run.end("succeeded")

    events = served.client().get(f"/v1/jobs/{run.job_id}/events").json()["items"]

    assert not any("by" in each["data"] for each in events)
    assert log(served.client(), target=run.job_id) == []


def test_a_change_that_fails_leaves_no_entry(served: Served) -> None:
    admin = served.client()
    job_id = admin.post("/v1/jobs", json=JOB).json()["id"]
    assert_problem(admin.post(f"/v1/jobs/{job_id}/resume"), 409)
    actor = Principal("", "anna", frozenset({"admin"}))

    def fail(session: Any) -> None:
        transitions.cancel(session, job_id)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        served.database.acting_for(actor).write(fail)

    assert [each["action"] for each in log(admin, target=job_id)] == ["job.submit"]


def test_the_log_is_filtered_and_read_in_parts(served: Served) -> None:
    admin, anna = named(served, "root", "read", "submit", "admin"), named(served, "anna")
    ids = [anna.post("/v1/jobs", json=JOB | {"name": f"job {n}"}).json()["id"] for n in range(3)]
    admin.post(f"/v1/jobs/{ids[0]}/cancel")

    first = admin.get("/v1/activity", params={"action": "job", "limit": 3}).json()
    rest = admin.get("/v1/activity", params={"action": "job", "limit": 3, "cursor": first["next_cursor"]}).json()

    assert [each["action"] for each in first["items"] + rest["items"]] == ["job.cancel"] + ["job.submit"] * 3
    assert rest["next_cursor"] is None
    assert {each["actor"] for each in log(admin, action="job.submit")} == {"anna"}
    assert [each["object_id"] for each in log(admin, target="job 1")] == [ids[1]]
    assert log(admin, actor="root", action="job.submit") == []
    assert log(admin, since="2999-01-01T00:00:00Z") == log(admin, until="2000-01-01T00:00:00Z") == []
    assert len(log(admin, since="2000-01-01T00:00:00Z", action="job")) == 4
    assert_problem(admin.get("/v1/activity", params={"since": "2999-01-01"}), 422)
    assert_problem(anna.get("/v1/activity"), 403)
    page = admin.get("/activity", params={"actor": "anna"}, headers={"Accept": "text/html"}).text
    assert "job 2" in page
    assert ">Cancelled job<" not in page


@pytest.mark.parametrize(
    ("filters", "field", "words"),
    [
        ({"action": "jo"}, "action", "no action is called 'jo'; expected one such as job, jobs, sweep"),
        ({"action": "job.stop"}, "action", "expected one such as job.submit, job.change, job.cancel"),
        ({"actor": "nobody"}, "actor", "neither the log nor a key has the name or id 'nobody'"),
    ],
)
def test_a_filter_that_names_nothing_is_refused(small: Served, filters: dict[str, str], field: str, words: str) -> None:
    admin = small.client()

    problem = assert_problem(admin.get("/v1/activity", params=filters), 422)

    assert [each["pointer"] for each in problem["errors"]] == [field]
    assert words in problem["errors"][0]["detail"]
    page = admin.get("/activity", params=filters, headers={"Accept": "text/html"})
    assert (page.status_code, words in html.unescape(page.text)) == (200, True)


def test_actors_without_a_key_are_found_by_their_names(small: Served) -> None:
    admin = small.client()
    note = {"id": new_id(), "actor_id": "", "action": "job.cancel", "object_id": "1", "object_name": ""}
    small.database.write(lambda session: session.add(Activity(actor="a person of a removed key", **note)))

    assert len(log(admin, actor="a person of a removed key")) == 1
    assert log(admin, actor="a person of a removed key", action="worker") == []
    idle = named(small, "idle").get("/v1/whoami").json()["id"]
    assert log(admin, actor="idle") == log(admin, actor=idle) == [], "a key that has changed nothing"


def test_keys_and_sessions_are_in_the_log_without_their_secrets(served: Served) -> None:
    admin = named(served, "root", "read", "submit", "admin")
    created = admin.post("/v1/keys", json={"name": "laptop", "scopes": ["read"]}).json()
    browser = served.bare({"Accept": "text/html", "Origin": served.url})
    browser.post("/sign-in", data={"key": created["key"]})
    browser.post("/sign-out")
    admin.delete(f"/v1/keys/{created['id']}")

    entries = log(admin, target="laptop")

    assert [(each["actor"], each["action"]) for each in entries] == [
        ("root", "key.revoke"),
        ("laptop", "session.end"),
        ("laptop", "session.begin"),
        ("root", "key.create"),
    ]
    assert created["key"] not in str(entries)


def test_old_entries_are_removed(served: Served) -> None:
    admin = served.client()
    admin.post("/v1/jobs", json=JOB)
    row = Activity(id="0", at=0, actor_id="", actor="anna", action="job.submit", object_id="1", object_name="")
    served.database.write(lambda session: session.add(row))

    activity.expire(served.database, 1)

    assert [each["actor"] for each in log(admin)] == ["test"]


# --- every route -----------------------------------------------------------------------------------------------------


def test_every_route_that_changes_something_leaves_an_entry(small: Served) -> None:
    member, admin = Member.of(small, "anna"), small.client()
    for route, case in CASES.items():
        request = case(World(small, member, admin))
        before = log(admin, limit=1)
        client = admin if classification(small.app)[route].startswith("admin") else member.client
        answer = request.send(client)
        assert answer.status_code < 400, (route, answer.text)
        newest = log(admin, limit=1)
        assert (newest != before) == (route not in WITHOUT_ENTRY), route
        kind, _, verb = newest[0]["action"].partition(".") if newest else ("job", ".", "submit")
        assert verb in activity.ACTIONS[kind], route
