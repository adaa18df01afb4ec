"""Signing a browser in by a one-time link, and out again.

`templates/sign_in.html` gets `state`: `done` (signed in, the page moves on to /), `spent` (a used, old or wrong link)
or `absent` (not signed in).  A redirect does not work: after a click on another site the browser follows it without
the new SameSite=Strict cookie.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from api.http.auth import SESSION_COOKIE, AnyKey
from api.http.dependencies import TheDatabase
from api.web import render
from jobs import keys

router = APIRouter(include_in_schema=False)

State = Literal["done", "spent", "absent"]


@router.get("/sign-in")
def sign_in(request: Request, database: TheDatabase, token: str = "") -> Response:
    """Redeem a sign-in link and set the session cookie."""
    if not token:
        return _page(request, "absent", 200)
    request.app.state.failures.check(request)
    secret = database.write(lambda session: keys.redeem(session, token))
    if secret is None:
        request.app.state.failures.note(request)
        return _page(request, "spent", 403)
    response = _page(request, "done", 200)
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=keys.SESSION_DAYS * 86_400,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/sign-out")
def sign_out(request: Request, principal: AnyKey, database: TheDatabase) -> Response:
    """End this browser's session."""
    if secret := request.cookies.get(SESSION_COOKIE):
        database.write(lambda session: keys.end_session(session, secret))
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="strict")
    return response


def _page(request: Request, state: State, status: int) -> Response:
    """Render the page without a referrer, since its address may hold a token."""
    response = render.page(request, "sign_in.html", status, state=state)
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
