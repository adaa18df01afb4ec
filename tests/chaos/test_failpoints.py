"""Failpoints: inert and refused where they should be, and a sample of the sweep that `./run chaos` does whole."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.stage import Theatre
from tests.chaos.sweep import ACTIONS, SCIENCE, Place, Sweep

ROOT = Path(__file__).parents[2]
_CALL = re.compile(r'failpoint\("([a-z_.]+)"')


def in_source() -> set[str]:
    files = [path for package in ("wcl_core", "jobs", "worker", "api") for path in (ROOT / package).rglob("*.py")]
    return {name for path in files for name in _CALL.findall(path.read_text())}


def test_a_server_that_others_reach_refuses_failpoints(tmp_path: Path) -> None:
    settings = {"FAILPOINTS": str(tmp_path), "WCL_HOST": "0.0.0.0", "WCL_PORT": "0", "WCL_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "api"], cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == os.EX_CONFIG
    assert "FAILPOINTS" in done.stderr


def test_without_the_variable_a_failpoint_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "armed").write_text("here kill")
    code = "from wcl_core.failpoints import failpoint; failpoint('here'); print('alive')"
    clean = {name: value for name, value in os.environ.items() if name != "FAILPOINTS"}

    def run(environment: dict[str, str]) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    assert run(clean) == "alive\n"
    assert run(clean | {"FAILPOINTS": str(tmp_path)}) == ""
    assert run(clean | {"FAILPOINTS": str(tmp_path)}) == "alive\n", "it acts once"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_jobs_end_correctly_after_any_action_at_a_failpoint(house: Theatre) -> None:
    with (
        house.stage("sweep", "sqlite", WCL_MAX_FAILURES="1000000") as stage,
        Sweep(stage).running() as sweep,
    ):
        places = sweep.places()
        passed = {place.name.split(":")[0] for place in places}
        assert in_source() - passed == {name for name in in_source() if name.startswith(SCIENCE)}
        draw = random.Random(20)
        must = [("worker", "commit.after:Slots._claim", "kill"), ("server", "commit.after:create_once", "error")]
        chosen = [(place, action) for place in places for action in ACTIONS if (place.node, place.name, action) in must]
        chosen += [(place, draw.choice(ACTIONS)) for place in draw.sample(_steady(places), 4)]
        result = [problem for place, action in chosen for problem in sweep.try_at(place, action) or []]

    assert len(chosen) == 6
    assert result == []


def _steady(places: list[Place]) -> list[Place]:
    """Return the failpoints that every job passes."""
    return [place for place in places if "job" in place.scenes]
