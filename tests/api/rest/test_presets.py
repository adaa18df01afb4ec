"""Presets with one changed field: a valid spec, or one error that names the field to set and its value."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy import delete

from api.rest.job_bodies import JobBody, new_jobs
from jobs.checks import check
from jobs.database import Database
from jobs.errors import FieldError, Invalid
from jobs.models import Dataset
from tests.api.served import Served
from tests.jobs import rows
from wcl_core.config.overlay import merged, with_fields
from wcl_core.presets import presets

CHANGES: dict[str, tuple[Any, ...]] = {
    "epochs": (1, 6, 1000),
    "batch_size": (2, 100, 65_536),
    "data.image_size": (17, 96, 512),
    "backbone.name": ("tiny", "resnet50", "vit_small"),
    "data.name": ("small", "packed", "cifar10"),
    "processes": (2, 3, 8),
}
_ADVICE = re.compile(r"use (?:at most|an? (?P<field>\w+) of|fewer than) (?P<value>\d+)$")


@pytest.fixture(scope="module")
def database(shared: Served) -> Database:
    """A database with the datasets of the presets, a small one, and a packed one."""
    shared.database.write(lambda session: session.execute(delete(Dataset)))
    for name in ("digits", "cifar10", "imagenet", "photos", "packed"):
        rows.add_dataset(shared.database, name, train=100_000)
    rows.add_dataset(shared.database, "small", train=90)

    def pack(session: Any) -> None:
        session.query(Dataset).filter_by(name="packed").update({"image_size": 64})

    shared.database.write(pack)
    return shared.database


def errors_of(database: Database, preset: str, spec: dict[str, Any], gpus: int | None = None) -> list[FieldError]:
    try:
        new = new_jobs(JobBody(kind="pretrain", preset=preset, spec=spec, gpus=gpus), "")[0]
        with database.read() as session:
            check(session, new)
    except Invalid as invalid:
        return invalid.errors
    return []


@pytest.mark.parametrize("field", CHANGES)
@pytest.mark.parametrize("preset", list(presets()))
def test_a_preset_with_one_changed_field_is_valid_or_names_the_other_one(
    database: Database, preset: str, field: str
) -> None:
    for value in CHANGES[field]:
        changes = with_fields({}, {field: value})
        for error in errors_of(database, preset, changes)[:1]:
            advice = _ADVICE.search(error.detail)
            assert advice, error.detail
            home = error.pointer.removeprefix("/spec/").replace("/", ".")
            home = f"{home.rpartition('.')[0]}.{advice['field']}".lstrip(".") if advice["field"] else home
            home = _FULL_NAMES.get(home, home)
            assert errors_of(database, preset, merged(changes, with_fields({}, {home: int(advice["value"])}))) == []
            assert len(errors_of(database, preset, changes)) == 1


_FULL_NAMES = {"patch_size": "backbone.patch_size", "image_size": "data.image_size"}


def test_a_preset_has_a_process_for_each_gpu_of_the_job(database: Database, shared: Served) -> None:
    def plan(gpus: int, **spec: Any) -> tuple[int, list[str]]:
        body = {"kind": "pretrain", "preset": "wcl-digits", "gpus": gpus, "spec": spec}
        response = shared.client().post("/v1/jobs?dry_run=true", json=body).raise_for_status().json()
        return response["spec"]["processes"], response["notes"]

    assert [plan(gpus) for gpus in (0, 1, 4)] == [(1, []), (1, []), (4, [])]
    idle = "the run has 1 process, so 3 GPUs would idle; use gpus = 1, or leave processes out"
    assert plan(4, processes=1) == (1, [idle])
    (error,) = errors_of(database, "wcl-digits", {}, gpus=3)
    assert error.pointer == "/spec/processes"
    assert error.detail.endswith("use a batch_size of 255")


def test_a_submitted_job_says_which_gpus_would_idle(database: Database, shared: Served) -> None:
    body = {"kind": "pretrain", "preset": "wcl-digits", "gpus": 2, "spec": {"processes": 1}}
    job = shared.client().post("/v1/jobs", json=body).raise_for_status().json()

    assert "the run has 1 process, so 1 GPU would idle; use gpus = 1, or leave processes out" in job["warnings"]
