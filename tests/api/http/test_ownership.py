"""Roles: each route against a viewer, the owner of its object, another member and an administrator."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest

from api.http.auth import owners_routes
from jobs import workers
from tests.api.http.test_hostile import ALL_PAGES
from tests.api.route_cases import CASES, JOB, Member, World, roles_of
from tests.api.served import ALL, Served, assert_problem
from tests.jobs import rows

# Routes over several objects: those of other keys stay, and the response names them.
OF_MANY = {"POST /delete", *(f"POST /v1/jobs/{verb}" for verb in ("cancel", "delete", "pause", "resume"))}
# Routes whose object is absent for another member: webhooks and shared links hold addresses.
_ID = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}|wcs_[\\w-]+")
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


# Buttons over a selection of jobs: their response names the jobs of other keys, which stay.
FORMS_OF_MANY = {"POST /delete", "POST /jobs/{verb}"}


class _Offers(HTMLParser):
    """The requests that a page offers, as (method, path): its links, forms, their buttons and `data-request`."""

    def __init__(self) -> None:
        super().__init__()
        self.offers: set[tuple[str, str]] = set()
        self._method = "GET"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._method = values.get("method", "get").upper()
        method = values.get("formmethod", self._method).upper()
        offered = [(method, values[name]) for name in ("action", "formaction") if name in values]
        offered += [("GET", values["href"])] if tag == "a" and "href" in values else []
        if request := values.get("data-request"):
            offered.append((request.split(" ")[0], request.split(" ")[1]))
        self.offers |= {(method, re.split("[?#]", address)[0]) for method, address in offered if address[:1] == "/"}


def _offers(client: httpx.Client, address: str) -> set[tuple[str, str]]:
    """Return the requests that a page offers; none if the client may not open it."""
    page = client.get(address, headers={"Accept": "text/html"})
    assert page.status_code in (200, 401, 403, 404), (address, page.status_code)
    parser = _Offers()
    parser.feed(page.text if page.status_code == 200 else "")
    return parser.offers


def _every_page(world: World) -> set[str]:
    """Make things of the owner in each state; return the addresses of all pages with them."""
    states = [world.job(), world.job("pause"), world.job("reference"), world.job("cancel"), world.ended("failed")]
    states += [world.ended("succeeded", "archive"), world.evaluated()]
    rows.submit(world.database.acting_for(world.owner), created_by=world.owner.key_id, priority=1_000)
    states.append(rows.claim(world.database).job_id)
    for make in (world.view, world.deleted, world.worker, world.dataset, world.project):
        make()
    webhook_id, _ = world.delivery()
    cordoned = world.worker()
    world.database.write(lambda session: workers.cordon(session, cordoned, True))
    link = world.owner.client.post("/v1/shares", json={"jobs": states}).json()["url"]
    values = {
        "job_id": states,
        "sweep_id": [world.sweep()],
        "name": [world.folder()],
        "verb": ["cancel", "pause", "resume", "archive", "unarchive"],
        "secret": [link.rpartition("/")[2]],
    }
    addresses = set()
    for page in ALL_PAGES:
        (name,) = re.findall(r"\{(\w+)\}", page) or [""]
        of_page = values.get(name, [""]) if page == "/jobs/{job_id}" or name != "job_id" else states[-2:]
        addresses |= {page.replace(f"{{{name}}}", value) for value in of_page}
    some = "&".join(f"job={each}" for each in states)
    addresses |= {f"{page}?{some}" for page in ("/delete", "/compare", *(f"/change/{verb}" for verb in values["verb"]))}
    addresses |= {f"/keys?key={world.key()}", f"/webhooks?webhook={webhook_id}", f"/shares?job={states[0]}"}
    return addresses | {f"/submit?source={states[0]}", "/?archived=all&group=method"}


def test_no_page_offers_a_request_that_the_server_would_refuse(small: Served) -> None:
    """Each role opens every page, with things of one owner; each form, button and link there is for this role."""
    owner = Member.of(small, "anna")
    world = World(small, owner, small.client())
    readers = {
        "without a key": small.bare(),
        "viewer": small.client("read"),
        "member": Member.of(small, "ben").client,
        "owner": owner.client,
        "project administrator": Member.of(small, "cleo", *ALL, project="default").client,
        "administrator": world.admin,
    }
    allowed, addresses = roles_of(small.app), sorted(_every_page(world))
    patterns = [(each, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each)))) for each in allowed]
    refused, routes = set(), set()
    for role, client in readers.items():
        for address in addresses:
            for method, path in _offers(client, address):
                matching = [name for name, pattern in patterns if pattern.fullmatch(f"{method} {path}")]
                if path.startswith("/static/"):
                    continue
                assert matching, f"{address} offers {method} {path}, which is no address"
                routes.add(matching[0])
                # The name of the service leads to the sign-in page; a link is open to all who have it.
                is_open = role == "without a key" and (path == "/" or path.startswith("/shared/"))
                is_open |= role == "member" and matching[0] in FORMS_OF_MANY
                if not is_open and role not in allowed[matching[0]]:
                    refused.add((role, _ID.sub("ID", address.partition("?")[0]), matching[0]))
    assert refused == set()
    forms = {route for route in CASES if " /v1/" not in route}
    assert forms - routes <= {"POST /datasets/{name}/remove", "POST /jobs/{job_id}/baselines"}, "not on any page here"
