"""The one door of the web process: every request passes here before any route sees it.

host known? ─► readable path? ─► public, or a principal ─► body within its limit ─► routes
and on the way out: security headers on everything, exceptions as problem+json
"""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import auth, bodies
from api.http.hosts import Hosts
from api.http.problems import Misdirected, Unreadable
from api.web import render
from jobs.database import Database
from jobs.settings import Settings
from wcl_core.failpoints import failpoint

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app = app
        self._settings = settings
        self._database = database
        self._hosts = Hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, _Sender(scope, send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _handle(self, scope: Scope, receive: Receive, send: _Sender) -> None:
        request = Request(scope, receive)
        try:
            self._check(request)
            if not auth.is_public(scope["path"]):  # never request.url, which the Host header has a part in
                principal = await anyio.to_thread.run_sync(auth.authenticate, request, self._database)
                scope.setdefault("state", {})["principal"] = principal
            await self._app(scope, await self._body(request), send)
            await self._note_use(request)
        except ClientDisconnect:
            return
        except Exception as error:
            if send.has_started:
                raise
            await render.answer(request, error)(scope, receive, send)

    async def _note_use(self, request: Request) -> None:
        """After the answer, so that nobody waits for it."""
        principal, uses = auth.current_principal(request), request.app.state.key_uses
        if principal is not None and uses.is_due(principal.key_id):
            await anyio.to_thread.run_sync(uses.note, principal.key_id)

    async def _body(self, request: Request) -> Receive:
        if request.method in ("GET", "HEAD"):
            return request.receive  # nothing reads it
        return await bodies.checked(request, self._settings.max_body_bytes)

    def _check(self, request: Request) -> None:
        if not self._hosts.knows(request.headers.get("host", "")):
            raise Misdirected("the Host header names none of this server's names (WCL_ALLOWED_HOSTS adds some)")
        if "\0" in request.scope["path"] or b"%00" in request.scope["query_string"]:
            raise Unreadable("a NUL character is in the address")


class _Sender:
    """Adds the security headers, and knows whether an answer has begun."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._is_private = not scope["path"].startswith(auth.PUBLIC_FOLDER)
        self._send = send
        self.has_started = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            failpoint("reply")
            self.has_started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store" if self._is_private else "no-cache")
        await self._send(message)
