"""Commands about checkpoints: listed, measured, downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import AsJson, JobId, Overrides
from wcl_client.output import err, out, print_json
from wcl_client.references import find_job
from wcl_client.specfile import apply_overrides
from wcl_client.transfer import fetch, find_checkpoint

app = typer.Typer()


@app.command()
def checkpoints(job: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints by step."""
    with WclClient.connect() as client:
        found = client.checkpoints(find_job(client, job)["id"])
    print_json(found) if as_json else out.print(output.checkpoints_table(found))


@app.command()
def evaluate(
    reference: Annotated[str, typer.Argument(help="A job (its last checkpoint is meant) or a checkpoint's id.")],
    protocol: Annotated[
        list[str] | None, typer.Option(help="May be repeated; by default knn, linear, few_labels.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a job that measures a checkpoint."""
    spec = apply_overrides({"protocols": list(protocol)} if protocol else {}, overrides or ())
    with WclClient.connect() as client:
        made = client.evaluate(find_checkpoint(client, reference), spec)
    print_json(made) if as_json else out.print(made["id"])


@app.command()
def download(
    reference: Annotated[str, typer.Argument(help="A job (its last checkpoint is meant) or a checkpoint's id.")],
    target: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder.")] = None,
    kind: Annotated[str, typer.Option(help="native, or backbone: weights under torchvision's names.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint, going on where an interrupted download stopped; the checksum is verified."""
    from wcl_client.transfer import find_checkpoint

    if kind not in ("native", "backbone"):
        raise typer.BadParameter("--kind is native or backbone")
    with WclClient.connect() as client:
        done = fetch(client, find_checkpoint(client, reference), target, kind, err)
    facts = {"path": str(done.path), "sha256": done.sha256, "size": done.size, "resumed_from": done.resumed_from}
    print_json(facts) if as_json else out.print(f"{done.path}  {output.size(done.size)}  sha256 {done.sha256}")
