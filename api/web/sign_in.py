"""Signing a browser in by a one-time link or by a key, and out again.

`templates/sign_in.html` gets `state`: `done` (signed in, the page moves on to /), `spent` (a used, old or wrong link),
`wrong` (an unknown key) or `absent` (not signed in); and `expiry`: when the key expired, else empty.  After a link a
redirect does not work: after a click on another site the browser follows it without the new SameSite=Strict cookie.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from api.http.auth import AnyKey, check_origin, session_token
from api.http.dependencies import TheDatabase
from api.http.proxies import rooted
from api.web import render
from jobs import keys
from jobs.database import Database

router = APIRouter(include_in_schema=False)

State = Literal["done", "spent", "wrong", "absent"]


@router.get("/sign-in")
def sign_in(request: Request, database: TheDatabase, token: str = "") -> Response:
    """Redeem a sign-in link and set the session cookie."""
    if not token:
        return _page(request, "absent", 200)
    secret = _redeem(database, token)
    if secret is None:  # a valid link always passes, so no client can lock out another one
        request.app.state.failures.note(request)
        return _page(request, "spent", 403)
    response = _page(request, "done", 200)
    _set_cookie(request, response, secret, keys.SESSION_DAYS * 86_400)
    return response


@router.post("/sign-in")
def sign_in_with_key(request: Request, database: TheDatabase, key: Annotated[str, Form()] = "") -> Response:
    """Exchange an API key for a session and set the session cookie."""
    check_origin(request)  # another site must not sign a browser in
    secret = _exchange(database, key.strip())
    if secret is None and (expiry := _expiry(database, key.strip())):
        return _page(request, "wrong", 403, expiry)
    if secret is None:  # a valid key always passes, as with a link
        request.app.state.failures.note(request)
        return _page(request, "wrong", 403)
    response = RedirectResponse("/", 303)
    _set_cookie(request, response, secret, keys.SESSION_DAYS * 86_400)
    return response


def _exchange(database: Database, key: str) -> str | None:
    """Exchange a key for a session; a wrong one costs no write."""
    with database.read() as session:
        if keys.find(session, key) is None:
            return None
    return database.write(lambda session: keys.sign_in(session, key))


def _expiry(database: Database, key: str) -> str:
    with database.read() as session:
        return keys.expiry(session, key) or ""


def _redeem(database: Database, token: str) -> str | None:
    """Exchange a link's token for a session; a wrong one costs no write."""
    with database.read() as session:
        if not keys.is_link(session, token):
            return None
    return database.write(lambda session: keys.redeem(session, token))


@router.post("/sign-out")
def sign_out(request: Request, principal: AnyKey, database: TheDatabase) -> Response:
    """End this browser's session."""
    if secret := session_token(request):
        database.write(lambda session: keys.end_session(session, secret))
    response = RedirectResponse("/sign-in", 303)
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: Request, response: Response, secret: str, seconds: int) -> None:
    """Set the session cookie of this instance, or delete it with 0 seconds."""
    response.set_cookie(
        request.app.state.session_cookie,
        secret,
        max_age=seconds,
        path=rooted("/").removesuffix("/") or "/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )


def _page(request: Request, state: State, status: int, expiry: str = "") -> Response:
    """Render the page, without a referrer where its address holds a token that was valid.

    With this policy a browser names no origin, which the form for a key needs.
    """
    response = render.page(request, "sign_in.html", status, state=state, expiry=expiry)
    if state == "done":
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
