"""`wcl sweep`: searches over fields of a training spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import AsJson
from wcl_client.output import err, out, print_json
from wcl_client.progress import watch_sweep
from wcl_client.references import find_sweep
from wcl_client.responses import Json
from wcl_client.specfile import read_spec

app = typer.Typer()
sweep = typer.Typer(help="Search over fields of a spec: grid, random, successive halving.", no_args_is_help=True)
app.add_typer(sweep, name="sweep")

SweepId = Annotated[
    str, typer.Argument(metavar="SWEEP", help="The sweep's id, a unique beginning or end of it, or `last`.")
]


@sweep.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A .json or .yaml file: name, search, parameters, metric and more.")],
    name: Annotated[str | None, typer.Option(help="A name for people, instead of the file's.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Trials that are unfinished at a time.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check, and say which trials there would be.")
    ] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Say what is measured until the sweep ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin a sweep."""
    said = {"name": name, "max_parallel": max_parallel}
    body = read_spec(file) | {field: value for field, value in said.items() if value is not None}
    with WclClient.connect() as client:
        if dry_run:
            print_json(client.plan_sweep(body))
            return
        made = client.submit_sweep(body)
        if not as_json:
            out.print(made["id"])
            err.print(f"{made['trials']} trials, measured on {output.measured_on(made)}; see {made['links']['page']}")
        if follow:
            _followed(client, made, as_json)
            return
    if as_json:
        print_json(made)


def _followed(client: WclClient, sweep: Json, as_json: bool) -> None:
    """Exit code 1 when the sweep did not succeed."""
    ended = watch_sweep(client, sweep["id"], err if as_json else out)
    print_json(ended) if as_json else out.print(output.sweep_table(ended))
    if ended["status"] != "succeeded":
        raise typer.Exit(1)


@sweep.command("list")
def list_sweeps(
    status: Annotated[str | None, typer.Option(help="Only running, succeeded, failed or cancelled ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List sweeps, newest first."""
    with WclClient.connect() as client:
        found = client.sweeps(status=status, limit=limit)
    print_json(found) if as_json else out.print(output.sweeps_table(found))


@sweep.command()
def show(reference: SweepId, as_json: AsJson = False) -> None:
    """Show a sweep with its trials, the best first."""
    with WclClient.connect() as client:
        found = client.sweep(find_sweep(client, reference)["id"])
    if as_json:
        print_json(found)
        return
    out.print(output.sweep_table(found))
    out.print(output.trials_table(found))


@sweep.command()
def watch(reference: SweepId, as_json: AsJson = False) -> None:
    """Say what is measured until the sweep ends; exit code 1 when it did not succeed."""
    with WclClient.connect() as client:
        _followed(client, find_sweep(client, reference), as_json)


@sweep.command()
def cancel(reference: SweepId, as_json: AsJson = False) -> None:
    """End a sweep: its waiting jobs at once, running ones after they have saved."""
    with WclClient.connect() as client:
        found = client.cancel_sweep(find_sweep(client, reference)["id"])
    print_json(found) if as_json else out.print(f"{found['id']} {found['status']}")
