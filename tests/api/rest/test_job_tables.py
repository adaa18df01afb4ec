"""The list of jobs as a CSV file."""

from __future__ import annotations

import csv
import io
import re

import pytest

from api.rest import job_tables
from jobs.database import new_id
from tests.api.rest.test_compare import trained
from tests.api.served import Served, assert_problem
from tests.jobs import rows


def test_the_list_comes_as_one_file_as_filtered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_tables, "_PAGE", 2)
    client, browser = served.client(), served.browser()
    done = trained(served, 0.6, "=1+1")
    waiting = [rows.submit(served.database, name="a, b\nc", tags=("x", "y")) for _ in range(3)]
    client.patch(f"/v1/jobs/{waiting[0]}", json={"starred": True})

    def table(query: str = "") -> list[dict[str, str]]:
        response = client.get(f"/v1/jobs.csv{query}")
        assert response.headers["content-type"].startswith("text/csv")
        return list(csv.DictReader(io.StringIO(response.text)))

    every = table()
    assert [row["id"] for row in every] == [job["id"] for job in client.get("/v1/jobs").json()["items"]]
    (row,) = table("?kind=pretrain&status=succeeded")
    assert (row["id"], row["name"], row["knn_top1"], row["method"]) == (done, "'=1+1", "0.6", "wcl")
    assert row["created_at"].endswith("Z")
    queued = table("?status=queued&status=running&tag=x")
    assert {row["id"] for row in queued} == set(waiting)
    assert {row["tags"] for row in queued} == {"x, y"}
    assert [row["id"] for row in table("?starred=true")] == waiting[:1]
    assert table("?q=absent") == []
    assert_problem(client.get("/v1/jobs.csv?archived=maybe"), 422)
    assert 'href="/v1/jobs.csv?status=queued&amp;tag=x"' in browser.get("/?status=queued&tag=x").text


def test_a_comparison_and_the_leaderboard_come_as_files(small: Served) -> None:
    client, browser = small.client("read"), small.browser()
    first = trained(small, 0.6, "=one", epochs=1)
    second = trained(small, 0.7, "two", epochs=1, loss={"temperature": 0.2})

    def table(address: str) -> list[dict[str, str]]:
        response = client.get(address)
        assert response.headers["content-type"].startswith("text/csv"), response.text
        assert response.headers["content-disposition"].startswith("attachment; filename=")
        return list(csv.DictReader(io.StringIO(response.text)))

    compared = table(f"/v1/compare.csv?job={first}&job={second}")
    assert [(row["configuration"], row["mean"], row["num_seeds"], row["job_ids"]) for row in compared] == [
        ("'=one", "0.6", "1", first),
        ("two", "0.7", "1", second),
    ]
    assert_problem(client.get(f"/v1/compare.csv?job={new_id()}"), 404)
    assert (
        f'href="/v1/compare.csv?job={first}&amp;job={second}"' in browser.get(f"/compare?job={first}&job={second}").text
    )
    board = table("/leaderboard.csv?dataset=digits&protocol=knn")
    ranked = [(row["name"], row["mean"], row["job_ids"]) for row in board if row["kind"] == "configuration"]
    assert ranked == [("two", "0.7", second), ("'=one", "0.6", first)]
    assert all(row["dataset"] == "digits" for row in board)
    (link,) = set(re.findall(r'href="(/leaderboard.csv[^"]*)"', browser.get("/leaderboard").text))
    assert table(link.replace("&amp;", "&")) == board
