"""What a shell completes: asked as a shell does, by the environment of a process of `wcl`."""

from __future__ import annotations

import json
import os
import subprocess

import jsonschema
import pytest
from typer.testing import CliRunner

from tests import parallel
from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import PATIENCE
from wcl_client import completion
from wcl_client.cli import app
from wcl_core.config import PretrainSpec


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell waits for 2 s at most; a busy machine may need more."""
    monkeypatch.setattr(completion, "_SECONDS", PATIENCE)


def completed(*words: str) -> list[str]:
    """Return what bash gets for the last of the words after `wcl`."""
    line = " ".join(["wcl", *words])
    asked = {"_WCL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    command = [parallel.python(), "-c", "from wcl_client.cli import app; app(prog_name='wcl')"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_the_names_of_jobs(server: Served) -> None:
    rows.submit(server.database, name="night-1")
    rows.submit(server.database, name="night-2")

    assert completed("show", "ni") == ["night-2", "night-1"]


def test_jobs_are_completed_by_words_that_name_one_job(server: Served) -> None:
    ids = [
        rows.submit(server.database, name=name)[-12:] for name in ("twice", "twice", "two words", "$(reboot)", "c:d")
    ]

    found = dict(completion.jobs(""))

    assert set(found) == {"last", *ids}
    assert found[ids[2]].startswith("two words, queued, ")


def test_presets_and_datasets_are_completed(server: Served) -> None:
    assert "wcl-cifar10" in dict(completion.presets("wcl-c"))
    assert "digits-cpu" not in dict(completion.presets("wcl-c"))
    assert [name for name, _ in completion.datasets("dig")] == ["digits"]
    assert completion.datasets("x") == []


def test_without_a_server_nothing_is_completed_and_nothing_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WCL_URL", "http://127.0.0.1:9")

    assert [complete("") for complete in (completion.jobs, completion.presets, completion.fields)] == [[], [], []]


def test_fields_of_a_spec_are_completed(server: Served) -> None:
    assert [name for name, _ in completion.fields("loss.temp")] == ["loss.temperature="]
    names = [name for name, _ in completion.fields("")]
    assert {"epochs=", "data.name=", "optimizer.learning_rate=", "multi_crop.crops="} <= set(names)
    assert not {"loss=", "spec_version="} & set(names)


def test_the_schema_of_a_spec_accepts_what_the_service_accepts(server: Served) -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(described)
    validator = jsonschema.Draft202012Validator(described)
    spec = PretrainSpec.model_validate({"data": {"name": "digits"}}).model_dump(mode="json")
    assert validator.is_valid(spec)
    assert validator.is_valid({"epochs": 3}), "a preset may give the rest"
    assert not validator.is_valid({"epoch": 3})
    assert not validator.is_valid({"epochs": 0})


def test_an_unknown_kind_of_schema_is_refused() -> None:
    done = CliRunner().invoke(app, ["schema", "sweep"])

    assert done.exit_code == 2
    assert "expected pretrain or evaluate" in done.output
