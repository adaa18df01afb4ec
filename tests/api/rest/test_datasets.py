"""Datasets one by one, and the picture of their images."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from jobs import workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts, SampleSheet
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_client.api import WclClient

PNG = b"\x89PNG\r\n\x1a\n\0\xff and more"
DIGITS = DatasetFacts(
    "digits",
    "builtin",
    rows.DIGEST,
    {"train": 4, "test": 2},
    ["a", "b"],
    sheet=SampleSheet(PNG, 2, 3, 8),
)


def announce(served: Served, facts: DatasetFacts) -> None:
    worker = rows.worker(id=new_id())
    served.database.write(lambda session: workers.register(session, worker, 1, [facts]))


def test_samples_are_a_picture_with_its_digest_as_etag(served: Served) -> None:
    announce(served, DIGITS)
    client = served.client("read")
    shown = client.get("/v1/datasets/digits").json()

    assert shown == client.get("/v1/datasets").json()["items"][0]
    assert shown["samples"] == {"png": "/v1/datasets/digits/samples.png", "rows": 2, "columns": 3, "side": 8}
    answer = client.get(shown["samples"]["png"])
    assert (answer.content, answer.headers["content-type"]) == (PNG, "image/png")
    assert answer.headers["etag"] == f'"{hashlib.sha256(PNG).hexdigest()}"'
    assert answer.headers["cache-control"] == "private, no-cache"
    again = client.get(shown["samples"]["png"], headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")

    with WclClient(served.url, served.key("read")) as typed:
        assert (typed.dataset("digits"), typed.dataset_samples("digits")) == (shown, PNG)

    announce(served, replace(DIGITS, sheet=SampleSheet(PNG + b"!", 2, 3, 8)))
    changed = client.get(shown["samples"]["png"], headers={"If-None-Match": answer.headers["etag"]})
    assert (changed.status_code, changed.content) == (200, PNG + b"!")


def test_absent_datasets_and_samples_are_named(small: Served) -> None:
    client = small.client("read")

    assert client.get("/v1/datasets/digits").json()["samples"] is None
    for address in ("/v1/datasets/digits/samples.png", "/v1/datasets/none", "/v1/datasets/none/samples.png"):
        assert_problem(client.get(address), 404)
