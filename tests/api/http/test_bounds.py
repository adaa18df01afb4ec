"""Bounds on the work of one request, at their edges and above, while another client's requests are answered."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api.http import bodies, field_errors
from api.http.problems import MAX_DETAIL, Problem
from api.web import compare
from jobs.errors import FieldError, Invalid, JobsError
from tests.api.served import SPEC, Served, assert_problem
from tests.jobs import rows

BOUNDARY = "x"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
NOT_UTF8 = (
    "punycode",
    "undefined",
    "utf-7",
    "unicode_escape",
    "raw_unicode_escape",
    "latin-1",
    "idna",
    "utf-16",
    "x",
    "",
)
SWEEP: dict[str, Any] = {"name": "s", "search": "random", "preset": "digits-cpu", "metric": {"protocol": "knn"}}


@contextmanager
def others_answered(served: Served) -> Iterator[None]:
    """Fail if another client has to wait: each of its requests has some seconds, since machines of tests are busy."""
    waits: list[httpx.HTTPError] = []
    stop = threading.Event()
    client = httpx.Client(base_url=served.url, headers=dict(served.client("read").headers), timeout=5, trust_env=False)

    def ask() -> None:
        while not stop.is_set():
            try:
                assert client.get("/v1/jobs", params={"limit": 1}).status_code == 200
            except httpx.HTTPError as error:
                waits.append(error)
            stop.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        client.close()
    assert not waits


def multipart(charset: str | None, value: bytes, name: str = "checkpoint_id") -> dict[str, Any]:
    kind = f"multipart/form-data; boundary={BOUNDARY}" + ("" if charset is None else f"; charset={charset}")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
    return {"content": head + value + f"\r\n--{BOUNDARY}--\r\n".encode(), "headers": {"Content-Type": kind}}


# --- charsets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["/jobs/none/evaluate", "/jobs/cancel", "/submit", "/sweeps/new", "/jobs/none/retry"]
)
@pytest.mark.parametrize("charset", NOT_UTF8)
def test_a_body_in_another_charset_is_415(shared: Served, address: str, charset: str) -> None:
    assert_problem(shared.client().post(address, **multipart(charset, b"\\ud800+2AA-")), 415)


def test_no_codec_of_the_clients_choice_runs(small: Served) -> None:
    body = multipart("punycode", ("\U0001f600" * 30_000).encode("punycode"))
    with others_answered(small):
        assert_problem(small.client("read").post("/jobs/none/evaluate", **body), 403)
        assert_problem(small.client().post("/jobs/none/evaluate", **body), 415)


@pytest.mark.parametrize("charset", [None, "utf-8", "UTF-8", "utf8", '"utf-8"'])
def test_a_form_in_utf_8_is_read(shared: Served, charset: str | None) -> None:
    response = shared.client().post("/submit", **multipart(charset, "né".encode(), "name"))

    assert response.status_code == 422
    assert 'value="né"' in response.text


def test_a_body_of_json_in_another_charset_is_415(shared: Served) -> None:
    headers = {"Content-Type": "application/json; charset=utf-16"}

    assert_problem(shared.client().post("/v1/jobs", content=b"{}", headers=headers), 415)


@pytest.mark.parametrize("kind", [FORM["Content-Type"], "multipart/form-data; boundary=x"])
def test_a_form_that_is_not_utf_8_is_400(shared: Served, kind: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\xff\r\n--x--\r\n'

    assert_problem(shared.client().post("/submit", content=body, headers={"Content-Type": kind}), 400)


# --- scope before body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/v1/jobs", "/v1/sweeps", "/submit", "/jobs/none/evaluate", "/v1/keys"])
def test_the_scope_is_checked_before_the_body(shared: Served, address: str) -> None:
    for content, kind in ((b"{" * 100, "application/json"), (b"x" * 1_100_000, FORM["Content-Type"])):
        response = shared.client("read").post(address, content=content, headers={"Content-Type": kind})
        assert_problem(response, 403)


@pytest.mark.parametrize("address", ["/healthz", "/readyz", "/static/style/base.css", "/v1/jobs/x/events"])
def test_a_body_that_nothing_reads_is_not_parsed(shared: Served, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise AssertionError("the body was read")

    monkeypatch.setattr(bodies, "checked", fail)
    client = shared.client() if address.startswith("/v1/") else shared.bare()

    assert_problem(client.post(address, content=b"{}", headers=JSON), 405)


# --- JSON ------------------------------------------------------------------------------------------------------------


def bomb(count: int) -> dict[str, Any]:
    return {"~" * 100_000: [0] * count}


def test_a_valid_document_costs_no_pointers() -> None:
    """A pointer for each value would be 2 GB."""
    document = bomb(bodies.MAX_VALUES - 2)
    tracemalloc.start()
    bodies.check_values(document)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20_000_000


@pytest.mark.parametrize(("count", "status"), [(bodies.MAX_VALUES - 2, 422), (bodies.MAX_VALUES - 1, 413)])
def test_values_of_a_body_are_counted(small: Served, count: int, status: int) -> None:
    with others_answered(small):
        response = small.client().post("/v1/jobs", json=bomb(count))

    assert_problem(response, status)
    assert len(response.content) < 10_000


@pytest.mark.parametrize(("size", "status"), [(1_000_000, 422), (1_000_001, 413)])
def test_bytes_of_a_body_are_counted(small: Served, size: int, status: int) -> None:
    text = "x" * (size - len('{"name": ""}'))
    with others_answered(small):
        assert_problem(small.client().post("/v1/jobs", content=f'{{"name": "{text}"}}', headers=JSON), status)


@pytest.mark.parametrize(("depth", "status"), [(bodies.MAX_DEPTH, 422), (bodies.MAX_DEPTH + 1, 413), (100_000, 413)])
def test_levels_of_a_body_are_counted(small: Served, depth: int, status: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        with others_answered(small):
            body = opening * depth + "1" + closing * depth
            assert_problem(small.client().post("/v1/jobs", content=body, headers=JSON), status)


@pytest.mark.parametrize("place", ["", "spec"])
def test_of_many_unknown_fields_the_first_are_named(small: Served, place: str) -> None:
    unknown = {f"epoch_{number}_of_the_training_run": 1 for number in range(9_000)}
    body = {"kind": "pretrain", "preset": "digits-cpu"} | ({place: unknown} if place else unknown)
    with others_answered(small):
        response = small.client().post("/v1/jobs", json=body)

    assert len(assert_problem(response, 422)["errors"]) == field_errors.MAX_ERRORS


def test_the_trials_of_a_sweep_stop_at_the_first_errors(small: Served) -> None:
    unknown = {f"epoch_{number}_of_the_training_run": 1 for number in range(9_000)}
    sweep = SWEEP | {"trials": 256, "parameters": {"optimizer.learning_rate": {"min": 0.1, "max": 1}}, "spec": unknown}
    with others_answered(small):
        assert_problem(small.client().post("/v1/sweeps", json=sweep), 422)


# --- forms -----------------------------------------------------------------------------------------------------------


def form(count: int, size: int = 0) -> str:
    fields = [f"a{number}=%25" for number in range(count)]
    text = "&".join(fields)
    return text + "%" * (size - len(text))


@pytest.mark.parametrize(
    ("content", "is_taken"),
    [
        (form(bodies.MAX_FORM_FIELDS), True),
        (form(bodies.MAX_FORM_FIELDS + 2), False),
        (form(1, bodies.MAX_FORM_BYTES), True),
        (form(1, bodies.MAX_FORM_BYTES + 1), False),
    ],
    ids=["fields", "more fields", "bytes", "more bytes"],
)
def test_fields_and_bytes_of_a_form_are_counted(small: Served, content: str, is_taken: bool) -> None:
    with others_answered(small):
        response = small.client().post("/submit", content=content, headers=FORM)

    if is_taken:
        assert response.status_code == 422
        assert "<form" in response.text
    else:
        assert_problem(response, 413)


def test_a_form_with_json_that_cannot_be_shown_is_shown_again(small: Served) -> None:
    for text in ("[" * 500 + "]" * 500, '"\\ud800"', "1e999", "NaN"):
        for address, name in (("/submit", "spec.evaluations"), ("/sweeps/new", "row.0.values")):
            fields = {"preset": "digits-cpu", "step": "plan", name: text, "row.0.field": "loss.temperature"}
            response = small.client().post(address, data=fields)
            assert (response.status_code, response.headers["content-type"]) == (422, "text/html; charset=utf-8"), text


@pytest.mark.parametrize("text", ["--5", "-", "٣", "²", "5-", "-" * 400 + "1"])
def test_what_is_no_number_is_shown_beside_its_field(small: Served, text: str) -> None:
    fields = {"preset": "digits-cpu", "step": "plan", "name": "s"} | {"row.0.field": "loss.temperature"}
    for address, names in (
        ("/submit", ("priority", "gpus", "max_seconds", "seeds")),
        ("/sweeps/new", ("priority", "eta")),
    ):
        for name in names:
            response = small.client().post(address, data=fields | {name: text, "search": "halving"})
            assert response.status_code == 422, (address, name, response.text)
            assert "expected an integer" in response.text


def test_an_evaluation_of_one_protocol_twice_is_422(small: Served) -> None:
    fields = {"checkpoint_id": "x", "protocols": ["knn", "knn"], "key": "k"}

    assert_problem(small.client().post("/jobs/none/evaluate", data=fields), 422, "/protocols")


# --- sweeps, comparisons, curves -------------------------------------------------------------------------------------


def test_draws_of_large_values_are_compared_by_their_places(small: Served) -> None:
    """The text of all values of all draws would be 20 GB."""
    sweep = SWEEP | {"trials": 256, "parameters": {"loss.temperature": [0.1, ["x" * 800_000]]}}
    with others_answered(small):
        assert_problem(small.client().post("/v1/sweeps", json=sweep), 422, "/trials")


@pytest.mark.parametrize(("number", "status"), [(256, 201), (257, 422)])
def test_trials_of_a_sweep_are_counted(small: Served, number: int, status: int) -> None:
    sweep = SWEEP | {"trials": number, "parameters": {"optimizer.learning_rate": {"min": 0.1, "max": 1}}}
    with others_answered(small):
        response = small.client().post("/v1/sweeps", json=sweep)

    assert response.status_code == status, response.text


@pytest.mark.parametrize(("number", "status"), [(compare.MAX_JOBS, 200), (compare.MAX_JOBS + 1, 422)])
def test_jobs_of_a_comparison_are_counted(small: Served, number: int, status: int) -> None:
    jobs = [rows.submit(small.database, spec={"seed": seed}) for seed in range(number)]
    with others_answered(small):
        response = small.client().get("/compare", params={"job": jobs})

    assert response.status_code == status, response.text


@pytest.mark.parametrize(("parameter", "edge"), [("max_points", "1000"), ("keys", ",".join(["k"] * 1000))])
def test_points_and_names_of_curves_are_counted(small: Served, parameter: str, edge: str) -> None:
    job_id = rows.submit(small.database)
    above = f"{edge},k" if "," in edge else "1001"
    with others_answered(small):
        assert small.client().get(f"/v1/jobs/{job_id}/metrics", params={parameter: edge}).status_code == 200
        assert_problem(small.client().get(f"/v1/jobs/{job_id}/metrics", params={parameter: above}), 422, parameter)


def test_letters_of_a_search_are_counted(small: Served) -> None:
    with others_answered(small):
        assert small.client().get("/v1/jobs", params={"q": "%_" * 100}).status_code == 200
        assert_problem(small.client().get("/v1/jobs", params={"q": "%" * 201}), 422, "q")


def test_requests_that_read_files_leave_threads_for_others(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, storage, is_read = small.checkpoint(b"weights"), small.app.state.storage, threading.Event()
    opened = storage.open

    def slow(*arguments: Any) -> Any:
        assert is_read.wait(30)
        return opened(*arguments)

    monkeypatch.setattr(storage, "open", slow)
    client = small.client()
    with ThreadPoolExecutor(60) as pool:
        requests = [pool.submit(client.get, f"/v1/checkpoints/{checkpoint}/download") for _ in range(60)]
        with others_answered(small):
            time.sleep(1)
        is_read.set()

        assert {request.result().status_code for request in requests} == {200}


# --- answers to errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        JobsError("half a pair: \ud800"),
        Invalid([FieldError("/\udfff", "\ud800" * 2_000)]),
        Invalid([FieldError("/x" * MAX_DETAIL, "long")] * 60),
    ],
)
def test_a_problem_can_always_be_sent(error: JobsError) -> None:
    document = json.loads(bytes(Problem.of(error).response().body))

    assert document["status"] == error.status_code
    assert len(document["detail"]) <= 6 * MAX_DETAIL
    assert len(document.get("errors", ())) <= field_errors.MAX_ERRORS


@pytest.mark.parametrize(
    ("method", "status", "detail"),
    [("GET", 404, "there is nothing at this address"), ("PUT", 405, "this address does not take this method")],
)
def test_an_address_or_a_method_that_does_not_exist_is_said_once(
    small: Served, method: str, status: int, detail: str
) -> None:
    path = "/nothing" if status == 404 else "/v1/jobs"
    assert assert_problem(small.client().request(method, path), status)["detail"] == detail
    page = small.client().request(method, path, headers={"Accept": "text/html"}).text
    assert page.count(detail[0].upper() + detail[1:]) == 1


def test_an_error_page_that_fails_is_a_problem(
    small: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    monkeypatch.setattr("api.web.render.page", fail)
    response = small.client().get("/jobs/none", headers={"Accept": "text/html"})

    assert_problem(response, 500)
    assert "surrogates not allowed" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/jobs", "GET, POST"),
        ("PUT", "/v1/jobs/x", "DELETE, GET, PATCH"),
        ("PUT", "/v1/checkpoints/x", "DELETE, GET, PATCH"),
        ("POST", "/v1/checkpoints/x/download", "GET, HEAD"),
        ("DELETE", "/submit", "GET, POST"),
        ("POST", "/static/style/base.css", "GET, HEAD"),
        ("POST", "/healthz", "GET"),
    ],
)
def test_a_wrong_method_gets_all_methods_of_the_path(shared: Served, method: str, path: str, allowed: str) -> None:
    for accept in ("*/*", "text/html"):
        response = shared.client().request(method, path, headers={"Accept": accept})
        assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_a_spec_that_does_not_fit_its_checkpoint_is_422(small: Served) -> None:
    run = rows.Run(small.database, rows.running(small.database))
    checkpoint = small.checkpoint(b"weights", run)
    body = {"protocols": ["semi_supervised"], "semi_supervised": {"lists": ["a"]}}
    data = SPEC["data"] | {"held_out_share": 0.2}

    response = small.client().post(f"/v1/checkpoints/{checkpoint}/evaluate", json=body | {"data": data})

    assert_problem(response, 422, "/data/held_out_share")
