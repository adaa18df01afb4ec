"""`wcl purge` and `wcl storage --remove` against a real server."""

from __future__ import annotations

from jobs import keys
from tests.api.served import Served
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl


def test_deleted_jobs_are_removed_at_once_after_a_question(server: Served) -> None:
    anna = server.database.write(lambda session: keys.create(session, "anna")[0].id)
    server.app.state.storage.root.mkdir(parents=True, exist_ok=True)
    jobs = [rows.submit(server.database, created_by=anna) for _ in range(3)]
    assert "deleted 3 jobs" in wcl("delete", "--by", "anna", "--yes").stdout

    assert "3 deleted jobs match" in wcl("purge", jobs[0][:8]).output
    assert "1 deleted job, 0 B, would be removed" in wcl("purge", jobs[0], "--dry-run").stdout
    assert "nothing is removed" in wcl("purge", jobs[0]).stderr, "it asks first"
    assert "1 deleted job, 0 B, removed" in wcl("purge", jobs[0], "--yes").stdout
    purged = wcl("purge", "--by", "anna", "--yes")
    assert "2 deleted jobs, 0 B, removed" in purged.stdout
    assert "the access log" in purged.stderr, "what stays"
    assert "expected either jobs or --by" in wcl("purge").output
    assert wcl("storage", "--remove").stdout.startswith("there is no removable checkpoint; `wcl delete`")
    assert "need --remove" in wcl("storage", "--yes").output


def test_a_deletion_of_all_jobs_of_a_key_says_what_stays(server: Served) -> None:
    anna = server.database.write(lambda session: keys.create(session, "anna")[0].id)
    running = rows.running(server.database, created_by=anna)
    rows.submit(server.database, created_by=anna)

    done = wcl("delete", "--by", "anna", "--yes")

    assert done.exit_code == 1
    assert done.stdout.startswith("deleted 1 job,")
    assert [line.split()[0] for line in done.stderr.splitlines() if " stays: it runs" in line] == [running.job_id]
