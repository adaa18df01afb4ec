"""The middleware that every request passes through before it reaches a route.

public address ─► host ─► readable path ─► authentication, unless the path is public ─► scope ─► body ─► routes
A route of `api.http.uploads` reads its body itself.
On the way back it adds security headers to every response and turns exceptions into problems.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio.to_thread
from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import auth, bodies
from api.http.hosts import Hosts
from api.http.problems import ErrorRenderer, Misdirected, Problem, Unreadable
from api.http.proxies import Proxies, rooted, route_path
from jobs import logs
from jobs.database import Database
from jobs.settings import Settings
from wcl_core.failpoints import failpoint

access = logging.getLogger("access")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Middleware:
    """ASGI middleware around the whole application; `render_error` turns an exception into a response."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database, render_error: ErrorRenderer) -> None:
        self._app = app
        self._settings = settings
        self._database = database
        self._hosts = Hosts(settings)
        self._proxies = Proxies(settings)
        self._render_error = render_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            public, began = self._proxies.public(scope), time.monotonic()
            request_id = logs.request_id_of(Headers(scope=public).get("x-request-id", ""))

            def note(status: int) -> None:
                self._note_response(public, status, time.monotonic() - began)

            with logs.about(request_id=request_id):
                await self._handle(public, receive, _Sender(public, send, request_id, note))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _handle(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        request = Request(scope, receive)
        try:
            self._check(request)
            if not auth.is_public(route_path(scope)):  # never request.url, which the Host header has a part in
                principal = await anyio.to_thread.run_sync(auth.authenticate, request, self._database)
                scope.setdefault("state", {})["principal"] = principal
            await self._app(scope, await self._body(request), send)
            await self._note_use(request)
        except ClientDisconnect:
            return
        except Exception as error:
            if send.has_started:
                raise
            await self._response(request, error)(scope, receive, send)

    def _response(self, request: Request, error: Exception) -> Response:
        try:
            return self._render_error(request, error)
        except Exception as failure:  # such as a text that the page cannot show
            return Problem.of(failure).response()

    def _note_response(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a response at its beginning: a client that has read it finds it counted."""
        scope["app"].state.request_metrics.observe(scope, status, seconds)
        if self._settings.access_log:
            principal, template = scope.get("state", {}).get("principal"), getattr(scope.get("route"), "path", "")
            path = template if "{secret}" in template else scope["path"]  # the address of a link is its secret
            facts = {"method": scope["method"], "path": path, "status": status, "ms": round(seconds * 1000, 1)}
            facts |= {"by": principal.name} if principal is not None else {}
            access.info(" ".join(map(str, facts.values())), extra={"facts": facts})

    async def _note_use(self, request: Request) -> None:
        """Store the use of the key after the response, so that the client does not wait for it."""
        principal, uses = auth.current_principal(request), request.app.state.key_uses
        if principal is not None and uses.is_due(principal.key_id):
            await anyio.to_thread.run_sync(uses.note, principal.key_id)

    async def _body(self, request: Request) -> Receive:
        principal, routes, path = auth.current_principal(request), request.app.state.routes, route_path(request.scope)
        if request.method in ("GET", "HEAD") or request.method not in routes.methods(path):
            return request.receive  # nothing reads it
        if principal is None:  # a public path
            return await bodies.checked(request, bodies.MAX_PUBLIC_BYTES)
        routes.check_scope(request.method, path, principal)
        if routes.takes_upload(request.method, path):
            return request.receive
        return await bodies.checked(request, self._settings.max_body_bytes)

    def _check(self, request: Request) -> None:
        if is_ambiguous(request.scope):
            raise Unreadable(
                "the length of the body has two readings; send Content-Length, or Transfer-Encoding with HTTP/1.1"
            )
        if not self._hosts.allows(request.headers.get("host", "")):
            raise Misdirected("the Host header names another server; WCL_ALLOWED_HOSTS adds names of this one")
        if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
            raise Unreadable("the address contains a NUL character; remove it")


def is_ambiguous(scope: Scope) -> bool:
    """Return whether a proxy may take another end of the request's body for the right one than this server does.

    The bytes in between would then be a request that the proxy has not checked.  h11 refuses several lengths and
    unknown codings itself.
    """
    names = {name for name, _ in scope["headers"]}
    return b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0")


class _Sender:
    """A `send` that adds the security headers, prefixes redirects, and records whether the response has started."""

    def __init__(self, scope: Scope, send: Send, request_id: str, note: Callable[[int], None]) -> None:
        self._request_id, self._note = request_id, note
        self._must_close = is_ambiguous(scope)
        self._state = scope.setdefault("state", {})
        self._is_private = not route_path(scope).startswith(auth.PUBLIC_FOLDER)
        self._send = send
        self.has_started = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            failpoint("reply")
            self.has_started = True
            self._note(message["status"])
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            principal = self._state.get("principal")
            if principal is not None and (ends_at := principal.ends_at(int(time.time() * 1000))) is not None:
                headers["X-Key-Expires"] = datetime.fromtimestamp(ends_at / 1000, UTC).isoformat(timespec="seconds")
            if "Location" in headers:
                headers["Location"] = rooted(headers["Location"])
            if self._must_close:
                headers["Connection"] = "close"
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store" if self._is_private else "no-cache")
        await self._send(message)
