"""The text format of server-sent events; no network here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Message:
    """One event of a stream; `data` is its decoded JSON."""

    event: str
    data: Any
    id: str | None = None


@dataclass
class _Draft:
    event: str = "message"
    id: str | None = None
    data: list[str] = field(default_factory=list)

    def message(self) -> Message:
        text = "\n".join(self.data)
        try:
            decoded = json.loads(text)
        except (ValueError, RecursionError):
            decoded = text
        return Message(self.event, decoded, self.id)


class Parser:
    """The state between the lines of a stream."""

    def __init__(self) -> None:
        self._draft = _Draft()

    def feed(self, line: str) -> list[Message | None]:
        """Return the message that a line completes, or None for a comment (the server's heartbeat); else nothing."""
        if not line:
            draft, self._draft = self._draft, _Draft()
            return [draft.message()] if draft.data else []
        if line.startswith(":"):
            return [None]
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._draft.data.append(value)
        elif name == "event":
            self._draft.event = value
        elif name == "id":
            self._draft.id = value
        return []
