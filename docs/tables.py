"""The parts of the documentation that come from the code; this script writes them anew.

    python docs/tables.py

Each part begins with a comment that names its source, and ends with the page.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from fastapi import FastAPI

from api import rest, streams, web
from api.http.auth import ANY_SCOPE, SHARED_FOLDER, classification, owners_routes
from jobs.reasons import EXPLANATIONS
from jobs.settings_help import table

DOCS = Path(__file__).parent


def reasons() -> str:
    """Return a section for each reason of a status."""
    sections = (
        f"### `{name}`\n\n**{why.title}.** {why.meaning}\n\n{why.advice}\n" for name, why in EXPLANATIONS.items()
    )
    return "\n" + "\n".join(sections)


def requests() -> str:
    """Return a table of all paths with what each method needs."""
    routes = [route for router in (*rest.ROUTERS, *streams.ROUTERS, *web.ROUTERS) for route in router.routes]
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
    by_path: dict[str, dict[str, str]] = defaultdict(dict)
    for request, need in needs(FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None)).items():
        method, path = request.split(" ")
        by_path[path][method] = need
    rows = [f"| `{path}` | {' | '.join(by_path[path].get(each, '') for each in methods)} |" for path in sorted(by_path)]
    return "\n" + "\n".join([f"| path | {' | '.join(methods)} |", "|---|---|---|---|---|---|", *rows]) + "\n"


def needs(app: FastAPI) -> dict[str, str]:
    """Return what each request, as `METHOD path`, needs, in the words of SECURITY.md."""
    owners = owners_routes(app)
    words = {ANY_SCOPE: "a key"}
    return {
        request: "owner" if request in owners else "link" if SHARED_FOLDER in request else words.get(scope, scope)
        for request, scope in classification(app).items()
    }


PARTS = {
    "../SECURITY.md": ("<!-- from the routes by docs/tables.py -->\n", requests),
    "troubleshooting.md": ("<!-- from jobs/reasons.py by docs/tables.py -->\n", reasons),
    "operating.md": ("<!-- from jobs/settings_help.py by docs/tables.py -->\n", lambda: "\n" + table()),
}


def page(name: str) -> str:
    """Return a page of the documentation with its part made anew."""
    start, part = PARTS[name]
    before, _, _ = (DOCS / name).read_text().partition(start)
    return before + start + part()


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(page(name))
