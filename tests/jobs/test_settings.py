"""Settings with derived values: URLs and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.database import Database
from jobs.settings import Settings


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
