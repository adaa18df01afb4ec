"""`wcl submit`: files, presets and options into one job, or into a group of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wcl_client.api import WclClient
from wcl_client.commands.shared import AsJson, Overrides, follow_jobs, require_success
from wcl_client.output import out, print_json
from wcl_client.references import find_job
from wcl_client.specfile import apply_overrides, read_spec

app = typer.Typer()


@app.command()
def submit(
    spec: Annotated[Path | None, typer.Argument(help="A .json or .yaml file with the spec.")] = None,
    preset: Annotated[str | None, typer.Option(help="Start from this preset; the file and --set go over it.")] = None,
    kind: Annotated[str, typer.Option(help="pretrain or evaluate.")] = "pretrain",
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    after: Annotated[list[str] | None, typer.Option(help="Run only after this job succeeded; may be repeated.")] = None,
    after_checkpoint: Annotated[
        list[str] | None, typer.Option(help="Run only once this job has a checkpoint; may be repeated.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs earlier.")] = None,
    pool: Annotated[str | None, typer.Option(help="The workers to run on.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that the run needs.")] = None,
    max_seconds: Annotated[int | None, typer.Option(min=1, help="End the job after so much time of running.")] = None,
    preemptible: Annotated[bool, typer.Option(help="A job of higher priority may take its place for a while.")] = False,
    seeds: Annotated[str | None, typer.Option(help="0,1,2: one job for each seed, together a group.")] = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and say what would run.")] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Show progress until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    if spec is None and preset is None and kind == "pretrain":
        raise typer.BadParameter("give a spec file or --preset")
    if kind not in ("pretrain", "evaluate"):
        raise typer.BadParameter("--kind is pretrain or evaluate")
    body = apply_overrides(read_spec(spec) if spec else {}, overrides or ())
    job_kind: Any = kind
    numbers = None if seeds is None else _seeds(seeds)
    options: dict[str, Any] = {"preset": preset, "name": name, "tags": tag or (), "priority": priority, "pool": pool}
    options |= {"gpus": gpus, "max_seconds": max_seconds, "preemptible": preemptible or None}
    with WclClient.connect() as client:
        options["after"] = [find_job(client, reference)["id"] for reference in after or ()]
        options["after"] += [
            {"job_id": find_job(client, reference)["id"], "until": "checkpoint"} for reference in after_checkpoint or ()
        ]
        if dry_run:
            print_json(client.plan(job_kind, body, preset=preset, seeds=numbers))
            return
        if numbers is None:
            made = [client.submit(job_kind, body, **options)]
        else:
            group = client.submit_group(job_kind, body, seeds=numbers, **options)
            made = group["items"]
        if follow:
            made = follow_jobs(client, made, to_stderr=as_json)
        if numbers is None:
            print_json(made[0]) if as_json else out.print(made[0]["id"])
        else:
            print_json(group | {"items": made}) if as_json else out.print(group["group_id"])
        if follow:
            require_success(made)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds {text}: expected numbers with commas between them, as in 0,1,2") from None
