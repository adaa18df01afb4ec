"""The `wcl` command line.

Exit codes:
    0  done
    1  a job ended failed or cancelled, or the service could not run
    2  wrong usage, or the server refuses the request as invalid
    3  no server answers
    4  no such thing
    5  the key is absent, unknown or may not do this
    6  the current state forbids it
    7  a download is incomplete or does not match its checksum
    130  interrupted

With `--json` a command prints one JSON value on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from client import operations, output
from client.address import data_folder
from client.api import Job, WclClient
from client.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TransferError,
    Unreachable,
    WclError,
)
from client.output import err, out, print_json
from client.references import find_job
from client.specfile import SpecFileError, apply_overrides, read_spec

app = typer.Typer(
    name="wcl",
    help="Self-supervised pretraining as a service: submit, watch, evaluate, download.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 job failed, 2 invalid, 3 no server, 4 not found, 5 denied, 6 conflict, 7 transfer.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job's id, a unique beginning or end of it, or `last`.")]

operations.register(app)

_FETCHED = ("cifar10", "cifar100", "stl10")
_EXIT_CODES: list[tuple[type[WclError], int]] = [
    (Unreachable, 3),
    (NotFoundError, 4),
    (DeniedError, 5),
    (ConflictError, 6),
    (TransferError, 7),
    (InvalidError, 2),
    (ApiError, 1),
    (WclError, 1),
]


def main() -> None:
    """Run the command line; the module's docstring lists the exit codes."""
    try:
        app(prog_name="wcl")
    except SpecFileError as error:
        _fail(str(error), 2)
    except WclError as error:
        _fail(_advice(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
    except KeyboardInterrupt:
        _fail("interrupted; jobs already submitted go on", 130)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"[red]error:[/red] {message}", markup=True)
    sys.exit(code)


def _advice(error: WclError) -> str:
    if isinstance(error, Unreachable):
        return f"{error}\nStart the service with `wcl up`, or name another one with WCL_URL and WCL_KEY."
    if isinstance(error, DeniedError):
        return f"{error}\nThe key comes from WCL_KEY, or from the data folder of the local service."
    return str(error)


def _finish(jobs: list[Job]) -> None:
    """Exit code 1 when a job did not succeed."""
    bad = [job for job in jobs if job["status"] != "succeeded"]
    for job in bad:
        err.print(f"{job['id']} {job['status']}: {job.get('status_message') or job.get('status_reason') or ''}")
    if bad:
        raise typer.Exit(1)


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
    overrides: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, for example epochs=20.")] = None,
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
    options["after"] = [*(after or ()), *({"job_id": job, "until": "checkpoint"} for job in after_checkpoint or ())]
    with WclClient.connect() as client:
        if dry_run:
            print_json(client.plan(job_kind, body, preset=preset, seeds=numbers))
            return
        if numbers is None:
            made = [client.submit(job_kind, body, **options)]
        else:
            group = client.submit_group(job_kind, body, seeds=numbers, **options)
            made = group["items"]
        if follow:
            made = _watch(client, made, to_stderr=as_json)
        if numbers is None:
            print_json(made[0]) if as_json else out.print(made[0]["id"])
        else:
            print_json(group | {"items": made}) if as_json else out.print(group["group_id"])
        if follow:
            _finish(made)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds {text}: expected numbers with commas between them, as in 0,1,2") from None


@app.command()
def group(
    group_id: Annotated[str, typer.Argument(help="The group's id, as submit --seeds prints it, or one of its jobs.")],
    as_json: AsJson = False,
) -> None:
    """Show a group of seeds: its jobs, and mean, deviation and 95 % interval of what was measured."""
    with WclClient.connect() as client:
        try:
            found = client.group(group_id)
        except NotFoundError:
            job = find_job(client, group_id)
            if not job.get("group_id"):
                raise
            found = client.group(str(job["group_id"]))
    if as_json:
        print_json(found)
        return
    out.print(output.jobs_table(found["items"]))
    if found["results"]:
        out.print(output.group_table(found["results"]))


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only this status.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only names that contain this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with WclClient.connect() as client:
        found = client.jobs(status=status, kind=kind, tag=tag, q=query, limit=limit)
    print_json(found) if as_json else out.print(output.jobs_table(found))


@app.command()
def show(job: JobId, as_json: AsJson = False) -> None:
    """Show one job with its evaluations."""
    with WclClient.connect() as client:
        found = find_job(client, job)
        evaluations = client.evaluations(found["id"])
    if as_json:
        print_json({**found, "evaluations": evaluations})
        return
    out.print(output.job_table(found))
    if found.get("deviations"):
        out.print(output.deviations_table(found["deviations"] or ()))
    if evaluations:
        out.print(output.evaluations_table(evaluations))


@app.command()
def watch(jobs: Annotated[list[str], typer.Argument(help="One or more job ids.")], as_json: AsJson = False) -> None:
    """Show live progress until the jobs end; exit code 1 when one did not succeed."""
    with WclClient.connect() as client:
        ended = _watch(client, [find_job(client, reference) for reference in jobs], to_stderr=as_json)
    if as_json:
        print_json(ended)
    _finish(ended)


def _watch(client: WclClient, jobs: list[Job], to_stderr: bool) -> list[Job]:
    from client.progress import watch as watch_jobs

    return watch_jobs(client, jobs, err if to_stderr else out)


@app.command()
def logs(job: JobId, as_json: AsJson = False) -> None:
    """Print what the training process wrote."""
    with WclClient.connect() as client:
        lines = client.logs(find_job(client, job)["id"])
    if as_json:
        print_json(lines)
        return
    for line in lines:
        print(line["line"])


@app.command()
def checkpoints(job: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints by step."""
    with WclClient.connect() as client:
        found = client.checkpoints(find_job(client, job)["id"])
    print_json(found) if as_json else out.print(output.checkpoints_table(found))


@app.command()
def download(
    reference: Annotated[str, typer.Argument(help="A job (its last checkpoint is meant) or a checkpoint's id.")],
    target: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder.")] = None,
    kind: Annotated[str, typer.Option(help="native, or backbone: weights under torchvision's names.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint, going on where an interrupted download stopped; the checksum is verified."""
    from client.transfer import fetch, find_checkpoint

    if kind not in ("native", "backbone"):
        raise typer.BadParameter("--kind is native or backbone")
    with WclClient.connect() as client:
        done = fetch(client, find_checkpoint(client, reference), target, kind, err)
    facts = {"path": str(done.path), "sha256": done.sha256, "size": done.size, "resumed_from": done.resumed_from}
    print_json(facts) if as_json else out.print(f"{done.path}  {output.size(done.size)}  sha256 {done.sha256}")


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """List the data sets that workers have registered."""
    with WclClient.connect() as client:
        found = client.datasets()
    if as_json:
        print_json(found)
        return
    for entry in found:
        counts = ", ".join(f"{count:,} {split}" for split, count in (entry.get("counts") or {}).items())
        out.print(f"[bold]{entry['name']}[/bold]  {counts}  {len(entry.get('classes') or ())} classes")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine and the server; exit code 1 when something is wrong."""
    from client.doctor import examine

    with WclClient.connect() as client:
        findings = examine(client, data_folder())
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    for finding in () if as_json else findings:
        mark = "[green]ok[/green]  " if finding.is_ok else "[red]no[/red]  "
        out.print(f"{mark}[bold]{finding.name}[/bold]  {finding.detail}")
    if not all(finding.is_ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def up(
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept; default ./wcl-data.")] = None,
    host: Annotated[str, typer.Option(help="The address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many jobs run at once.")] = 1,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of an image folder or packed file, or a builtin; may be repeated."),
    ] = None,
) -> None:
    """Start the server and its workers on this machine; Ctrl-C stops both."""
    from client.up import UpOptions, free_port, run

    folders: dict[str, Path | None] = {}
    for entry in dataset or ():
        name, equals, folder = entry.partition("=")
        if entry not in _FETCHED and (not equals or not Path(folder).exists()):
            expected = f"NAME=PATH of an image folder or a packed file, or {', '.join(_FETCHED)}"
            raise typer.BadParameter(f"--dataset {entry}: expected {expected}")
        folders[name] = Path(folder) if folder else None
    options = UpOptions(data_dir or data_folder(), host, port or free_port(host), workers, folders)
    run(options, lambda text: err.print(text))


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="digits, cifar10, or an image folder (train/CLASS/*, test/CLASS/*).")] = (
        "digits"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running at the end.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept; default ./wcl-data.")] = None,
    epochs: Annotated[int | None, typer.Option(min=2, help="Train this long instead of the preset's.")] = None,
) -> None:
    """Train WCL and its SimCLR twin on real images, evaluate both, draw the weak labels, download the checkpoint."""
    from client.demo import run_demo

    run_demo(data, data_dir or data_folder(), keep=keep, epochs=epochs, console=out)
