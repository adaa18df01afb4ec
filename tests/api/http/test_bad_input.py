"""Bad input: every response is a clear 4xx as a problem document, never a 5xx, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from api.http import bodies, problems
from api.http.problems import Problem
from jobs import queries
from jobs.database import new_id
from tests.api.served import SPEC, Served, assert_problem

JSON = {"Content-Type": "application/json"}
PIXELS = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def nested(depth: int, opening: str = '{"a":', closing: str = "}") -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


BODIES: list[tuple[str, bytes, int]] = [
    ("nothing", b"", 422),
    ("no JSON", b"{", 400),
    ("text", b'"text"', 422),
    ("list", b"[]", 422),
    ("null", b"null", 422),
    ("number", b"1", 422),
    ("not UTF-8", b'{"kind": "\xff"}', 400),
    ("UTF-16", '{"kind": "pretrain"}'.encode("utf-16"), 400),
    ("byte order mark", b"\xef\xbb\xbf{}", 400),
    ("NaN", b'{"kind": "pretrain", "priority": NaN}', 400),
    ("Infinity", b'{"spec": {"epochs": Infinity}}', 400),
    ("-Infinity", b'{"spec": {"epochs": -Infinity}}', 400),
    ("beyond a double", b'{"spec": {"epochs": 1e400}}', 422),
    ("thousands of digits", b'{"priority": ' + b"1" * 5000 + b"}", 400),
    ("half a surrogate pair", b'{"kind": "pretrain", "name": "\\ud800"}', 422),
    ("half a pair as a name", b'{"\\udfff": 1}', 422),
    ("NUL", b'{"kind": "pretrain", "name": "a\\u0000b"}', 422),
    ("NUL in the spec", b'{"kind": "pretrain", "spec": {"data": {"name": "a\\u0000"}}}', 422),
    ("raw control character", b'{"name": "a\x01"}', 400),
    ("a field twice", b'{"kind": "pretrain", "kind": "evaluate"}', 400),
    ("too deep", nested(40), 413),
    ("far too deep", nested(20_000), 413),
    ("deep lists", nested(50_000, "[", "]"), 413),
    ("too many values", b'{"tags": [' + b"1," * 20_000 + b"1]}", 413),
    ("too large", b'{"name": "' + b"x" * 1_100_000 + b'"}', 413),
]


@pytest.mark.parametrize(("body", "status"), [entry[1:] for entry in BODIES], ids=[entry[0] for entry in BODIES])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_unreadable_body_is_a_clear_refusal(shared: Served, body: bytes, status: int, is_chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 65_536] for start in range(0, len(body), 65_536))

    answer = shared.client().post("/v1/jobs", content=chunks() if is_chunked else body, headers=JSON)

    assert_problem(answer, status)
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_another_content_type_is_415(shared: Served, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}

    assert_problem(shared.client().post("/v1/jobs", content=json.dumps({"kind": "pretrain"}), headers=headers), 415)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30])
def test_a_wrong_content_length_gets_a_4xx(shared: Served, length: str) -> None:
    status = _raw_status(shared, f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n")

    assert 400 <= status < 500


def test_the_announced_size_is_refused_before_a_byte_of_it_came(small: Served) -> None:
    status = _raw_status(small, "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000000\r\n")

    assert status == 413


def _raw_status(served: Served, head: str) -> int:
    host, port = served.url.removeprefix("http://").split(":")
    request = f"{head}Content-Type: application/json\r\nAuthorization: Bearer {served.key()}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(4096).split()[1])


def test_a_body_that_never_ends_is_given_up(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_READ_SECONDS", 0.2)

    assert _raw_status(small, "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n") == 408


def test_a_client_that_leaves_in_the_middle_is_no_error(small: Served, caplog: pytest.LogCaptureFixture) -> None:
    host, port = small.url.removeprefix("http://").split(":")
    lines = ("POST /v1/jobs HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 10", f"Authorization: Bearer {small.key()}")
    head = "\r\n".join((*lines, "", ""))
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"{")

    assert small.client().get("/v1/jobs").status_code == 200
    assert "error" not in caplog.text.lower()


def test_bodies_of_the_highest_allowed_depth_pass(shared: Served) -> None:
    body = {"kind": "pretrain", "spec": json.loads(nested(bodies.MAX_DEPTH - 2))}

    assert_problem(shared.client().post("/v1/jobs", json=body), 422)


# --- fuzz ------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
FIELDS = ("kind", "spec", "preset", "name", "priority", "pool", "gpus", "tags", "after", "extra")
SPEC_FIELDS = ("data", "features", "epochs", "loss", "optimizer", "backbone", "seed", "protocols", "spec_version")
SPECS = st.dictionaries(st.sampled_from(SPEC_FIELDS), VALUES, max_size=6).map(lambda extra: SPEC | extra)
JOBS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["pretrain", "evaluate"]) | VALUES, "spec": SPECS | VALUES},
    optional=dict.fromkeys(FIELDS[2:], VALUES),
)


@FUZZ
@given(body=JOBS | VALUES)
def test_no_body_is_answered_with_5xx(served: Served, body: Any) -> None:
    client = _client(served)

    answer = client.post("/v1/jobs", content=json.dumps(body).encode(), headers=JSON)

    assert answer.status_code in (201, 400, 413, 422), answer.text
    if answer.status_code != 201:
        assert_problem(answer, answer.status_code)


@FUZZ
@given(body=st.binary(max_size=200))
def test_no_bytes_are_answered_with_5xx(small: Served, body: bytes) -> None:
    assert _client(small).post("/v1/jobs", content=body, headers=JSON).status_code in (400, 413, 422)


ADDRESSES = (
    "/v1/jobs/{}",
    "/v1/jobs/{}/events",
    "/v1/jobs/{}/stream",
    "/v1/jobs/{}/logs",
    "/v1/checkpoints/{}",
    "/v1/checkpoints/{}/download",
    "/jobs/{}",
    "/static/{}",
)


@FUZZ
@given(
    address=st.sampled_from(ADDRESSES),
    part=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
        lambda part: part not in (".", "..")  # the client removes these from an address, so another one is requested
    ),
)
def test_no_id_is_answered_with_5xx(served: Served, address: str, part: str) -> None:
    answer = _client(served).get(address.format(quote(part, safe="")))

    assert 300 <= answer.status_code < 500, (address, part, answer.text)


PATHS = [
    "../../../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/key",
    "%252e%252e%252fkey",
    "..;/..;/key",
    "..\\..\\key",
    "..%5c..%5ckey",
    "%00",
    "a%00.safetensors",
    "....//....//key",
    "%c0%ae%c0%ae/key",
    "／..／key",
    "file:///etc/passwd",
    "//etc/passwd",
    "\\\\server\\share",
    "CON",
    "~root",
    "x" * 5000,
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_its_folder(shared: Served, path: str) -> None:
    client = shared.client()
    for address in ADDRESSES:
        answer = client.get(address.format(path))
        assert 300 <= answer.status_code < 500, (address, path)
        assert "root:" not in answer.text


QUERIES = [
    ("/v1/jobs", {"limit": "0"}, "limit"),
    ("/v1/jobs", {"limit": "101"}, "limit"),
    ("/v1/jobs", {"limit": "x"}, "limit"),
    ("/v1/jobs", {"cursor": "x"}, "cursor"),
    ("/v1/jobs", {"q": "x" * 201}, "q"),
    ("/v1/jobs/{job}/logs", {"after": "x"}, "after"),
    ("/v1/jobs/{job}/logs", {"after": "1.2.3"}, "after"),
    ("/v1/jobs/{job}/logs", {"after": "99999999999.1"}, "after"),
    ("/v1/jobs/{job}/logs", {"limit": "-1"}, "limit"),
    ("/v1/jobs/{job}/events", {"after": "-1"}, "after"),
    ("/v1/jobs/{job}/events", {"after": "99999999999999999999"}, "after"),
    ("/v1/jobs/{job}/metrics", {"max_points": "1001"}, "max_points"),
    ("/v1/jobs/{job}/metrics", {"from_step": "-1"}, "from_step"),
    ("/v1/jobs/{job}/metrics", {"to_step": "99999999999999999999"}, "to_step"),
    ("/v1/jobs/{job}/stream", {"last_event_id": "x"}, "Last-Event-ID"),
    ("/v1/jobs/{job}/stream", {"last_event_id": "9999999999.1.1"}, "Last-Event-ID"),
    ("/v1/jobs/{job}/stream", {"last_event_id": "1.1"}, "Last-Event-ID"),
    ("/v1/jobs/{job}/stream", {"from": "yesterday"}, "from"),
    ("/v1/checkpoints/{job}/download", {"kind": "onnx"}, "kind"),
]


@pytest.mark.parametrize(("address", "query", "name"), QUERIES)
def test_a_wrong_parameter_is_named(served: Served, address: str, query: dict[str, str], name: str) -> None:
    client = served.client()
    job_id = client.post("/v1/jobs", json={"kind": "pretrain", "spec": SPEC}).json()["id"]

    assert_problem(client.get(address.format(job=job_id), params=query), 422, name)


@pytest.mark.parametrize("q", ["%", "_", "\\", "'", '"; DROP TABLE jobs; --', "\ud7ff", "🙂", "\x01"])
def test_a_search_is_only_text(served: Served, q: str) -> None:
    client = served.client()
    client.post("/v1/jobs", json={"kind": "pretrain", "spec": SPEC})

    for name in ("q", "tag", "status", "kind", "cursor"):
        answer = client.get("/v1/jobs", params={name: q * (36 if name == "cursor" else 1)})
        assert answer.status_code in (200, 422), (name, answer.text)
    assert client.get("/v1/jobs", params={"q": q}).json()["items"] == []


def test_a_nul_in_the_address_is_refused(served: Served) -> None:
    for address in ("/v1/jobs?q=%00", "/v1/jobs?tag=a%00b", "/v1/jobs/%00", "/v1/jobs/a%00b/logs"):
        assert_problem(served.client().get(address), 400)


# --- errors of the server --------------------------------------------------------------------------------------------


def test_an_outage_of_the_database_is_503(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = small.client()

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr(queries, "list_jobs", fail)
    answer = client.get("/v1/jobs")

    assert_problem(answer, 503)
    assert answer.headers["retry-after"]
    assert "secret" not in answer.text


def test_an_outage_while_the_key_is_looked_up_is_503(small: Served) -> None:
    client = small.client()
    small.database.dispose()
    place = small.database.engine.url.database
    assert place
    os.rename(place, f"{place}.away")
    os.mkdir(place)
    try:
        assert_problem(client.get("/v1/jobs"), 503)
        assert_problem(small.bare().get("/readyz"), 503)
        assert small.bare().get("/healthz").status_code == 200
    finally:
        os.rmdir(place)
        os.rename(f"{place}.away", place)
    assert client.get("/v1/jobs").status_code == 200


def test_an_internal_error_shows_only_a_number(
    small: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = small.client()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the inner secret")

    monkeypatch.setattr(queries, "list_jobs", fail)
    answer = client.get("/v1/jobs")

    problem = assert_problem(answer, 500)
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    number = problem["detail"].split()[-1]
    assert number in caplog.text
    assert "the inner secret" in caplog.text


def test_unknown_things_are_404(served: Served) -> None:
    client = served.client()
    for address in (f"/v1/jobs/{new_id()}", f"/v1/checkpoints/{new_id()}", "/v1/nothing"):
        assert_problem(client.get(address), 404)
    assert_problem(client.put("/v1/jobs"), 405)


_CLIENTS: dict[int, httpx.Client] = {}


def _client(served: Served) -> httpx.Client:
    """Return one client for all examples of a property."""
    return _CLIENTS.setdefault(id(served), served.client())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"seeds": list(range(40))}, {"/seeds": "expected at most 32 values, not 40"}),
        ({"gpus": "x"}, {"/gpus": "expected an integer"}),
        ({"pool": "../x"}, {"/pool": "expected text to match pattern"}),
        ({"spec": {"method_options": {"a": 1}}}, {"/spec/method_options/a": "the method has no option of this name"}),
        (
            {"kind": "evaluate", "preset": None, "spec": {**PIXELS, "protocols": ["knnn"]}},
            {"/spec/protocols/0": "expected 'knn'"},
        ),
    ],
)
def test_each_wrong_field_is_named_once_with_what_was_expected(
    shared: Served, body: dict[str, Any], expected: dict[str, str]
) -> None:
    answer = shared.client().post("/v1/jobs", json={"kind": "pretrain", "preset": "digits-cpu"} | body)

    details = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert details.keys() == expected.keys()
    assert all(words in details[pointer] for pointer, words in expected.items())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_a_fault_of_the_servers_machine_is_no_internal_error(number: int, caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem.of(OSError(number, os.strerror(number), "/a/secret/path"))

    assert (problem.status, problem.headers["Retry-After"]) == (503, "5")
    assert problem.detail == f"the server cannot do this now: {os.strerror(number)}"
    assert "Traceback" not in caplog.text
    assert Problem.of(OSError(errno.ENOENT, "No such file")).status == 500


def test_a_fault_that_many_requests_meet_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(problems, "_logged_at", {})
    for _ in range(100):
        Problem.of(OSError(errno.EMFILE, "Too many open files"))
    Problem.of(OSError(errno.ENOSPC, "No space left on device"))

    assert len(caplog.records) == 2
