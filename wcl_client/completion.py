"""What a shell completes in a command line of `wcl`: jobs, presets and datasets of the server, and fields of a spec.

A completion never prints, never waits long, and completes nothing where the server cannot be reached.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wcl_client.address import find_address
from wcl_client.api import WclClient
from wcl_client.output import age

Candidates = list[tuple[str, str]]  # words, each with a few words about it
_SECONDS = 2.0  # that a server may take
_NEWEST = 50


def jobs(incomplete: str) -> Candidates:
    """Return the newest jobs: by name, or by the end of the id where the name is no word or not the only one."""
    return _of_server(_jobs, incomplete)


def presets(incomplete: str) -> Candidates:
    """Return the presets."""
    return _of_server(
        lambda client: [(row["name"], row["description"]) for row in client.presets()["items"]], incomplete
    )


def datasets(incomplete: str) -> Candidates:
    """Return the datasets."""
    return _of_server(lambda client: [(row["name"], row["state"]) for row in client.datasets()], incomplete)


def _of_server(candidates: Callable[[WclClient], Candidates], incomplete: str) -> Candidates:
    try:
        address = find_address()
        with WclClient(address.url, address.key, timeout_seconds=_SECONDS) as client:
            return [each for each in candidates(client) if each[0].startswith(incomplete)]
    except Exception:  # the shell is in the middle of a line, where no message helps
        return []


def _jobs(client: WclClient) -> Candidates:
    rows = client.jobs(limit=_NEWEST)
    names = [row["name"] for row in rows]
    found = [("last", "the newest job")]
    for row in rows:
        about = f"{row['status']}, {age(row['created_at'])} old"
        is_word = bool(row["name"]) and shlex.quote(row["name"]) == row["name"] and ":" not in row["name"]
        if is_word and names.count(row["name"]) == 1:
            found.append((row["name"], about))
        else:
            found.append((row["id"][-12:], f"{row['name'] or row['kind']}, {about}"))
    return found


def fields(incomplete: str) -> Candidates:
    """Return the fields of a training's spec for `--set`, nested ones with dots, each followed by `=`."""

    def of_spec(client: WclClient) -> Candidates:
        schema = client.spec_schema("pretrain")
        return list(_fields(schema, schema["$defs"], ""))

    return _of_server(of_spec, incomplete)


def _fields(schema: Mapping[str, Any], defs: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in schema.get("properties", {}).items():
        inner = _model(field, defs)
        if inner is not None:
            yield from _fields(inner, defs, f"{prefix}{name}.")
        elif prefix or name != "spec_version":
            yield f"{prefix}{name}=", str(field.get("description", "")).partition("\n")[0]


def _model(field: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of a field that is one model, perhaps optional; None for a plain value, list or choice."""
    choices = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    if len(choices) != 1 or "$ref" not in choices[0]:
        return None
    model: Mapping[str, Any] = defs[choices[0]["$ref"].rpartition("/")[2]]
    return model if "properties" in model else None
