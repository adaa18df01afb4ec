"""Which artifacts are kept: small files that a run makes to be looked at, under names that are no user's text."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

MEDIA_TYPES = {".png": "image/png", ".json": "application/json"}
NAME = r"^[a-z0-9][a-z0-9_-]{0,57}\.(png|json)$"
MAX_BYTES = 16 << 20


def refusal(record: dict[str, Any]) -> str | None:
    """Why an artifact that a run has reported is not kept; None when it is."""
    name, media_type, size = record["name"], record["media_type"], record["size"]
    if not re.fullmatch(NAME, name):
        return f"expected a name of lower-case letters, digits, - and _ that ends in {' or '.join(MEDIA_TYPES)}"
    if media_type != (expected := MEDIA_TYPES[PurePath(name).suffix]):
        return f"media_type is {media_type!r}, expected {expected}"
    if size > MAX_BYTES:
        return f"it has {size} bytes, expected at most {MAX_BYTES}"
    return None
