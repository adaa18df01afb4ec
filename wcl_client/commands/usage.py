"""Commands for usage: devices by key or project and month, stored files."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson, refuse_both
from wcl_client.terminal import out, print_csv, print_json

app = typer.Typer()


class By(Enum):
    """What a row of usage is about."""

    KEY = "key"
    PROJECT = "project"


@app.command(rich_help_panel=SERVICE)
def usage(
    month: Annotated[str | None, typer.Option(help="Only this month, such as 2026-11.")] = None,
    by: Annotated[By, typer.Option(help="What a row is about.")] = By.KEY,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show the hours of devices by key or project, and month.

    Each month is in UTC.  Jobs that run or are deleted count.
    """
    refuse_both(as_json, as_csv)
    if month is not None and not re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", month):
        raise typer.BadParameter(f"--month {month}: expected a month such as 2026-11")
    with WclClient.connect() as client:
        if as_csv:
            print_csv(client.usage_csv(month, by.value))
            return
        rows = client.usage(month, by.value)
    print_json(rows) if as_json else out.show(output.usage_table(rows))


@app.command(rich_help_panel=SERVICE)
def storage(
    by: Annotated[str | None, typer.Option("--by", metavar="KEY", help="Only of the key with this name or id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Maximum number of jobs.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what uses the storage.

    It lists the files by key and by project, and the largest jobs.  Removable are the checkpoints of an ended job that
    are neither pinned nor its newest.
    """
    with WclClient.connect() as client:
        stored = client.storage(by=by, limit=limit)
    if as_json:
        print_json(stored)
        return
    for table in output.storage_tables(stored):
        out.show(table)
