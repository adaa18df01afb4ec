"""`wcl star` and `wcl note` against a real server."""

from __future__ import annotations

from pathlib import Path

from tests.api.served import Served
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl


def test_jobs_are_starred_listed_and_no_longer_starred(server: Served) -> None:
    job_id, other = rows.submit(server.database, name="good"), rows.submit(server.database)

    for _ in range(2):
        assert wcl("star", job_id).stdout == f"{job_id} starred\n"
    listed = wcl("jobs", "--starred").stdout
    assert "* good" in listed
    assert other[-12:] not in listed
    assert wcl("star", job_id, other, "--undo").stdout == f"{job_id} not starred\n{other} not starred\n"
    assert job_id[-12:] not in wcl("jobs", "--starred").stdout


def test_a_note_is_written_printed_and_removed(server: Served, tmp_path: Path) -> None:
    job_id = rows.submit(server.database)
    file = tmp_path / "note.md"
    file.write_text("# Why\n\x1b[31mred\n")

    assert wcl("note", job_id, "**good**").stdout == f"{job_id} note written\n"
    assert wcl("note", job_id).stdout == "**good**\n"
    assert wcl("note", job_id, "--file", str(file)).exit_code == 0
    assert wcl("note", job_id).stdout == "# Why\n\\x1b[31mred\n"
    assert " | # Why\n" in wcl("show", job_id).stdout
    assert wcl("note", job_id, "--remove").stdout == f"{job_id} note removed\n"
    assert wcl("note", job_id).stdout == ""
    for wrong in (("text", "--remove"), ("",), ("--file", str(tmp_path)), ("a" * 10_001,)):
        assert wcl("note", job_id, *wrong).exit_code != 0, wrong
