"""CSV files: rows as text, and texts that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

from fastapi import Response

MEDIA_TYPE: Final = "text/csv; charset=utf-8"
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run such a text


def described(text: str) -> dict[int | str, dict[str, Any]]:
    """Return the entry of OpenAPI for a response that is a CSV file."""
    return {200: {"content": {"text/csv": {}}, "description": text}}


def inert(text: str | None) -> str | None:
    """Return a text of a user; one that a spreadsheet would take for a formula has an apostrophe before it."""
    return f"'{text}" if text and text.startswith(_FORMULA) else text


def written(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def headers(name: str) -> dict[str, str]:
    """Return the headers of a file with this name."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def file(name: str, rows: Sequence[Sequence[object]]) -> Response:
    """Return a file of few rows as a response."""
    return Response(written(rows), media_type=MEDIA_TYPE, headers=headers(name))
