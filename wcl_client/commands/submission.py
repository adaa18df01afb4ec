"""`wcl submit`: one job, or a seed group, from a file, a preset and options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from wcl_client import completion
from wcl_client.api import WclClient
from wcl_client.commands.shared import (
    LOOK,
    RUN,
    AsJson,
    DryRun,
    Force,
    Overrides,
    describe_submitted,
    follow_jobs,
    output_file,
    require_success,
)
from wcl_client.errors import FieldProblem, InvalidError
from wcl_client.plans import print_plan
from wcl_client.references import find_job, find_start
from wcl_client.registration import when_registered
from wcl_client.responses import JobKind
from wcl_client.specfile import apply_overrides
from wcl_client.terminal import Rows, Styled, bold, err, out, print_json
from wcl_core.files import write_bytes
from wcl_core.spec_files import read_specs, spec_files
from wcl_core.text import capitalised, counted, file_size

app = typer.Typer()


@app.command(rich_help_panel=RUN)
def submit(
    spec: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A .json or .yaml file with the spec; for several jobs, files with specs or folders of them."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="The preset to start from; the file and --set override it.", autocompletion=completion.presets
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help="pretrain or evaluate.")] = "pretrain",
    name: Annotated[str | None, typer.Option(help="The job's name; default: a name that the server chooses.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")] = None,
    after: Annotated[
        list[str] | None, typer.Option(help="Start only once this job succeeded; may be repeated.")
    ] = None,
    after_checkpoint: Annotated[
        list[str] | None, typer.Option(help="Start only once this job has a checkpoint; may be repeated.")
    ] = None,
    priority: Annotated[int | None, typer.Option(help="A higher priority runs earlier; default: 0.")] = None,
    pool: Annotated[str | None, typer.Option(help="Only workers of this pool may run the job.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Number of GPUs that the run needs.")] = None,
    max_seconds: Annotated[
        int | None, typer.Option(min=1, help="Limit on the running time over all attempts, in seconds.")
    ] = None,
    preemptible: Annotated[
        bool, typer.Option(help="A job of higher priority may preempt this job, which continues later.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="For example 0,1,2: a seed group with one job for each seed.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: the name or digest of imported ones, or a job; see `wcl weights`."
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    follow: Annotated[bool, typer.Option("--watch", help="Show progress until the jobs end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job, or one job for each seed.

    Several files, a folder, or a file of several documents: one job for each spec, all of them or none.
    """
    if not spec and preset is None and kind == "pretrain":
        raise typer.BadParameter("expected a spec file or --preset")
    if kind not in ("pretrain", "evaluate"):
        raise typer.BadParameter(f"--kind {kind}: expected pretrain or evaluate")
    if weights is not None and kind != "pretrain":
        raise typer.BadParameter("--weights: only a training starts from weights")
    specs = _specs(spec or ())
    bodies = [apply_overrides(each, overrides or ()) for each in specs.values()] or [
        apply_overrides({}, overrides or ())
    ]
    job_kind = cast(JobKind, kind)
    numbers = None if seeds is None else _seeds(seeds)
    options: dict[str, Any] = {"preset": preset, "name": name, "tags": tag or (), "priority": priority, "pool": pool}
    options |= {"gpus": gpus, "max_seconds": max_seconds, "preemptible": preemptible or None}
    if len(bodies) > 1:
        _refuse_of_one({"--name": name, "--seeds": seeds, "--dry-run": dry_run or None}, len(bodies), follow)
    with WclClient.connect() as client:
        if weights is not None:
            start = find_start(client, weights)
            network = {} if start.backbone is None else {"backbone": start.backbone}
            bodies = [network | each | {"weights": start.sha256} for each in bodies]
        options["after"] = [find_job(client, reference)["id"] for reference in after or ()]
        options["after"] += [
            {"job_id": find_job(client, reference)["id"], "until": "checkpoint"} for reference in after_checkpoint or ()
        ]
        if len(bodies) > 1:
            _submit_batch(client, job_kind, dict(zip(specs, bodies, strict=True)), options, follow, as_json)
            return
        body = bodies[0]
        if dry_run:
            plan = when_registered(client, lambda: client.plan(job_kind, body, seeds=numbers, **options), err.say)
            print_json(plan) if as_json else print_plan(plan)
            return
        if numbers is None:
            jobs = [when_registered(client, lambda: client.submit(job_kind, body, **options), err.say)]
        else:
            seeds_ = numbers
            group = when_registered(
                client, lambda: client.submit_group(job_kind, body, seeds=seeds_, **options), err.say
            )
            jobs = group["items"]
        if not as_json:
            describe_submitted(client, jobs, warnings=[] if numbers is None else group.get("warnings", []))
        if follow:
            jobs = follow_jobs(client, jobs, to_stderr=as_json)
        if numbers is None:
            print_json(jobs[0]) if as_json else out.say(jobs[0]["id"])
        else:
            print_json(group | {"items": jobs}) if as_json else out.say(group["group_id"])
        if follow:
            require_success(jobs)


@app.command(rich_help_panel=RUN)
def recommend(
    dataset: Annotated[str, typer.Argument(help="The name of a dataset.", autocompletion=completion.datasets)],
    minutes: Annotated[float | None, typer.Option(min=0.1, help="Time that it may take; default: an hour.")] = None,
    content: Annotated[
        str, typer.Option(help="photos; drawings (also digits, text); overhead (microscopy, satellite).")
    ] = "photos",
    pool: Annotated[str, typer.Option(help="The pool of workers that would run it.")] = "default",
    target: Annotated[Path | None, typer.Option("--output", "-o", help="Write the spec to this .yaml file.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Propose a spec that fits a dataset.

    Each choice has its reason.
    """
    if content not in _CONTENTS:
        raise typer.BadParameter(f"--content {content}: expected {', '.join(_CONTENTS)}")
    if target is not None and target.suffix.lower() not in (".yaml", ".yml"):
        raise typer.BadParameter(f"--output {target}: expected a name that ends in .yaml")
    with contextlib.nullcontext() if target is None else output_file(target, force):
        with WclClient.connect() as client:
            recipe = client.recommendation(dataset, minutes=minutes, content=content, pool=pool)
        if target is not None:
            import yaml

            write_bytes(target, yaml.safe_dump(recipe["spec"], sort_keys=False, allow_unicode=True).encode())
    if as_json:
        print_json(recipe)
        return
    last = ""
    for choice in recipe["choices"]:
        out.say(bold(f"{choice['field']}: {choice['value']}"))
        if choice["reason"] != last:
            out.say(f"  {choice['reason']}")
        last = choice["reason"]
    memory = "" if recipe["memory"] is None else f", about {file_size(recipe['memory'])} of memory"
    out.say(f"{recipe['steps']:,} steps{memory}")
    out.say(f"time: {recipe['time']['text']}")
    out.say(f"to expect: {recipe['hope'][:1].lower()}{recipe['hope'][1:]}.")
    for note in recipe["notes"]:
        out.say(f"{capitalised(note)}.")
    for warning in recipe["warnings"]:
        out.say(Styled(f"warning: {warning}", "yellow"))
    if target is None:
        out.say(f"To use it: wcl recommend {dataset} -o {dataset}.yaml, then wcl submit {dataset}.yaml")
    else:
        out.say(f"{target} has the spec; to train: wcl submit {target}")
        if further := recipe.get("further_epochs"):
            out.say(f"then: wcl continue JOB --epochs {further}")


@app.command(name="presets", rich_help_panel=LOOK)
def list_presets(as_json: AsJson = False) -> None:
    """List the presets that `wcl submit --preset` takes."""
    with WclClient.connect() as client:
        rows = client.presets()["items"]
    if as_json:
        print_json(rows)
        return
    table = Rows("preset", "purpose")
    for row in rows:
        table.add(row["name"], row["description"])
    out.show(table)
    out.say(
        "[P] as in the paper, [C] as in its released code, [D] chosen by this project; a twin has the other method."
    )


@app.command(rich_help_panel=LOOK)
def schema(kind: Annotated[str, typer.Argument(help="pretrain or evaluate.")] = "pretrain") -> None:
    """Print the JSON schema of a spec file, for an editor.

    `# yaml-language-server: $schema=FILE` in the first line of a spec names the file that holds it.
    """
    if kind not in ("pretrain", "evaluate"):
        raise typer.BadParameter(f"{kind}: expected pretrain or evaluate")
    with WclClient.connect() as client:
        described = client.spec_schema(cast(JobKind, kind))
    described.pop("required", None)  # a preset or an option may give what a file leaves out
    print_json(described)


_CONTENTS = ("photos", "drawings", "overhead")
_OF_BATCH = re.compile(r"/jobs/(\d+)(.*)")
_MAX_BATCH = 1_000  # jobs of one request
_MAX_WATCHED = 32
_MOST_WARNINGS = 5
_MAX_NAME = 200  # characters of a job's name


def _specs(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the specs of files and folders, each by the name of its job."""
    files = [file for path in paths for file in (spec_files(path) if path.is_dir() else [path])]
    specs: dict[str, dict[str, Any]] = {}
    for file in files:
        for each in read_specs(file):
            number = 1
            while (name := file.stem if number == 1 else f"{file.stem} {number}") in specs:
                number += 1
            specs[name] = each
    if len(specs) > _MAX_BATCH:
        raise typer.BadParameter(f"expected at most {_MAX_BATCH:,} specs at once, but there are {len(specs):,}")
    return specs


def _refuse_of_one(options: Mapping[str, object], count: int, follow: bool) -> None:
    """Refuse options that several specs cannot have."""
    if given := [name for name, value in options.items() if value is not None]:
        raise typer.BadParameter(f"{given[0]}: expected one spec, but there are {count:,}")
    if follow and count > _MAX_WATCHED:
        raise typer.BadParameter(f"--watch: expected at most {_MAX_WATCHED} specs, but there are {count:,}")


def _submit_batch(
    client: WclClient,
    kind: JobKind,
    specs: Mapping[str, dict[str, Any]],
    options: Mapping[str, Any],
    follow: bool,
    as_json: bool,
) -> None:
    """Submit a job for each spec by one request, and print their ids in the order of the specs."""
    given = {name: value for name, value in options.items() if value not in (None, (), [])}
    jobs = [{"kind": kind, "spec": spec, "name": name[:_MAX_NAME]} | given for name, spec in specs.items()]
    try:
        items = when_registered(client, lambda: client.submit_batch(jobs), err.say)
    except InvalidError as error:
        raise _named(error, list(specs)) from error
    if not as_json:
        err.say(bold(f"{len(items):,} jobs"), f"  {client.url}/")
        warnings = list(dict.fromkeys(warning for item in items for warning in item.get("warnings", ())))
        for warning in warnings[:_MOST_WARNINGS]:
            err.say(Styled(f"  warning: {warning}", "yellow"))
        if more := warnings[_MOST_WARNINGS:]:
            err.say(Styled(f"  {counted(len(more), 'more warning')}", "yellow"))
    ended = follow_jobs(client, [client.job(item["id"]) for item in items], to_stderr=as_json) if follow else []
    if as_json:
        print_json({"items": ended or items})
    else:
        for item in items:
            out.say(item["id"])
    if follow:
        require_success(ended)


def _named(error: InvalidError, names: Sequence[str]) -> InvalidError:
    """Return the error with the name of the spec in place of its number."""
    problems = []
    for problem in error.errors:
        match = _OF_BATCH.fullmatch(problem.pointer)
        pointer = problem.pointer if match is None else f"{names[int(match[1])]}: {match[2]}"
        problems.append(FieldProblem(pointer, problem.detail))
    return InvalidError(error.status, error.title, error.detail, tuple(problems))


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds {text}: expected numbers separated by commas, for example 0,1,2") from None
