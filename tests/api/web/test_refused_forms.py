"""Refused forms: their page is shown again, with the typed values, and each error at its field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from jobs import dataset_sources
from tests.api.served import Served
from tests.api.web.conftest import Visitor
from tests.api.web.served import Site
from tests.jobs import rows


@pytest.mark.parametrize("scripts", [True, False])
def test_a_refused_dataset_keeps_its_form_and_shows_the_error_at_the_field(
    visitor: Visitor, site: Site, scripts: bool
) -> None:
    page = visitor.window("/datasets?add=true", scripts=scripts)
    visitor.forget_failures()  # the browser logs each 422
    page.get_by_label("Name").fill("my photos!")
    page.get_by_label("Path on this machine").fill("/none/at/all")
    page.get_by_label("Folders are classes").uncheck()
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#wrong-path")).to_contain_text("There is nothing at this path")
    expect(page.get_by_role("heading", level=1)).to_have_text("Datasets")
    expect(page.get_by_label("Name")).to_have_value("my photos!")
    expect(page.get_by_label("Path on this machine")).to_have_value("/none/at/all")
    expect(page.get_by_label("Path on this machine")).to_be_focused()
    expect(page.get_by_label("Folders are classes")).not_to_be_checked()
    page.get_by_label("Path on this machine").fill(str(site.settings.data_dir))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#wrong-name")).to_contain_text("such as my-photos")
    expect(page.locator("#wrong-path")).to_have_count(0)


def test_a_name_that_is_in_use_is_an_error_of_the_name(served: Served, tmp_path: Path) -> None:
    served.database.write(lambda session: dataset_sources.add(session, "taken", str(tmp_path), True, None))
    fields = {"name": "taken", "path": str(tmp_path)}
    answer = served.browser().post("/datasets", data=fields, headers={"Origin": served.url})
    assert answer.status_code == 409
    assert 'id="wrong-name"' in answer.text
    assert f'value="{tmp_path}"' in answer.text
    assert "<h1>Datasets</h1>" in answer.text


HOOK: dict[str, Any] = {"name": "night", "url": "https://hooks.example/1", "events": ["job.stalled"]}
HOOK |= {"rule_metric": "loss", "rule_direction": "above", "rule_value": "5"}
CASES: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "a key": ("/keys", {"name": "ada", "days": "365", "max_devices": "99999999"}, "max_devices", ["ada"]),
    "a name of a key": ("/keys", {"name": " ", "max_waiting": "7"}, "name", ["7"]),
    "a project": ("/projects", {"name": "Two Words"}, "name", ["Two Words"]),
    "the address of a webhook": ("/webhooks", HOOK | {"url": "ftp://x"}, "url", ["night", "ftp://x", "loss", "5"]),
    "the events of a webhook": ("/webhooks", {"name": "n1", "url": "https://hooks.example/1"}, "events", ["n1"]),
    "the rule of a webhook": ("/webhooks", HOOK | {"rule_value": "many"}, "rules", ["many", "night"]),
    "the days of a link": ("/shares", {"days": "many"}, "days", ["many"]),
    "a view": ("/views", {"name": " ", "query": "status=running&sort=name"}, "name", ["status=running&amp;sort=name"]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_form_shows_its_error_at_the_field_and_keeps_what_was_typed(served: Served, case: str) -> None:
    address, fields, wrong, kept = CASES[case]
    body = fields | {"key": "a" * 32} | ({"job": rows.submit(served.database)} if address == "/shares" else {})
    answer = served.browser().post(address, data=body, headers={"Origin": served.url})
    assert answer.status_code == 422
    (form,) = (part for part in _forms(answer.text) if f'action="{address}"' in part)
    assert f'id="wrong-{wrong}"' in form
    for value in kept:
        assert f'value="{value}"' in form
    assert answer.text.count('class="message wrong"') == 1
    chosen = re.findall(r'name="events" value="([^"]+)" checked', form)
    assert chosen == fields.get("events", [])


def test_the_forms_of_a_key_and_a_project_show_their_errors(served: Served) -> None:
    browser, own = served.browser(), {"Origin": served.url}
    key_id = served.client().post("/v1/keys", json={"name": "bob", "scopes": ["read"], "days": 90}).json()["id"]
    answer = browser.post(f"/keys/{key_id}/limits", data={"name": "bob", "max_waiting": "99999999"}, headers=own)
    (form,) = (part for part in _forms(answer.text) if f'action="/keys/{key_id}/limits"' in part)
    assert (answer.status_code, 'id="wrong-max_waiting"' in form, 'value="99999999"' in form) == (422, True, True)
    (project,) = re.findall(r'action="/projects/([^"]+)"', answer.text)
    answer = browser.post(f"/projects/{project}", data={"name": "default", "max_bytes": "much"}, headers=own)
    (form,) = (part for part in _forms(answer.text) if f'action="/projects/{project}"' in part)
    assert (answer.status_code, 'id="wrong-max_bytes"' in form, 'value="much"' in form) == (422, True, True)


def test_a_program_gets_a_problem_document_for_a_refused_form(served: Served) -> None:
    browser = served.browser()
    headers = {"Origin": served.url, "Accept": "application/json"}
    answer = browser.post("/datasets", data={"name": "x", "path": "/none"}, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def _forms(text: str) -> list[str]:
    return re.findall(r"<form.*?</form>", text, re.DOTALL)
