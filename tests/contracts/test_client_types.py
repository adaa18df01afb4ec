"""The client's types agree with the published schema: the same fields, each with a type that the client expects."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from api.app import create_app
from api.rest.openapi import document
from jobs.database import Database
from jobs.settings import Settings
from wcl_client import responses

RESPONSES = {
    "Job": "JobResponse",
    "Checkpoint": "CheckpointResponse",
    "Artifact": "ArtifactResponse",
    "Weights": "WeightsResponse",
    "Evaluation": "EvaluationResponse",
    "WeakGroups": "GroupsResponse",
    "Group": "GroupResponse",
    "Dataset": "DatasetResponse",
    "Worker": "WorkerResponse",
    "Device": "DeviceResponse",
    "Activity": "ActivityResponse",
    "Audit": "Audit",
    "Key": "KeyResponse",
    "NewKey": "NewKey",
    "WhoAmI": "WhoAmI",
    "KeyList": "Keys",
    "Webhook": "WebhookResponse",
    "NewWebhook": "NewWebhook",
    "Delivery": "DeliveryResponse",
}
REQUESTS = {"JobOptions": "JobBody"}
UNPUBLISHED = {"Progress"}  # OpenAPI publishes the latest progress report as an object without named fields
_ANY = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_PLAIN = {str: "string", int: "integer", bool: "boolean", type(None): "null"}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("client-types")
    database = Database(f"sqlite:///{folder / 'wcl.sqlite3'}")
    components: dict[str, Any] = document(create_app(Settings(data_dir=folder), database))["components"]["schemas"]
    return components


def client_types() -> dict[str, type]:
    return dict(inspect.getmembers(responses, is_typeddict))


def expected(annotation: Any) -> frozenset[str]:
    """Return the JSON types that a value of an annotation may have."""
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        return frozenset().union(*map(expected, get_args(annotation)))
    if annotation is Any:
        return _ANY
    if annotation is float:
        return frozenset({"number", "integer"})
    if origin is Literal:
        return frozenset(_PLAIN[type(value)] for value in get_args(annotation))
    if origin in _PLAIN:
        return frozenset({_PLAIN[origin]})
    if is_typeddict(origin) or issubclass(origin, Mapping):
        return frozenset({"object"})
    assert issubclass(origin, Sequence), annotation
    return frozenset({"array"})


def published(schema: dict[str, Any], schemas: dict[str, Any]) -> frozenset[str]:
    """Return the JSON types that a schema allows."""
    if "$ref" in schema:
        return published(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas)
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return frozenset().union(*(published(each, schemas) for each in options))
    return frozenset({schema["type"]}) if "type" in schema else _ANY


def test_every_type_of_the_client_has_a_schema() -> None:
    assert client_types().keys() == RESPONSES.keys() | REQUESTS.keys() | UNPUBLISHED


@pytest.mark.parametrize("name", RESPONSES)
def test_the_client_expects_every_type_that_a_response_may_have(name: str, schemas: dict[str, Any]) -> None:
    properties = schemas[RESPONSES[name]]["properties"]
    fields = get_type_hints(client_types()[name])

    assert fields.keys() == properties.keys()
    for field, annotation in fields.items():
        assert published(properties[field], schemas) <= expected(annotation), field


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_accepts_every_type_that_the_client_may_send(name: str, schemas: dict[str, Any]) -> None:
    properties = schemas[REQUESTS[name]]["properties"]
    fields = get_type_hints(client_types()[name])

    assert fields.keys() <= properties.keys()
    for field, annotation in fields.items():
        sent = expected(annotation) - {"null"}  # the client leaves fields that are None out of the request
        assert sent <= published(properties[field], schemas), field
