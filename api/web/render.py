"""Render templates as responses, and errors as pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from api.http import problems
from api.http.auth import current_principal
from api.http.idempotency import one_time_key
from api.http.problems import Unauthenticated
from api.web import evaluations, format
from jobs.errors import NotFound

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
    auto_reload=False,
)
_TEMPLATES.filters.update(format.FILTERS | evaluations.FILTERS)
_TEMPLATES.globals["one_time_key"] = one_time_key
_TITLES = {
    400: "This address cannot be read",
    403: "This is not allowed",
    404: "There is nothing here",
    405: "This address takes no such request",
    409: "That is not possible now",
    500: "Something went wrong here",
    503: "The database does not answer",
}
_LISTS = ("checkpoints", "datasets", "sweeps", "workers")


@dataclass(frozen=True)
class NavigationEntry:
    """An entry of the main navigation; `parts` is the start of the addresses of pages that belong to it."""

    address: str
    title: str
    parts: str

    def is_current(self, path: str) -> bool:
        """Return whether the page of a path is this entry's or belongs to it."""
        return path == self.address or path.startswith(self.parts)


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template; everything in `context` is escaped where it is shown."""
    common = {
        "viewer": current_principal(request),
        "navigation": request.app.state.navigation,
        "here": request.url.path,
        "origin": str(request.base_url).rstrip("/"),
        "now": "",
    }
    return HTMLResponse(_TEMPLATES.get_template(template).render(common | context), status)


def picture(template: str, **context: Any) -> Response:
    """Render a template that draws a picture."""
    return Response(_TEMPLATES.get_template(template).render(context), media_type="image/svg+xml")


def answer(request: Request, error: Exception) -> Response:
    """The response to any exception: a page where a browser navigates, a problem document elsewhere."""
    problem = problems.answer(error)
    if "text/html" not in request.headers.get("accept", ""):
        return problem
    headers = {name: value for name in ("retry-after",) if (value := problem.headers.get(name))}
    if isinstance(error, Unauthenticated):
        shown = page(request, "sign_in.html", 401, state="absent")
    else:
        shown = page(request, "error.html", problem.status_code, **_words(problem), back=_back(request, error))
    shown.headers.update(headers)
    return shown


def _back(request: Request, error: Exception) -> tuple[str, str]:
    """(address, name) of what to go on with: the job that a part or an action was asked of, else the list."""
    job_id = request.path_params.get("job_id")
    if job_id and not (isinstance(error, NotFound) and job_id in error.detail):
        return f"/jobs/{quote(job_id, safe='')}", "Back to the job"
    part = request.url.path.split("/")[1]
    return (f"/{part}", f"All {part}") if part in _LISTS else ("/", "All jobs")


def _words(problem: Response) -> dict[str, Any]:
    body = _decoded(problem)
    title = _TITLES.get(problem.status_code, body["title"])
    return {"code": problem.status_code, "title": title, "detail": body["detail"][:1].upper() + body["detail"][1:]}


def _decoded(problem: Response) -> dict[str, Any]:
    import json

    body: dict[str, Any] = json.loads(bytes(problem.body))
    return body
