"""The reference of the REST API, rendered from the OpenAPI document without third-party scripts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from api.http.auth import Reader
from api.rest.openapi import document, type_of
from api.web.render import page

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def docs_page(request: Request, reader: Reader) -> Response:
    """Return the OpenAPI document as a page."""
    openapi = document(request.app)
    schemas = {name: body for name, body in openapi["components"]["schemas"].items() if "properties" in body}
    return page(
        request, "docs.html", document=openapi, parts=_parts(openapi["paths"]), schemas=schemas, type_of=type_of
    )


def _parts(paths: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the routes by the noun that their addresses begin with."""
    parts: dict[str, dict[str, Any]] = {}
    for path, methods in paths.items():
        parts.setdefault(path.removeprefix("/v1").split("/")[1], {})[path] = methods
    return parts
