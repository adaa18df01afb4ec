"""Commands for usage: devices by key or project and month, stored files."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson, confirm, refuse_both
from wcl_client.terminal import err, out, print_csv, print_json
from wcl_core.text import counted

app = typer.Typer()


class By(Enum):
    """What a row of usage is about."""

    KEY = "key"
    PROJECT = "project"
    BOTH = "key,project"


@app.command(rich_help_panel=SERVICE)
def usage(
    month: Annotated[str | None, typer.Option(help="Only this month, such as 2026-11.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="MONTH", help="The first month.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="MONTH", help="The last month.")] = None,
    by: Annotated[By, typer.Option(help="What a row is about: a key, a project, or a key in a project.")] = By.KEY,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show the hours of devices by key or project, and month.

    A GPU hour is one hour in which an attempt holds one GPU, a CPU hour one hour in which an attempt without GPUs runs,
    whatever the number of its cores.  Each month is in UTC.  Jobs that run or are deleted count.
    """
    refuse_both(as_json, as_csv)
    for option, typed in (("--month", month), ("--from", first), ("--to", last)):
        if typed is not None and not re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", typed):
            raise typer.BadParameter(f"{option} {typed}: expected a month such as 2026-11")
    if month is not None and (first is not None or last is not None):
        raise typer.BadParameter("--month is one month; give either it, or --from and --to")
    with WclClient.connect() as client:
        if as_csv:
            print_csv(client.usage_csv(month, by.value, first=first, last=last))
            return
        rows = client.usage(month, by.value, first=first, last=last)
    print_json(rows) if as_json else out.show(output.usage_table(rows))


def _remove(client: WclClient, by: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    result = client.clean_storage(by=by, dry_run=dry_run or not yes)
    if not (dry_run or yes) and result["num_checkpoints"]:
        question = f"Remove {output.cleaned(result)}? This cannot be undone."
        confirm(question, "--yes removes without a question", "nothing is removed")
        result = client.clean_storage(by=by)
    if as_json:
        print_json(result)
        return
    verb = "would be removed" if dry_run else "removed"
    nothing = "there is no removable checkpoint; `wcl delete` deletes jobs with their files"
    out.say(f"{output.cleaned(result)}, {verb}" if result["num_checkpoints"] else nothing)
    if result["num_left"]:
        err.say(f"{counted(result['num_left'], 'file')} could not be removed yet; a worker does at its next start")


@app.command(rich_help_panel=SERVICE)
def storage(
    by: Annotated[str | None, typer.Option("--by", metavar="KEY", help="Only of the key with this name or id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Maximum number of jobs.")] = 20,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove all removable checkpoints that you may; asks first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --remove: print what it would remove.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --remove: do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what uses the storage; with --remove, free some of it.

    It lists the files by key and by project, and the largest jobs.  Removable are checkpoints that are neither pinned
    nor the newest of their job, and that no unfinished job or sweep needs.
    """
    if (dry_run or yes) and not remove:
        raise typer.BadParameter("--dry-run and --yes need --remove")
    if remove:
        with WclClient.connect() as client:
            _remove(client, by or "", dry_run, yes, as_json)
        return
    with WclClient.connect() as client:
        stored = client.storage(by=by, limit=limit)
    if as_json:
        print_json(stored)
        return
    for table in output.storage_tables(stored):
        out.show(table)
