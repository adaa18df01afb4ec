"""Methods of another distribution at the API: validated where installed, refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.api.served import SPEC, Served, assert_problem
from tests.wcl_core.distributions import install_barlow_twins


def plan(served: Served, **changes: Any) -> Any:
    return served.client().post("/v1/jobs?dry_run=true", json={"kind": "pretrain", "spec": SPEC | changes})


def test_a_server_without_the_method_lists_its_methods(shared: Served) -> None:
    problem = assert_problem(plan(shared, method="barlow-twins"), 422, "/spec/method")
    assert problem["errors"][0]["detail"] == "there is no method barlow-twins; expected one of wcl, simclr"


def test_a_server_that_has_it_checks_its_options(
    shared: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install_barlow_twins(tmp_path))
    answer = plan(shared, method="barlow-twins", method_options={"projection_dim": 4})
    assert answer.status_code == 200, answer.text
    assert answer.json()["spec"]["method_options"] == {"off_diagonal_weight": 0.02, "projection_dim": 4}
    options = {"projection_dim": 1, "lambda": 3}
    pointers = {f"/spec/method_options/{name}" for name in options}
    assert_problem(plan(shared, method="barlow-twins", method_options=options), 422, *pointers)
