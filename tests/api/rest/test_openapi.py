"""The OpenAPI document agrees with the routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.http.auth import classification
from api.rest.openapi import document
from tests.api.served import Served, assert_problem
from wcl_core.config import resolve_spec
from wcl_core.presets import presets


@pytest.fixture(scope="module")
def openapi(shared: Served) -> dict[str, Any]:
    answer = shared.client("read").get("/openapi.json")
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def schema(openapi: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": openapi["components"]})


def test_every_reference_resolves_and_every_schema_is_valid(openapi: dict[str, Any]) -> None:
    assert openapi["openapi"].startswith("3.1")
    for reference in set(references(openapi)):
        here: Any = openapi
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]
    for body in openapi["components"]["schemas"].values():
        Draft202012Validator.check_schema(body)


def test_every_rest_route_is_in_it_with_its_errors_and_its_keys(shared: Served, openapi: dict[str, Any]) -> None:
    described = {f"{method.upper()} {path}" for method, path, _ in operations(openapi)}
    routes = {route for route in classification(shared.app) if " /v1/" in route and not route.startswith("HEAD")}

    assert routes <= described
    names = [operation["operationId"] for _, _, operation in operations(openapi)]
    assert len(names) == len(set(names))
    for method, path, operation in operations(openapi):
        assert operation.get("description"), (method, path)
        for status in ("4XX", "5XX"):
            assert "application/problem+json" in operation["responses"][status]["content"]
        assert "422" not in operation["responses"]
        is_open = path in ("/healthz", "/readyz", "/v1/workers/join")  # the last one takes another token
        assert operation["security"] == ([] if is_open else [{"key": []}, {"browser": []}])
        in_path = {part.strip("{}") for part in path.split("/") if part.startswith("{")}
        assert {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"} == in_path


def test_every_body_has_examples_that_its_schema_accepts(openapi: dict[str, Any]) -> None:
    bodies = set()
    for _, _, operation in operations(openapi):
        if "requestBody" in operation:
            bodies |= set(references(operation["requestBody"]))

    assert {name.rsplit("/", 1)[1] for name in bodies} == {
        "ProjectBody",
        "ProjectName",
        "JobBody",
        "NewDataset",
        "NewName",
        "JobChange",
        "Machine",
        "BatchBody",
        "CloneBody",
        "ContinueBody",
        "CheckpointChange",
        "CleanBody",
        "DeleteBody",
        "PurgeBody",
        "BulkBody",
        "EvaluateBody",
        "ShareBody",
        "KeyBody",
        "KeyChangeBody",
        "RotateBody",
        "SweepBody",
        "ViewBody",
        "WebhookBody",
        "WebhookChange",
    }
    for reference in bodies:
        name = reference.rsplit("/", 1)[1]
        examples = openapi["components"]["schemas"][name]["examples"]
        assert examples
        for example in examples:
            schema(openapi, name).validate(example)


def test_the_examples_are_accepted_by_the_server(small: Served, openapi: dict[str, Any]) -> None:
    client = small.client()
    submissions = [
        client.post("/v1/jobs", json=example) for example in openapi["components"]["schemas"]["JobBody"]["examples"]
    ]

    assert [answer.status_code for answer in submissions] == [201, 201], [answer.text for answer in submissions]
    job_id = submissions[0].json()["id"]
    for name, verb, address in (("JobChange", "PATCH", ""), ("CloneBody", "POST", "/clone")):
        for example in openapi["components"]["schemas"][name]["examples"]:
            assert client.request(verb, f"/v1/jobs/{job_id}{address}", json=example).is_success
    for example in openapi["components"]["schemas"]["KeyBody"]["examples"]:
        assert client.post("/v1/keys", json=example).status_code == 201


def test_responses_match_the_document(shared: Served, openapi: dict[str, Any]) -> None:
    client = shared.client()
    job = client.post("/v1/jobs", json={"kind": "pretrain", "spec": {"data": {"name": "digits"}}}).json()
    problem = assert_problem(client.get("/v1/jobs/nothing"), 404)

    schema(openapi, "JobResponse").validate(job)
    schema(openapi, "JobPage").validate(client.get("/v1/jobs").json())
    schema(openapi, "Problem").validate(problem)
    for preset in presets().values():
        schema(openapi, "PretrainSpec").validate(resolve_spec(preset))


def test_the_document_is_built_once(shared: Served) -> None:
    assert document(shared.app) is document(shared.app)


def test_the_document_is_shown_as_a_page(shared: Served) -> None:
    browser = shared.browser("read")

    page = browser.get("/docs")

    assert page.status_code == 200
    for words in ("POST /v1/jobs", "Idempotency-Key", "weak_ramp_fraction", "digits-cpu", "checkpoint_id"):
        assert words in page.text
    assert not re.search(r"""<script(?! (type="module" )?src="/static/)|(src|href)="(https?:)?//""", page.text)
    assert shared.bare().get("/docs").status_code == 401


def test_there_are_no_pages_with_foreign_scripts(shared: Served) -> None:
    client = shared.client()

    for address in ("/redoc", "/docs/oauth2-redirect"):
        assert client.get(address).status_code == 404


def test_the_introduction_for_language_models_leads_to_what_there_is(shared: Served) -> None:
    client = shared.client("read")
    text = client.get("/llms.txt").text

    assert text.startswith("# WCL experiment service\n\n> ")
    links = re.findall(r"\]\((\S+)\)", text)
    assert len(links) == 6
    for link in links:
        assert link.startswith(f"{shared.url}/")
        assert client.get(link).status_code == 200, link
