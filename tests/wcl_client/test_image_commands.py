"""Commands for new images: each runs a verb of the library in a process, on a file or on the weights of a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from jobs.models import Job
from tests import parallel
from tests.api.served import Served
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl
from wcl_client.commands import images
from wcl_core import checkpoint
from wcl_core.config import PretrainSpec, parse_spec, resolve_spec
from wcl_core.evaluation.image_classifier import predict
from wcl_core.evaluation.new_images import Features
from wcl_core.networks.backbones import build_backbone
from wcl_core.protocol import EMBEDDINGS_FILE


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
        (
            ["classify", "predict", "w", "a.png", "photos/a.png", "-o", "c.csv"],
            ["classify-predict", "w", "a.png", "photos/a.png", "c.csv"],
        ),
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
    Path("photos").mkdir()
    for image in ("a.png", "photos/a.png"):
        Image.new("RGB", (1, 1)).save(image)
    monkeypatch.setattr(images.subprocess, "run", run)
    assert wcl(*command).exit_code == 0
    assert calls == [["-m", "wcl_core", *verb]]
    assert wcl(*command).exit_code == 1, "the library has printed why"
    if target := next((name for name in command if name.startswith(("x.", "n.", "c.csv", "c.safe"))), None):
        Path(target).write_text("mine")
        refused = wcl(*command)
        assert f"{target} exists; choose another name, or replace it with --force" in " ".join(refused.stderr.split())
        assert (refused.exit_code, len(calls)) == (2, 2), "nothing was computed"
        wcl(*command, "--force")
        assert calls[2] == calls[0]


@pytest.mark.parametrize(
    "command",
    [
        ["features", "training", "gone", "-o", "x.csv"],
        ["classify", "predict", "c.safetensors", "gone", "-o", "c.csv"],
    ],
)
def test_a_folder_that_is_absent_is_named_before_anything_is_downloaded(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WCL_URL", "http://127.0.0.1:9")  # no server
    done = wcl(*command)
    assert done.exit_code == 2
    assert "gone does not exist; expected the path of images here, not a dataset's name" in " ".join(
        done.stderr.replace("│", " ").split()
    )
    refused = wcl("neighbours", "training", "gone.png", "--in", ".")
    assert (refused.exit_code, "gone.png is no file; expected an image" in refused.stderr) == (2, True)


class Computed(NamedTuple):
    """A training with a checkpoint, and the evaluation that has written its features of two images of digits."""

    server: Served
    training_id: str
    evaluation_id: str


@pytest.fixture
def computed(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computed:
    monkeypatch.setattr(sys, "executable", parallel.python())  # for `python -m wcl_core`
    backbone = {"name": "tiny", "width": 4}
    spec = parse_spec("pretrain", {"data": {"name": "digits", "image_size": 8}, "backbone": backbone})
    assert isinstance(spec, PretrainSpec)
    network = build_backbone(spec.backbone, 8).state_dict()
    weights = {f"model/backbone.{name}": each for name, each in network.items()}
    native = checkpoint.write(tmp_path / "native", weights, {"spec": resolve_spec(spec), "step": 12, "epoch": 1})
    Image.new("RGB", (8, 8), (200, 30, 30)).save(tmp_path / "red.png")
    _, red = Features(native.path, None, pytest.fail).of(tmp_path, ["red.png"])

    training = rows.Run(server.database, rows.running(server.database))
    server.checkpoint(native.path.read_bytes(), training, step=12)
    training.end("succeeded")
    job_id = json.loads(wcl("evaluate", training.job_id, "--protocol", "embed", "--json").stdout)["id"]
    run = rows.Run(server.database, rows.claim(server.database))
    assert run.job_id == job_id
    tensors = {"train/features": torch.cat([-red, red]).half()}
    tensors |= {"train/labels": torch.tensor([1, 0]), "train/index": torch.arange(2)}
    facts = {"kind": "embeddings", "dataset": "digits", "image_size": 8, "classes": ["zero", "one"]}
    key = f"{job_id}/1/{EMBEDDINGS_FILE}"
    file = checkpoint.write(server.settings.checkpoints_dir / key, tensors, facts)
    record = rows.checkpoint(0, file.sha256) | {"path": key, "size": file.size, "kind": "embeddings"}
    run.deliver(rows.started(), record, rows.end("succeeded"))
    return Computed(server, training.job_id, job_id)


def test_features_of_a_dataset_come_from_the_job_that_has_them(computed: Computed, tmp_path: Path) -> None:
    target = tmp_path / "f.csv"
    done = wcl("features", computed.training_id, "--dataset", "digits", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert computed.evaluation_id in done.stderr
    lines = target.read_text().splitlines()
    assert lines[0].startswith("path,split,label,f0,f1,")
    assert [line.split(",")[:3] for line in lines[1:]] == [["train/0", "train", "one"], ["train/1", "train", "zero"]]
    assert len(rows.rows_of(computed.server.database, Job)) == 2, "no second job computes them"

    target.unlink()
    done = wcl("features", computed.evaluation_id, "--split", "train", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert target.read_text().splitlines() == lines


def test_neighbours_in_a_dataset_come_from_the_job_that_has_its_features(
    computed: Computed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "n.csv"
    arguments = (computed.training_id, str(tmp_path / "red.png"), "--in", "digits", "-o", str(target))
    for force in ((), ("--force",)):
        done = wcl("neighbours", *arguments, *force)
        assert done.exit_code == 0, done.output
    rows_written = [line.split(",") for line in target.read_text().splitlines()[1:]]
    assert [path for each in rows_written for path in each if path.startswith("train")] == ["train/1", "train/0"]
    assert len(rows.rows_of(computed.server.database, Job)) == 2, "no second job computes them"
    assert "cosine similarity" not in done.stderr, "rows in a file need no heading"
    capfd.readouterr()
    printed = wcl("neighbours", *arguments[:4])
    assert "cosine similarity to red.png, the nearest image first:" in printed.stderr.splitlines()
    assert [line.split()[-1] for line in capfd.readouterr().out.splitlines()] == ["train/1", "train/0"]

    refused = wcl("neighbours", computed.training_id, str(tmp_path / "red.png"), "--in", "digit")
    assert "no dataset of the service (digits)" in " ".join(refused.output.split())
    refused = wcl("neighbours", computed.training_id, "absent.png", "--in", "digits")
    assert "absent.png is no file" in " ".join(refused.output.split())
    (tmp_path / "notes.png").write_text("none")
    refused = wcl("neighbours", computed.training_id, str(tmp_path / "notes.png"), "--in", "another")
    assert (refused.exit_code, refused.stderr) == (1, ""), "no server was asked for the dataset"
    assert "notes.png is no image that is read: its content is none of the formats" in capfd.readouterr().err
    assert len(rows.rows_of(computed.server.database, Job)) == 2


def test_a_classifier_of_a_dataset_comes_from_the_job_that_has_its_features(computed: Computed, tmp_path: Path) -> None:
    target = tmp_path / "new" / "c.safetensors"
    done = wcl("classify", "fit", computed.training_id, "digits", "-o", str(target))
    assert done.exit_code == 0, done.output
    assert f"made the folder {target.parent}" in done.stderr
    assert len(rows.rows_of(computed.server.database, Job)) == 2, "no second job computes them"
    (tmp_path / "one").mkdir()
    (tmp_path / "red.png").rename(tmp_path / "one" / "red.png")
    predicted = predict(target, [tmp_path / "one"], tmp_path / "c.csv", None, pytest.fail)
    assert predicted.counts == {"zero": 1}

    table = tmp_path / "digits.csv"
    done = wcl("classify", "predict", str(target), "--dataset", "digits", "-o", str(table))
    assert done.exit_code == 0, done.output
    cells = [line.split(",")[:2] for line in table.read_text().splitlines()]
    assert cells == [["path", "class"], ["train/0", "one"], ["train/1", "zero"]]
    assert len(rows.rows_of(computed.server.database, Job)) == 2, "no second job computes them"
    other = tmp_path / "other.safetensors"
    (tmp_path / "zero").mkdir()
    Image.new("RGB", (8, 8), (20, 30, 200)).save(tmp_path / "zero" / "blue.png")
    (tmp_path / "both").mkdir()
    for name in ("one", "zero"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    assert wcl("classify", "fit", str(tmp_path / "native"), str(tmp_path / "both"), "-o", str(other)).exit_code == 0
    for file, message in ((other, "names no checkpoint of the service"), (tmp_path / "native", "is no classifier")):
        refused = wcl("classify", "predict", str(file), "--dataset", "digits", "-o", str(table), "--force")
        assert message in " ".join(refused.stderr.replace("│", " ").split())
    refused = wcl("classify", "predict", str(target), "-o", str(table), "--force")
    assert "either a folder or images, or --dataset NAME" in " ".join(refused.stderr.replace("│", " ").split())


def test_weights_of_a_training_that_goes_on_name_their_epoch(server: Served, tmp_path: Path) -> None:
    training = rows.Run(server.database, rows.running(server.database))
    server.checkpoint(b"weights", training, step=12)
    sentence = "the checkpoint of epoch 1 of 100 (step 12) of wcl digits tiny, which goes on"
    assert f"takes {sentence}" in " ".join(wcl("download", training.job_id, "-o", str(tmp_path / "w")).stderr.split())
    training.end("succeeded")
    assert "takes" not in wcl("download", training.job_id, "-o", str(tmp_path / "w"), "--force").stderr
    assert "exists" in wcl("download", training.job_id, "-o", str(tmp_path / "w")).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "ID", "photos", "--dataset", "digits", "-o", "x.csv"], "either a folder or images, or --dataset"),
        (["features", "ID", "-o", "x.csv"], "has no features of a dataset; expected a folder"),
        (["features", "ID", "--dataset", "digits"], "expected a file to write"),
        (["features", "ID", "photos", "--split", "train", "-o", "x.csv"], "with --dataset"),
        (["features", "ID", "--dataset", "digits", "-o", "x.txt"], "ends in .csv"),
        (["features", "ID", "--dataset", "digits", "-o", "pyproject.toml/x.csv"], "can write no file into"),
        (["features", "ID", "--dataset", "digit", "-o", "x.csv"], "no dataset of the service (digits)"),
    ],
)
def test_a_request_that_gives_no_table_submits_no_job(server: Served, arguments: list[str], message: str) -> None:
    training = rows.Run(server.database, rows.running(server.database))
    done = wcl(*(training.job_id if each == "ID" else each for each in arguments))
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert len(rows.rows_of(server.database, Job)) == 1
