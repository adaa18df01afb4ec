"""The containers of `docker-compose.yml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"


def test_every_container_has_least_rights() -> None:
    services: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]

    assert services
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] not in ("root", "0", ""), name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ())), name
