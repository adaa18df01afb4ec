"""Commands for new images: each runs a verb of the library in a process, on a file or on the weights of a job."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.wcl_client.test_operations import wcl
from wcl_client.commands import images


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
