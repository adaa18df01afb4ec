"""A training that starts from imported weights, on a real worker."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision

from jobs import lineage, weights
from jobs.database import Database
from jobs.models import Job
from jobs.storage import LocalStorage, sha256_of
from tests.worker.conftest import StartWorker
from tests.worker.running import SHORT, Jobs
from wcl_core.networks.imported import import_weights

SPEC = SHORT | {"epochs": 1, "batch_size": 512, "warmup_epochs": 0, "weak_augmentation_epochs": 0}


def test_a_run_starts_from_imported_weights(
    start_worker: StartWorker, sqlite_database: Database, jobs: Jobs, tmp_path: Path
) -> None:
    worker = start_worker(sqlite_database)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    file = tmp_path / "weights.safetensors"
    imported = import_weights(tmp_path / "resnet18.pth", file)
    network = imported.backbone.model_dump(mode="json")
    sha256 = sha256_of(file)
    fields = {"sha256": sha256, "name": "resnet18", "size": file.stat().st_size, "report": imported.report()}
    storage = LocalStorage(worker.folder / "checkpoints")

    def store() -> None:
        with file.open("rb") as opened:
            weights.store(sqlite_database, storage, opened, fields | {"backbone": network, "image_size": 224})

    store()
    storage.path(weights.storage_key(sha256)).unlink()
    job_id = jobs.submit(SPEC | {"backbone": network, "weights": sha256})
    job = jobs.wait_for(job_id, "paused", "failed")
    assert (job.status, job.status_reason) == ("paused", "missing_checkpoint")
    assert "import the file again, and the job continues" in (job.status_message or "")
    store()
    jobs.wait_for(job_id, "succeeded")

    with sqlite_database.read() as session:
        origins = lineage.lineage(session, session.get_one(Job, job_id))
    assert [(each.relation, each.name, each.weights) for each in origins] == [("starts_from", "resnet18", sha256)]
    assert f"the training starts from weights {sha256}: backbone" in jobs.log(job_id)
