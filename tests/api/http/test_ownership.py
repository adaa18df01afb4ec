"""Roles: each route against a viewer, the owner of its object, another member and an administrator."""

from __future__ import annotations

import pytest

from api.http.auth import owners_routes
from tests.api.route_cases import CASES, JOB, Member, World, roles_of
from tests.api.served import Served, assert_problem
from tests.jobs import rows

# Routes over several objects: those of other keys stay, and the response names them.
OF_MANY = {"POST /delete", *(f"POST /v1/jobs/{verb}" for verb in ("cancel", "delete", "pause", "resume"))}
# Routes whose object is absent for another member: webhooks and shared links hold addresses.
ABSENT = {route for route in CASES if "{webhook_id}" in route or "{share_id}" in route}


def test_every_changing_route_keeps_to_its_role(small: Served) -> None:
    """Each role of the table in SECURITY.md that may not make a request is refused; then the least one that may."""
    owner = Member.of(small, "anna")
    senders = {"viewer": small.client("read"), "member": Member.of(small, "ben").client, "owner": owner.client}
    world = World(small, owner, small.client())
    allowed, of_owners = roles_of(small.app), owners_routes(small.app)
    assert of_owners <= CASES.keys()
    for route, case in CASES.items():
        request = case(world)
        where = f"{route}, {sorted(allowed[route])}"
        for role in [role for role in senders if role not in allowed[route]]:
            answer = request.send(senders[role])
            if role == "member" and route in OF_MANY and " /v1/" in route:
                assert len(answer.json()["refused"]) == 1, where
            elif role == "member" and route in of_owners:
                assert answer.status_code == (404 if route in ABSENT else 409 if route in OF_MANY else 403), where
            else:
                assert answer.status_code == 403, where
        least = next((client for role, client in senders.items() if role in allowed[route]), world.admin)
        answer = request.send(least)
        assert answer.status_code < 400, (where, answer.text)
        if route in of_owners:
            assert case(world).send(world.admin).status_code < 400, where


def test_a_refusal_changes_nothing_and_names_who_may(served: Served) -> None:
    owner, other = Member.of(served, "anna"), Member.of(served, "ben")
    job_id = World(served, owner, served.client()).job()

    refusal = assert_problem(other.client.post(f"/v1/jobs/{job_id}/cancel"), 403)

    assert "another key" in refusal["detail"]
    assert [each["type"] for each in other.client.get(f"/v1/jobs/{job_id}/events").json()["items"]] == ["submitted"]
    assert rows.status(served.database, job_id) == "queued"


def test_a_selection_changes_the_own_jobs_and_names_the_others(small: Served) -> None:
    anna, ben = Member.of(small, "anna"), Member.of(small, "ben")
    own, foreign = (World(small, member, small.client()).job() for member in (anna, ben))

    answer = anna.client.post("/jobs/cancel", data={"job": [own, foreign]}, headers={"Accept": "text/html"})

    assert answer.status_code == 403
    assert "Cancelled 1 job" in answer.text
    assert "another key" in answer.text
    assert [rows.status(small.database, each) for each in (own, foreign)] == ["cancelled", "queued"]


def test_what_hangs_on_an_object_goes_with_it(small: Served) -> None:
    """An evaluation of another member below a training is deleted with the training."""
    anna, ben = Member.of(small, "anna"), Member.of(small, "ben")
    job_id = World(small, anna, small.client()).ended()
    checkpoint_id = World(small, anna, small.client()).checkpoint_of(job_id)
    below = ben.client.post(f"/v1/checkpoints/{checkpoint_id}/evaluate", json={"protocols": ["linear"]}).json()["id"]

    assert_problem(ben.client.delete(f"/v1/jobs/{job_id}"), 403)
    assert anna.client.delete(f"/v1/jobs/{job_id}").json()["num_waiting"] == 1
    assert_problem(ben.client.get(f"/v1/jobs/{below}"), 404)


@pytest.mark.parametrize(("scopes", "is_allowed"), [(("submit",), False), (("submit", "priority"), True), ((), True)])
def test_a_priority_above_0_needs_its_scope(small: Served, scopes: tuple[str, ...], is_allowed: bool) -> None:
    client = small.client("read", *scopes) if scopes else small.client()
    urgent = JOB | {"priority": 1}

    for query in ("", "?dry_run=true"):
        answer = client.post(f"/v1/jobs{query}", json=urgent)
        assert answer.status_code in ((200, 201) if is_allowed else (422,)), answer.text
    if not is_allowed:
        assert_problem(answer, 422, "/priority")
    job_id = client.post("/v1/jobs", json=JOB | {"priority": -5}).json()["id"]
    changed = client.patch(f"/v1/jobs/{job_id}", json={"priority": 1000})
    assert changed.status_code == (200 if is_allowed else 422)
    assert client.patch(f"/v1/jobs/{job_id}", json={"priority": 0}).status_code == 200


def test_a_copy_by_a_key_without_the_scope_has_no_higher_priority(small: Served) -> None:
    urgent = small.client().post("/v1/jobs", json=JOB | {"priority": 7}).json()["id"]
    member, urgent_member = small.client("read", "submit"), small.client("read", "submit", "priority")

    assert member.post(f"/v1/jobs/{urgent}/clone").json()["priority"] == 0
    assert urgent_member.post(f"/v1/jobs/{urgent}/clone").json()["priority"] == 7


def test_the_list_of_checkpoints_offers_to_pin_the_own_ones(small: Served) -> None:
    owner, other = Member.of(small, "anna"), Member.of(small, "ben")
    action = f'action="/checkpoints/{World(small, owner, small.client()).checkpoint()}/pin"'

    assert action in owner.client.get("/checkpoints", headers={"Accept": "text/html"}).text
    assert action not in other.client.get("/checkpoints", headers={"Accept": "text/html"}).text
