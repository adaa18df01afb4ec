"""Render templates as responses, and errors as pages."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from api.http.auth import current_principal
from api.http.idempotency import one_time_key
from api.http.problems import KeyExpired, Problem, Unauthenticated, shown
from api.http.proxies import rooted, route_path
from api.web import evaluations, format
from api.web.forms.labels import LABELS, OPTION_LABELS
from api.web.forms.refused import form_at, page_again
from jobs.errors import FieldError, Invalid, NotFound
from wcl_core.metrics import METRICS
from wcl_core.version import VERSION


def _markdown(text: str) -> Markup:
    from api.web.markdown import markdown  # few pages need its parser

    return markdown(text)


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=format.visible_text,
    undefined=StrictUndefined,
    auto_reload=False,
)
_TEMPLATES.filters.update(format.FILTERS | evaluations.FILTERS | {"markdown": _markdown})
_TEMPLATES.globals |= {
    "one_time_key": one_time_key,
    "metric_table": METRICS,
    "setting_labels": LABELS,
    "option_labels": OPTION_LABELS,
    "version": VERSION,
}
_TITLES = {
    400: "Invalid request",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Not possible in this state",
}
_ADVICE = {
    403: "An administrator can create a key with this scope.",
    500: "Running jobs are not affected. If the error stays, give the number of the error to the administrator.",
    503: "Running jobs continue, and deliver their results later.",
}
_HEADERS = {"Allow", "Retry-After"}  # of problems, on pages too
# Templates and views write addresses without the root path; `page` adds it.  Escaped text holds no quotation mark, so
# no text of a user matches.
_ADDRESS = re.compile(
    r'(?<=\s)((?:href|src|action|formaction|data-facts|data-picture)="|data-request="[A-Z]+ |content="0;url=)/(?!/)'
)
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
    """Render a template.

    Text in `context` is escaped where it is shown, with hidden characters visible.  Addresses get the root path.
    """
    viewer = current_principal(request)
    common = {
        "viewer": viewer,
        "key_ends_at": None if viewer is None else viewer.ends_at(int(time.time() * 1000)),
        "navigation": request.app.state.navigation,
        "here": route_path(request.scope),
        "origin": str(request.base_url).rstrip("/"),
        "now": "",
        "sign_out_url": request.app.state.settings.proxy_sign_out_url,
        "shares_allowed": request.app.state.settings.shared_links,
        "form_at": partial(form_at, request),
    }
    rendered = _TEMPLATES.get_template(template).render(common | context)
    root = rooted("/")
    return HTMLResponse(_ADDRESS.sub(rf"\g<1>{root}", rendered) if root != "/" else rendered, status)


def picture(template: str, **context: Any) -> Response:
    """Render a template that draws a picture."""
    return Response(_TEMPLATES.get_template(template).render(context), media_type="image/svg+xml")


def error_response(request: Request, error: Exception) -> Response:
    """Return the response to an exception: a page where a browser navigates, else a problem document.

    A refused form is shown again on its page.
    """
    problem = Problem.of(error)
    if problem.status == 405:  # the route knows only its own methods, but a path may have several routes
        methods = request.app.state.routes.methods(route_path(request.scope))
        problem = replace(problem, headers={"Allow": ", ".join(sorted(methods))})
    if "text/html" not in request.headers.get("accept", ""):
        return problem.response()
    response: Response
    if isinstance(error, Unauthenticated):
        expiry = shown(problem.detail) if isinstance(error, KeyExpired) else ""
        response = page(request, "sign_in.html", 401, state="absent", expiry=expiry)
    elif (again := page_again(request, problem.status, problem.detail, problem.errors)) is not None:
        response = again
    else:
        title = _TITLES.get(problem.status, problem.title)
        text = "; ".join(map(_for_a_person, error.errors)) if isinstance(error, Invalid) else problem.detail
        detail = shown(text[:1].upper() + text[1:])
        words = {"code": problem.status, "title": title, "detail": detail.removesuffix(".")}
        words |= {"advice": _ADVICE.get(problem.status, ""), "again": _again(request, problem.status)}
        response = page(request, "error.html", problem.status, **words, back=_back(request, error))
    for name in _HEADERS & problem.headers.keys():
        response.headers[name] = problem.headers[name]
    return response


def _for_a_person(error: FieldError) -> str:
    """Return an error with the name of its field; a page has no use for the place in the request."""
    names = [part for part in error.pointer.split("/") if part and not part.isdigit()]
    return f"{names[-1].replace('_', ' ')}: {error.detail}" if names else error.detail


def _again(request: Request, status: int) -> str:
    """Return the address to try again after a failure of the server; empty for other errors, and for a form."""
    if status < 500 or request.method != "GET":
        return ""
    query = request.url.query
    return route_path(request.scope) + (f"?{query}" if query else "")


def _back(request: Request, error: Exception) -> tuple[str, str]:
    """Return (address, text) of the link below an error: to the job that the request was about, else to the list."""
    job_id = request.path_params.get("job_id")
    if job_id and not (isinstance(error, NotFound) and job_id in error.detail):
        return f"/jobs/{quote(job_id, safe='')}", "Back to the job"
    part = route_path(request.scope).split("/")[1]
    return (f"/{part}", f"All {part}") if part in _LISTS else ("/", "All jobs")
