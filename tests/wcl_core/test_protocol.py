"""The contract between worker and run: spools of earlier versions, its names on both sides, and refused records."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

pytest.importorskip("jobs", reason="the service is not here")

from jobs.status import Reason, Status
from wcl_core import protocol
from wcl_core.protocol import FailureReason, MapFacts, MonitorBatchFacts, Outcome, RunFile, parse_record, to_json

ROOT = Path(protocol.__file__).parents[1]

# As version 0.1 wrote them.
SPOOL = r"""
{"seq":1,"type":"progress","step":0,"total_steps":0,"epoch":0,"total_epochs":0,"images_per_second":null,"eta_seconds":null,"phase":"load"}
{"seq":2,"type":"started","device":"cpu AVX2","torch":"2.11.0","threads":1,"world_size":1,"channels_last":false,"python":"3.11.7","total_steps":12,"total_epochs":3,"start_step":0}
{"seq":3,"type":"artifact","name":"probe.png","path":"artifacts/0a-probe.png","sha256":"0a","size":8,"media_type":"image/png"}
{"seq":4,"type":"metrics","step":4,"values":{"train/loss":null,"train/lr":0.1}}
{"seq":5,"type":"warning","reason":"non_finite_metric","message":"not finite at step 4: train/loss"}
{"seq":6,"type":"groups","epoch":1,"step":4,"labels":[0,1,0]}
{"seq":7,"type":"progress","step":4,"total_steps":12,"epoch":1.0,"total_epochs":3,"images_per_second":9.88,"eta_seconds":1.0,"phase":"train"}
{"seq":8,"type":"checkpoint","step":4,"epoch":1,"path":"checkpoints/step-00000004.safetensors","sha256":"ab","size":7,"metrics":{"train/loss":1.5}}
{"seq":9,"type":"checkpoint","step":0,"epoch":0,"path":"embeddings.safetensors","sha256":"cd","size":7,"metrics":{},"kind":"embeddings"}
{"seq":10,"type":"evaluation","dataset_digest":"d","split_digest":"s","seed":0,"n":100,"stderr":null,"protocol":"linear","protocol_version":1,"params":{"form":"lbfgs"},"metric":"top1","value":0.5,"details":{"C":1.0}}
{"seq":11,"type":"log","level":"info","message":"hello"}
{"seq":12,"type":"end","outcome":"failed","reason":"bad_data","message":"no image"}
""".strip().splitlines()  # noqa: E501

RUN_FILE = {
    "job_id": "01a",
    "attempt": 2,
    "host": "machine",
    "kind": "evaluate",
    "spec": {"protocols": ["knn"]},
    "dataset": {"kind": "folder", "path": "/images", "digest": "d", "lists": {"some": "/some.txt"}},
    "resume": None,
    "checkpoint": "/storage/a",
}


@pytest.mark.parametrize("line", SPOOL)
def test_records_of_an_earlier_version_are_read_and_written_unchanged(line: str) -> None:
    record = parse_record(line.encode())

    assert {"seq": record.seq, **to_json(record)} == json.loads(line)


def test_every_type_of_record_is_among_them() -> None:
    assert {parse_record(line.encode()).type for line in SPOOL} == {
        kind.model_fields["type"].default for kind in get_args(protocol.Record)
    }


def test_a_run_file_of_an_earlier_version_is_read_and_written_unchanged(tmp_path: Path) -> None:
    (tmp_path / protocol.RUN_FILE).write_text(json.dumps(RUN_FILE))
    run = RunFile.read(tmp_path)
    run.write(tmp_path)

    assert (run.evaluated, run.dataset.lists) == (Path("/storage/a"), {"some": Path("/some.txt")})
    assert json.loads((tmp_path / protocol.RUN_FILE).read_text()) == RUN_FILE


def test_a_run_file_with_an_invalid_field_names_it(tmp_path: Path) -> None:
    (tmp_path / protocol.RUN_FILE).write_text(json.dumps(RUN_FILE | {"kind": "magic"}))

    with pytest.raises(ValueError, match=r"run\.json: kind: .*'pretrain' or 'evaluate'"):
        RunFile.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": None}, "step"),
        ({"step": -1}, "step"),
        ({"step": 2**63}, "step"),
        ({"values": {"train/loss": "low"}}, "values.train/loss"),
        ({"values": {"train/loss": 10**400}}, "values.train/loss"),
        ({"type": "other"}, "other"),
        ({"seq": "first"}, "seq"),
    ],
)
def test_an_invalid_record_is_refused_by_its_field(changes: dict[str, Any], problem: str) -> None:
    line = {"seq": 1, "type": "metrics", "step": 1, "values": {"train/loss": 1.0}} | changes

    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_record(json.dumps(line).encode())


def test_the_service_has_every_reason_and_outcome_of_a_run() -> None:
    assert set(get_args(FailureReason)) <= set(Reason)
    assert set(get_args(Outcome)) - {"drained"} <= set(Status)
    assert protocol.OUTCOME_OF.keys() == protocol.REQUEST_LETTERS.keys() == set(get_args(protocol.Request))


def test_metrics_that_the_pages_show_have_a_name_in_the_contract() -> None:
    names = {value for value in vars(protocol).values() if isinstance(value, str)}
    scripts = (ROOT / "api/web/static/js").rglob("*.js")
    shown = {name for path in scripts for name in re.findall(r'"((?:train|eval|weak|system)/\w+)"', path.read_text())}
    terms = {f"{protocol.TRAIN_PREFIX}{term}" for term in ("loss_instance", "loss_weak")}  # of the method's loss

    assert shown, "the scripts name metrics"
    pairs = {protocol.KNN_TOP1 + part for part in (protocol.GAINED, protocol.LOST)}
    assert shown <= names | terms | pairs


def test_facts_whose_lists_disagree_are_refused() -> None:
    facts = MonitorBatchFacts(indices=[3], classes=[None], class_names=[], tile=8, columns=1)
    assert (facts.known_classes, facts.name_of(0)) == (None, "0")
    lists = {"pca": [(0, 0)] * 2, "tsne": [(0, 0)] * 2, "neighbours": [[1], [0]], "cosines": [[1], [1]]}
    data = {"dataset": "digits", "split": "test", "split_images": 2, "class_names": [], "pca_shares": [1, 0]}
    layout = {"tile": 8, "columns": 2, "perplexity": 1, "indices": [1, 2], "labels": [0, 0], "components": None}
    MapFacts.model_validate(data | layout | lists)

    for wrong in ({"labels": [0]}, {"neighbours": [[2], [0]]}, {"cosines": [[1], []]}):
        with pytest.raises(ValidationError):
            MapFacts.model_validate(data | layout | lists | wrong)


@pytest.mark.process
def test_the_contract_loads_no_torch() -> None:
    code = "import sys, wcl_core.protocol; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "record",
    [
        {"type": "started", "start_step": 0, "x": _nested(40)},
        {"type": "started", "start_step": 0, "x": [{"y": 10**30}]},
        {"type": "metrics", "step": 0, "values": {f"n{number}": 0.0 for number in range(1_001)}},
        {"type": "progress", "step": 0, "total_steps": 0, "epoch": 10**400, "total_epochs": 0, "phase": "load"},
        {"type": "groups", "epoch": 1 << 31, "step": 0, "labels": []},
        {"type": "groups", "epoch": 0, "step": 0, "labels": [1 << 31]},
        *(
            {"type": "checkpoint", "step": 0, "epoch": 0, "path": path, "sha256": "ab", "size": 1, "metrics": {}}
            for path in ("/etc/hostname", "../x", "a/../../x", "", ".", "a" * 201, "report.jsonl", "./run.json")
        ),
        {"type": "checkpoint", "step": 0, "epoch": 0, "path": "a", "sha256": "../..", "size": 1, "metrics": {}},
    ],
    ids=lambda record: json.dumps(record)[:60],
)
def test_a_record_beyond_a_limit_is_refused(record: dict[str, Any]) -> None:
    field = "path|sha256|labels|epoch|x|values"
    with pytest.raises(ValueError, match=f"^[a-z]+[.]({field})"):
        parse_record(json.dumps({"seq": 1} | record).encode())


def test_text_of_a_record_that_must_not_get_lost_is_cut() -> None:
    end = {"seq": 1, "type": "end", "outcome": "failed", "reason": "a" * 500, "message": "b" * 20_000}

    assert parse_record(json.dumps(end).encode()) == protocol.EndRecord(
        seq=1, outcome="failed", reason="a" * 64, message="b" * 10_000
    )
