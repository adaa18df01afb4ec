"""Specs that can never run are refused before the queue, with the wrong field and the expected value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from api.http.field_errors import of_spec
from jobs import workers
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts
from jobs.models import Job
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from wcl_core.config import EvaluateSpec, Kind, PretrainSpec, parse_spec

# A class of three images, one of none, and two lists.
CATS = DatasetFacts(
    "cats",
    "folder",
    "c" * 64,
    {"train": 303, "test": 6},
    ["lion", "lynx", "puma"],
    {"train": [200, 3, 100], "test": [2, 2, 2]},
    {"official-1": {"digest": "1" * 64, "images": 3}, "official-10": {"digest": "2" * 64, "images": 30}},
    image_size=64,
)
DOGS = DatasetFacts("dogs", "folder", "d" * 64, {"train": 50, "test": 4}, ["pug", "husky"], {"train": [50, 0]})
GIB = 2**30
DATA = {"data": {"name": "cats", "image_size": 64}}
PIXELS = DATA | {"features": {"kind": "pixels"}}
NETWORK = DATA | {"features": {"kind": "untrained"}}


@pytest.fixture(scope="module")
def server(shared: Served) -> Iterator[Served]:
    announce(shared.database, 16 * GIB)
    yield shared
    assert rows.rows_of(shared.database, Job) == []


def announce(
    database: Database,
    memory_bytes: int | None,
    gpus: int = 0,
    pool: str = "default",
    has_compiler: bool | None = None,
) -> None:
    facts = rows.worker(id=new_id(), pool=pool, gpus=gpus)
    facts = replace(facts, devices=tuple(replace(each, memory_bytes=memory_bytes) for each in facts.devices))
    machine = {"memory_bytes": memory_bytes, "has_compiler": has_compiler}
    database.write(lambda session: workers.register(session, facts, 1, [CATS, DOGS], **machine))


def refused(server: Served, kind: str, spec: dict[str, Any], **job: Any) -> dict[str, str]:
    body = {"kind": kind, "spec": spec} | job
    problem = assert_problem(server.client().post("/v1/jobs?dry_run=true", json=body), 422)
    assert_problem(server.client().post("/v1/jobs", json=body), 422)
    return {error["pointer"]: error["detail"] for error in problem["errors"]}


def accepted(server: Served, kind: str, spec: dict[str, Any], **job: Any) -> bool:
    answer = server.client().post("/v1/jobs?dry_run=true", json={"kind": kind, "spec": spec} | job)
    assert answer.status_code == 200, answer.text
    return True


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"batch_size": 2, "processes": 4}, "/spec/processes", "processes is 4, which does not divide batch_size = 2"),
        (
            {"batch_size": 8, "data": {"name": "cats", "image_size": 65}},
            "/spec/data/image_size",
            "65 is more than the 64 pixels that cats is packed at",
        ),
        ({"batch_size": 304}, "/spec/batch_size", "304 is more than the 303 train images of cats"),
        ({"batch_size": 8, "multi_crop": {"crops": 17}}, "/spec/multi_crop/crops", "expected at most 16, not 17"),
        (
            {"batch_size": 8, "multi_crop": {"crops": 1, "neighbours": 8}},
            "/spec/multi_crop",
            "neighbours is 8, but batch_size is 8; use fewer than 8",
        ),
        (
            {"batch_size": 8, "micro_batch_size": 3},
            "/spec/micro_batch_size",
            "expected a divisor of the 8 images of each process",
        ),
        (
            {"batch_size": 8, "evaluations": [{"protocols": ["knn"], "knn_k": 20}]},
            "/spec/evaluations/0/knn_k",
            "3 train images",
        ),
        (
            {"batch_size": 8, "evaluations": [{"protocols": ["semi_supervised"], "semi_supervised": {"lists": ["x"]}}]},
            "/spec/evaluations/0/semi_supervised/lists/0",
            "there is no list 'x' of cats; registered are: official-1, official-10",
        ),
    ],
)
def test_runs(server: Served, changes: dict[str, Any], pointer: str, message: str) -> None:
    errors = refused(server, "pretrain", DATA | changes)
    assert errors.keys() == {pointer}
    assert message in errors[pointer]


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"protocols": ["knn"], "knn_k": 2}, "/spec/knn_k", "2 is above half the 3 train images of lynx, the smallest"),
        ({"protocols": ["knn_wide"]}, "/spec/protocols/0", "k = 200, which is above half the 3 train images of lynx"),
        ({"protocols": ["few_labels"], "labels_per_class": [3, 4]}, "/spec/labels_per_class/1", "4 is more than the 3"),
        (
            {"protocols": ["semi_supervised"], "semi_supervised": {"shares": [0.01, 0.1]}},
            "/spec/semi_supervised/shares/1",
            "0.1 of the labels is 10 a class, more than the 3 train images of lynx",
        ),
        (
            {"protocols": ["semi_supervised"], "semi_supervised": {"lists": ["official-1", "mine"]}},
            "/spec/semi_supervised/lists/1",
            "there is no list 'mine' of cats",
        ),
        (
            {"protocols": ["semi_supervised"], "semi_supervised": {"lists": ["/etc/passwd"]}},
            "/spec/semi_supervised/lists/0",
            "match pattern",
        ),
    ],
)
def test_evaluations(server: Served, changes: dict[str, Any], pointer: str, message: str) -> None:
    errors = refused(server, "evaluate", NETWORK | changes)
    assert errors.keys() == {pointer}
    assert message in errors[pointer]


def test_compiled_steps_are_refused_where_no_worker_can_compile(server: Served) -> None:
    """A worker of an older version says nothing of a compiler; a run falls back there and says so."""
    spec = DATA | {"batch_size": 8, "execution": "compiled"}
    announce(server.database, None, pool="bare", has_compiler=False)
    errors = refused(server, "pretrain", spec, pool="bare")
    assert list(errors) == ["/spec/execution"]
    assert "no worker of this pool has a compiler; use auto or eager, or install" in errors["/spec/execution"]
    assert accepted(server, "pretrain", spec | {"execution": "auto"}, pool="bare")
    assert accepted(server, "pretrain", spec, pool="older"), "no worker is live there"
    for pool, has_compiler in (("older", None), ("bare", True)):
        announce(server.database, None, pool=pool, has_compiler=has_compiler)
        assert accepted(server, "pretrain", spec, pool=pool)


def test_listed_datasets_have_the_facts_that_limit_a_spec(server: Served) -> None:
    datasets = {entry["name"]: entry for entry in server.client().get("/v1/datasets").json()["items"]}
    assert (datasets["cats"]["class_counts"], datasets["cats"]["image_size"]) == (CATS.class_counts, 64)
    assert datasets["cats"]["label_lists"] == CATS.label_lists
    assert (datasets["digits"]["class_counts"], datasets["digits"]["label_lists"]) == (None, {})


def test_values_at_their_limit_are_accepted(server: Served) -> None:
    assert accepted(server, "pretrain", DATA | {"batch_size": 303})
    assert accepted(
        server, "evaluate", PIXELS | {"protocols": ["knn", "few_labels"], "knn_k": 1, "labels_per_class": [3]}
    )
    lists = {"lists": ["official-1", "official-10"], "shares": [0.01]}
    assert accepted(server, "evaluate", NETWORK | {"protocols": ["semi_supervised"], "semi_supervised": lists})


def test_a_class_without_images(server: Served) -> None:
    spec = {"data": {"name": "dogs"}, "features": {"kind": "untrained"}, "knn_k": 1}
    protocols = ["knn", "few_labels", "semi_supervised"]
    errors = refused(server, "evaluate", spec | {"protocols": protocols, "labels_per_class": [1]})
    shares = {f"/spec/semi_supervised/shares/{place}" for place in (0, 1)}
    assert errors.keys() == {"/spec/knn_k", "/spec/labels_per_class/0"} | shares
    assert all("the 0 train images of husky, the smallest class of dogs" in detail for detail in errors.values())


def test_a_dataset_of_an_older_worker_is_judged_by_its_mean(server: Served) -> None:
    spec = {"data": {"name": "digits", "image_size": 8}, "features": {"kind": "pixels"}, "protocols": ["knn"]}
    assert accepted(server, "evaluate", spec | {"knn_k": 50})
    assert "100 on average" in refused(server, "evaluate", spec | {"knn_k": 51})["/spec/knn_k"]


def test_more_views_than_any_worker_has_memory(small: Served) -> None:
    """Two views of 512 pixels and sixteen crops as large take 54 MiB an image as float32."""
    spec: dict[str, Any] = {"data": {"name": "digits", "image_size": 512}, "batch_size": 500}
    spec["multi_crop"] = {"crops": 16, "image_size": 512}
    rows.add_dataset(small.database, "plenty", "e" * 64, train=100_000)
    assert accepted(small, "pretrain", spec)  # no worker has announced its memory
    announce(small.database, 8 * GIB)
    announce(small.database, 24 * GIB, gpus=2)
    announce(small.database, 999 * GIB, pool="big")

    errors = refused(small, "pretrain", spec)
    assert errors.keys() == {"/spec/multi_crop/crops"}
    assert "take 26.4 GiB in each process" in errors["/spec/multi_crop/crops"]
    assert "at most 24.0 GiB" in errors["/spec/multi_crop/crops"]
    plain = {"data": {"name": "plenty", "image_size": 512}, "batch_size": 8000}
    assert refused(small, "pretrain", plain).keys() == {"/spec/batch_size"}
    assert accepted(small, "pretrain", spec | {"processes": 2})
    assert accepted(small, "pretrain", spec, pool="big")


@pytest.mark.parametrize(
    ("kind", "model", "spec"), [("pretrain", PretrainSpec, DATA), ("evaluate", EvaluateSpec, PIXELS)]
)
def test_a_plain_value_for_an_object_or_a_list_names_the_field_to_set(
    kind: Kind, model: type[BaseModel], spec: dict[str, Any]
) -> None:
    """The message names a field of the object; for a value that its name or kind may have, that one."""
    num_objects = 0
    for name in model.model_fields:
        for value in ("simclr", "resnet50", "pixels", "knn", 5, 0.5):
            try:
                parse_spec(kind, spec | {name: value})
            except ValidationError as error:
                details = [each.detail for each in of_spec(error, kind) if each.pointer == f"/spec/{name}"]
                assert "Input" not in details[0]
                assert "valid tuple" not in details[0]
                if "expected an object" in details[0]:
                    num_objects += 1
                    assert f"{name}." in details[0]
    assert num_objects >= 30


@pytest.mark.parametrize(
    ("kind", "change", "detail"),
    [
        ("pretrain", {"data": "cats"}, "expected an object; set 'data.name' to \"cats\""),
        ("pretrain", {"backbone": "resnet50"}, "expected an object; set 'backbone.name' to \"resnet50\""),
        (
            "pretrain",
            {"backbone": "resnet51"},
            "expected an object; set 'backbone.name': there is no backbone resnet51; expected one of tiny, ",
        ),
        ("pretrain", {"optimizer": "adam"}, "expected an object; set 'optimizer.name': expected 'lars', 'sgd' or"),
        ("pretrain", {"heads": 64}, "expected an object; set one of its fields: heads.hidden_dim, heads.output_dim"),
        ("pretrain", {"loss": 0.2}, "expected an object; set one of its fields: loss.temperature, loss.weak_temp"),
        ("pretrain", {"method_options": 1}, "expected an object; set its fields, each as 'method_options.NAME'"),
        ("evaluate", {"features": "pixels"}, "expected an object; set 'features.kind' to \"pixels\""),
        ("evaluate", {"protocols": "knn"}, 'expected a list; set it to ["knn"]'),
        ("evaluate", {"protocols": 3}, "expected a list"),
    ],
)
def test_a_plain_value_says_what_to_set(server: Served, kind: str, change: dict[str, Any], detail: str) -> None:
    errors = refused(server, kind, (DATA if kind == "pretrain" else PIXELS) | change)
    ((pointer, message),) = errors.items()
    assert pointer == f"/spec/{next(iter(change))}"
    assert message.startswith(detail)
