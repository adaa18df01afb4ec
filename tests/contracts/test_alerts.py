"""The alerts, the dashboard and the configuration of Prometheus in `monitoring/`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import find_program

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
UNIT_TESTS = Path(__file__).parent / "alerts.yml"

pytestmark = pytest.mark.process


def promtool(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_program("promtool"), *arguments], input=stdin, capture_output=True, text=True)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def test_each_alert_begins_with_its_cause_and_ends_after_it(tmp_path: Path) -> None:
    text = UNIT_TESTS.read_text()
    tested = [each["name"] for each in yaml.safe_load(text)["tests"]]
    place = tmp_path / "tests.yml"
    place.write_text(text.replace("[ALERTS]", f"[{MONITORING / 'alerts.yml'}]"))
    done = promtool("test", "rules", place)

    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(tested) == sorted(rule["alert"] for rule in rules())


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    done = promtool("check", "config", "--syntax-only", MONITORING / "prometheus.yml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


def test_prometheus_sends_the_alerts_to_alertmanager_and_that_to_an_address_of_the_operator() -> None:
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    manager = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

    (targets,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"]
    service, port = targets["targets"][0].split(":")
    assert f"127.0.0.1:{port}:{port}" in compose["services"][service]["ports"]
    (receiver,) = manager["receivers"]
    assert receiver["name"] == manager["route"]["receiver"]
    (webhook,) = receiver["webhook_configs"]
    assert webhook["url_file"] == f"/run/secrets/{compose['services'][service]['secrets'][0]}"


def test_each_query_of_the_dashboard_is_a_query_of_prometheus(tmp_path: Path) -> None:
    dashboard = json.loads((MONITORING / "grafana/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    recorded = [{"record": f"panel:query:{place}", "expr": query} for place, query in enumerate(queries)]
    place = tmp_path / "queries.yml"
    place.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", place)

    assert len(queries) > 20
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        assert {"summary", "action"} == rule["annotations"].keys(), rule["alert"]
        assert re.fullmatch(r"Wcl[A-Z]\w+", rule["alert"])
