"""Datasets one by one, and the picture of their images."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

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


REPORT = {
    "layout": "a fixed fifth of each class is the test split",
    "formats": {"JPEG": 5},
    "modes": {"RGB": 5},
    "smallest": [4, 5],
    "median": [6, 7],
    "largest": [8, 9],
    "unreadable": 1,
    "left_out": [{"text": "images that cannot be read", "count": 1, "examples": ["a/caf\\xe9.jpg"]}],
    "odd": [],
}
FLOWERS = DatasetFacts(
    "flowers", "folder", "f" * 64, {"train": 4, "test": 1}, ["a", "b"], {"train": [2, 2], "test": [1, 0]}, report=REPORT
)


def spec(**fields: object) -> dict[str, object]:
    data = {"name": "flowers", "image_size": 8, **fields}
    return {"kind": "pretrain", "spec": {"data": data, "batch_size": 4, "backbone": {"name": "tiny"}}}


def test_a_report_is_returned_as_it_was_announced(served: Served) -> None:
    announce(served, FLOWERS)
    client = served.client("read")
    assert client.get("/v1/datasets/flowers").json()["report"] == REPORT
    assert client.get("/v1/datasets").json()["items"][-1]["report"] == REPORT


def test_a_refused_dataset_says_why(served: Served) -> None:
    """In the list, with its worker, and in the answer to a submission: first that it is still read, then the reason."""
    worker = rows.worker(id=new_id(), datasets={})
    served.database.write(lambda session: workers.register(session, worker, 1, [], pending=["aster", "flowers"]))
    client = served.client("read", "submit")
    listed = client.get("/v1/datasets").json()
    assert (listed["pending"], listed["refused"]) == (["aster", "flowers"], [])
    assert "a worker is still reading it" in client.post("/v1/jobs", json=spec()).text

    def settle(name: str, result: DatasetFacts | str) -> None:
        served.database.write(lambda session: workers.settle_dataset(session, worker.id, name, result))

    settle("flowers", "train/ has 5 images and no class folders")
    settle("aster", replace(DIGITS, name="aster"))
    listed = client.get("/v1/datasets").json()
    refused = [{"name": "flowers", "worker": worker.name, "reason": "train/ has 5 images and no class folders"}]
    assert ([each["name"] for each in listed["items"]], listed["pending"], listed["refused"]) == (
        ["aster", "digits"],
        [],
        refused,
    )
    (row,) = client.get("/v1/workers").json()["items"]
    assert (row["pending_datasets"], row["datasets"]) == ([], {"aster": rows.DIGEST})
    assert row["refused_datasets"] == {"flowers": refused[0]["reason"]}
    answer = client.post("/v1/jobs", json=spec())
    assert answer.status_code == 422
    assert f"worker {worker.name} refuses it: {refused[0]['reason']}" in answer.text


def test_a_job_that_tolerates_too_few_unreadable_images_is_refused_at_once(served: Served) -> None:
    announce(served, FLOWERS)
    client = served.client("read", "submit")
    answer = client.post("/v1/jobs", json=spec())
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/spec/data/max_corrupt_share"
    assert "1 of 6 image files of flowers cannot be read" in error["detail"]
    assert "at least 0.167" in error["detail"]
    assert client.post("/v1/jobs", json=spec(max_corrupt_share=0.167)).status_code == 201


def test_defaults_of_evaluations_fit_the_smallest_class(served: Served) -> None:
    """What was set stays as it was set, and is refused where it does not fit."""
    announce(served, replace(FLOWERS, report=None, class_counts={"train": [30, 3], "test": [1, 1]}))
    client = served.client("read", "submit")
    body = {"kind": "evaluate", "spec": {"data": {"name": "flowers", "image_size": 8}, "features": {"kind": "pixels"}}}
    job = client.post("/v1/jobs", json=body).json()
    assert (job["spec"]["knn_k"], job["spec"]["labels_per_class"]) == (1, [1])
    explicit = {**body, "spec": {**body["spec"], "knn_k": 20}}  # type: ignore[dict-item]
    assert "/spec/knn_k" in client.post("/v1/jobs", json=explicit).text
    training = spec()
    training["spec"]["evaluations"] = [{"protocols": ["knn", "few_labels"]}]  # type: ignore[index]
    plan = client.post("/v1/jobs", json=training).json()["spec"]["evaluations"][0]
    assert (plan["knn_k"], plan["labels_per_class"]) == (1, [1])


def test_a_dataset_without_labels_says_what_they_would_add(served: Served) -> None:
    counts = {"train": 0, "test": 0, "unlabelled": 400}
    announce(served, DatasetFacts("photos", "folder", "f" * 64, counts, [], {"train": [], "test": []}))
    client = served.client("read", "submit")
    note = client.get("/v1/datasets/photos").json()["note"]
    assert note.startswith("photos has no labels, so nothing that compares with them is measured. Labels would add")
    data = {"name": "photos", "image_size": 8}

    def sent(kind: str, **spec: object) -> httpx.Response:
        return client.post("/v1/jobs", json={"kind": kind, "spec": {"data": data, **spec}})

    trained = sent("pretrain", batch_size=64, evaluations=[{}]).json()
    assert [plan["protocols"] for plan in trained["spec"]["evaluations"]] == [["map"]]
    assert_problem(sent("pretrain", batch_size=401), 422, "/spec/batch_size")
    pixels = {"kind": "pixels"}
    assert sent("evaluate", features=pixels).json()["spec"]["protocols"] == ["map"]
    refused = assert_problem(
        sent("evaluate", features=pixels, protocols=["map", "knn", "linear"]),
        422,
        "/spec/protocols/1",
        "/spec/protocols/2",
    )
    assert refused["errors"][0]["detail"] == note.removesuffix(".")
    worker = rows.worker(id=new_id(), datasets={"photos": "f" * 64})
    served.database.write(lambda session: workers.register(session, worker, 2, []))
    run = rows.Run(served.database, rows.claim(served.database, worker))
    assert run.job_id == trained["id"]
    run.deliver(rows.started(), rows.checkpoint(5), rows.end("succeeded"))
    shown = served.browser("read", "submit").get(f"/jobs/{trained['id']}").text
    boxes = re.findall(r'type="checkbox" name="protocols" value="(\w+)"( checked)?', shown)
    assert boxes == [("embed", ""), ("map", " checked")], "the form offers only what needs no labels"
    data["held_out_share"] = 0.2
    assert sent("pretrain", batch_size=64).status_code == 201, "its view accuracy is measured on images held out"


def test_an_administrator_adds_renames_and_removes_a_dataset(served: Served) -> None:
    client, reader = served.client("admin"), served.client("read", "submit")
    answers = [client.post("/v1/datasets", json={"name": "photos", "path": "/secret/place", "labels": False})]
    assert (answers[0].status_code, answers[0].json()) == (202, {"name": "photos", "has_labels": False})
    assert reader.post("/v1/datasets", json={"name": "more", "path": "/secret/place"}).status_code == 403
    answers.append(reader.get("/v1/datasets"))
    assert answers[-1].json()["pending"] == ["photos"]
    answers.append(client.post("/v1/datasets", json={"name": "photos", "path": "/secret/place"}))
    assert_problem(answers[-1], 409)
    assert_problem(client.post("/v1/datasets", json={"name": "B c", "path": "x"}), 422, "/name", "/path")
    announce(served, DatasetFacts("photos", "folder", "f" * 64, {"train": 0, "test": 0, "unlabelled": 4}, []))
    answers += [reader.get("/v1/datasets/photos"), reader.get("/datasets"), reader.get("/datasets/photos")]
    answers.append(client.patch("/v1/datasets/photos", json={"name": "flowers"}))
    assert answers[-1].json() == {"name": "flowers", "has_labels": False}
    answers.append(reader.get("/v1/datasets/flowers"))
    assert [answer.status_code for answer in answers] == [202, 200, 409, 200, 200, 200, 200, 200]
    assert not any("secret" in answer.text for answer in answers)
    assert client.delete("/v1/datasets/flowers").status_code == 204
    assert "flowers" not in reader.get("/v1/datasets").text


def test_the_form_does_not_tell_what_is_outside_of_the_folders_for_datasets(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "secret.csv").write_text("path\n")
    settings = served.settings.model_copy(update={"dataset_roots": [tmp_path / "datasets"]})
    monkeypatch.setattr(served.app.state, "settings", settings)
    browser, origin = served.browser("admin", "read"), {"Origin": served.url}
    paths = [tmp_path / "secret.csv", tmp_path / "none.csv", tmp_path / "datasets" / "none"]
    answers = [browser.post("/datasets", data={"name": "x", "path": str(path)}, headers=origin) for path in paths]
    assert [answer.status_code for answer in answers] == [422] * 3
    texts = [answer.text.replace(str(path), "PATH") for answer, path in zip(answers, paths, strict=True)]
    parts = [re.search(r'<form method="post" action="/datasets" .*?</form>', text, re.DOTALL) for text in texts]
    assert all(parts)
    assert len({re.sub("[0-9a-f]{8,}", "", part[0]) for part in parts if part}) == 1  # but for what was typed


def test_the_form_adds_a_dataset_at_a_path_that_the_server_may_read(served: Served, tmp_path: Path) -> None:
    browser = served.browser("admin", "read")
    assert "Add a dataset" in browser.get("/datasets").text
    assert "Add a dataset" not in served.browser("read", "submit").get("/datasets").text
    origin = {"Origin": served.url}
    fields = {"name": "photos", "path": str(tmp_path)}
    assert browser.post("/datasets", data=fields | {"path": "/none/at/all"}, headers=origin).status_code == 422
    answer = browser.post("/datasets", data=fields, headers=origin)
    assert (answer.status_code, answer.headers["location"]) == (303, "/datasets")
    page = browser.get("/datasets").text
    assert "A worker is still reading <b>photos</b>" in page
    assert str(tmp_path) not in page
    worker = rows.worker(id=new_id(), datasets={})
    served.database.write(lambda session: workers.register(session, worker, 1, []))
    served.database.write(lambda session: workers.settle_dataset(session, worker.id, "photos", "it has no images"))
    remove = "/datasets/photos/remove"
    for each, is_mendable in ((browser, True), (served.browser("read", "submit"), False)):
        page = each.get("/datasets").text
        assert ("It has no images" in page, remove in page, str(tmp_path) in page) == (True, is_mendable, is_mendable)
    assert browser.post(remove, headers=origin).headers["location"] == "/datasets"
    assert "photos" not in served.client().get("/v1/datasets").text
