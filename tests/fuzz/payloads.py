"""Written payloads: each field of each body, each parameter, charset and header with values that break parsers.

Case number n is payload number `seed + n` of the list, which starts again at its end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.fuzz.pages import ODD, multipart
from tests.fuzz.service import Service, service
from tests.fuzz.tally import Tally
from wcl_core.config import resolve_spec
from wcl_core.config.overlay import leaves, with_fields
from wcl_core.presets import presets

COUNT = 8_400
SLICE = 300
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 10**300, -(10**300), 0.5, -0.0, 1e-320, 1e308),
    *("", " ", "a", "null", "NaN", "-1", "1e400", "\x00", "\ud800", "\U0010ffff", "x" * 3_000, "../..", "http://["),
    *([], {}, [[]], {"": {}}, [None], [0] * 300, ["a", "a"], {"a": {"b": {"c": 1}}}, [{"min": 1, "max": 0}]),
    *({"min": 0, "max": 1, "log": True}, {"min": 0.5, "max": 1, "integer": True}, {"min": 1e-320, "max": 1e12}),
)
RAW = (
    *(
        b"",
        b"{",
        b"[",
        b"nul",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"Infinity",
        b"1" * 5_000,
        b"[" * 100_000,
        b'"\\ud800"',
    ),
    *(
        b'{"a":1,"a":2}',
        b"[" * 31 + b"]" * 31,
        b"[" * 40 + b"]" * 40,
        b'{"\\u0000":1}',
        b"1e999",
        b"-",
        b"\x00",
        b"[1,]",
    ),
)
CHARSETS = (
    *(
        "utf-8",
        "utf-16",
        "utf-32",
        "utf-7",
        "latin-1",
        "punycode",
        "idna",
        "undefined",
        "unicode_escape",
        "rot13",
        "hex",
    ),
    *("raw_unicode_escape", "mbcs", "oem", "base64", "bz2", "zlib", "uu", "quopri", "cp037", "utf-8-sig", "big5", "x"),
)
CONTENTS = (b"a", b"\xff", b"+2AA-", b"\\ud800", b"\x00", b"a-" + b"9" * 2_000, b"xn--\xff")
HEADERS = (
    *(("Range", "bytes=-"), ("Range", "bytes=9999999999999999999-"), ("Range", "bytes=0-0,1-1"), ("If-Range", '"')),
    *(("Range", "bytes=" + "9" * 5_000 + "-"), ("If-None-Match", "W/" * 500), ("Last-Event-ID", "9.9.9.9")),
    *(("Last-Event-ID", "9" * 5_000), ("Accept", "text/html;q=nan"), ("Accept", "\xff"), ("Content-Type", ";;;=;")),
    *(("Content-Type", "multipart/form-data"), ("Content-Type", "multipart/form-data; boundary="), ("Cookie", "=;;=")),
    *(
        ("Content-Type", "multipart/form-data; boundary=" + "x" * 300),
        ("X-Forwarded-For", "::::"),
        ("Forwarded", "for="),
    ),
    *(("Content-Type", "application/json; charset=utf-7"), ("Idempotency-Key", "\xff"), ("Idempotency-Key", "x" * 300)),
    *(
        ("Authorization", "Bearer"),
        ("Authorization", "Basic eDp5"),
        ("Expect", "200-maybe"),
        ("Content-Encoding", "gzip"),
    ),
)
_FORMS = ("/submit", "/sweeps/new", "/jobs/{job_id}/evaluate", "/jobs/{job_id}/retry", "/jobs/cancel")
_SWEEP: dict[str, Any] = {"name": "s", "search": "random", "trials": 3, "preset": "digits-cpu"}
_SWEEP |= {"metric": {"protocol": "knn"}, "parameters": {"loss.temperature": [0.1, 0.2, 0.3]}}
_BODIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/jobs": (
        {"kind": "pretrain", "preset": "digits-cpu"},
        ("kind", "preset", "spec", "name", "priority", "pool", "gpus", "tags", "after", "seeds", "max_seconds", "x"),
    ),
    "/v1/sweeps": (
        _SWEEP,
        (
            "name",
            "search",
            "trials",
            "spec",
            "preset",
            "metric",
            "metric.settings",
            "metric.data",
            "metric.name",
            "metric.protocol",
            "seeds",
            "parameters",
            "seed",
            "eta",
            "rungs",
            "min_epochs",
            "max_parallel",
            "direction",
            "tags",
        ),
    ),
    "/v1/jobs/{job_id}/clone": ({}, ("spec", "spec.data", "spec.seed", "x")),
    "/v1/checkpoints/{checkpoint_id}/evaluate": (
        {"protocols": ["knn"]},
        ("protocols", "data", "data.held_out_share", "knn_k", "threads", "few_labels", "semi_supervised", "map", "x"),
    ),
    "/v1/keys": ({"name": "k", "scopes": ["read"]}, ("name", "scopes", "x")),
}
_PARAMETERS = {
    "/v1/jobs": ("status", "kind", "tag", "q", "cursor", "limit"),
    "/v1/jobs/{job_id}/metrics": ("keys", "max_points", "from_step", "to_step", "times"),
    "/v1/jobs/{job_id}/logs": ("after", "limit"),
    "/v1/jobs/{job_id}/events": ("after", "limit"),
    "/v1/checkpoints/{checkpoint_id}/download": ("kind",),
    "/v1/sweeps": ("cursor", "limit"),
    "/compare": ("job", "group"),
    "/compare/curve.svg": ("name", "job"),
    "/leaderboard": ("protocol", "dataset"),
    "/jobs/{job_id}/map": ("image", "colour", "layout"),
    "/jobs/{job_id}/weak-labels": ("epoch", "group"),
    "/sweeps/{sweep_id}": ("sort", "x", "axis"),
    "/submit": ("preset", "source", "dataset", "length", "content", "name"),
    "/sign-in": ("token",),
}


class Payload(NamedTuple):
    """One request; `content` are arguments of httpx."""

    kind: str
    method: str
    address: str
    content: dict[str, Any]


def payloads() -> Iterator[Payload]:
    """Yield all payloads, with the parameters of addresses in braces."""
    yield from _fields()
    yield from _charsets()
    for address in _BODIES:
        for body in RAW:
            yield _json(address, body)
    for address, names in _PARAMETERS.items():
        for name in names:
            for text in ODD:
                query = urlencode({name: text[:8_000]}, errors="surrogatepass")
                yield Payload(f"GET {address} {name}", "GET", f"{address}?{query}", {})
    for header, value in HEADERS:
        for method, address in (
            ("GET", "/v1/checkpoints/{checkpoint_id}/download"),
            ("POST", "/v1/jobs"),
            ("POST", "/submit"),
        ):
            content = {"headers": {header: value.encode("latin-1")}} | ({"content": b"{}"} if method == "POST" else {})
            yield Payload(f"{method} {address} {header}", method, address, content)


def _fields() -> Iterator[Payload]:
    """Yield each field with each value: of the spec, and of all bodies."""
    for name, _ in leaves(resolve_spec(presets()["digits-cpu"])):
        for value in VALUES:
            body = {"kind": "pretrain", "preset": "digits-cpu", "spec": with_fields({}, {name: value})}
            yield _json("/v1/jobs?dry_run=true", body, f"/v1/jobs spec.{name}")
    for address, (base, names) in _BODIES.items():
        for name in names:
            for value in VALUES:
                yield _json(address, with_fields(base, {name: value}), f"{address} {name}")


def _json(address: str, body: Any, kind: str = "") -> Payload:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return Payload(f"POST {kind or address}", "POST", address, {"content": content, "headers": headers})


def _charsets() -> Iterator[Payload]:
    for address in _FORMS:
        for charset in CHARSETS:
            for content in CONTENTS:
                body = multipart([("checkpoint_id", "@")]).replace(b"@", content)
                headers = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
                yield Payload(f"POST {address} {charset}", "POST", address, {"content": body, "headers": headers})


def run(count: int, seed: int, tally: Tally) -> None:
    """Send `count` payloads."""
    written = list(payloads())
    random.Random(0).shuffle(written)  # so that a part of the list has payloads of each kind
    with service(tally) as served:
        for each in served.cases(count, seed):
            _send(served, each, written[each % len(written)])


def _send(served: Service, seed: int, payload: Payload) -> None:
    address = payload.address
    for name, values in served.values.items():
        address = address.replace(f"{{{name}}}", values[0])
    served.send(seed, payload.kind, payload.method, address, **payload.content)
