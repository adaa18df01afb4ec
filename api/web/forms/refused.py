"""Forms that the server refuses: their page is shown again, with the typed values and an error at each wrong field.

Pages name their forms with `form_page`.  `api.web.render.error_response` shows the page of a refused form, and each
template takes the values and errors of a form from `form_at(ACTION)`.  The forms of jobs and sweeps judge their values
while the user types, and do this by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import Request
from fastapi.responses import Response

from api.http.auth import current_principal
from api.http.proxies import route_path
from jobs.access import Principal
from jobs.database import Database
from jobs.errors import FieldError

ShowPage = Callable[[Request, Principal, Database], Response]
_CONFLICT = 409
_STATUSES = (_CONFLICT, 422, 429)
# Fields that have a place for their error; that of another one, as a hidden field, stands above the form.
_SHOWN = {
    *("name", "path", "url", "format", "events", "rules", "stalled_minutes", "tag", "job_name", "kind", "by", "scopes"),
    *("days", "project", "max_waiting", "max_devices", "max_submissions", "max_gpus", "max_bytes"),
}
_pages: dict[str, tuple[ShowPage, str]] = {}


@dataclass(frozen=True)
class SentForm:
    """A form of a page; without values, it is shown with its defaults.

    Attributes:
        values: the typed values by field; None if the user has not sent this form.
        errors: of one field each, by its name.
        error: of no single field.
    """

    values: Mapping[str, Sequence[str]] | None = None
    errors: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def is_refused(self) -> bool:
        return self.values is not None

    def value(self, name: str, default: Any = "") -> str:
        """Return the typed text of a field."""
        if self.values is None:
            return "" if default is None else str(default)
        return next(iter(self.values.get(name, ())), "")

    def all(self, name: str) -> Sequence[str]:
        """Return the typed texts of the fields of one name, in their order."""
        return () if self.values is None else self.values.get(name, ())

    def has(self, name: str, value: str, *, default: bool = False) -> bool:
        """Return whether an option or a box is chosen."""
        return default if self.values is None else value in self.values.get(name, ())


def form_page(show: ShowPage, *routes: str, conflicting: str = "") -> None:
    """Name the page that has the forms of these routes.

    Args:
        show: returns the page for a user; the route of the form has checked the user's scopes.
        routes: path templates of the requests that the forms send.
        conflicting: the field that a conflict is about, such as a name that is in use.
    """
    _pages.update(dict.fromkeys(routes, (show, conflicting)))


def page_again(request: Request, status: int, detail: str, errors: Sequence[FieldError]) -> Response | None:
    """Return the page of a refused form, with what the user typed; None if the request is not of such a form.

    Args:
        request: the refused one.
        status: of the refusal.
        detail: what is wrong, where no field is named.
        errors: the wrong fields.
    """
    show, conflicting = _pages.get(getattr(request.scope.get("route"), "path", ""), (None, ""))
    sent = getattr(request, "_form", None)  # what the route has read; the body cannot be read again
    principal = current_principal(request)
    if status not in _STATUSES or show is None or sent is None or principal is None:
        return None
    values: dict[str, list[str]] = {}
    for name, value in sent.multi_items():
        if isinstance(value, str):
            values.setdefault(name, []).append(value)
    if status == _CONFLICT and conflicting:
        errors = [FieldError(conflicting, detail)]
    by_name: dict[str, list[str]] = {}
    others = [] if errors else [detail]
    for each in errors:
        name = each.pointer.strip("/").split("/")[0]
        if name in _SHOWN:
            by_name.setdefault(name, []).append(each.detail)
        else:
            others.append(f"{name.replace('_', ' ')}: {each.detail}" if name else each.detail)
    refused = SentForm(values, {name: "; ".join(texts) for name, texts in by_name.items()}, "; ".join(others))
    request.state.refused = (route_path(request.scope), refused)
    database = cast(Database, request.app.state.database).acting_for(principal)
    shown = show(request, principal, database)
    shown.status_code = status
    return shown


def form_at(request: Request, action: str) -> SentForm:
    """Return the form of a page that is sent to a path."""
    path, form = getattr(request.state, "refused", ("", SentForm()))
    return form if path == action else SentForm()
