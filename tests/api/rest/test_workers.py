"""Causes of waiting, limits, needs, drains and the audit, by REST."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from jobs import transitions, workers
from jobs.database import new_id
from jobs.models import Job
from tests.api.served import SPEC, Served, assert_problem, listening, messages
from tests.jobs import rows
from wcl_client.api import WclClient
from wcl_client.doctor import examine

JOB: dict[str, Any] = {"kind": "pretrain", "spec": SPEC}


def register(served: Served) -> str:
    served.database.write(lambda session: workers.register(session, rows.WORKER, 1, []))
    return rows.WORKER.id


def test_a_waiting_job_has_a_cause_until_it_runs(served: Served) -> None:
    client = served.client()
    first, second = (client.post("/v1/jobs", json=JOB | {"name": name}).json() for name in ("first", "second"))
    assert first["waiting"] == {
        "cause": "no_worker",
        "message": "no worker of the pool default is running",
        "position": 1,
        "until": None,
        "needs": [],
        "is_estimate": False,
    }
    register(served)
    blocked = client.post("/v1/jobs", json=JOB | {"after": [first["id"]]}).json()["waiting"]
    assert (blocked["cause"], blocked["position"], blocked["needs"]) == ("dependency", None, [first["id"]])

    attempt = rows.claim(served.database).attempt

    assert client.get(f"/v1/jobs/{first['id']}").json()["waiting"] is None
    served.database.write(lambda session: workers.heartbeat(session, rows.WORKER.id, first["id"]))
    waiting = client.get(f"/v1/jobs/{second['id']}").json()["waiting"]
    assert (waiting["cause"], waiting["position"]) == ("workers_busy", 1)
    raised = client.patch(f"/v1/jobs/{second['id']}", json={"priority": 3}).json()
    assert (raised["priority"], raised["waiting"]["position"]) == (3, 1)
    served.database.write(lambda session: transitions.end_attempt(session, attempt, "failed", "killed"))
    backing_off = client.get(f"/v1/jobs/{first['id']}").json()["waiting"]
    assert backing_off["cause"] == "backing_off"
    assert backing_off["until"].endswith("Z")


def test_an_unable_worker_says_why_everywhere(served: Served) -> None:
    worker_id = register(served)
    unable = workers.Unable("storage_unavailable", "the storage folder is <another> storage")
    served.database.write(lambda session: workers.heartbeat(session, worker_id, None, unable))
    client = served.client()

    (row,) = client.get("/v1/workers").json()["items"]
    metrics = client.get("/metrics").text
    page = served.browser("read").get("/workers").text

    assert (row["unable"], row["unable_message"]) == unable
    assert 'wcl_workers_unable{reason="storage_unavailable"} 1.0\n' in metrics
    assert 'wcl_workers_unable{reason="disk_full"} 0.0\n' in metrics
    assert "Takes no jobs: the storage folder is &lt;another&gt; storage." in page
    assert "1 unable" in page
    with WclClient(served.url, served.key("read")) as wcl:
        findings = {finding.name: finding for finding in examine(wcl, served.settings.data_dir)}
    assert not findings["Workers"].is_ok
    assert "worker takes no jobs: the storage folder is <another> storage" in findings["Workers"].detail
    served.database.write(lambda session: workers.heartbeat(session, worker_id, None))
    assert client.get("/v1/workers").json()["items"][0]["unable"] is None


def test_the_page_uncordons_a_worker_that_has_ended(served: Served) -> None:
    earlier, ended = (replace(rows.WORKER, id=new_id()) for _ in range(2))
    for facts in (earlier, ended):
        served.database.write(lambda session, facts=facts: workers.register(session, facts, 1, []))  # type: ignore[misc]
        served.database.write(lambda session, facts=facts: workers.cordon(session, facts.id, True))  # type: ignore[misc]
        served.database.write(lambda session, facts=facts: workers.stop(session, facts.id))  # type: ignore[misc]
    browser = served.browser("read", "admin")

    page = browser.get("/workers").text

    assert f'action="/workers/{ended.id}/uncordon"' in page
    assert f'action="/workers/{earlier.id}/uncordon"' not in page, "the later worker of its name counts"
    assert "/uncordon" not in served.browser("read").get("/workers").text
    browser.post(f"/workers/{ended.id}/uncordon", headers={"Origin": served.url})
    assert "/uncordon" not in browser.get("/workers").text


def test_a_stream_has_the_cause_of_waiting_too(small: Served) -> None:
    client = small.client()
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]

    with listening(client, f"/v1/jobs/{job_id}/stream") as stream:
        first = next(message for message in messages(stream) if message.event == "job")

    assert first.data["waiting"]["cause"] == "no_worker"


def test_limits_and_needs_of_a_body_reach_the_job(served: Served) -> None:
    client = served.client()
    needed, other = (client.post("/v1/jobs", json=JOB).json()["id"] for _ in range(2))
    after = [{"job_id": needed, "until": "checkpoint"}, other, {"job_id": other, "until": "checkpoint"}]

    job = client.post("/v1/jobs", json=JOB | {"after": after, "max_seconds": 60, "preemptible": True}).json()

    assert (job["max_seconds"], job["preemptible"], job["status"]) == (60, True, "blocked")
    assert "the checkpoint of" in job["waiting"]["message"]
    run = rows.Run(served.database, rows.claim(served.database))
    assert run.job_id == needed
    run.deliver(rows.started(), rows.checkpoint(1))
    served.database.write(transitions.unblock)
    assert client.get(f"/v1/jobs/{job['id']}").json()["waiting"]["needs"] == [other], "a success is the stronger need"
    twin = client.post(f"/v1/jobs/{job['id']}/clone").json()
    assert (twin["max_seconds"], twin["preemptible"]) == (60, True)


@pytest.mark.parametrize(
    ("field", "value", "pointer"),
    [
        ("max_seconds", 0, "/max_seconds"),
        ("max_seconds", 2**40, "/max_seconds"),
        ("max_seconds", "soon", "/max_seconds"),
        ("preemptible", "perhaps", "/preemptible"),
        ("after", ["x"], "/after/0"),
        ("after", [{"job_id": "x"}], "/after/0/job_id"),
        ("after", [{"job_id": "00000000-0000-7000-8000-00000000dead", "until": "noon"}], "/after/0/until"),
        ("after", [{"until": "success"}], "/after/0/job_id"),
        ("after", [{"job_id": "00000000-0000-7000-8000-00000000dead", "extra": 1}], "/after/0/extra"),
        ("after", ["00000000-0000-7000-8000-00000000dead"], "/after/0"),
        ("after", [3], "/after/0"),
    ],
)
def test_a_wrong_limit_or_need_is_named(small: Served, field: str, value: Any, pointer: str) -> None:
    assert_problem(small.client().post("/v1/jobs", json=JOB | {field: value}), 422, pointer)


def test_a_worker_is_drained_by_an_administrator(served: Served) -> None:
    worker_id = register(served)
    listed = served.client().get("/v1/workers").json()["items"][0]
    assert (listed["drain_requested_at"], listed["is_live"]) == (None, True)
    assert_problem(served.client("read", "submit").post(f"/v1/workers/{worker_id}/drain"), 403)

    drained = served.client().post(f"/v1/workers/{worker_id}/drain")

    assert drained.status_code == 200
    assert drained.json()["drain_requested_at"].endswith("Z")
    assert served.database.write(lambda session: workers.heartbeat(session, worker_id, None)) is True
    served.database.write(lambda session: workers.stop(session, worker_id))
    assert served.client().get("/v1/workers").json()["items"][0]["is_live"] is False
    assert_problem(served.client().post(f"/v1/workers/{worker_id}/drain"), 409)
    assert_problem(served.client().post(f"/v1/workers/{new_id()}/drain"), 404)


def test_the_audit_finds_a_tampered_row(served: Served) -> None:
    client = served.client()
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    assert client.get("/v1/audit").json() == {"jobs": 1, "events": 1, "attempts": 0, "deletions": 0, "findings": []}
    assert_problem(served.client("read", "submit").get("/v1/audit"), 403)

    tampered = update(Job).where(Job.id == job_id).values(status="succeeded", ended_at=1)
    served.database.write(lambda session: session.execute(tampered))

    findings = client.get("/v1/audit").json()["findings"]
    assert [(finding["job_id"], finding["rule"]) for finding in findings] == [(job_id, "status")]


def test_each_device_is_shown_with_its_job(served: Served) -> None:
    facts = rows.worker(gpus=2)
    served.database.write(lambda session: workers.register(session, facts, 1, []))
    job_id = served.client().post("/v1/jobs", json=JOB).json()["id"]
    rows.claim(served.database, facts)
    warm = replace(facts.devices[0], load=0.35, memory_used=1, memory_bytes=4, temperature=51)
    broken = replace(facts.devices[1], problem="its driver reports Xid 79")
    served.database.write(lambda session: workers.heartbeat(session, facts.id, job_id, devices=(warm, broken)))
    client = served.client()

    (row,) = client.get("/v1/workers").json()["items"]
    (attempt,) = client.get(f"/v1/jobs/{job_id}/attempts").json()["items"]
    page = served.browser("read").get("/workers").text
    on_cpu = client.post("/v1/jobs", json=JOB | {"gpus": 0}).json()["id"]

    assert "it runs on the CPU, though its pool has GPUs" in served.browser("read").get(f"/jobs/{on_cpu}").text
    rows.claim(served.database, facts)
    assert client.get("/v1/workers").json()["items"][0]["cpu_job_ids"] == [on_cpu]
    assert f'<b>CPU</b> <a class="cut" href="/jobs/{on_cpu}">' in served.browser("read").get("/workers").text
    assert row["cpu_job_ids"] == []
    assert row["devices"] == [warm.as_json() | {"job_id": job_id}, broken.as_json() | {"job_id": None}]
    assert (row["gpus"], row["cpu_slots"]) == (1, 1)
    assert attempt["devices"] == [warm.uuid]
    for text in ("35.0% busy", "memory 25.0%", "51 °C", "its driver reports Xid 79"):
        assert text in page


def test_a_job_of_several_nodes_without_gpus_is_a_cpu_job_of_each_of_its_workers(served: Served) -> None:
    facts = [rows.worker(id=new_id(), name=name, address=f"10.0.0.{name}") for name in ("7", "8")]
    for each in facts:
        served.database.write(lambda session, each=each: workers.register(session, each, 1, []))  # type: ignore[misc]
        served.database.write(
            lambda session, each=each: workers.heartbeat(session, each.id, None, address=each.address)  # type: ignore[misc]
        )
    job_id = rows.submit(served.database, spec={"nodes": 2, "batch_size": 240})
    claim = rows.claim(served.database, facts[0])

    listed = served.client().get("/v1/workers").json()["items"]
    page = served.browser("read").get("/workers").text

    assert {row["name"]: row["cpu_job_ids"] for row in listed} == {"7": [job_id], "8": [job_id]}
    assert page.count(f'href="/jobs/{job_id}"') == 2
    rows.Run(served.database, claim).end("cancelled")
    assert [row["cpu_job_ids"] for row in served.client().get("/v1/workers").json()["items"]] == [[], []]


def test_a_job_of_several_nodes_shows_each_worker_with_its_address_and_devices(served: Served) -> None:
    facts = [rows.worker(id=new_id(), name=name, gpus=1, address=f"10.0.0.{name}") for name in ("7", "8")]
    for each in facts:
        served.database.write(lambda session, each=each: workers.register(session, each, 1, []))  # type: ignore[misc]
        served.database.write(
            lambda session, each=each: workers.heartbeat(session, each.id, None, address=each.address)  # type: ignore[misc]
        )
    client, browser = served.client(), served.browser("read")
    body = JOB | {"spec": SPEC | {"nodes": 2, "batch_size": 240}, "gpus": 1}
    job = client.post("/v1/jobs", json=body).json()
    rows.claim(served.database, facts[0])

    (attempt,) = client.get(f"/v1/jobs/{job['id']}/attempts").json()["items"]
    nodes = [
        {"node": node, "worker": each.name, "worker_id": each.id, "address": each.address, "devices": [uuid]}
        for node, each in enumerate(facts)
        for uuid in [each.devices[0].uuid]
    ]
    assert (job["nodes"], attempt["nodes"]) == (2, nodes)
    assert attempt["devices"] == [each.devices[0].uuid for each in facts]
    assert {row["address"] for row in client.get("/v1/workers").json()["items"]} == {"10.0.0.7", "10.0.0.8"}
    page, of_workers = browser.get(f"/jobs/{job['id']}").text, browser.get("/workers").text
    assert '<span title="10.0.0.7">7</span>, <span title="10.0.0.8">8</span>' in page
    assert "by 7, 8" in page
    assert "10.0.0.8" in of_workers
    assert of_workers.count(f'href="/jobs/{job["id"]}"') >= 2
