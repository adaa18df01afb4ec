"""Commands for webhooks: add, list, show, test, remove, deliveries."""

from __future__ import annotations

import math
import re
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.references import find_webhook
from wcl_client.responses import Delivery
from wcl_client.terminal import bold, err, out, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Send messages about jobs to other programs.")
app.add_typer(group, name="webhook", rich_help_panel=SERVICE)

_WAIT_SECONDS = 30
_RULE = re.compile(r"\s*([^<>\s]+)\s*([<>])\s*(\S+)\s*")
_Reference = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="A webhook's name, its id, or a unique part of the id.")
]


class Format(StrEnum):
    """The forms of a message."""

    STANDARD = "standard"
    SLACK = "slack"
    DISCORD = "discord"
    NTFY = "ntfy"


def _rule(text: str) -> dict[str, Any]:
    """Return the rule of a text such as `train/loss > 5`."""
    match = _RULE.fullmatch(text)
    try:
        if match is None or not math.isfinite(float(match[3])):
            raise ValueError
        return {"metric": match[1], "direction": "above" if match[2] == ">" else "below", "value": float(match[3])}
    except ValueError:
        raise typer.BadParameter(f"--rule {text}: expected METRIC>VALUE or METRIC<VALUE") from None


@group.command()
def add(
    name: Annotated[str, typer.Argument(help="For people.")],
    url: Annotated[str, typer.Argument(help="The receiver's address, https:// or http://.")],
    form: Annotated[Format, typer.Option("--format", help="The form of a message.")] = Format.STANDARD,
    events: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            help="job.succeeded, job.failed, job.cancelled, job.lost, job.collapsed, job.stalled or worker.lost; "
            "may be repeated. Default: job.succeeded, job.failed, job.lost; none with --rule.",
        ),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", help='A line of a metric, such as "train/loss>5"; may be repeated.'),
    ] = None,
    stalled_minutes: Annotated[
        int, typer.Option(min=1, max=10_080, help="Minutes without a report until job.stalled.")
    ] = 10,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only jobs whose name contains this text.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: pretrain or evaluate.")] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Only jobs of the key with this name or id; another key than yours needs `admin`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a webhook, and print the secret of its signatures.

    No other command prints the secret. A key without `admin` hears of its own jobs.
    """
    body: dict[str, Any] = {
        "name": name,
        "url": url,
        "format": form.value,
        "rules": [_rule(each) for each in rules or ()],
        "stalled_minutes": stalled_minutes,
    }
    chosen = events if events is not None else [] if rules else None
    optional = {"events": chosen, "tag": tag, "job_name": query, "kind": kind, "by": by}
    body |= {field: value for field, value in optional.items() if value is not None}
    with WclClient.connect() as client:
        row = client.add_webhook(body)
    if as_json:
        print_json(row)
        return
    out.say(bold(row["name"]), f"  {row['url']}  {row['id']}")
    if form is Format.STANDARD:
        out.say(f"  secret  {row['secret']}")
    out.say(f"  to try it: wcl webhook test {row['id'][-12:]}")


@group.command(name="list")
def list_webhooks(as_json: AsJson = False) -> None:
    """List webhooks, newest first."""
    with WclClient.connect() as client:
        rows = client.webhooks()
    print_json(rows) if as_json else out.show(output.webhooks_table(rows))


@group.command()
def show(reference: _Reference, as_json: AsJson = False) -> None:
    """Show a webhook with all its fields, except for its secret."""
    with WclClient.connect() as client:
        row = find_webhook(client, reference)
    print_json(row) if as_json else out.show(output.webhook_table(row))


@group.command()
def deliveries(
    reference: _Reference,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of messages.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the messages of a webhook, newest first, with what came of them."""
    with WclClient.connect() as client:
        rows = client.deliveries(find_webhook(client, reference)["id"], limit)
    print_json(rows) if as_json else out.show(output.deliveries_table(rows))


@group.command(name="test")
def send_test(reference: _Reference, as_json: AsJson = False) -> None:
    """Send a test message, and wait for the receiver's response.

    The exit code is 1 if the receiver did not take the message at the first try.
    """
    with WclClient.connect() as client:
        webhook_id = find_webhook(client, reference)["id"]
        row = _tried(client, webhook_id, client.test_webhook(webhook_id))
    if as_json:
        print_json(row)
    elif row["state"] == "delivered":
        out.say(f"delivered, {row['last_status']}")
    if row["state"] != "delivered":
        err.say(f"not delivered: {row['last_error'] or f'the server did not send it within {_WAIT_SECONDS} s'}")
        raise typer.Exit(1)


def _tried(client: WclClient, webhook_id: str, row: Delivery) -> Delivery:
    """Return a message after the result of its first attempt, or after `_WAIT_SECONDS`."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while row["state"] == "pending" and row["last_error"] is None and time.monotonic() < deadline:
        time.sleep(0.2)
        row = next((each for each in client.deliveries(webhook_id, 500) if each["id"] == row["id"]), row)
    return row


@group.command()
def remove(reference: _Reference, as_json: AsJson = False) -> None:
    """Remove a webhook with its messages; those that are pending are not sent."""
    with WclClient.connect() as client:
        row = find_webhook(client, reference)
        client.remove_webhook(row["id"])
    print_json(row) if as_json else out.say(f"{row['name']} removed")
