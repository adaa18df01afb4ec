"""Mutations of valid input: of bytes, and of JSON values."""

from __future__ import annotations

import copy
import random
from typing import Any

_INTERESTING = (b"\0", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0" * 8, b"\xff" * 8, b"[" * 5_000)
_INTERESTING += (b"{", b"}", b'"', b"\n", b"9" * 5_000, b"NaN", b"1e999", b"-1", b"null", b"\\u0000", b"\\ud800")


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**30), 0.5, 1e308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        1e-320,
        "",
        "x",
        "\0",
        "\ud800",
        "\U0001f600",
        "\x1b[31m",
        "a" * 5_000,
    ),
    *(
        "5",
        "NaN",
        "../x",
        "/",
        ".",
        "..",
        "a/../../b",
        "\\",
        "a\nb",
        [],
        {},
        [[]],
        {"a": {}},
        ["x"] * 1_000,
        [0] * 20_000,
    ),
    *({f"n{number}": number for number in range(2_000)}, _nested(30), _nested(300), {"a" * 300: 1}, {"": None}),
)


def of_bytes(generator: random.Random, content: bytes, most: int = 8) -> bytes:
    """Return bytes with one to `most` changes: bits, ranges removed, repeated, moved or replaced, an end cut off."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, most)):
        place = generator.randrange(len(changed) + 1)
        length = generator.choice((1, 1, 2, 4, 8, 64, 1_000))
        match generator.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << generator.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = generator.choice(_INTERESTING)
            case 3:
                chosen = generator.choice(_INTERESTING)
                changed[place : place + len(chosen)] = chosen
            case 4:
                changed[place:place] = changed[place : place + length]
            case 5:
                changed[place : place + length] = generator.randbytes(min(length, 64))
            case 6 if generator.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def of_json(generator: random.Random, value: Any, most: int = 3) -> Any:
    """Return a copy of a JSON value with one to `most` entries that are replaced, removed, added or repeated."""
    changed = copy.deepcopy(value)
    for _ in range(generator.randint(1, most)):
        changed = _mutated(generator, changed)
    return changed


def _mutated(generator: random.Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or generator.random() < 0.1:
        return copy.deepcopy(generator.choice(ODD))
    place = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
    choice = generator.random()
    if choice < 0.7:
        value[place] = _mutated(generator, value[place])
    elif choice < 0.8:
        del value[place]
    elif isinstance(value, list):
        value.insert(place, copy.deepcopy(value[generator.randrange(len(value))]))
    else:
        value[generator.choice((*value, "type", "extra", ""))] = copy.deepcopy(generator.choice(ODD))
    return value
