"""Embeddings are registered and downloaded like checkpoints, and nothing starts from them."""

from __future__ import annotations

import hashlib

from tests.api.served import Served, assert_problem
from tests.jobs import rows


def test_embeddings_are_served_as_they_are_and_are_no_checkpoint_to_start_from(served: Served) -> None:
    client = served.client()
    run = rows.Run(served.database, rows.running(served.database, kind="evaluate"))
    content, key = b"features", f"{run.job_id}/1/embeddings.safetensors"
    place = served.settings.checkpoints_dir / key
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    facts = {"path": key, "size": len(content), "kind": "embeddings"}
    run.deliver(rows.started(), rows.checkpoint(0, hashlib.sha256(content).hexdigest()) | facts)
    run.deliver(rows.end("failed", "bad_data"))

    shown = client.get(f"/v1/jobs/{run.job_id}/checkpoints").json()["items"][0]
    native = client.get(shown["links"]["native"])
    backbone = client.get(f"/v1/checkpoints/{shown['id']}/download?kind=backbone")
    features = {"kind": "checkpoint", "checkpoint_id": shown["id"]}
    body = {"kind": "evaluate", "spec": {"data": {"name": "digits"}, "features": features}}
    retried = client.post(f"/v1/jobs/{run.job_id}/retry").json()

    assert shown["kind"] == "embeddings"
    assert "backbone" not in shown["links"]
    assert (native.status_code, native.content) == (200, content)
    assert "has no backbone" in assert_problem(backbone, 422)["errors"][0]["detail"]
    assert_problem(client.post("/v1/jobs", json=body), 422, "/spec/features/checkpoint_id")
    assert retried["resume_checkpoint_id"] is None


def test_a_checkpoint_has_the_kind_training(small: Served) -> None:
    checkpoint_id = small.checkpoint(b"weights")

    assert small.client().get(f"/v1/checkpoints/{checkpoint_id}").json()["kind"] == "training"
