"""Every argument of `python -m jobs` with odd values: one line, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.__main__ import main
from tests.odd import ODD, check_odd_values


@pytest.mark.parametrize("command", [["create-key", "VALUE"], ["create-key", "name", "--scopes=VALUE"], ["VALUE"]])
def test_each_argument_takes_an_odd_value_or_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("WCL_DATABASE_URL", raising=False)
    check_odd_values(main, command, ODD, capsys)


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1/x", "sqlite:////dev/null/x", "sqlite:////dev/null", "x", "sqlite:////"]
)
@pytest.mark.parametrize("command", ["migrate", "check", "audit", "create-key"])
def test_a_database_that_cannot_be_used_is_one_line(
    command: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WCL_DATABASE_URL", url)

    assert main([command, *(["name"] if command == "create-key" else [])]) == 1

    printed = capsys.readouterr()
    assert len((printed.out + printed.err).splitlines()) == 1
