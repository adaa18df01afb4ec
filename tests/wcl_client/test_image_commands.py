"""Commands for new images: each runs a verb of the library in a process, on a file or on the weights of a job."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from jobs.models import Job
from tests.api.served import Served, native_checkpoint
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl
from wcl_client.commands import images
from wcl_core import checkpoint


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        (["features", "w", "photos", "-o", "x.csv", "--size", "64"], ["features", "w", "photos", "x.csv", "--size=64"]),
        (["neighbours", "w", "photos/a.png"], ["neighbours", "w", "photos/a.png", "photos", "--count=10"]),
        (
            ["neighbours", "w", "a.png", "--in", "photos", "-k", "3", "-o", "n.csv"],
            ["neighbours", "w", "a.png", "photos", "--count=3", "--output=n.csv"],
        ),
        (["classify", "fit", "w", "photos", "-o", "c.safetensors"], ["classify-fit", "w", "photos", "c.safetensors"]),
        (["classify", "predict", "w", "photos", "-o", "c.csv"], ["classify-predict", "w", "photos", "c.csv"]),
    ],
)
def test_each_command_runs_a_verb_of_the_library(
    command: list[str], verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(arguments: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(arguments[1:])
        return subprocess.CompletedProcess(arguments, 0 if len(calls) == 1 else 1)

    monkeypatch.chdir(tmp_path)
    Path("w").write_bytes(b"")
    monkeypatch.setattr(images.subprocess, "run", run)
    assert wcl(*command).exit_code == 0
    assert calls == [["-m", "wcl_core", *verb]]
    assert wcl(*command).exit_code == 1, "the library has printed why"


def test_features_of_a_dataset_come_from_the_job_that_has_them(server: Served, tmp_path: Path) -> None:
    training = rows.Run(server.database, rows.running(server.database))
    server.checkpoint(native_checkpoint(), training, step=12)
    training.end("succeeded")
    job_id = json.loads(wcl("evaluate", training.job_id, "--protocol", "embed", "--json").stdout)["id"]
    run = rows.Run(server.database, rows.claim(server.database))
    assert run.job_id == job_id
    tensors = {"train/features": torch.tensor([[0.5, -2.0], [1.0, 3.0]], dtype=torch.float16)}
    tensors |= {"train/labels": torch.tensor([1, 0]), "train/index": torch.arange(2)}
    facts = {"kind": "embeddings", "dataset": "digits", "image_size": 8, "classes": ["zero", "one"]}
    key = f"{job_id}/1/embeddings.safetensors"
    file = checkpoint.write(server.settings.checkpoints_dir / key, tensors, facts)
    record = rows.checkpoint(0, file.sha256) | {"path": key, "size": file.size, "kind": "embeddings"}
    run.deliver(rows.started(), record, rows.end("succeeded"))

    target = tmp_path / "f.csv"
    done = wcl("features", training.job_id, "--dataset", "digits", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert job_id in done.stderr
    assert target.read_text() == "path,split,label,f0,f1\ntrain/0,train,one,0.5,-2\ntrain/1,train,zero,1,3\n"
    assert len(rows.rows_of(server.database, Job)) == 2, "no second job computes them"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "ID", "photos", "--dataset", "digits", "-o", "x.csv"], "either a folder or --dataset"),
        (["features", "ID", "--dataset", "digits"], "expected a file to write"),
        (["features", "ID", "photos", "--split", "train", "-o", "x.csv"], "with --dataset"),
        (["features", "ID", "--dataset", "digits", "-o", "x.txt"], "ends in .csv"),
        (["features", "ID", "--dataset", "digits", "-o", "absent/x.csv"], "there is no folder absent"),
        (["features", "ID", "--dataset", "digit", "-o", "x.csv"], "no dataset of the service (digits)"),
    ],
)
def test_a_request_that_gives_no_table_submits_no_job(server: Served, arguments: list[str], message: str) -> None:
    training = rows.Run(server.database, rows.running(server.database))
    done = wcl(*(training.job_id if each == "ID" else each for each in arguments))
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert len(rows.rows_of(server.database, Job)) == 1
