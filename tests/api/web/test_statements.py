"""The number of statements that a page sends to the database does not depend on the number of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from api.web import jobs, leaderboard
from jobs.database import Database
from tests.api.served import Served
from tests.jobs import rows, sweeping

PAGES = (
    "/",
    "/?sort=knn",
    "/?status=succeeded",
    "/?status=succeeded&sort=name",
    "/leaderboard",
    "/sweeps",
    "/checkpoints",
    "/datasets",
    "/datasets/digits",
    "/workers",
)


@contextmanager
def reads(database: Database) -> Iterator[list[str]]:
    """Collect the statements that read."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)


def measured_job(database: Database, number: int) -> str:
    """Train and measure a job whose spec differs from those of all others."""
    job_id = rows.submit(database, spec={"epochs": 1, "loss": {"temperature": 0.1 + number / 100}})
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(), rows.checkpoint(10, f"{number:064x}"), rows.end("succeeded"))
    checkpoint_id = rows.checkpoints(database, job_id)[-1].id
    rows.submit(database, "evaluate", {"features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}})
    run = rows.Run(database, rows.claim(database))
    run.deliver(rows.started(), rows.evaluation(0.5 + number / 100), rows.end("succeeded"))
    return job_id


def counts(served: Served, addresses: list[str]) -> dict[str, int]:
    """Return the number of statements by page."""
    browser = served.browser()
    numbers = {}
    for address in addresses:
        with reads(served.database) as statements:
            assert browser.get(address).status_code == 200
        numbers[address if address.startswith("/?") else address.partition("?")[0]] = len(statements)
    return numbers


def test_pages_send_as_many_statements_for_many_jobs_as_for_few(served: Served) -> None:
    def compared(job_ids: list[str]) -> str:
        return "/compare?" + "&".join(f"job={job_id}" for job_id in job_ids)

    def wait(count: int) -> None:
        """Submit jobs of two keys that wait in the queue, and jobs that wait for these."""
        for number in range(count):
            job_id = rows.submit(served.database, pool="elsewhere", created_by="ab"[number % 2])
            rows.submit(served.database, pool="elsewhere", after=(job_id,))

    wait(2)
    job_ids = [measured_job(served.database, number) for number in range(2)]
    few = counts(served, [*PAGES, compared(job_ids)])
    job_ids += [measured_job(served.database, number) for number in range(2, 7)]
    wait(4)
    for _ in range(3):
        sweeping.submit(served.database, {sweeping.TEMPERATURE: [0.1, 0.2]})

    assert counts(served, [*PAGES, compared(job_ids)]) == few
    assert few["/leaderboard"] <= 6 + 1  # with that of the key


def test_a_dataset_without_evaluations_has_an_empty_leaderboard_with_the_next_step(small: Served) -> None:
    rows.add_dataset(small.database, "unmeasured", digest="e" * 64)
    measured_job(small.database, 1)
    chosen = small.browser("read", "submit").get("/leaderboard?dataset=unmeasured").text
    assert "No evaluations yet on unmeasured" in chosen
    assert 'href="/submit?dataset=unmeasured">Train on unmeasured</a>' in chosen
    assert "Train on" not in small.browser("read").get("/leaderboard?dataset=unmeasured").text
    first = small.browser().get("/leaderboard").text
    assert 'href="/leaderboard?dataset=unmeasured"' in first
    assert "No evaluations" not in first


def test_the_leaderboard_has_every_configuration_page_by_page(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        measured_job(small.database, number)
    assert "not evaluated here" not in small.browser().get("/leaderboard?dataset=digits").text
    alone = rows.submit(small.database, spec={"epochs": 1, "seed": 9}, name="alone")
    run = rows.Run(small.database, rows.claim(small.database))
    run.deliver(rows.started(), rows.checkpoint(10, "f" * 64), rows.end("succeeded"))
    monkeypatch.setattr(leaderboard, "PAGE_SIZE", 2)
    first, second = (small.browser().get(f"/leaderboard?dataset=digits&start={start}").text for start in (0, 2))

    assert f'1 trained job is not evaluated here: <a href="/jobs/{alone}#evaluations">alone</a>.' in first
    assert "Rows 1 to 2 of 3" in first
    assert 'rel="next" href="/leaderboard?dataset=digits&amp;protocol=linear&amp;start=2"' in first
    assert "Rows 3 to 3 of 3" in second
    assert 'rel="prev" href="/leaderboard?dataset=digits&amp;protocol=linear&amp;start=0"' in second
    assert '<td class="number quiet">3</td>' in second
    assert [text.count("/compare?job=") for text in (first, second)] == [2, 1]


def test_more_than_a_thousand_jobs_of_a_state_are_not_counted(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_COUNTED", 2)
    for expected in ("1", "2", "more than 2"):
        rows.submit(small.database)
        assert f"{expected} queued</a>" in small.browser().get("/").text
