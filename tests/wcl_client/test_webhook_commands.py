"""`wcl webhook` against a real server, its sender and a real receiver; `wcl watch --notify`."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from jobs.settings import Settings
from jobs.webhooks.sender import Sender
from tests.api.served import Served
from tests.jobs import rows
from tests.receiver import Receiver, receiving
from tests.wcl_client.test_operations import wcl
from wcl_client.commands import jobs as job_commands
from wcl_client.errors import NotFoundError
from wcl_client.terminal import Terminal


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture
def sending(server: Served) -> Iterator[None]:
    """Let a sender of this server run that may reach the receiver."""
    stop = threading.Event()
    open_settings = Settings(webhook_networks=["127.0.0.0/8"])
    resolver = lambda *_: ["127.0.0.1"]  # noqa: E731
    sender = Sender(server.database, open_settings, server.url, resolver=resolver)
    thread = threading.Thread(target=sender.run, args=(stop,), daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_webhook_from_its_addition_to_its_removal(server: Served, receiver: Receiver, sending: None) -> None:
    url = f"http://hooks.example:{receiver.url.rpartition(':')[2]}/hook"
    added = wcl("webhook", "add", "night", url, "--rule", "train/loss > 5", "--event", "job.failed", "--json")
    assert added.exit_code == 0, added.output
    row: dict[str, Any] = json.loads(added.stdout)
    assert row["rules"] == [{"metric": "train/loss", "direction": "above", "value": 5.0}]

    tested = wcl("webhook", "test", "night")
    assert (tested.exit_code, tested.stdout) == (0, "delivered, 204\n"), tested.output
    assert receiver.requests[0].is_signed(row["secret"])
    for command in (("list",), ("show", "night"), ("deliveries", "night")):
        shown = wcl("webhook", *command)
        assert shown.exit_code == 0, shown.output
        assert row["secret"] not in shown.output
    assert "train/loss > 5.0" in wcl("webhook", "list").stdout

    receiver.answers = [(500, {})]
    failed = wcl("webhook", "test", "night")
    assert (failed.exit_code, "responded with 500" in failed.stderr) == (1, True), failed.output
    assert wcl("webhook", "remove", row["id"]).exit_code == 0
    assert isinstance(wcl("webhook", "show", "night").exception, NotFoundError)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("http://127.0.0.1/",), "WCL_WEBHOOK_NETWORKS"),
        (("https://a.example/", "--event", "job.exploded"), "/events/0"),
        (("https://a.example/", "--rule", "loss=5"), "expected METRIC>VALUE"),
        (("https://a.example/", "--rule", "loss>nan"), "expected METRIC>VALUE"),
    ],
)
def test_a_wrong_webhook_is_one_clear_error(server: Served, arguments: tuple[str, ...], part: str) -> None:
    result = wcl("webhook", "add", "night", *arguments)

    text = f"{result.stderr} {result.exception}"
    assert (result.exit_code != 0, part in " ".join(text.split())) == (True, True), text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_watch_rings_at_the_end_in_a_terminal_only(
    server: Served, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    written = io.StringIO()
    terminal = Terminal(Console(file=written, force_terminal=is_terminal, markup=False))
    monkeypatch.setattr(job_commands, "out", terminal)
    job_id = rows.submit(server.database, name="a\x1b]0;title\x07b")
    run = rows.Run(server.database, rows.claim(server.database))
    run.deliver(rows.started(), rows.end("failed", "bad_data"))

    assert wcl("watch", job_id, "--notify").exit_code == 1  # as without it
    rung = "\x07\x1b]9;WCL: a\\x1b]0;title\\x07b failed\x07"
    assert written.getvalue() == (rung if is_terminal else "")
