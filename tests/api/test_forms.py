"""Every form of every page, sent twice and by many threads at once, creates its rows only once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

import httpx
from fastapi.routing import iter_route_contexts
from sqlalchemy import func, select

from api.http.auth import is_public
from jobs import workers
from jobs.database import Database
from jobs.datasets import DatasetFacts
from jobs.models import Base
from jobs.status import Status
from tests.api.served import ALL, Served
from tests.jobs import rows
from tests.jobs.rows import Run, at_once, job_in, running

THREADS = 4
CREATING = {"/submit", "/sweeps/new"} | {
    f"/jobs/{{id}}/{each}" for each in ("retry", "continue", "evaluate", "baselines", "twin")
}
# Values for the forms that are incomplete when they are opened.
TYPED = {"/sweeps/new": {"name": "a sweep", "row.0.field": "loss.temperature", "row.0.values": "0.1, 0.2"}}
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass
class Form:
    """A form that posts, with its fields as the page fills them in."""

    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    buttons: list[tuple[str, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return _ID.sub("{id}", self.action)

    def body(self, button: tuple[str, str] | None) -> dict[str, list[str]]:
        typed = TYPED.get(self.action, {})
        body: dict[str, list[str]] = {}
        for name, value in [*self.fields, *([button] if button else [])]:
            body.setdefault(name, []).append(value)
        return body | {name: [value] for name, value in typed.items()}


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._form: Form | None = None
        self._select = ""
        self._options: list[tuple[str | None, bool]] = []  # an option without a value has its text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._form = Form(values["action"]) if values.get("method", "get").lower() == "post" else None
            self.forms += [self._form] if self._form else []
        elif self._form is None:
            return
        elif tag == "select":
            self._select, self._options = values["name"], []
        elif tag == "option":
            self._options.append((values.get("value"), "selected" in values))
        elif tag == "button" and values.get("formmethod", "post") == "post" and "name" in values:
            self._form.buttons.append((values["name"], values["value"]))
        elif tag in ("input", "textarea") and (values.get("type") not in ("checkbox", "radio") or "checked" in values):
            self._form.fields.append((values["name"], values.get("value", "")))

    def handle_data(self, data: str) -> None:
        if self._form and self.lasttag == "textarea" and not self._form.fields[-1][1]:
            self._form.fields[-1] = (self._form.fields[-1][0], data)
        elif self._form and self.lasttag == "option" and self._options[-1][0] is None:
            self._options[-1] = (data, self._options[-1][1])

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "select" and self._form:
            chosen = [value for value, is_selected in self._options if is_selected] or [self._options[0][0]]
            self._form.fields.append((self._select, chosen[0] or ""))


def forms_of(client: httpx.Client, address: str) -> list[Form]:
    """Return the forms of a page that post; none if the response is no page."""
    response = client.get(address)
    assert response.status_code in (200, 404), (address, response.text[:300])
    if not response.headers["content-type"].startswith("text/html") or response.status_code == 404:
        return []
    parser = _Forms()
    parser.feed(response.text)
    return parser.forms


def world(served: Served) -> dict[str, list[str]]:
    """Create jobs in every state, checkpoints, a sweep and a worker; return values for parameters of addresses."""
    database = served.database
    facts = DatasetFacts("digits", "builtin", rows.DIGEST, {"train": 1000, "test": 100}, list("0123456789"), {})
    database.write(lambda session: workers.register(session, rows.WORKER, 1, [facts]))
    jobs = [job_in(database, status) for status in (Status.PAUSED, Status.CANCELLED)]
    for outcome, reason in (("failed", "bad_data"), ("succeeded", None)):
        run = Run(database, running(database))
        run.deliver(rows.started(), rows.checkpoint(1), rows.end(outcome, reason))
        jobs.append(run.job_id)
    jobs += [running(database).job_id, job_in(database, Status.BLOCKED)]
    sweep = {"name": "s", "search": "grid", "parameters": {"seed": [1]}, "metric": {"protocol": "knn"}}
    sweep |= {"preset": "digits-cpu", "parameters": {"loss.temperature": [0.1, 0.2]}}
    response = served.client().post("/v1/sweeps", json=sweep)
    assert response.status_code == 201, response.text
    return {"job_id": jobs, "sweep_id": [response.json()["id"]], "name": ["digits"], "verb": ["cancel"]}


def pages(served: Served, values: dict[str, list[str]]) -> Iterator[str]:
    """Yield the addresses of all pages; raise KeyError for a parameter that `values` does not have."""
    for route in iter_route_contexts(served.app.routes):
        path = getattr(route, "path", "") or ""
        methods = getattr(route, "methods", None) or ()
        if "GET" not in methods or path.startswith("/v1/") or is_public(path) or path.endswith(".svg"):
            continue
        names = re.findall(r"\{(\w+)\}", path)
        assert len(names) < 2
        yield from (path.replace(f"{{{name}}}", value) for name in names for value in values[name])
        if not names:
            yield path
    yield from (f"/submit?source={job_id}" for job_id in values["job_id"])
    yield f"/sweeps/new?source={values['job_id'][0]}"


def things(database: Database) -> dict[str, int]:
    """Return the number of rows of each table whose rows have an id of their own, without the log of what was done."""
    tables = [table for table in Base.metadata.sorted_tables if [c.name for c in table.primary_key] == ["id"]]
    tables = [table for table in tables if table.name != "activities"]
    counts = [select(func.count()).select_from(table).scalar_subquery().label(table.name) for table in tables]
    with database.read() as session:
        return dict(session.execute(select(*counts)).mappings().one())


def test_every_form_that_is_sent_again_creates_nothing_new(served: Served) -> None:
    values = world(served)
    secret = served.key(*ALL)

    def client() -> httpx.Client:
        return served.bare({"Authorization": f"Bearer {secret}", "Accept": "text/html"})

    browser, browsers = client(), [client() for _ in range(THREADS)]
    creating = set()
    for address in pages(served, values):
        forms = forms_of(browser, address)
        for place, form in enumerate(forms):
            for button in form.buttons or [None]:
                before = things(served.database)
                first = browser.post(form.action, data=form.body(button))
                after = things(served.database)
                again = browser.post(form.action, data=form.body(button))

                where = f"{form.kind} on {address}"
                assert things(served.database) == after, f"{where} created something twice"
                if after == before:
                    continue
                creating.add(form.kind)
                assert first.status_code == again.status_code == 303, (where, first.text, again.text)
                assert first.headers["location"] == again.headers["location"], where
                alike = [each for each in forms_of(browser, address) if each.kind == form.kind]
                if not alike:  # the form is there while nothing has been created by it
                    continue
                fresh = alike[[each.kind for each in forms[:place]].count(form.kind)]
                assert fresh.body(button) != form.body(button), f"{where} has no one-time key"
                sent = fresh.body(button)
                answers = at_once(THREADS, lambda number: browsers[number].post(form.action, data=sent))  # noqa: B023
                created = {name: number - before[name] for name, number in after.items()}
                assert things(served.database) == {name: after[name] + created[name] for name in after}, where
                assert len({answer.headers["location"] for answer in answers}) == 1, where

    assert creating == CREATING


def test_a_form_without_its_key_is_refused(small: Served) -> None:
    run = Run(small.database, running(small.database))
    run.deliver(rows.started(), rows.checkpoint(1), rows.end("failed", "bad_data"))
    browser = small.browser()
    origin = {"Origin": small.url}
    before = things(small.database)

    forms = {form.kind: form for form in forms_of(browser, f"/jobs/{run.job_id}")}
    for kind in ("/jobs/{id}/retry", "/jobs/{id}/evaluate"):
        body = forms[kind].body(None)
        for key in ([], ["x" * 65]):
            answer = browser.post(forms[kind].action, data=body | {"key": key}, headers=origin)
            assert answer.status_code == 422
            assert "reload the page" in answer.text

    assert things(small.database) == before
