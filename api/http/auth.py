"""Who makes a request, and what it may do: a Bearer key, else the browser's session cookie.

The gate (api.http.middleware) lets nobody without either one past, except to the public paths below.  What a route
needs beyond that, it says by a parameter: `Reader`, `Submitter`, `Admin` or `Anybody`; `classification` finds one that
does not.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts

from api.http.problems import Forbidden, Unauthenticated
from jobs import keys
from jobs.database import Database
from jobs.keys import Principal

SESSION_COOKIE = "wcl_session"
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/sign-in"})
PUBLIC_FOLDER = "/static/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_public(path: str) -> bool:
    """Whether everybody may ask for this; nothing behind these paths says anything about jobs."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def current_principal(request: Request) -> Principal | None:
    """Who the gate found; None only on public paths."""
    found: Principal | None = getattr(request.state, "principal", None)
    return found


def authenticate(request: Request, database: Database) -> Principal:
    """The bearer of the request's key or session.

    Raises:
        Unauthenticated, Forbidden: there is none; another site makes the request in the name of a signed-in browser.
        TooMany: there was none too often.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, secret = authorization.partition(" ")
        with database.read() as session:
            principal = keys.find(session, secret.strip()) if scheme.lower() == "bearer" else None
        if principal is None:
            request.app.state.failures.note(request)
            raise Unauthenticated("the key is unknown or revoked; expected `Authorization: Bearer KEY`")
        return principal
    if not (token := request.cookies.get(SESSION_COOKIE)):
        raise Unauthenticated("send a key as `Authorization: Bearer KEY`, or sign in by a link")
    with database.read() as session:
        principal = keys.by_session(session, token)
    if principal is None:
        raise Unauthenticated("this browser is no longer signed in; open a new sign-in link")
    if request.method not in _SAFE_METHODS and not _is_same_origin(request):
        raise Forbidden("another site made this request; a browser may change things only from our own pages")
    return principal


def _is_same_origin(request: Request) -> bool:
    """The host decides, not the scheme: behind a proxy that ends TLS the server sees another one."""
    origin = request.headers.get("origin", "null")  # so says also a page that hides where it is
    if origin == "null":
        return request.headers.get("sec-fetch-site") == "same-origin"
    return urlsplit(origin).netloc == request.headers.get("host")


ANYBODY = "any"


class Scope:
    """A dependency: lets only keys with this scope through, and gives the route its principal."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, request: Request) -> Principal:
        principal = current_principal(request)
        if principal is None:
            raise Unauthenticated("send a key as `Authorization: Bearer KEY`")
        if self.name != ANYBODY and self.name not in principal.scopes:
            raise Forbidden(f"the key {principal.name!r} has no scope {self.name!r}")
        return principal


read, submit, admin = Depends(Scope("read")), Depends(Scope("submit")), Depends(Scope("admin"))
Anybody = Annotated[Principal, Depends(Scope(ANYBODY))]
Reader = Annotated[Principal, read]
Submitter = Annotated[Principal, submit]
Admin = Annotated[Principal, admin]


def classification(app: FastAPI) -> dict[str, str]:
    """What each route asks for, by `METHOD path`: `public`, a scope, or `` when it forgot to say."""
    found = {}
    for route in iter_route_contexts(app.routes):
        path = getattr(route, "path", "") or ""
        for method in sorted(getattr(route, "methods", None) or ["ANY"]):
            public = is_public(path if method != "ANY" else f"{path}/")
            dependant = getattr(route, "dependant", None)
            found[f"{method} {path}"] = "public" if public else _scope_of(dependant)
    return found


def _scope_of(dependant: Dependant | None) -> str:
    if dependant is None:
        return ""
    names = [inner.call.name for inner in dependant.dependencies if isinstance(inner.call, Scope)]
    return " ".join(names)
