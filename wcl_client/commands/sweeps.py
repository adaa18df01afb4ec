"""`wcl sweep`: searches over the fields of a training spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import RUN, AsJson, DryRun
from wcl_client.progress import watch_sweep
from wcl_client.references import find_sweep
from wcl_client.registration import when_registered
from wcl_client.responses import Json
from wcl_client.terminal import Styled, bold, err, out, print_json
from wcl_core.spec_files import read_spec

app = typer.Typer()
sweep = typer.Typer(help="Search over the fields of a spec.", no_args_is_help=True)
app.add_typer(sweep, name="sweep", rich_help_panel=RUN)

SweepId = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's name, its id, a unique part of one of them, or `last`.")
]


@sweep.command()
def submit(
    file: Annotated[
        Path, typer.Argument(help="A .json or .yaml file with name, search, parameters, metric and options.")
    ],
    name: Annotated[str | None, typer.Option(help="The sweep's name, instead of the name in the file.")] = None,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of unfinished trials at a time.")
    ] = None,
    dry_run: DryRun = False,
    follow: Annotated[bool, typer.Option("--watch", help="Print each result until the sweep ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a sweep."""
    options = {"name": name, "max_parallel": max_parallel}
    body = read_spec(file) | {field: value for field, value in options.items() if value is not None}
    with WclClient.connect() as client:
        if dry_run:
            plan = when_registered(client, lambda: client.plan_sweep(body), err.say)
            print_json(plan) if as_json else _say_plan(plan)
            return
        new = when_registered(client, lambda: client.submit_sweep(body), err.say)
        if not as_json:
            out.say(new["id"])
            err.say(f"{new['trials']} trials, measured on {output.measured_on(new)}; see {new['links']['page']}")
        if follow:
            _follow(client, new, as_json)
            return
    if as_json:
        print_json(new)


def _say_plan(plan: Json) -> None:
    """Print a dry run for a person."""
    jobs = " and ".join(f"{count} {kind}" for kind, count in plan["jobs"].items())
    out.say(bold(plan["name"]), f"  {len(plan['trials'])} trials on {plan['dataset']['name']}, {jobs} jobs")
    out.say(f"  {plan['epochs']:,} epochs in all, measured on {output.measured_on(plan)}")
    if plan["workers"]:
        out.say(f"  can run on: {', '.join(plan['workers'])}")
    for warning in plan["warnings"]:
        out.say(Styled(f"  warning: {warning}", "yellow"))
    for trial in plan["trials"]:
        out.say(f"  trial {trial['number']}: {output.settings_text(trial['settings'])}")
    out.say("Nothing was submitted.")


def _follow(client: WclClient, sweep: Json, as_json: bool) -> None:
    """Print each result until the sweep ends, and exit with code 1 if the sweep does not succeed."""
    ended = watch_sweep(client, sweep["id"], err if as_json else out)
    print_json(ended) if as_json else out.show(output.sweep_table(ended))
    if ended["status"] != "succeeded":
        raise typer.Exit(1)


@sweep.command("list")
def list_sweeps(
    status: Annotated[
        str | None, typer.Option(help="Only sweeps with this status: running, succeeded, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of sweeps.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List sweeps, newest first."""
    with WclClient.connect() as client:
        rows = client.sweeps(status=status, limit=limit)
    print_json(rows) if as_json else out.show(output.sweeps_table(rows))


@sweep.command()
def show(reference: SweepId, as_json: AsJson = False) -> None:
    """Show a sweep with its trials, the best first."""
    with WclClient.connect() as client:
        shown = find_sweep(client, reference)
    if as_json:
        print_json(shown)
        return
    out.show(output.sweep_table(shown))
    out.show(output.trials_table(shown))


@sweep.command()
def watch(reference: SweepId, as_json: AsJson = False) -> None:
    """Print each result until the sweep ends; the exit code is 1 if the sweep does not succeed."""
    with WclClient.connect() as client:
        _follow(client, find_sweep(client, reference), as_json)


@sweep.command()
def cancel(reference: SweepId, as_json: AsJson = False) -> None:
    """Cancel a sweep: its waiting jobs at once, its running jobs within 2 s; checkpoints are kept."""
    with WclClient.connect() as client:
        cancelled = client.cancel_sweep(find_sweep(client, reference)["id"])
    print_json(cancelled) if as_json else out.say(f"{cancelled['id']} {cancelled['status']}")
