"""Projects: every route against a key of another project, for which the things of the first one are absent."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from sqlalchemy import event, update

from api.http.auth import classification
from jobs import projects, queries
from jobs.database import new_id
from jobs.events import record
from jobs.models import Base, Checkpoint, Job, Sweep
from jobs.preemption import REQUESTED
from tests.api.http.test_access import OF_SERVICE
from tests.api.http.test_ownership import OF_MANY
from tests.api.route_cases import CASES, HOOK, JOB, Member, World
from tests.api.served import ALL, SPEC, Served, assert_problem, listening, messages
from tests.jobs import rows

_ABSENT = (["there is no"], ["there is no such"])
FORMS_OF_MANY = {"POST /delete", "POST /jobs/{verb}"}  # with no job left
_ID = re.compile("[0-9a-f]{8}-[0-9a-f-]{27}")
MARK = "onlyofalpha"  # in every name of the project
# What all projects share, and what an id in the address does not name.
SHARED = ("/datasets/", "/weights/", "/workers/", "/presets", "/projects")
# Rows that refused requests may add or change: the uses of keys, and nothing of a project.
UNCOUNTED = {"keys", "activities", "workers", "datasets", "dataset_sources", "weights", "sign_in_tokens", "projects"}


def _world(served: Served) -> World:
    """Return a world whose owner is in the project alpha; its administrator is in alpha as well."""
    served.database.write(lambda session: projects.create(session, "alpha"))
    served.database.write(lambda session: projects.create(session, "beta"))
    owner = Member.of(served, MARK, project="alpha")
    return World(served, owner, Member.of(served, f"{MARK}-admin", *ALL, project="alpha").client)


def _rows(served: Served) -> dict[str, list[Any]]:
    """Return all rows, but for those that any request may change."""
    with served.database.engine.connect() as connection:
        return {
            table.name: connection.execute(table.select()).all()
            for table in Base.metadata.sorted_tables
            if table.name not in UNCOUNTED
        }


def _without_ids(answer: httpx.Response) -> tuple[int, str]:
    """Return the status, and the text of a response to GET without ids if it has succeeded."""
    return answer.status_code, _ID.sub("", answer.text) if answer.status_code == 200 else ""


def test_no_route_changes_a_thing_of_another_project(small: Served) -> None:
    """A member of the default project and an administrator of beta send the requests that alpha's owner may."""
    world, needs = _world(small), classification(small.app)
    service = World(small, world.owner, small.client())
    others = {
        "member": Member.of(small, "ben").client,
        "administrator": Member.of(small, "cleo", *ALL, project="beta").client,
    }
    for route, case in CASES.items():
        is_shared = any(part in route for part in SHARED) or needs[route] == OF_SERVICE
        request = case(service if is_shared else world)
        if (
            "{" not in route.replace("{verb}", "")
            and route not in OF_MANY
            and "job" not in request.arguments.get("data", {})
        ) or (is_shared and needs[route] == "submit"):
            continue  # it makes a new thing, of the client's own project
        before = _rows(small)
        for name, client in others.items():
            answer = request.send(client)
            where = (route, name, answer.status_code, answer.text[:300])
            if is_shared or (name == "member" and needs[route] == "admin"):
                assert answer.status_code == 403, where
            elif route in OF_MANY and " /v1/" in route:
                assert [each["reason"].split(" job")[0] for each in answer.json()["refused"]] in _ABSENT, where
            else:
                assert answer.status_code in ((404, 409) if route in FORMS_OF_MANY else (404,)), where
            assert MARK not in answer.text, where
        assert _rows(small) == before, route


def test_no_address_with_an_id_of_another_project_shows_anything(shown: tuple[Served, dict[str, str]]) -> None:
    served, ids = shown
    readers = [Member.of(served, "dora").client, Member.of(served, "emil", *ALL, project="beta").client]
    own = Member.of(served, f"{MARK}-reader", *ALL, project="alpha").client
    num_shown = 0
    for route in classification(served.app):
        method, path = route.split(" ", 1)
        names = re.findall(r"\{(\w+)\}", path)
        if method != "GET" or not set(names) & ids.keys() or "{secret}" in path:
            continue
        address = path.format(**{name: ids.get(name, "map") for name in names}) + (
            "?name=loss" if "curve.svg" in path else ""
        )
        absent = _ID.sub(lambda _: new_id(), address)
        if not path.endswith("stream"):
            num_shown += own.get(address).status_code == 200
        for reader in readers:
            answer = reader.get(address)
            assert _without_ids(answer) == _without_ids(reader.get(absent)), address
            assert MARK not in answer.text, address
    assert num_shown > 15
    for name in ("job", "left", "jobs", "ids", "source", "baseline", "continue", "group"):
        for address in (
            "/compare",
            "/compare/curve.svg",
            "/v1/compare",
            "/v1/compare.csv",
            "/v1/metrics.csv",
            "/submit",
            "/shares",
            "/delete",
            "/change/cancel",
            "/sweeps/new",
        ):
            assert MARK not in readers[0].get(address, params={name: ids["job_id"], "name": "loss"}).text, (
                address,
                name,
            )
    with served.database.read() as session:
        digest = session.get_one(Checkpoint, ids["checkpoint_id"]).sha256
    features = {"kind": "checkpoint", "checkpoint_id": ids["checkpoint_id"]}
    spec = {"data": SPEC["data"], "features": features, "protocols": ["linear"]}
    for body, pointer in (
        (JOB | {"after": [ids["job_id"]]}, "/after/0"),
        (JOB | {"spec": SPEC | {"weights": digest}}, "/spec/weights"),
        ({"kind": "evaluate", "spec": spec}, "/spec/features/checkpoint_id"),
    ):
        assert_problem(readers[0].post("/v1/jobs", json=body), 422, pointer)


def test_no_list_and_no_number_has_a_thing_of_another_project(shown: tuple[Served, dict[str, str]]) -> None:
    served, ids = shown
    readers = [Member.of(served, "finn").client, Member.of(served, "gina", *ALL, project="beta").client]
    own = Member.of(served, f"{MARK}-lister", *ALL, project="alpha").client
    secrets, num_shown = [MARK, *(ids[name] for name in ids if name not in ("group_id",))], 0
    for route in classification(served.app):
        method, path = route.split(" ", 1)
        if (
            method != "GET"
            or "{" in path
            or path.endswith("stream")
            or path in ("/sign-in", "/healthz", "/readyz", "/docs", "/openapi.json")
        ):
            continue
        for query in ("", "?archived=all&group=method", f"?by={MARK}", f"?q={MARK[:5]}"):
            num_shown += any(each in own.get(path + query).text for each in secrets)
            for reader in readers:
                answer = reader.get(path + query)
                text = answer.text.replace(f"by={MARK}", "").replace(f'"{MARK}"', "")
                assert not [
                    each for each in secrets if each in text.replace(MARK, "") or (not query and each in text)
                ], path + query
    assert num_shown > 20
    metrics = readers[0].get("/metrics").text
    assert 'wcl_jobs{status="queued"} 0' in metrics or "succeeded" in metrics


@pytest.fixture
def shown(served: Served) -> tuple[Served, dict[str, str]]:
    """Yield a server with a thing of each kind in alpha, and their ids by the names of the routes."""
    world = _world(served)
    webhook_id, delivery_id = world.delivery()
    evaluated = world.evaluated()
    world.deleted()
    rows.submit(served.database.acting_for(world.owner), created_by=world.owner.key_id, priority=1_000)
    ids = {
        "running": rows.claim(served.database).job_id,
        "job_id": evaluated,
        "checkpoint_id": world.checkpoint_of(evaluated),
        "sweep_id": world.sweep(),
        "webhook_id": webhook_id,
        "delivery_id": delivery_id,
        "view_id": world.view(),
        "share_id": world.share(),
        "key_id": world.owner.key_id,
    }
    for table in (Job, Sweep):
        served.database.write(lambda session, table=table: session.execute(update(table).values(name=MARK)))  # type: ignore[misc]
    return served, ids


def test_streams_have_the_changes_of_their_project_only(small: Served) -> None:
    world, other = _world(small), Member.of(small, "ben")
    assert_problem(other.client.get(f"/v1/jobs/{world.job()}/stream"), 404)
    with listening(other.client, "/v1/stream") as stream:
        world.job()
        own = other.client.post("/v1/jobs", json=JOB).json()["id"]
        first = next(messages(stream))
    assert first.data["changed"] == [own]


def test_messages_of_a_webhook_are_about_jobs_of_its_project(small: Served) -> None:
    world, cleo = _world(small), Member.of(small, "cleo", *ALL, project="beta").client
    hooks = [(client, client.post("/v1/webhooks", json=HOOK).json()["id"]) for client in (world.admin, cleo)]

    world.ended("failed")

    sent = [len(client.get(f"/v1/webhooks/{hook_id}/deliveries").json()["items"]) for client, hook_id in hooks]
    assert sent == [1, 0]


def test_what_follows_from_a_thing_is_in_its_project(small: Served) -> None:
    """An administrator of all projects who copies or evaluates a job of alpha leaves the result in alpha."""
    world, admin = _world(small), small.client()
    ended = world.ended()
    clone = admin.post(f"/v1/jobs/{ended}/clone").json()["id"]
    below = admin.post(f"/v1/checkpoints/{world.checkpoint_of(ended)}/evaluate", json={"protocols": ["linear"]}).json()

    assert {world.owner.client.get(f"/v1/jobs/{each}").status_code for each in (clone, below["id"])} == {200}
    assert admin.get("/v1/projects").json()["items"] != world.owner.client.get("/v1/projects").json()["items"]


def test_a_key_that_moves_sees_the_other_project_at_once(small: Served) -> None:
    world, admin = _world(small), small.client()
    job_id = world.job()
    link = small.bare().get(world.owner.client.post("/v1/shares", json={"jobs": [job_id]}).json()["url"])
    assert link.status_code == 200

    moved = admin.patch(f"/v1/keys/{world.owner.key_id}", json={"project": "beta"})

    assert moved.json()["project"] == "beta"
    assert_problem(world.owner.client.get(f"/v1/jobs/{job_id}"), 404)
    assert small.bare().get(str(link.url)).status_code == 404
    assert_problem(world.admin.patch(f"/v1/keys/{world.owner.key_id}", json={"project": "alpha"}), 404)


def test_an_administrator_of_a_project_makes_keys_of_this_project_only(small: Served) -> None:
    world = _world(small)

    assert world.admin.post("/v1/keys", json={"name": "new"}).json()["project"] == "alpha"
    assert_problem(world.admin.post("/v1/keys", json={"name": "new", "project": "beta"}), 404)
    assert_problem(world.admin.post("/v1/keys", json={"name": "new", "project": "*", "scopes": ["admin"]}), 403)
    assert_problem(world.admin.post("/v1/projects", json={"name": "gamma"}), 403)
    assert {each["project"] for each in world.admin.get("/v1/keys").json()["items"]} == {"alpha"}


def test_keys_are_in_the_default_project_and_administrators_in_all(small: Served) -> None:
    admin = small.client()

    created = [admin.post("/v1/keys", json={"name": "a", "scopes": scopes}).json() for scopes in (["read"], [*ALL])]

    assert [each["project"] for each in created] == ["default", None]
    assert [each["name"] for each in admin.get("/v1/projects").json()["items"]] == ["default"]


@pytest.mark.parametrize("name", ["", "Vision", "*", "a b", "-a", "x" * 65])
def test_a_bad_name_is_refused(small: Served, name: str) -> None:
    assert_problem(small.client().post("/v1/projects", json={"name": name}), 422, "/name")


def test_a_project_has_one_name(small: Served) -> None:
    admin = small.client()

    created = admin.post("/v1/projects", json={"name": "vision"})
    assert created.status_code == 201
    assert_problem(admin.post("/v1/projects", json={"name": "vision"}), 409)
    address = f"/v1/projects/{created.json()['id']}"
    assert_problem(admin.patch(address, json={"name": "default"}), 409)
    assert admin.patch(address, json={"name": "vision"}).json()["name"] == "vision"
    assert admin.patch(address, json={"name": "images"}).json()["name"] == "images"


def test_a_project_without_keys_and_jobs_can_be_removed(small: Served) -> None:
    world, admin = _world(small), small.client()
    (alpha,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "alpha")
    address, job_id = f"/v1/projects/{alpha}", world.job()
    admin.patch(address, json={"max_waiting": 5})

    def reason() -> str:
        refused = admin.delete(address)
        assert_problem(refused, 409)
        return str(refused.json()["detail"])

    assert "alpha has 2 keys (move or revoke" in reason()
    assert f"and 1 job (`wcl delete`, submitted by {MARK})" in reason()
    for each in world.admin.get("/v1/keys").json()["items"]:
        admin.delete(f"/v1/keys/{each['id']}")
    assert reason().startswith("the project alpha has 1 job (")
    admin.delete(f"/v1/jobs/{job_id}")
    assert reason().startswith("the project alpha has 1 deleted job (`wcl purge`")
    small.settings.checkpoints_dir.mkdir(parents=True)  # as a server makes it at its start
    admin.post("/v1/deletions/purge", json={"jobs": [job_id]})
    assert admin.delete(address).status_code == 204

    names = [each["name"] for each in admin.get("/v1/projects").json()["items"]]
    assert names == ["beta", "default"]
    assert_problem(admin.delete(address), 404)
    assert_problem(admin.patch(address, json={"max_gpus": 3}), 404)
    assert_problem(admin.post("/v1/keys", json={"name": "new", "project": "alpha"}), 404)
    (beta,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "beta")
    taken = admin.patch(f"/v1/projects/{beta}", json={"name": "alpha"})
    assert_problem(taken, 409)
    assert "brings it back" in taken.json()["detail"]
    assert {each["project"] for each in admin.get("/v1/keys").json()["items"] if each["name"] == MARK} == {"alpha"}
    entries = admin.get("/v1/activity?action=project.remove").json()["items"]
    assert [(each["object_id"], each["object_name"]) for each in entries] == [(alpha, "alpha")]
    back = admin.post("/v1/projects", json={"name": "alpha"}).json()
    assert (back["id"], back["max_waiting"]) == (alpha, None)


def test_the_default_project_cannot_be_removed(small: Served) -> None:
    admin = small.client()
    (project,) = admin.get("/v1/projects").json()["items"]

    assert_problem(admin.delete(f"/v1/projects/{project['id']}"), 409)


def test_a_sweep_that_goes_on_keeps_its_project(small: Served) -> None:
    world, admin = _world(small), small.client()
    world.sweep()
    (alpha,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "alpha")

    refused = admin.delete(f"/v1/projects/{alpha}")

    assert_problem(refused, 409)
    assert refused.json()["detail"].endswith("1 unfinished sweep (`wcl sweep cancel`)")


def test_the_page_removes_projects(small: Served) -> None:
    _world(small)
    browser, own = small.browser(), {"Origin": small.url}
    ids = {each["name"]: each["id"] for each in small.client().get("/v1/projects").json()["items"]}

    refused = browser.post(f"/projects/{ids['alpha']}/remove", data={"name": "alpha"}, headers=own)

    assert refused.status_code == 409
    assert "he project alpha has 2 keys" in refused.text
    assert f"/projects/{ids['default']}/remove" not in refused.text
    assert browser.post(f"/projects/{ids['beta']}/remove", data={"name": "beta"}, headers=own).status_code == 303
    assert [each["name"] for each in small.client().get("/v1/projects").json()["items"]] == ["alpha", "default"]


def test_a_project_has_limits(small: Served) -> None:
    world, admin = _world(small), small.client()
    (alpha,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "alpha")
    address = f"/v1/projects/{alpha}"

    limited = admin.patch(address, json={"max_waiting": 1, "max_gpus": 4, "max_bytes": 5_000_000_000})

    assert [limited.json()[name] for name in ("name", *projects.LIMITS)] == ["alpha", 1, 4, 5_000_000_000]
    world.job()
    refused = world.owner.client.post("/v1/jobs", json=JOB)
    assert_problem(refused, 429)
    assert "the project alpha may have 1 waiting job" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) > 0
    assert world.owner.client.get("/v1/projects").json()["items"] == [limited.json()]
    assert_problem(world.admin.patch(address, json={"max_waiting": 9}), 403)
    assert_problem(admin.patch(address, json={"max_gpus": 0}), 422, "/max_gpus")
    kept = admin.patch(address, json={"name": "gamma", "max_waiting": None}).json()
    assert (kept["name"], kept["max_waiting"], kept["max_gpus"]) == ("gamma", None, 4)
    assert world.owner.client.post("/v1/jobs", json=JOB).status_code == 201
    entries = admin.get("/v1/activity?action=project.change").json()["items"]
    assert [each["details"]["limits"] for each in entries] == [
        {"max_waiting": None},
        {"max_waiting": 1, "max_gpus": 4, "max_bytes": 5_000_000_000},
    ]


def test_a_lower_limit_says_what_is_beyond_it(small: Served) -> None:
    world, admin = _world(small), small.client()
    world.job(), world.job()
    world.checkpoint_of(world.ended())
    (alpha,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "alpha")
    browser, own = small.browser(), {"Origin": small.url}

    assert admin.patch(f"/v1/projects/{alpha}", json={"max_waiting": 2, "max_gpus": 1}).json()["warning"] is None
    lowered = admin.patch(f"/v1/projects/{alpha}", json={"max_waiting": 1, "max_bytes": 1}).json()["warning"]
    assert lowered.startswith("the project alpha has 2 waiting jobs, 1 over its limit, which stay; it stores ")
    form = {"name": "alpha", "max_gpus": "", "max_waiting": "1", "max_bytes": ""}
    changed = browser.post(f"/projects/{alpha}", data=form, headers=own)
    assert "alpha has 2 waiting jobs, 1 over" in browser.get(changed.headers["location"]).text
    key = admin.patch(f"/v1/keys/{world.owner.key_id}", json={"max_waiting": 1}).json()
    assert key["warning"] == f"the key {MARK} has 2 waiting jobs, 1 over its limit, which stay"
    assert f"key {MARK} has 2 waiting jobs" in browser.get(f"/keys?key={world.owner.key_id}").text


def test_a_copy_of_a_job_counts_in_the_project_of_the_job(small: Served) -> None:
    world, admin = _world(small), small.client()
    ended = world.ended()
    (alpha,) = (each["id"] for each in admin.get("/v1/projects").json()["items"] if each["name"] == "alpha")
    admin.patch(f"/v1/projects/{alpha}", json={"max_bytes": 1})

    refused = admin.post(f"/v1/jobs/{ended}/clone")

    assert_problem(refused, 409)
    assert "the project alpha stores" in refused.json()["detail"]
    assert admin.post("/v1/jobs", json=JOB).status_code == 201, "another project has room"


def test_the_page_limits_projects(small: Served) -> None:
    _world(small)
    browser, own = small.browser(), {"Origin": small.url}
    projects_of = small.client().get("/v1/projects").json()["items"]
    (alpha,) = (each["id"] for each in projects_of if each["name"] == "alpha")
    form = {"name": "alpha", "max_gpus": "4", "max_waiting": "", "max_bytes": "2.5 TB"}

    assert browser.post(f"/projects/{alpha}", data=form, headers=own).status_code == 303

    assert re.search('name="max_bytes"[^>]*value="2500000000000 B"', browser.get("/keys").text)
    for wrong in ({"max_bytes": "much"}, {"max_gpus": "x"}, {"max_waiting": "0"}):
        assert browser.post(f"/projects/{alpha}", data=form | wrong, headers=own).status_code == 422, wrong
    limited = next(each for each in small.client().get("/v1/projects").json()["items"] if each["id"] == alpha)
    assert [limited[name] for name in projects.LIMITS] == [None, 4, 2_500_000_000_000]


def test_a_request_to_give_way_says_nothing_of_a_job_of_another_project(small: Served) -> None:
    """A job of alpha gives way to one of the default project, and then to one of alpha."""
    world, ben = _world(small), Member.of(small, "ben")
    rows.submit(small.database.acting_for(world.owner), created_by=world.owner.key_id, priority=1_000)
    running = rows.claim(small.database).job_id
    foreign, own = (each.client.post("/v1/jobs", json=JOB).json()["id"] for each in (ben, world.owner))
    for other in (foreign, own):
        small.database.write(lambda session, other=other: record(session, running, REQUESTED, {"job": other}))  # type: ignore[misc]

    of_all = [{"job": foreign}, {"job": own}]
    for client, expected in ((world.owner.client, [{}, of_all[1]]), (small.client(), of_all)):
        events = client.get(f"/v1/jobs/{running}/events").json()["items"]
        assert [each["data"] for each in events if each["type"] == REQUESTED] == expected
    page = Member.of(small, "dora", project="alpha").client.get(f"/jobs/{running}").text
    assert foreign not in page
    assert own in page
    with small.database.read() as session:
        stored = [each.data.get("job") for each in queries.events_after(session, running, 0) if each.type == REQUESTED]
    assert stored == [foreign, own]


def test_the_list_of_workers_names_jobs_of_its_project_with_two_statements(small: Served) -> None:
    world, statements = _world(small), []
    worker_id = world.worker()
    rows.submit(small.database.acting_for(world.owner), created_by=world.owner.key_id, priority=1_000)
    job_id = rows.claim(small.database, rows.worker(id=worker_id)).job_id

    @event.listens_for(small.database.engine, "before_cursor_execute")
    def note(_c: Any, _k: Any, statement: str, *_rest: Any) -> None:
        statements.append(statement)

    for client, expected in ((world.owner.client, job_id), (Member.of(small, "ben").client, None)):
        client.get("/v1/workers")
        del statements[:]
        (listed,) = client.get("/v1/workers").json()["items"]
        assert (listed["job_id"], listed["state"]) == (expected, "busy")
        about_workers = [each for each in statements if each.startswith("SELECT") and "FROM keys" not in each]
        assert len(about_workers) == 2, about_workers  # the workers with their jobs, and the jobs without devices
        for page in ("/", "/workers"):
            assert (job_id in client.get(page).text) is (expected is not None), page


def test_the_list_of_jobs_has_a_filter_and_the_names_of_projects(small: Served) -> None:
    for name in ("alpha", "beta"):
        small.database.write(lambda session, name=name: projects.create(session, name))  # type: ignore[misc]
    anna, ben = (Member.of(small, who, project=project) for who, project in (("anna", "alpha"), ("ben", "beta")))
    ids = [member.client.post("/v1/jobs", json=JOB).json()["id"] for member in (anna, ben)]
    everywhere = Member.of(small, "prometheus", "read", project="*").client

    items = everywhere.get("/v1/jobs?project=alpha").json()["items"]

    assert [(each["id"], each["owner"], each["project"]) for each in items] == [(ids[0], "anna", "alpha")]
    table = everywhere.get("/v1/jobs.csv?project=beta").text
    assert ids[1] in table
    assert ids[0] not in table
    for address in ("/v1/jobs", "/v1/jobs.csv"):
        refused = assert_problem(anna.client.get(f"{address}?project=beta"), 422)
        assert refused["errors"][0]["detail"].startswith("no project has the name or id 'beta'"), "as if it were absent"
        for name in ("status", "kind"):
            refused = assert_problem(everywhere.get(f"{address}?{name}=halted"), 422)
            assert (refused["errors"][0]["pointer"], "'halted'" in refused["errors"][0]["detail"]) == (name, True)
