"""Authentication and authorisation: a Bearer key, else the person whom a proxy has signed in, else a session cookie.

The middleware (api.http.middleware) refuses requests without either one, except for the public paths below.  Each route
declares the scope that it needs by a parameter: `Reader`, `Submitter`, `Owner`, `Admin`, `ServiceAdmin` or `AnyKey`;
`classification` finds routes that do not.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import SQLAlchemyError

from api.http.problems import KeyExpired, TooMany, Unauthenticated
from api.http.uploads import takes_upload
from jobs import keys
from jobs.database import Database
from jobs.errors import Forbidden
from jobs.keys import Principal

log = logging.getLogger(__name__)

SESSION_COOKIE = "wcl_session"  # the start of the cookie's name
PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/sign-in", "/v1/workers/join"})  # the latter two check a secret
PUBLIC_FOLDER = "/static/"
SHARED_FOLDER = "/shared/"  # each route checks the secret of a link (api.web.shares)
PAUSE_SECONDS = 60.0  # between two stored uses of a key
_MAX_FAILURES = 20
_WINDOW_SECONDS = 60.0
_MAX_CLIENTS = 1_000
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def is_public(path: str) -> bool:
    """Return whether the path needs no key; of these, only those of shared links give data about jobs."""
    return path in PUBLIC_PATHS or path.startswith((PUBLIC_FOLDER, SHARED_FOLDER))


def session_cookie(storage_id: str | None, place: str | None) -> str:
    """Return the name of an instance's session cookie; browsers share cookies among all ports of a host.

    Args:
        storage_id: the id that the servers of one database share.
        place: of a SQLite database, which tells it from its copies.
    """
    return f"{SESSION_COOKIE}_{hashlib.sha256(f'{storage_id} {place}'.encode()).hexdigest()[:12]}"


def session_token(request: Request) -> str | None:
    """Return the secret in the browser's session cookie."""
    return request.cookies.get(request.app.state.session_cookie)


def current_principal(request: Request) -> Principal | None:
    """Return the key that authenticated the request; None on public paths only."""
    principal: Principal | None = getattr(request.state, "principal", None)
    return principal


def authenticate(request: Request, database: Database) -> Principal:
    """Return the owner of the request's key or session, or the person whom a proxy has signed in.

    Raises:
        Unauthenticated: the request carries no valid key or session.
        Forbidden: the person has no access; or another site sends the request through a signed-in browser.
        TooMany: the client has sent too many wrong keys.
    """
    authorization, person = request.headers.get("authorization"), request.app.state.proxies.person(request.scope)
    if person is not None and (authorization is None or not _is_key(authorization)):  # else it is the proxy's own
        if request.method not in _SAFE_METHODS:
            check_origin(request)
        return keys.of_person(database, person.name, person.scopes)
    if authorization is not None:
        scheme, _, secret = authorization.partition(" ")
        is_bearer = scheme.lower() == "bearer"
        principal = database.read_once(lambda session: keys.find(session, secret.strip())) if is_bearer else None
        if principal is None:
            _check_expiry(database, secret.strip())  # no guess: the client has the key
            request.app.state.failures.note(request)
            raise Unauthenticated("the key is unknown or revoked; expected `Authorization: Bearer KEY`")
        return principal
    if not (token := session_token(request)):
        if (header := request.app.state.settings.proxy_user_header) and header in request.headers:
            raise Unauthenticated(f"{header} counts only from the proxies that WCL_TRUSTED_PROXIES names; send a key")
        raise Unauthenticated("send a key as `Authorization: Bearer KEY`, or sign in with a key or a link")
    principal = database.read_once(lambda session: keys.by_session(session, token))
    if principal is None:
        _check_expiry(database, token)
        raise Unauthenticated("this browser is no longer signed in; sign in again with a key or a new link")
    if request.method not in _SAFE_METHODS:
        check_origin(request)
    return principal


def _check_expiry(database: Database, secret: str) -> None:
    """Raise `KeyExpired` for the secret of an expired key or of its browser session."""
    expiry = database.read_once(lambda session: keys.expiry(session, secret))
    if expiry is not None:
        raise KeyExpired(expiry)


def _is_key(authorization: str) -> bool:
    return authorization.lower().startswith(f"bearer {keys.PREFIX}")


def check_origin(request: Request) -> None:
    """Check that a page of this server sent a browser's request.

    Raises:
        Forbidden: another site sent it.
    """
    if not _is_same_origin(request):
        raise Forbidden(
            "another site sent this request; a browser may change things only from this server's own pages "
            f"(at {str(request.base_url)[:200]}; behind a proxy, WCL_TRUSTED_PROXIES names the proxy)"
        )


def _is_same_origin(request: Request) -> bool:
    """Return whether a page of the public address sent the request.

    A scheme of `http` may be that of an unnamed proxy that terminates TLS, so only `https` is compared.
    """
    origin = request.headers.get("origin", "null")  # pages that hide their address send "null", too
    if origin == "null":
        return request.headers.get("sec-fetch-site") == "same-origin"
    if (match := _ORIGIN.fullmatch(origin.lower())) is None:
        return False
    scheme, host = match.groups()
    if scheme == "http" and request.scope["scheme"] == "https":
        return False
    default_port = _DEFAULT_PORTS[scheme]
    public_host = request.headers.get("host", "").lower()
    return host.removesuffix(default_port) == public_host.removesuffix(default_port)


ANY_SCOPE = "any"


class Scope:
    """A dependency that rejects keys without a scope, and passes the principal to the route.

    Args:
        name: of the scope.
        is_owner: whether the route changes an object that only its owner and an administrator may change; `jobs.access`
            checks that where the object is read.
        is_service: whether the route is about what all projects share; a key of one project may not use it.
    """

    def __init__(self, name: str, is_owner: bool = False, is_service: bool = False) -> None:
        self.name = name
        self.is_owner = is_owner
        self.is_service = is_service

    @property
    def need(self) -> str:
        """The name of what a request needs, for `classification`."""
        return f"{self.name} of all projects" if self.is_service else self.name

    async def __call__(self, request: Request) -> Principal:
        principal = current_principal(request)
        if principal is None:
            raise Unauthenticated("send a key as `Authorization: Bearer KEY`")
        self.check(principal)
        return principal

    def check(self, principal: Principal) -> None:
        """Raise `Forbidden` for a key without the scope."""
        if self.name != ANY_SCOPE and self.name not in principal.scopes:
            raise Forbidden(f"the key {principal.name!r} has no scope {self.name!r}")
        if self.is_service and principal.project_id is not None:
            raise Forbidden(f"the key {principal.name!r} is of one project; this needs {self.name!r} for all projects")


read, submit, admin = Depends(Scope("read")), Depends(Scope("submit")), Depends(Scope("admin"))
AnyKey = Annotated[Principal, Depends(Scope(ANY_SCOPE))]
Reader = Annotated[Principal, read]
Submitter = Annotated[Principal, submit]
Owner = Annotated[Principal, Depends(Scope("submit", is_owner=True))]
Admin = Annotated[Principal, admin]  # of the key's own project, or of all
ServiceAdmin = Annotated[Principal, Depends(Scope("admin", is_service=True))]


def classification(app: FastAPI) -> dict[str, str]:
    """Return the scope of each route by `METHOD path`: `public`, a scope, or `` if the route declares none."""
    scopes = {}
    for route in iter_route_contexts(app.routes):
        path = getattr(route, "path", "") or ""
        for method in sorted(getattr(route, "methods", None) or ["ANY"]):
            public = is_public(path if method != "ANY" else f"{path}/")
            dependant = getattr(route, "dependant", None)
            scopes[f"{method} {path}"] = "public" if public else _scope_of(dependant)
    return scopes


def owners_routes(app: FastAPI) -> set[str]:
    """Return the routes, as `METHOD path`, that only the owner of their object and administrators may use."""
    return {
        f"{method} {getattr(route, 'path', '')}"
        for route in iter_route_contexts(app.routes)
        if any(scope.is_owner for scope in _scopes_of(getattr(route, "dependant", None)))
        for method in getattr(route, "methods", None) or ()
    }


def _scope_of(dependant: Dependant | None) -> str:
    return " ".join(scope.need for scope in _scopes_of(dependant))


def _scopes_of(dependant: Dependant | None) -> list[Scope]:
    dependencies = dependant.dependencies if dependant else ()
    return [inner.call for inner in dependencies if isinstance(inner.call, Scope)]


class Routes:
    """The methods of each path and the scopes that they need, for the decisions before and after a route runs."""

    def __init__(self, app: FastAPI) -> None:
        self._routes = [
            (route.path_regex, route.methods or {"GET", "HEAD"}, _scopes_of(getattr(route, "dependant", None)))
            for route in iter_route_contexts(app.routes)
        ]
        self._uploads = [
            (route.path_regex, route.methods or set())
            for route in iter_route_contexts(app.routes)
            if takes_upload(getattr(route, "dependant", None))
        ]

    def methods(self, path: str) -> set[str]:
        """Return the methods that a path has; none for an unknown path."""
        return {method for regex, methods, _ in self._routes if regex.match(path) for method in methods}

    def check_scope(self, method: str, path: str, principal: Principal) -> None:
        """Raise `Forbidden` if the route needs a scope that the key lacks, before the request's body is read."""
        for regex, methods, scopes in self._routes:
            if method in methods and regex.match(path):
                for scope in scopes:
                    scope.check(principal)
                return

    def takes_upload(self, method: str, path: str) -> bool:
        """Return whether the route reads its body itself (api.http.uploads)."""
        return any(method in methods and regex.match(path) for regex, methods in self._uploads)


# --- wrong keys ------------------------------------------------------------------------------------------------------


class Failures:
    """A count of wrong keys, links and invitations by client address; after 20 within a minute the client gets 429.

    A valid key always passes, so no client can lock out another one.  A secret of 256 random bits needs no stronger
    limit.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MAX_FAILURES))

    def note(self, request: Request) -> None:
        """Count one more failure of this client.

        Raises:
            TooMany: the client has failed too often.
        """
        self.check(request)
        if len(self._times) >= _MAX_CLIENTS:
            self._times.clear()
        self._times[_address(request)].append(self._clock())

    def check(self, request: Request) -> None:
        """Reject a client that has failed too often, before its key or link is looked up.

        Raises:
            TooMany: the client has failed too often.
        """
        times: Sequence[float] = self._times.get(_address(request), ())
        if len(times) == _MAX_FAILURES and self._clock() - times[0] < _WINDOW_SECONDS:
            raise TooMany("too many wrong keys, links or tokens from this address; wait a minute")


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


# --- last use of keys ------------------------------------------------------------------------------------------------


class KeyUses:
    """The times of each key's last use, stored after the response and at most once a minute for each key.

    Args:
        database: where the times are stored.
        clock: monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._stored_at: dict[str, float] = {}

    def note(self, key_id: str) -> None:
        """Store the time of this use of the key; an outage of the database is only logged."""
        if not self._claim(key_id):
            return
        try:
            self._database.write(lambda session: keys.note_use(session, key_id))
        except SQLAlchemyError as error:
            log.debug("the use of key %s was not stored: %s", key_id, error)

    def is_due(self, key_id: str) -> bool:
        """Return whether the last stored use of the key is a minute old."""
        stored_at = self._stored_at.get(key_id)
        return stored_at is None or self._clock() - stored_at >= PAUSE_SECONDS

    def _claim(self, key_id: str) -> bool:
        with self._lock:
            if not self.is_due(key_id):
                return False
            self._stored_at[key_id] = self._clock()
            return True
