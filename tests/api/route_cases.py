"""A request that succeeds for each route that changes something; its object is made anew, and belongs to a member.

A new route without a case fails `tests/api/http/test_access.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import update

from docs.tables import needs
from jobs import keys, workers
from jobs.database import Database, new_id
from jobs.models import Dataset, WebhookDelivery
from tests.api.served import SPEC, Served, native_checkpoint
from tests.api.test_forms import forms_of
from tests.jobs import rows, sweeping
from tests.jobs.rows import Run
from tests.weight_files import weight_file
from wcl_core.text import Secret

JOB = {"kind": "pretrain", "spec": SPEC}
SWEEP: dict[str, Any] = {
    "name": "by temperature",
    "spec": SPEC | {"epochs": 18},
    "search": "grid",
    "parameters": {sweeping.TEMPERATURE: [0.1, 0.2]},
    "metric": {"protocol": "knn"},
}
HOOK = {"name": "night", "url": "https://hooks.example/hook", "events": ["job.failed"]}
_NUMBERS = count(1)
SECURITY = Path(__file__).parents[2] / "SECURITY.md"


def roles_of(app: FastAPI) -> dict[str, frozenset[str]]:
    """Return the roles that may make each request, by SECURITY.md."""
    header, _, *rows = re.findall(r"^\| .* \|$|^\|---.*$", SECURITY.read_text().split("## Every request")[1], re.M)
    names = [cell.strip() for cell in header.strip("|").split("|")]
    table: dict[str, frozenset[str]] = {}
    for row in rows[: rows.index("| path | GET | POST | PUT | PATCH | DELETE |")]:
        need, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        assert set(cells) <= {"yes", "no"}
        table[need] = frozenset(name for name, cell in zip(names[1:], cells, strict=True) if cell == "yes")
    return {request: table[need] for request, need in needs(app).items()}


@dataclass(frozen=True)
class Request:
    """A request, but for the client that sends it."""

    method: str
    address: str
    arguments: dict[str, Any]

    def send(self, client: httpx.Client) -> httpx.Response:
        return client.request(self.method, self.address, **self.arguments)


@dataclass(frozen=True)
class Member:
    """A client with a key of its own."""

    client: httpx.Client
    key_id: str
    project_id: str | None = None

    @classmethod
    def of(cls, served: Served, name: str, *scopes: str, project: str | None = None) -> Member:
        """Return the client of a new key, in the default project unless another one is named."""
        create = partial(keys.create, name=name, scopes=scopes or ("read", "submit"), project=project)
        row, secret = served.database.write(create)
        return cls(served.bare({"Authorization": f"Bearer {secret}"}), row.id, row.project_id)


@dataclass(frozen=True)
class World:
    """A server, the member that owns the objects, and an administrator."""

    served: Served
    owner: Member
    admin: httpx.Client

    @property
    def database(self) -> Database:
        return self.served.database

    def job(self, *verbs: str) -> str:
        """Return a waiting job of the owner, after some verbs."""
        job_id = str(_created(self.owner.client.post("/v1/jobs", json=JOB))["id"])
        for verb in verbs:
            _created(self.owner.client.post(f"/v1/jobs/{job_id}/{verb}"))
        return job_id

    def ended(self, outcome: str = "succeeded", *verbs: str) -> str:
        """Return a job of the owner that has ended with a checkpoint."""
        facts = {"created_by": self.owner.key_id, "priority": next(_NUMBERS)}
        rows.submit(self.database.acting_for(self.owner), **facts)  # in the owner's project
        run = Run(self.database, rows.claim(self.database))
        run.deliver(rows.started(), rows.metrics(1, loss=1.0))
        self.served.checkpoint(native_checkpoint(), run)
        run.end(outcome, reason="internal_error" if outcome == "failed" else None)
        for verb in verbs:
            _created(self.owner.client.post(f"/v1/jobs/{run.job_id}/{verb}"))
        return run.job_id

    def cleanable(self) -> str:
        """Return a job of the owner that has ended with two checkpoints, of which one can be removed."""
        rows.submit(self.database.acting_for(self.owner), created_by=self.owner.key_id, priority=next(_NUMBERS))
        run = Run(self.database, rows.claim(self.database))
        run.deliver(rows.started())
        for step in (1, 2):
            self.served.checkpoint(native_checkpoint(), run, step)
        run.end("succeeded")
        return run.job_id

    def deleted(self) -> str:
        job_id = self.ended()
        _created(self.owner.client.delete(f"/v1/jobs/{job_id}"))
        return job_id

    def evaluated(self) -> str:
        """Return a job of the owner whose checkpoint an evaluation measures."""
        job_id = self.ended()
        checkpoint_id = self.checkpoint_of(job_id)
        _created(self.owner.client.post(f"/v1/checkpoints/{checkpoint_id}/evaluate", json={"protocols": ["linear"]}))
        return job_id

    def checkpoint_of(self, job_id: str) -> str:
        return str(self.owner.client.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"][0]["id"])

    def checkpoint(self) -> str:
        return self.checkpoint_of(self.ended())

    def sweep(self) -> str:
        return str(_created(self.owner.client.post("/v1/sweeps", json=SWEEP))["id"])

    def share(self) -> str:
        """Return the id of a link to a job of the owner."""
        return str(_created(self.owner.client.post("/v1/shares", json={"jobs": [self.job()]}))["id"])

    def view(self) -> str:
        """Return the id of a view that the owner shares."""
        body = {"name": f"view-{next(_NUMBERS)}", "query": "status=running", "shared": True}
        return str(_created(self.owner.client.post("/v1/views", json=body))["id"])

    def webhook(self) -> str:
        return str(_created(self.owner.client.post("/v1/webhooks", json=HOOK))["id"])

    def delivery(self) -> tuple[str, str]:
        """Return the ids of a webhook and of a message that has ended."""
        webhook_id = self.webhook()
        delivery_id = str(_created(self.owner.client.post(f"/v1/webhooks/{webhook_id}/test"))["id"])
        ended = update(WebhookDelivery).values(state="delivered")
        self.database.write(lambda session: session.execute(ended))
        return webhook_id, delivery_id

    def key(self) -> str:
        body = {"name": "other", "scopes": ["read"]}
        return str(_created(self.admin.post("/v1/keys", json=body))["id"])

    def project(self, start: str = "") -> str:
        """Return the address of a new project."""
        body = {"name": f"p{next(_NUMBERS)}"}
        return f"{start}/projects/{_created(self.admin.post('/v1/projects', json=body))['id']}"

    def worker(self) -> str:
        facts = rows.worker(id=new_id(), name=f"worker-{next(_NUMBERS)}")
        self.database.write(lambda session: workers.register(session, facts, 1, []))
        return facts.id

    def dataset(self) -> str:
        """Return the name of a dataset that the administrator has added."""
        name = f"added-{next(_NUMBERS)}"
        _created(self.admin.post("/v1/datasets", json={"name": name, "path": "/data/images"}))
        return name

    def folder(self) -> str:
        """Return the name of a dataset that is a folder."""
        name = f"folder-{next(_NUMBERS)}"
        rows.add_dataset(self.database, name, f"{next(_NUMBERS):064}")
        kind = update(Dataset).where(Dataset.name == name).values(kind="folder")
        self.database.write(lambda session: session.execute(kind))
        return name

    def weights(self) -> str:
        """Return the digest of weights that the owner has imported."""
        request = _import()
        _created(request.send(self.owner.client))
        return request.address.rpartition("/")[2]


def _created(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code < 400, response.text
    body: dict[str, Any] = response.json()
    return body


def _import() -> Request:
    number = next(_NUMBERS)
    content, digest = weight_file(number)
    headers = {"Content-Type": "application/octet-stream"}
    arguments = {"params": {"name": f"weights-{number}"}, "content": content, "headers": headers}
    return Request("PUT", f"/v1/weights/{digest}", arguments)


def _form(address: str, **fields: Any) -> Request:
    """Return the request of a form of a page, with its one-time key."""
    return Request("POST", address, {"data": {"key": f"{next(_NUMBERS):032}"} | fields})


Case = Callable[[World], Request]


def _cordon(start: str, verb: str, world: World) -> Request:
    worker_id = world.worker()
    if verb == "uncordon":
        world.database.write(lambda session: workers.cordon(session, worker_id, True))
    address = f"{start}/workers/{worker_id}/{verb}"
    return Request("POST", address, {}) if start else _form(address)


def _of_many(verb: str, before: tuple[str, ...], world: World) -> Request:
    return Request("POST", f"/v1/jobs/{verb}", {"json": {"jobs": [world.job(*before)]}})


def _cases() -> Iterator[tuple[str, Case]]:
    for verb, job in _VERBS.items():
        yield f"POST /v1/jobs/{{job_id}}/{verb}", _verb(f"/v1/jobs/{{}}/{verb}", job)
    yield "POST /v1/jobs", lambda _: Request("POST", "/v1/jobs", {"json": JOB})
    yield "POST /v1/jobs:batch", lambda _: Request("POST", "/v1/jobs:batch", {"json": {"jobs": [JOB]}})
    yield "PATCH /v1/jobs/{job_id}", lambda world: Request("PATCH", f"/v1/jobs/{world.job()}", {"json": {"name": "x"}})
    yield (
        "POST /v1/jobs/{job_id}/continue",
        lambda world: Request("POST", f"/v1/jobs/{world.ended()}/continue", {"json": {"epochs": 1}}),
    )
    yield "DELETE /v1/jobs/{job_id}", lambda world: Request("DELETE", f"/v1/jobs/{world.ended()}", {})
    yield (
        "POST /v1/jobs/delete",
        lambda world: Request("POST", "/v1/jobs/delete", {"json": {"jobs": [world.ended()]}}),
    )
    yield (
        "POST /v1/deletions/purge",
        lambda world: Request("POST", "/v1/deletions/purge", {"json": {"jobs": [world.deleted()]}}),
    )
    yield (
        "POST /v1/storage/clean",
        lambda world: Request("POST", "/v1/storage/clean", {"json": {"jobs": [world.cleanable()]}}),
    )
    for verb, before in (("cancel", ()), ("pause", ()), ("resume", ("pause",))):
        yield f"POST /v1/jobs/{verb}", partial(_of_many, verb, before)
    point = "/v1/checkpoints/{checkpoint_id}"
    yield (
        f"PATCH {point}",
        lambda world: Request("PATCH", f"/v1/checkpoints/{world.checkpoint()}", {"json": {"pinned": True}}),
    )
    yield f"DELETE {point}", lambda world: Request("DELETE", f"/v1/checkpoints/{world.checkpoint()}", {})
    yield (
        f"POST {point}/evaluate",
        lambda world: Request("POST", f"/v1/checkpoints/{world.checkpoint()}/evaluate", {"json": {}}),
    )
    yield f"POST {point}/verify", lambda world: Request("POST", f"/v1/checkpoints/{world.checkpoint()}/verify", {})
    yield "PUT /v1/weights/{sha256}", lambda _: _import()
    yield "POST /v1/weights/{sha256}/verify", lambda world: Request("POST", f"/v1/weights/{world.weights()}/verify", {})
    yield "DELETE /v1/weights/{sha256}", lambda world: Request("DELETE", f"/v1/weights/{world.weights()}", {})
    yield "POST /v1/sweeps", lambda _: Request("POST", "/v1/sweeps", {"json": SWEEP})
    yield (
        "POST /v1/sweeps/{sweep_id}/cancel",
        lambda world: Request("POST", f"/v1/sweeps/{world.sweep()}/cancel", {}),
    )
    yield "POST /v1/webhooks", lambda _: Request("POST", "/v1/webhooks", {"json": HOOK})
    hook = "/v1/webhooks/{webhook_id}"
    yield f"PATCH {hook}", lambda world: Request("PATCH", f"/v1/webhooks/{world.webhook()}", {"json": {"name": "x"}})
    yield f"DELETE {hook}", lambda world: Request("DELETE", f"/v1/webhooks/{world.webhook()}", {})
    yield f"POST {hook}/test", lambda world: Request("POST", f"/v1/webhooks/{world.webhook()}/test", {})
    yield (
        f"POST {hook}/deliveries/{{delivery_id}}/redeliver",
        lambda world: Request("POST", "/v1/webhooks/{}/deliveries/{}/redeliver".format(*world.delivery()), {}),
    )
    yield "POST /v1/datasets", lambda _: Request("POST", "/v1/datasets", {"json": {"name": "more", "path": "/more"}})
    named = "/v1/datasets/{name}"
    yield (
        f"PATCH {named}",
        lambda world: Request("PATCH", f"/v1/datasets/{world.dataset()}", {"json": {"name": "renamed"}}),
    )
    yield f"DELETE {named}", lambda world: Request("DELETE", f"/v1/datasets/{world.dataset()}", {})
    yield f"POST {named}/read", lambda world: Request("POST", f"/v1/datasets/{world.folder()}/read", {})
    for verb in ("cordon", "uncordon"):
        yield f"POST /v1/workers/{{worker_id}}/{verb}", partial(_cordon, "/v1", verb)
    yield (
        "POST /v1/workers/{worker_id}/drain",
        lambda world: Request("POST", f"/v1/workers/{world.worker()}/drain", {}),
    )
    yield "POST /v1/keys", lambda _: Request("POST", "/v1/keys", {"json": {"name": "other", "scopes": ["read"]}})
    limits: dict[str, Any] = {"json": {"max_waiting": 5}}
    yield "PATCH /v1/keys/{key_id}", lambda world: Request("PATCH", f"/v1/keys/{world.key()}", limits)
    yield "DELETE /v1/keys/{key_id}", lambda world: Request("DELETE", f"/v1/keys/{world.key()}", {})
    yield "POST /v1/keys/{key_id}/rotate", lambda world: Request("POST", f"/v1/keys/{world.key()}/rotate", {})
    yield "POST /v1/projects", lambda _: Request("POST", "/v1/projects", {"json": {"name": f"p{next(_NUMBERS)}"}})
    yield (
        "PATCH /v1/projects/{project_id}",
        lambda world: Request("PATCH", world.project("/v1"), {"json": {"name": f"q{next(_NUMBERS)}"}}),
    )
    yield (
        "DELETE /v1/projects/{project_id}",
        lambda world: Request("DELETE", world.project("/v1"), {}),
    )
    yield "POST /v1/sign-in-links", lambda _: Request("POST", "/v1/sign-in-links", {})
    yield "POST /v1/shares", lambda world: Request("POST", "/v1/shares", {"json": {"jobs": [world.job()]}})
    yield "DELETE /v1/shares/{share_id}", lambda world: Request("DELETE", f"/v1/shares/{world.share()}", {})
    yield "POST /v1/views", lambda _: Request("POST", "/v1/views", {"json": {"name": "a", "query": "group=method"}})
    yield "DELETE /v1/views/{view_id}", lambda world: Request("DELETE", f"/v1/views/{world.view()}", {})
    yield from _forms()


def _forms() -> Iterator[tuple[str, Case]]:
    yield "POST /projects", lambda _: _form("/projects", name=f"p{next(_NUMBERS)}")
    yield "POST /projects/{project_id}", lambda world: _form(world.project(), name=f"p{next(_NUMBERS)}")
    yield "POST /projects/{project_id}/remove", lambda world: _form(f"{world.project()}/remove")
    yield "POST /keys", lambda _: _form("/keys", name="typed", scopes="read", days="30")
    yield "POST /keys/{key_id}/limits", lambda world: _form(f"/keys/{world.key()}/limits", max_waiting="5")
    yield "POST /keys/{key_id}/rotate", lambda world: _form(f"/keys/{world.key()}/rotate", days="keep")
    yield "POST /keys/{key_id}/revoke", lambda world: _form(f"/keys/{world.key()}/revoke")
    yield "POST /jobs/{job_id}/{verb}", lambda world: _form(f"/jobs/{world.job()}/pause")
    yield "POST /jobs/{job_id}/note", lambda world: _form(f"/jobs/{world.job()}/note", note="a text")
    yield "POST /views", lambda _: _form("/views", name="a", query="group=method")
    yield "POST /views/{view_id}/remove", lambda world: _form(f"/views/{world.view()}/remove")
    yield "POST /webhooks", lambda _: _form("/webhooks", **HOOK)
    yield "POST /webhooks/{webhook_id}/{verb}", lambda world: _form(f"/webhooks/{world.webhook()}/test")
    yield (
        "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver",
        lambda world: _form("/webhooks/{}/deliveries/{}/redeliver".format(*world.delivery())),
    )
    yield "POST /shares", lambda world: _form("/shares", job=[world.job()], days="7")
    yield "POST /shares/{share_id}/revoke", lambda world: _form(f"/shares/{world.share()}/revoke")
    yield "POST /jobs/{verb}", lambda world: _form("/jobs/archive", job=[world.ended()])
    yield "POST /jobs/{job_id}/retry", lambda world: _form(f"/jobs/{world.ended('failed')}/retry")
    yield "POST /jobs/{job_id}/continue", lambda world: _form(f"/jobs/{world.ended()}/continue", epochs="1")
    yield "POST /jobs/{job_id}/reference", lambda world: _form(f"/jobs/{world.job()}/reference")
    yield "POST /jobs/{job_id}/unreference", lambda world: _form(f"/jobs/{world.job()}/unreference")
    yield "POST /jobs/{job_id}/twin", lambda world: _form(f"/jobs/{world.job()}/twin")
    yield "POST /jobs/{job_id}/baselines", lambda world: _form(f"/jobs/{world.evaluated()}/baselines")
    yield "POST /jobs/{job_id}/evaluate", _evaluate_form
    yield (
        "POST /checkpoints/{checkpoint_id}/{pin}",
        lambda world: _form(f"/checkpoints/{world.checkpoint()}/pin"),
    )
    yield "POST /delete", lambda world: _form("/delete", job=[world.ended()])
    yield "POST /deleted/{job_id}/restore", lambda world: _form(f"/deleted/{world.deleted()}/restore")
    yield "POST /datasets", lambda world: _form("/datasets", name="typed", path=str(world.served.settings.data_dir))
    yield "POST /datasets/{name}/remove", lambda world: _form(f"/datasets/{world.dataset()}/remove")
    yield "POST /datasets/{name}/read", lambda world: _form(f"/datasets/{world.folder()}/read")
    for verb in ("cordon", "uncordon"):
        yield f"POST /workers/{{worker_id}}/{verb}", partial(_cordon, "", verb)
    yield "POST /workers/{worker_id}/drain", lambda world: _form(f"/workers/{world.worker()}/drain")
    yield "POST /sweeps/{sweep_id}/cancel", lambda world: _form(f"/sweeps/{world.sweep()}/cancel")
    yield "POST /submit", lambda world: _filled(world, f"/submit?source={world.job()}")
    yield "POST /sweeps/new", lambda world: _filled(world, "/sweeps/new")
    yield "POST /v1/workers/invitations", _invitation
    yield "DELETE /v1/workers/invitations/{invitation_id}", _open_invitation


def _open_invitation(world: World) -> Request:
    admin = Member.of(world.served, f"inviter {next(_NUMBERS)}", *keys.ADMINISTRATOR)
    world.served.database.write(lambda session: keys.new_invitation(session, admin.key_id))
    with world.served.database.read() as session:
        newest = keys.invitations(session)[0].id
    return Request("DELETE", f"/v1/workers/invitations/{newest}", {})


def _evaluate_form(world: World) -> Request:
    job_id = world.ended()
    return _form(f"/jobs/{job_id}/evaluate", checkpoint_id=world.checkpoint_of(job_id), protocols=["linear"])


def _filled(world: World, address: str) -> Request:
    """Return the request of the form of a page, with the fields as the page fills them in."""
    (form,) = (each for each in forms_of(world.owner.client, address) if each.action == address.partition("?")[0])
    return Request("POST", form.action, {"data": form.body(("step", "submit"))})


def _verb(address: str, job: Callable[[World], str]) -> Case:
    return lambda world: Request("POST", address.format(job(world)), {})


# The verbs of a job, each with a job that it is possible for.
_VERBS: dict[str, Callable[[World], str]] = {
    "cancel": World.job,
    "pause": World.job,
    "resume": lambda world: world.job("pause"),
    "archive": World.ended,
    "unarchive": lambda world: world.ended("succeeded", "archive"),
    "retry": lambda world: world.ended("failed"),
    "clone": World.job,
    "baselines": World.evaluated,
    "reference": World.job,
    "unreference": World.job,
    "restore": World.deleted,
}


def _invitation(world: World) -> Request:
    """Return an invitation of a machine, for which the server has PostgreSQL and settings of workers."""
    file = world.served.settings.data_dir / "of-workers"
    file.write_text("WCL_DATABASE_URL=postgresql://wcl_worker:secret@db/wcl\nWCL_DATA_DIR=/shared\n")
    changes = {"worker_settings": file, "database_url": Secret("postgresql://wcl:secret@db/wcl")}
    world.served.app.state.settings = world.served.settings.model_copy(update=changes)
    return Request("POST", "/v1/workers/invitations", {})


CASES = dict(_cases())

# Routes that change nothing that a log could name, and why.
WITHOUT_ENTRY = {
    "POST /v1/checkpoints/{checkpoint_id}/verify": "reads a file, and notes whether it is whole",
    "POST /v1/weights/{sha256}/verify": "reads a file",
}
# Routes that need no key but another secret, or end the session that they are sent with.
OF_SESSIONS = {"POST /sign-in", "POST /sign-out", "POST /v1/workers/join"}
