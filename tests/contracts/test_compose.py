"""The containers of `docker-compose.yml` with each overlay of `compose/`: linted and merged, never built or started."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from jobs import wake_up
from jobs.settings import read_settings
from tests import servers
from tests.contracts.compose_files import ROOT, merged
from tests.contracts.test_repository import run_tool
from tests.contracts.test_units import WORKER_STOP_SECONDS
from tests.docs.pages import blocks, commands
from tests.waiting import eventually
from wcl_core.text import Secret

BASE = "docker-compose.yml"
PAGE = ROOT / "docs" / "operating.md"
COMBINATIONS = [
    (BASE,),
    *((BASE, f"compose/{name}.yml") for name in ("cpu", "gpus", "datasets", "tls", "server", "worker")),
    (BASE, "compose/cpu.yml", "compose/datasets.yml", "compose/tls.yml"),
    (BASE, "compose/server.yml", "compose/tls.yml"),
    (BASE, "compose/server.yml", "compose/cpu.yml", "compose/tls.yml"),
    (BASE, "compose/worker.yml", "compose/datasets.yml"),
    (BASE, "compose/worker.yml", "compose/cpu.yml", "compose/datasets.yml"),
]


def name_of(files: tuple[str, ...]) -> str:
    return "+".join(Path(name).stem for name in files)


every_combination = pytest.mark.parametrize("files", COMBINATIONS, ids=name_of)


@every_combination
def test_every_container_has_least_rights(files: tuple[str, ...]) -> None:
    services: dict[str, dict[str, Any]] = merged(*files)["services"]

    assert services
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] not in ("root", "0", ""), name
        assert not {"privileged", "network_mode", "pid"} & service.keys(), name
        # Caddy's program does not start where it could not have this one.
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "caddy" else []), name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ())), name


@every_combination
def test_every_container_is_limited_and_checked(files: tuple[str, ...]) -> None:
    for name, service in merged(*files)["services"].items():
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        if service.get("restart") != "unless-stopped":
            assert name in ("migrate", "caddy-data"), name
            continue
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert "healthcheck" in service or name in ("caddy", "prometheus", "alertmanager", "grafana"), name
        if name.startswith("worker"):  # else Docker restarts a drained worker at once
            assert service["command"] == ["python", "-m", "worker", "--drained-wait"]
            assert service["stop_grace_period"] == f"{WORKER_STOP_SECONDS}s"


@every_combination
def test_no_secret_is_in_an_environment_and_no_port_is_open_by_accident(files: tuple[str, ...]) -> None:
    model = merged(*files)
    public = {("caddy", "80:8080"), ("caddy", "443:8443")}

    for name, service in model["services"].items():
        assert not [each for each in service.get("environment", {}) if re.search("PASSWORD$|SECRET$|KEY$", each)], name
        assert set(service.get("secrets", [])) <= model["secrets"].keys(), name
        for port in service.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${WCL_ADDRESS")) or (name, port) in public, (name, port)
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                assert source in model["volumes"] or source.startswith("${"), source
        for needed in service.get("depends_on", {}):
            assert needed in model["services"], (name, needed)
        assert set(service.get("networks", [])) <= {"default", *model.get("networks", {})}, name
    places = {secret["file"].split("/")[1] for secret in model["secrets"].values()}
    assert places <= {"secrets", "metrics.key}", "alerts.url}"}


@pytest.mark.process
def test_the_merged_files_are_valid(tmp_path: Path) -> None:
    for files in COMBINATIONS:
        (tmp_path / f"{name_of(files)}.yml").write_text(json.dumps(merged(*files)))

    done = run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, tmp_path.glob("*.yml")))

    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (ROOT / "compose").glob("*.yml")} == {
        Path(name).name for files in COMBINATIONS for name in files[1:]
    }


def test_the_parts_of_other_machines_are_left_out_there() -> None:
    assert merged(BASE, "compose/worker.yml")["services"].keys() == {"worker"}
    assert "depends_on" not in merged(BASE, "compose/worker.yml")["services"]["worker"]
    assert "reservations" not in merged(BASE, "compose/cpu.yml")["services"]["worker"]["deploy"]["resources"]
    assert "ports" not in merged(BASE, "compose/tls.yml")["services"]["api"]


def test_every_command_of_the_page_names_a_tested_combination() -> None:
    shown = [
        tuple(re.findall(r" -f (\S+)", command))
        for block in blocks(PAGE)
        if block.language == "sh"
        for command in commands(block)
        if command.startswith("docker compose -f")
    ]

    assert shown
    assert set(shown) <= set(COMBINATIONS)


@pytest.mark.process
@pytest.mark.server
def test_redis_takes_connections_with_tls_and_the_password_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secrets of the page, the command of the container, and the settings of the server."""
    if not (program := shutil.which("redis-server")):
        pytest.skip("NO REDIS: the command of its container was not tested")
    making = next(block for block in blocks(PAGE) if "secrets/redis_password" in block.text)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "postgres_password").write_text("x")
    subprocess.run(["sh", "-e", "-c", making.text], cwd=tmp_path, check=True, capture_output=True)
    model = merged(BASE, "compose/server.yml")
    files = {name: tmp_path / secret["file"] for name, secret in model["secrets"].items()}
    port = servers.free_port()

    def on_this_machine(text: str) -> str:
        text = text.replace("/tmp/", f"{tmp_path}/").replace("$$", "$").replace("6379", str(port))  # noqa: S108
        for name, file in files.items():
            text = text.replace(f"/run/secrets/{name}", str(file))
        return text

    command = [on_this_machine(each) for each in model["services"]["redis"]["command"]]
    environment = {**os.environ, "PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    redis = subprocess.Popen([*command[:2], command[2] + " --bind 127.0.0.1"], cwd=tmp_path, env=environment)
    try:
        for name, value in model["services"]["api"]["environment"].items():
            monkeypatch.setenv(name, on_this_machine(value).replace("//redis:", "//localhost:"))
        eventually(lambda: wake_up.problem(read_settings()) is None, "Redis")
        settings = read_settings()
        plain = Secret(settings.broker_url.reveal().split("?")[0].replace("rediss", "redis"))
        for change in ({"broker_password": None}, {"broker_url": plain}):
            assert wake_up.problem(settings.model_copy(update=change)) is not None
    finally:
        redis.terminate()
        redis.wait()
