"""Evaluations of one checkpoint by REST, and retries and clones that are sent again."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.database import new_id
from jobs.models import Job
from jobs.status import Status
from tests.api.served import Served, assert_problem, native_checkpoint
from tests.jobs import rows
from wcl_core.protocol import EMBEDDINGS_FILE


def trained(served: Served, **fields: Any) -> tuple[str, str]:
    """Return (job, checkpoint) of a run that succeeded."""
    run = rows.Run(served.database, rows.running(served.database, **fields))
    checkpoint = served.checkpoint(native_checkpoint(), run, step=12)
    run.end("succeeded")
    return run.job_id, checkpoint


def test_a_checkpoint_is_measured_by_a_job_of_its_own(served: Served) -> None:
    client = served.client()
    job_id, checkpoint = trained(served, name="first", tags=("trial",), priority=3)

    answer = client.post(f"/v1/checkpoints/{checkpoint}/evaluate", json={"protocols": ["linear"], "seed": 4})

    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["parent_id"]) == ("evaluate", "queued", job_id)
    assert (job["priority"], job["tags"]) == (3, ["trial"])
    assert job["name"] == "evaluate checkpoint on digits, step 12 of first"
    assert job["spec"]["features"] == {"kind": "checkpoint", "checkpoint_id": checkpoint}
    assert (job["spec"]["protocols"], job["spec"]["seed"]) == (["linear"], 4)
    assert job["spec"]["data"]["image_size"] == 8
    assert job["spec_sent"].keys() == {"data", "protocols", "seed", "features"}


def test_an_evaluation_that_makes_one_thing_has_its_name(small: Served) -> None:
    _, checkpoint = trained(small)
    names = []
    for protocols in (["map"], ["embed"], ["map", "embed"]):
        made = small.client().post(f"/v1/checkpoints/{checkpoint}/evaluate", json={"protocols": protocols}).json()
        names.append(made["name"].partition(",")[0])

    assert names == ["map of digits", "features of digits", "evaluate checkpoint on digits"]


def test_another_dataset_is_a_transfer(small: Served) -> None:
    rows.add_dataset(small.database, "flowers", "f" * 64)
    _, checkpoint = trained(small)

    body = {"data": {"name": "flowers", "image_size": 16}}
    job = small.client().post(f"/v1/checkpoints/{checkpoint}/evaluate", json=body).json()

    assert job["dataset"] == {"name": "flowers", "digest": "f" * 64}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"protocols": ["linear", "x"]}, "/protocols/1"),
        ({"protocols": []}, "/protocols"),
        ({"features": {"kind": "pixels"}}, "/features"),
        ({"protocols": ["knn"], "knn_k": 99}, "/knn_k"),
        ({"protocols": ["linear"], "data": {"name": "absent"}}, "/data/name"),
        ({"data": {"image_size": 8}}, "/data/name"),
        ({"seed": -1}, "/seed"),
    ],
)
def test_wrong_fields_are_named_by_pointers_into_the_body(small: Served, body: dict[str, Any], pointer: str) -> None:
    _, checkpoint = trained(small)

    answer = small.client().post(f"/v1/checkpoints/{checkpoint}/evaluate", json=body)

    assert_problem(answer, 422, pointer)
    assert len(rows.rows_of(small.database, Job)) == 1


def test_an_evaluation_that_cannot_run_is_refused(small: Served) -> None:
    client = small.client()
    job_id, checkpoint = trained(small)

    assert_problem(client.post(f"/v1/checkpoints/{new_id()}/evaluate", json={}), 404)
    assert_problem(small.client("read").post(f"/v1/checkpoints/{checkpoint}/evaluate", json={}), 403)
    assert client.delete(f"/v1/checkpoints/{checkpoint}").status_code == 204
    assert_problem(client.post(f"/v1/checkpoints/{checkpoint}/evaluate", json={}), 404)
    assert rows.status(small.database, job_id) == "succeeded"


def test_an_evaluation_that_is_sent_again_is_the_same_job(served: Served) -> None:
    client, header = served.client(), {"Idempotency-Key": "measure"}
    _, checkpoint = trained(served)
    address = f"/v1/checkpoints/{checkpoint}/evaluate"

    first = client.post(address, json={"protocols": ["linear"]}, headers=header)
    again = client.post(address, json={"protocols": ["linear"]}, headers=header)
    other = client.post(address, json={"protocols": ["knn"]}, headers=header)

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert_problem(other, 422)


def test_features_of_a_version_of_a_dataset_are_computed_once(served: Served) -> None:
    client = served.client()
    _, checkpoint = trained(served)

    def request(**fields: Any) -> str:
        body = {"protocols": ["embed"], **fields}
        answer = client.post(f"/v1/checkpoints/{checkpoint}/evaluate", json=body)
        return str(answer.json()["id"])

    first = request()
    assert request() == request(seed=3) == first, "it is yet to run"
    others = [request(data={"name": "digits", "image_size": 16}), request(protocols=["embed", "knn"])]
    assert first not in others

    for each in (first, *others):
        client.post(f"/v1/jobs/{each}/cancel")
    second = request()
    assert second != first, "it was cancelled"
    run = rows.Run(served.database, rows.claim(served.database))
    assert run.job_id == second
    file = {"kind": "embeddings", "path": f"{second}/1/{EMBEDDINGS_FILE}"}
    run.deliver(rows.started(), rows.checkpoint(0, "e" * 64) | file, rows.end("succeeded"))
    assert request() == second
    (stored,) = rows.checkpoints(served.database, second)
    assert client.delete(f"/v1/checkpoints/{stored.id}").status_code == 204
    third = request()
    assert third != second, "its file was deleted"

    file = {"kind": "embeddings", "path": f"{third}/1/embeddings.safetensors"}
    run = rows.Run(served.database, rows.claim(served.database))
    assert run.job_id == third
    run.deliver(rows.started(), rows.checkpoint(0, "f" * 64) | file, rows.end("succeeded"))
    assert request() != third, "version 1 of the file has no paths"


@pytest.mark.parametrize("verb", ["retry", "clone"])
def test_a_verb_that_is_sent_again_makes_one_job(served: Served, verb: str) -> None:
    client, header = served.client(), {"Idempotency-Key": "again"}
    job_id, other = rows.job_in(served.database, Status.FAILED), rows.job_in(served.database, Status.FAILED)
    before = len(rows.rows_of(served.database, Job))

    answers = [client.post(f"/v1/jobs/{job_id}/{verb}", headers=header) for _ in range(3)]
    elsewhere = client.post(f"/v1/jobs/{other}/{verb}", headers=header)

    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert_problem(elsewhere, 422)
    assert len(rows.rows_of(served.database, Job)) == before + 1


def test_a_clone_with_other_fields_is_another_request(small: Served) -> None:
    client, header = small.client(), {"Idempotency-Key": "clone"}
    job_id = rows.submit(small.database)

    first = client.post(f"/v1/jobs/{job_id}/clone", json={"spec": {"seed": 2}}, headers=header)
    other = client.post(f"/v1/jobs/{job_id}/clone", json={"spec": {"seed": 3}}, headers=header)

    assert first.json()["spec"]["seed"] == 2
    assert_problem(other, 422)
    assert_problem(client.post(f"/v1/jobs/{job_id}/clone", json={"spec": {"epochs": 0}}), 422, "/spec/epochs")


def test_the_page_of_a_training_lists_evaluations_that_write_features_or_a_map(served: Served) -> None:
    client, browser = served.client(), served.browser()
    training, checkpoint = trained(served)
    body = {"protocols": ["embed"]}
    embedding = client.post(f"/v1/checkpoints/{checkpoint}/evaluate", json=body).json()["id"]
    measuring = client.post(f"/v1/checkpoints/{checkpoint}/evaluate", json={"protocols": ["knn"]}).json()["id"]
    page = browser.get(f"/jobs/{training}").text
    listed = page[page.index('id="without-numbers"') :].partition("</ul>")[0]
    assert f'href="/jobs/{embedding}"' in listed
    assert measuring not in listed
