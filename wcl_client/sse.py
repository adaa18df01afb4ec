"""The text format of server-sent events; no network here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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


def parse(lines: Iterable[str]) -> Iterator[Message | None]:
    """Yield the messages in a stream's lines, and None for each comment (the server's heartbeat)."""
    draft = _Draft()
    for line in lines:
        if not line:
            if draft.data:
                yield draft.message()
            draft = _Draft()
        elif line.startswith(":"):
            yield None
        else:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                draft.data.append(value)
            elif name == "event":
                draft.event = value
            elif name == "id":
                draft.id = value
