"""Settings with derived values: URLs and folders."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kombu.utils.url import parse_url
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource
from pydantic_settings.sources import PydanticBaseEnvSettingsSource
from sqlalchemy import make_url

from jobs.__main__ import main
from jobs.database import Database
from jobs.settings import InvalidSettings, Settings, read_settings
from wcl_core.text import Secret

ODD = (
    *("", " ", "x", "0", "-1", "1.5", "1e400", "-1e400", "inf", "-.inf", "nan", "1e308", "010", "0x10", "1_000", "٣"),
    *(
        "9" * 5_000,
        "[]",
        "{}",
        "null",
        "true",
        '"',
        "[",
        "[" * 100_000,
        '{"a": 1}',
        '{"a": {"b": 1}}',
        '{"a": 1, "a": 2}',
    ),
    *(
        "[1e400]",
        '["\\ud800"]',
        "\udcff",
        "é",
        "\x1b[31m",
        "\r\n",
        "../..",
        "/dev/null",
        "~nobody/x",
        "http://[",
        "::1",
    ),
    *(
        "sqlite:///",
        "sqlite://",
        "postgresql://",
        "postgres://a/b",
        "redis://",
        "redis://:a/b@h",
        "amqp://",
        "a" * 100_000,
    ),
    *("postgresql://u:se#cret@h/d", "postgresql://u:se/cret@h/d", "postgresql://u:se@cret@h/d", "postgresql://[::1/d"),
    *(
        "postgresql://u:secret@h:x/d",
        "postgresql://u:secret@h:99999/d",
        "postgresql://u:se?cret@h/d",
        "mysql://u:secret@h/d",
    ),
)
VARIABLES = tuple(f"WCL_{name.upper()}" for name in Settings.model_fields)


@pytest.fixture
def _fields_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library keep what follows from the type of a field: that is four fifths of the time of each reading."""

    def once(method: Callable[..., Any]) -> Callable[..., Any]:
        results: dict[tuple[type, int], Any] = {}

        def look(source: Any, field: FieldInfo, *others: Any) -> Any:
            if (key := (type(source), id(field))) not in results:
                results[key] = method(source, field, *others)
            return results[key]

        return look

    for source, name in (
        (PydanticBaseEnvSettingsSource, "_extract_field_info"),
        (EnvSettingsSource, "_field_is_complex"),
    ):
        monkeypatch.setattr(source, name, once(getattr(source, name)))


@pytest.mark.slow
@pytest.mark.usefixtures("_fields_are_looked_at_once")
@pytest.mark.parametrize("variable", VARIABLES)
def test_each_setting_takes_an_odd_value_or_names_itself_in_one_line(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = []
    for value in ODD:
        monkeypatch.setenv(variable, value)
        try:
            settings = read_settings()
        except InvalidSettings as error:
            problems.append(str(error))
        else:
            if "URL" in variable:
                assert "cret" not in repr(settings)
            if variable in ("WCL_DATA_DIR", "WCL_DATABASE_URL", "WCL_DATABASE_PASSWORD"):
                Database(settings.resolved_database_url)

    assert problems
    for problem in problems:
        assert problem.startswith((f"{variable}: ", "a variable WCL_* holds"))
        assert "\n" not in problem
        assert "cret" not in problem
        assert len(problem) < 1_000


@pytest.mark.parametrize("url", ["postgresql://u:s#ecret@h/d", "postgresql://u:a/b@h/d", "redis://:50%zecret@h"])
def test_a_password_with_a_meaning_in_urls_is_refused_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "WCL_BROKER_URL" if url.startswith("redis") else "WCL_DATABASE_URL"
    monkeypatch.setenv(variable, url)

    with pytest.raises(InvalidSettings, match=f"^{variable}: user name or password hold characters") as error:
        read_settings()

    assert "ecret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    "password", ["s#p@ss", "a/b", "50%41off", "q?x", "é \"'$", " a ", "[", ":", "%", "\\", "x" * 2_000]
)
def test_the_compose_file_takes_any_password(password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres_password").write_text(password)
    compose = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
    for service in ("migrate", "api", "worker"):
        for name, value in compose["services"][service]["environment"].items():
            monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))

        url = make_url(read_settings().resolved_database_url)

        assert (url.password, url.host, url.database, url.username) == (password, "postgres", "wcl", "wcl")
        assert url.get_backend_name() == "postgresql"


def test_no_text_of_the_settings_shows_a_secret() -> None:
    settings = Settings(
        database_url="postgresql://u:hidden@h/d", database_password=Secret("hidden"), broker_url="redis://:hidden@h"
    )

    assert "hidden" not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
    assert settings.broker_url == Secret("redis://:hidden@h")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "what?", "100%25", "a#b c", "日本"])
def test_the_default_database_lies_in_the_data_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    settings = Settings(data_dir=tmp_path / name)
    (tmp_path / name).mkdir()
    database = Database(settings.resolved_database_url)

    database.migrate()

    assert settings.is_sqlite
    assert (tmp_path / name / "wcl.sqlite3").stat().st_size > 0
    assert [folder.name for folder in tmp_path.iterdir()] == [name]


def test_a_postgresql_url_gets_its_driver() -> None:
    url = Settings(database_url="postgresql://name:pass%40word@host/wcl").resolved_database_url

    assert url == "postgresql+psycopg://name:pass%40word@host/wcl"


def test_how_often_an_idle_worker_polls() -> None:
    assert Settings().poll_seconds == 1
    assert Settings(database_url="postgresql://host/wcl").poll_seconds == 10
    assert Settings(claim_seconds=3).poll_seconds == 3


def test_the_command_shows_every_setting_and_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WCL_DATABASE_URL", "postgresql://wcl:hidden@db.example/wcl")
    monkeypatch.setenv("WCL_DATABASE_PASSWORD", "hidden")
    monkeypatch.setenv("WCL_PORT", "8001")

    assert main(["settings", "--json"]) == 0

    text = capsys.readouterr().out
    settings = {each["variable"]: each for each in json.loads(text)}
    assert settings.keys() == set(VARIABLES)
    assert "hidden" not in text
    assert settings["WCL_DATABASE_URL"]["value"] == "postgresql://wcl:***@db.example/wcl"
    assert (settings["WCL_PORT"]["value"], settings["WCL_PORT"]["is_set"]) == ("8001", True)
    assert settings["WCL_HOST"]["is_set"] is False
    assert all(each["meaning"] for each in settings.values())


def test_each_wrong_setting_is_a_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WCL_PORT", "x")
    monkeypatch.setenv("WCL_LEASE_SECONDS", "-1")

    assert main(["settings"]) == 1

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["WCL_PORT", "WCL_LEASE_SECONDS"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    secret = " s#p@ss/%41:é "  # noqa: S105
    monkeypatch.setenv("WCL_DATABASE_URL", "postgresql://wcl@postgres/wcl")
    monkeypatch.setenv("WCL_BROKER_URL", "rediss://redis:6379/0?ssl_cert_reqs=required")
    for name in ("DATABASE", "BROKER"):
        (tmp_path / name).write_text(secret + end, newline="")
        monkeypatch.setenv(f"WCL_{name}_PASSWORD_FILE", str(tmp_path / name))

    settings = read_settings()

    assert make_url(settings.resolved_database_url).password == secret
    broker = parse_url(settings.resolved_broker_url)  # as Celery reads it
    assert (broker["password"], broker["hostname"]) == (secret, "redis")
    assert broker["ssl"] == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_file_of_a_secret_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("WCL_DATABASE_URL_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("WCL_DATABASE_PASSWORD_FILE", str(tmp_path / "empty"))
    monkeypatch.setenv("WCL_BROKER_URL_FILE", str(tmp_path / "binary"))
    monkeypatch.setenv("WCL_BROKER_PASSWORD", "x")
    monkeypatch.setenv("WCL_BROKER_PASSWORD_FILE", str(tmp_path / "empty"))

    with pytest.raises(InvalidSettings) as error:
        read_settings()

    assert error.value.problems == (
        "WCL_DATABASE_URL_FILE: the file cannot be read: No such file or directory",
        "WCL_DATABASE_PASSWORD_FILE: expected the secret alone; the file is empty",
        "WCL_BROKER_URL_FILE: expected a file of text in UTF-8",
        "WCL_BROKER_PASSWORD_FILE: WCL_BROKER_PASSWORD is set, too; expected one of both",
    )
