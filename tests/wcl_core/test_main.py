"""The science from the command line, without any service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.wcl_core import small
from wcl_core import __main__ as command_line
from wcl_core import checkpoint
from wcl_core.protocol import MetricsRecord, Record
from wcl_core.reporter import ConsoleReporter

pytestmark = pytest.mark.process

torch.set_num_threads(1)

ROOT = Path(command_line.__file__).parents[1]


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return str(path)


def call(*arguments: str | Path) -> int:
    return command_line.main([str(argument) for argument in arguments])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return the folder of a finished run of two epochs."""
    spec = small.fields(epochs=2, batch_size=256, backbone={"width": 5}, knn_every_epochs=0)
    assert call("pretrain", write(tmp_path / "spec.yaml", spec), "--output", tmp_path / "run") == 0
    return tmp_path / "run"


def test_the_module_runs_by_name_in_a_process_without_any_service(tmp_path: Path) -> None:
    """The command is that of the readme; it loads no module of the service."""
    spec = write(tmp_path / "spec.yaml", small.fields(epochs=2, batch_size=512))
    code = (
        "import runpy, sys; sys.argv[0] = 'wcl_core'\n"
        "try: runpy.run_module('wcl_core', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "services = {'jobs', 'api', 'worker', 'wcl_client', 'fastapi', 'sqlalchemy', 'celery'} & set(sys.modules)\n"
        "sys.exit(str(services) if services else status)"
    )
    command = [sys.executable, "-c", code, "pretrain", spec, "--output", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00000002.safetensors",
        "step-00000004.safetensors",
    ]
    lines = done.stderr.splitlines()
    assert lines[0].startswith("started")
    assert lines[-1].startswith("checkpoint")
    assert "train/loss=" in done.stderr


def test_a_run_continues_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    first, last = sorted((trained / "checkpoints").iterdir())
    assert call("pretrain", tmp_path / "spec.yaml", "--resume", first, "--output", tmp_path / "more") == 0
    (again,) = (tmp_path / "more" / "checkpoints").iterdir()
    assert again.read_bytes() == last.read_bytes()


def test_an_interrupt_is_a_pause_which_saves_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, emit = signal.getsignal(signal.SIGINT), ConsoleReporter.emit

    def interrupt(self: ConsoleReporter, record: Record) -> None:
        emit(self, record)
        if isinstance(record, MetricsRecord) and record.step == 2 and "train/loss" in record.values:
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a second one would stop at once

    monkeypatch.setattr(ConsoleReporter, "emit", interrupt)
    assert call("pretrain", write(tmp_path / "spec.yaml", small.fields()), "--output", tmp_path / "run") == 1
    assert "paused; --resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002.safetensors"]


def test_json_and_yaml_mean_the_same(tmp_path: Path) -> None:
    specs = [
        command_line._read_spec("pretrain", Path(write(tmp_path / name, small.fields())))
        for name in ("spec.json", "spec.yaml", "spec.yml")
    ]
    assert specs == [small.spec()] * 3


def test_export_and_evaluate_a_trained_backbone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = sorted((trained / "checkpoints").iterdir())[-1]
    assert call("export", last, tmp_path / "out" / "backbone.safetensors") == 0
    assert (
        load_file(tmp_path / "out" / "backbone.safetensors").keys()
        == checkpoint.read(last).part("model/backbone.").keys()
    )
    features = {"kind": "checkpoint", "checkpoint_id": "0190b5a0-0000-7000-8000-000000000000"}
    spec = {"data": {"name": "digits", "image_size": 8}, "features": features, "protocols": ["knn"]}
    assert call("evaluate", write(tmp_path / "evaluate.yaml", spec), "--checkpoint", last) == 0
    assert call("evaluate", tmp_path / "evaluate.yaml") == 1
    assert "no checkpoint file was given" in capsys.readouterr().err


def test_a_dataset_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("describe-dataset", "digits", "builtin") == 0
    described = json.loads(capsys.readouterr().out)
    assert described["name"] == "digits"
    assert described["kind"] == "builtin"
    assert described["digest"] == small.digits().digest
    assert described["counts"] == {"train": 1433, "test": 364}
    assert described["classes"] == list("0123456789")
    assert {split: sum(counts) for split, counts in described["class_counts"].items()} == described["counts"]
    assert described["image_size"] is None
    assert described["label_lists"] == {}
    assert call("describe-dataset", "photos", "folder", tmp_path / "none") == 1
    assert "photos" in capsys.readouterr().err


def test_a_folder_of_images_is_trained_on(tmp_path: Path) -> None:
    for index in range(20):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 9, 9)).save(path)
    fields = small.fields(data={"name": "photos", "image_size": 8}, batch_size=4, epochs=2)
    spec = write(tmp_path / "spec.yaml", fields)
    assert call("pretrain", spec, "--output", tmp_path / "run", "--data-path", tmp_path / "photos") == 0


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        (
            "spec.yaml",
            {"data": {"name": "digits"}, "epochs": 5, "warmup_epochs": 10},
            ["error: warmup_epochs: warmup_epochs is 10, but epochs is 5"],
        ),
        ("spec.yaml", small.fields(loss={"temprature": 1}), ["error: loss.temprature: Extra inputs"]),
        ("spec.yaml", small.fields(epochs=-1, seed="x"), ["error: epochs: ", "error: seed: "]),
        (
            "spec.yaml",
            small.fields(data={"name": "nothing"}),
            ["error: there is no builtin dataset nothing", "digits, cifar10"],
        ),
        ("spec.yaml", small.fields(batch_size=5000), ["error: batch_size is 5000, but the train split"]),
        ("spec.yaml", [1, 2], ["spec.yaml: expected a mapping of fields, but the file holds a list"]),
        ("spec.json", "text", ["spec.json: expected a mapping of fields, but the file holds a str"]),
    ],
)
def test_bad_input_is_one_line_a_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, messages: list[str]
) -> None:
    assert call("pretrain", write(tmp_path / name, content), "--output", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert "Traceback" not in error


@pytest.mark.parametrize(("name", "text"), [("bad.json", '{"data":'), ("bad.yaml", "data: [1, ")])
def test_a_file_that_cannot_be_parsed_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert call("pretrain", tmp_path / name) == 1
    assert f"{name}: " in capsys.readouterr().err
    assert call("pretrain", tmp_path / "none.yaml") == 1
    assert "none.yaml" in capsys.readouterr().err


def test_damaged_files_are_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged").write_bytes(b"what is this")
    spec = write(tmp_path / "spec.yaml", small.fields())
    for arguments in (
        ("export", tmp_path / "damaged", tmp_path / "out"),
        ("pretrain", spec, "--resume", tmp_path / "damaged", "--output", tmp_path / "run"),
    ):
        assert call(*arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


def test_wrong_usage_is_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["pretrain"], ["describe-dataset", "digits", "magic"]):
        with pytest.raises(SystemExit) as caught:
            call(*arguments)
        assert caught.value.code == 2
        assert "usage:" in capsys.readouterr().err
