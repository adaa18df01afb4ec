"""A method from another distribution: Barlow Twins, installed as a plugin, in all kinds of runs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.wcl_core import rank_tasks, ranks, small
from tests.wcl_core.distributions import install_barlow_twins
from wcl_core import checkpoint
from wcl_core.config import EvaluateSpec, parse_spec, resolve_spec
from wcl_core.distributed import SINGLE
from wcl_core.evaluation.run import evaluate
from wcl_core.export import backbone_file
from wcl_core.methods import build_method
from wcl_core.plugins import PluginError
from wcl_core.reporter import MemoryReporter

torch.set_num_threads(1)

BARLOW: dict[str, Any] = {"method": "barlow-twins", "method_options": {"projection_dim": 6}, "epochs": 2}


@pytest.fixture
def site_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install_barlow_twins(tmp_path / "site")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in ("wcl_test_options", "wcl_test_method"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def wrong(**changes: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        small.spec(**changes)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


# --- in a spec ------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_its_options_are_validated_and_resolved_without_torch(site_packages: Path) -> None:
    code = (
        "import sys\n"
        "from wcl_core.config import parse_spec, resolve_spec\n"
        "sent = {'data': {'name': 'digits'}, 'method': 'barlow-twins', 'method_options': {'projection_dim': 4}}\n"
        "print(resolve_spec(parse_spec('pretrain', sent))['method_options'])\n"
        "assert not {'torch', 'wcl_test_method'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'off_diagonal_weight': 0.02, 'projection_dim': 4}"


def test_a_wrong_option_names_its_field(site_packages: Path) -> None:
    options = {"projection_dim": 1, "off_diagonal_weight": "much", "lambda": 1}
    errors = wrong(method="barlow-twins", method_options=options)
    assert set(errors) == {f"method_options.{name}" for name in options}
    assert "greater than or equal to 2" in errors["method_options.projection_dim"]
    assert set(wrong(method_options={"projection_dim": 4})) == {"method_options.projection_dim"}


def test_the_error_for_an_unknown_method_lists_the_valid_names(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = wrong(method="barlow", method_options={"anything": 1})
    assert errors.keys() == {"method"}
    assert "there is no method barlow; expected one of wcl, simclr, absent, barlow-twins, no-heads" in errors["method"]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(site_packages)])
    assert wrong(**BARLOW)["method"].endswith("there is no method barlow-twins; expected one of wcl, simclr")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"multi_crop": {"crops": 1}}, "multi_crop"),
        ({"momentum_decay": 0.9}, "momentum_decay"),
        ({"queue_size": 64}, "queue_size"),
        ({"loss": {"finch_level": 2}}, "loss"),
    ],
)
def test_parts_of_a_spec_that_it_cannot_use_are_refused(
    site_packages: Path, changes: dict[str, Any], field: str
) -> None:
    errors = wrong(**BARLOW, **changes)
    assert errors.keys() == {field}
    assert errors[field].endswith("which method barlow-twins does not have; leave it out")


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "cannot be imported.*nothing"), ("no-options", "no subclass of .*MethodOptions")]
)
def test_a_plugin_without_options_is_named_in_the_error(site_packages: Path, name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=f"plugin {name} of wcl.methods.*{message}"):
        small.spec(method=name)


@pytest.mark.parametrize(("name", "message"), [("no-method", "expected a .*Method"), ("no-heads", "heads are")])
def test_a_plugin_that_builds_no_method_is_named_in_the_error(site_packages: Path, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=f"plugin {name} of wcl.methods.*{message}"):
        build_method(small.spec(method=name))


# --- in a run -------------------------------------------------------------------------------------------------------


def last_file(folder: Path) -> Path:
    return sorted((folder / "from-0" / "checkpoints").iterdir())[-1]


def digest_of(folder: Path) -> str:
    return hashlib.sha256(last_file(folder).read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bfloat16"}, {"micro_batch_size": 16}], ids=["plain", "bfloat16", "micro-batches"]
)
def test_it_learns_and_resumes_to_the_same_bytes(site_packages: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    fields = small.fields(**BARLOW, **changes)
    whole = rank_tasks.training(SINGLE, tmp_path / "whole", fields)
    rank_tasks.training(SINGLE, tmp_path / "cut", fields, stop=5)
    cut = last_file(tmp_path / "cut")
    assert cut.name == "step-00000005.safetensors"
    rank_tasks.training(SINGLE, tmp_path / "resumed", fields, resume=str(cut))
    assert digest_of(tmp_path / "resumed") == digest_of(tmp_path / "whole")

    saved = checkpoint.read(last_file(tmp_path / "whole"))
    assert saved.tensors["barlow/scale"] != 1
    assert saved.tensors["model/projection.weight"].shape == (6, 16)
    assert saved.spec.method_options == {"projection_dim": 6, "off_diagonal_weight": 0.02}
    curves = small.curves(whole["records"])
    assert curves["train/diagonal", 8] < curves["train/diagonal", 1]
    assert {("train/loss", 8), ("train/off_diagonal", 8), ("embedding/rankme", 4), ("repr/std", 8)} <= curves.keys()
    assert not any(name.startswith("weak/") for name, _ in curves)


@pytest.mark.process
def test_it_is_the_same_at_any_number_of_ranks(site_packages: Path, tmp_path: Path) -> None:
    fields = small.fields(**BARLOW)
    one = rank_tasks.double_training(SINGLE, tmp_path / "one", fields)
    with ranks.worlds() as worlds:
        results = worlds.run(2, "double_training", tmp_path / "two", fields=fields)
    expected, result = (
        {key: value for key, value in small.curves(records).items() if key[0].startswith("train/")}
        for records in (one["records"], results[0]["records"])
    )
    assert result == pytest.approx(expected, rel=1e-9)


def test_its_backbone_is_measured_and_exported_like_any_other(site_packages: Path, tmp_path: Path) -> None:
    rank_tasks.training(SINGLE, tmp_path, small.fields(**BARLOW))
    path = last_file(tmp_path)
    spec = parse_spec(
        "evaluate",
        {
            "data": {"name": "digits", "image_size": 8},
            "features": {"kind": "checkpoint", "checkpoint_id": "0" * 8 + "-0000-0000-0000-" + "0" * 12},
            "protocols": ["knn"],
            "knn_k": 5,
        },
    )
    assert isinstance(spec, EvaluateSpec)
    reporter = MemoryReporter()
    assert evaluate(spec, reporter, data=small.few_digits(), checkpoint_path=path) == "succeeded"
    assert 0 < reporter.of("evaluation")[0]["value"] <= 1
    backbone_file(path, tmp_path / "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").stat().st_size > 0


def test_a_resolved_spec_parses_to_the_same_spec(site_packages: Path) -> None:
    spec = small.spec(**BARLOW)
    assert parse_spec("pretrain", resolve_spec(spec)) == spec
