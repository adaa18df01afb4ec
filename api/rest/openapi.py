"""The OpenAPI document: FastAPI's, with problem documents, the specs of jobs, and the two ways to sign in.

`api.web.docs` renders the same document as a page.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from pydantic.json_schema import models_json_schema

from api.http.auth import Reader, is_public
from api.http.problems import MEDIA_TYPE
from api.http.proxies import rooted
from wcl_core.config import EvaluateSpec, PretrainSpec

router = APIRouter(include_in_schema=False)

_FOR_AGENTS = """\
# WCL experiment service

> {description}

Each request needs a key: `Authorization: Bearer KEY`. The command line reads it from `WCL_KEY`, and the address {url}
from `WCL_URL`.

- A job is a spec, sent to `POST {url}v1/jobs`, such as
  `{{"kind": "pretrain", "preset": "digits-cpu", "spec": {{"seed": 1}}}}`.
- `?dry_run=true` returns the plan and creates nothing. An `Idempotency-Key` makes a repeated request safe.
- Errors are problem documents; `errors` has a JSON pointer for each wrong field.
- A job has ended when `status` is succeeded, failed or cancelled; `status_reason` says why.

## Reference

- [OpenAPI document]({url}openapi.json): every route with its bodies and responses
- [API reference]({url}docs): the same as a page
- [Causes and reasons]({url}troubleshooting): the meaning of each `status_reason`, and what to do
- [Presets]({url}v1/presets): specs to start from
- [Datasets]({url}v1/datasets): what jobs can train on
- [Workers]({url}v1/workers): where jobs run

## Command line

- `wcl --help`: all commands; `--json` prints JSON
- `wcl submit --preset PRESET --set FIELD=VALUE --watch`: train, and wait for the end
- `wcl show JOB`, `wcl compare JOB JOB`, `wcl metrics JOB`: results
"""
_DESCRIPTION = (
    "Self-supervised pretraining as a service: submit a job, follow it, download its checkpoints.  Times are ISO 8601 "
    "in UTC.  Ids are UUIDs that sort by age.  `status`, `status_reason` and `kind` may get new values."
)
_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457; `errors` has a JSON pointer for each invalid field.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
    "examples": [
        {
            "type": "about:blank",
            "title": "Invalid request",
            "status": 422,
            "detail": "/spec/epochs: expected a valid integer",
            "errors": [{"pointer": "/spec/epochs", "detail": "expected a valid integer"}],
        }
    ],
}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@router.get("/openapi.json")
def openapi(request: Request, principal: Reader) -> dict[str, Any]:
    """Return the OpenAPI document."""
    return document(request.app)


def type_of(schema: dict[str, Any]) -> str:
    """Return a schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(type_of(inner) for inner in schema.get("anyOf") or schema["oneOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    limits = [f"{sign} {schema[name]}" for name, sign in _LIMITS.items() if name in schema]
    return ", ".join([str(schema.get("type", "any")), *limits])


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, which the application keeps."""
    if app.openapi_schema is None:
        result = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_DESCRIPTION)
        result["servers"] = [{"url": rooted("/").removesuffix("/") or "/"}]
        _add_components(result, app.state.session_cookie)
        for path, operations in result["paths"].items():
            for operation in operations.values():
                _complete(path, operation)
        app.openapi_schema = result
    return app.openapi_schema


def _add_components(result: dict[str, Any], cookie_name: str) -> None:
    models = [(PretrainSpec, "validation"), (EvaluateSpec, "validation")]
    _, specs = models_json_schema(models, ref_template=_REFERENCE)  # type: ignore[arg-type]
    schemas = result["components"]["schemas"]
    schemas |= specs["$defs"] | {"Problem": _PROBLEM}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    references = [{"$ref": _REFERENCE.format(model=model.__name__)} for model, _ in models]
    partial = {"type": "object", "description": "With a preset: only the fields that differ from it."}
    schemas["JobBody"]["properties"]["spec"]["anyOf"] = [*references, partial]
    cookie = {"type": "apiKey", "in": "cookie", "name": cookie_name, "description": "From a sign-in link."}
    key = {"type": "http", "scheme": "bearer", "description": "A key, `wcl_…`."}
    result["components"]["securitySchemes"] = {"key": key, "browser": cookie}


def _complete(path: str, operation: dict[str, Any]) -> None:
    problem = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    responses = operation["responses"]
    responses.pop("422", None)
    responses["4XX"] = {"description": "The request is invalid, or the current state forbids it.", "content": problem}
    responses["5XX"] = {"description": "The server or its database failed; try again.", "content": problem}
    operation["security"] = [] if is_public(path) else [{"key": []}, {"browser": []}]


@router.get("/llms.txt")
def for_agents(request: Request, reader: Reader) -> PlainTextResponse:
    """Return an introduction for language models, in the form of llmstxt.org."""
    text = _FOR_AGENTS.format(description=_DESCRIPTION, url=request.base_url)
    return PlainTextResponse(text, media_type="text/markdown; charset=utf-8")
