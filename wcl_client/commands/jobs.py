"""Commands for existing jobs: list, show, watch, retry, clone, change."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, Literal, cast

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import (
    LOOK,
    RUN,
    USE,
    AsJson,
    DryRun,
    Force,
    JobId,
    JobIds,
    Overrides,
    describe_submitted,
    expected_time,
    follow_jobs,
    output_file,
    refuse_both,
    require_success,
    say_submitted,
    twin_texts,
)
from wcl_client.errors import NotFoundError
from wcl_client.plans import print_plan
from wcl_client.references import find_job
from wcl_client.registration import dataset_note
from wcl_client.responses import Job, JobKind, JobOptions
from wcl_client.specfile import apply_overrides
from wcl_client.terminal import bold, err, out, print_csv, print_json
from wcl_core.files import refuse_device, write_bytes
from wcl_core.text import counted

app = typer.Typer()
MOST_SEEDS: Final = 32  # of a group, as the server takes them


@app.command(rich_help_panel=LOOK)
def jobs(
    status: Annotated[
        str | None,
        typer.Option(
            help="Only jobs with this status: blocked, queued, running, paused, succeeded, failed or cancelled."
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: pretrain or evaluate.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    query: Annotated[str | None, typer.Option("--query", "-q", help="Only jobs whose name contains this text.")] = None,
    archived: Annotated[
        bool, typer.Option("--archived", help="Only archived jobs, which are left out otherwise.")
    ] = False,
    starred: Annotated[bool, typer.Option("--starred", help="Only jobs with a star.")] = False,
    by: Annotated[
        str | None, typer.Option("--by", metavar="KEY", help="Only jobs of the key with this name or id.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of the project with this name or id.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every job: evaluations, trials of a sweep, and each seed.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of jobs.")] = 20,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all that match as CSV, without a maximum.")] = False,
) -> None:
    """List jobs, newest first.

    As on the page, evaluations of a training and trials of a sweep are left out, and jobs that differ in their seed
    only share a line, unless an option filters the jobs, or the output is JSON or CSV.  Jobs of several keys or
    projects show theirs.
    """
    refuse_both(as_json, as_csv)
    folded = not (every or as_json or any((status, kind, tag, query, archived, starred, by, project)))
    archives: Literal["only"] | None = "only" if archived else None
    if as_csv:
        with WclClient.connect() as client:
            statuses = [part for part in (status or "").split(",") if part] or None
            stars = True if starred else None
            filters = {"kind": kind, "tag": tag, "q": query, "archived": archives, "by": by, "project": project}
            table = client.jobs_csv(status=statuses, starred=stars, **filters)
        print_csv(table)
        return
    with WclClient.connect() as client:
        rows = client.jobs(
            status=status,
            kind=kind,
            tag=tag,
            q=query,
            archived=archives,
            starred=starred,
            by=by,
            project=project,
            folded=folded,
            limit=limit + MOST_SEEDS if folded else limit,
        )
    if folded:
        rows = whole_groups(rows, limit)
    print_json(rows) if as_json else out.show(output.jobs_table(rows, folded=folded))
    if folded and out.is_terminal:
        out.say("without evaluations and trials of sweeps, seeds in one line; all jobs: wcl jobs --all")


def whole_groups(rows: Sequence[Job], limit: int) -> list[Job]:
    """Return the first rows, up to a limit, and beyond it the other jobs of their seed groups."""
    groups = {row.get("group_id") for row in rows[:limit]} - {None}
    return [*rows[:limit], *(row for row in rows[limit:] if row.get("group_id") in groups)]


@app.command(rich_help_panel=LOOK)
def show(reference: JobId, as_json: AsJson = False) -> None:
    """Show a job: its results, then its state."""
    with WclClient.connect() as client:
        job = find_job(client, reference)
        evaluations = client.evaluations(job["id"])
        attempts = [] if as_json or not job.get("attempt") else client.attempts(job["id"])
        note = "" if as_json else dataset_note(client, job)
        twins = [] if as_json else twin_texts(client, job)
    if as_json:
        print_json({**job, "evaluations": evaluations})
        return
    _say(client.url, job)
    for line in (*twins, *([note] if note else [])):
        out.say(f" {line}")
    for line in (job.get("note") or "").splitlines():
        out.say(f" | {line}")
    for table in (
        output.results_table(job, evaluations),
        output.metrics_table(job),
        output.job_table(job, attempts[-1]["environment"] if attempts else None),
        output.deviations_table(job.get("deviations") or ()),
    ):
        if table.has_rows:
            out.say()
            out.show(table)
    if lines := output.legend(job):
        out.say()
        for line in lines:
            out.say(f" {line}")


def _say(url: str, job: Job) -> None:
    """Print the name of a job, the link to its page, and what it has come to."""
    out.say(bold(job.get("name") or job["kind"]), f"  {url}/jobs/{job['id']}")
    out.show(output.answer_table(job, url))


@app.command("group", hidden=True)  # its older name
@app.command("seeds", rich_help_panel=LOOK)
def seed_group(
    group_id: Annotated[
        str, typer.Argument(help="A seed group's id, as `wcl submit --seeds` prints it, or one of its jobs.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show a seed group: its jobs and the mean of their results.

    Each mean has its standard deviation and its 95 % interval.
    """
    with WclClient.connect() as client:
        try:
            shown = client.group(group_id)
        except NotFoundError:
            job = find_job(client, group_id)
            if not job.get("group_id"):
                raise
            shown = client.group(str(job["group_id"]))
    if as_json:
        print_json(shown)
        return
    out.show(output.jobs_table(shown["items"]))
    if shown["results"]:
        out.show(output.group_table(shown["results"]))


@app.command("groups", hidden=True)  # its older name
@app.command("weak-labels", rich_help_panel=LOOK)
def weak_labels(
    job: JobId,
    epoch: Annotated[int | None, typer.Option(min=0, help="Default: the last one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the weak labels of a run at an epoch.

    They are the groups of its monitor batch, a fixed batch of train images.
    """
    with WclClient.connect() as client:
        weak_groups = client.weak_groups(find_job(client, job, "pretrain")["id"], epoch=epoch)
    print_json(weak_groups) if as_json else output.print_weak_groups(weak_groups)


@app.command(rich_help_panel=LOOK)
def watch(
    jobs: JobIds,
    notify: Annotated[
        bool, typer.Option("--notify", help="At the end ring the terminal's bell and show a notification.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show progress until jobs end.

    The exit code is 1 if a job did not succeed.
    """
    with WclClient.connect() as client:
        ended = follow_jobs(client, [find_job(client, reference) for reference in jobs], to_stderr=as_json)
    if notify:
        ends = [f"{job.get('name') or job['kind']} {job['status']}" for job in ended]
        (err if as_json else out).notify(f"WCL: {', '.join(ends)}")
    if as_json:
        print_json(ended)
    require_success(ended)


@app.command(rich_help_panel=LOOK)
def logs(job: JobId, as_json: AsJson = False) -> None:
    """Print the last lines of a training process."""
    with WclClient.connect() as client:
        lines = client.logs(find_job(client, job)["id"])
    if as_json:
        print_json(lines)
        return
    for line in lines:
        out.say(line["line"])


@app.command(rich_help_panel=USE)
def metrics(
    jobs: JobIds,
    target: Annotated[Path, typer.Option("--output", "-o", help="A file that ends in .csv, or in .parquet.")] = Path(
        "metrics.csv"
    ),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write every point of every metric of jobs into a file."""
    is_parquet = target.suffix.lower() == ".parquet"
    if is_parquet and find_spec("pyarrow") is None:
        raise typer.BadParameter(
            f"{target} needs pyarrow; install it with pip install 'wcl-service[parquet]', or write a .csv file"
        )
    with output_file(target, force):
        with WclClient.connect() as client:
            content = client.metrics_csv([find_job(client, reference)["id"] for reference in jobs])
        try:
            refuse_device(target)
            write_bytes(target, _parquet(content) if is_parquet else content)
        except OSError as error:
            raise typer.BadParameter(f"--output {target}: {error.strerror or error}") from error
    count = max(0, content.count(b"\n") - 1)
    print_json({"path": str(target), "points": count}) if as_json else out.say(f"{target}  {count:,} points")


def _parquet(table: bytes) -> bytes:
    """Return a table of metrics in CSV as Parquet, with typed columns."""
    import pyarrow
    from pyarrow import csv, parquet

    text, whole = pyarrow.string(), pyarrow.int64()
    types = {"job_id": text, "metric": text, "step": whole, "value": pyarrow.float64(), "attempt": whole}
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=False)
    content = io.BytesIO()
    parquet.write_table(csv.read_csv(io.BytesIO(table), convert_options=options), content)
    return content.getvalue()


@app.command(rich_help_panel=RUN)
def archive(
    jobs: JobIds,
    undo: Annotated[bool, typer.Option("--undo", help="Show archived jobs in the lists again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave ended jobs out of the lists.

    `wcl jobs --archived` lists them.
    """
    with WclClient.connect() as client:
        ids = [find_job(client, reference)["id"] for reference in jobs]
        changed = [client.unarchive(job_id) if undo else client.archive(job_id) for job_id in ids]
    if as_json:
        print_json(changed)
        return
    for job in changed:
        out.say(f"{job['id']} {'archived' if job['archived_at'] else 'not archived'}")


@app.command(rich_help_panel=RUN)
def star(
    jobs: JobIds,
    undo: Annotated[bool, typer.Option("--undo", help="Remove the stars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Mark jobs with a star.

    `wcl jobs --starred` lists them.  A star is seen by everyone who uses the service.
    """
    with WclClient.connect() as client:
        ids = [find_job(client, reference)["id"] for reference in jobs]
        changed = [client.change(job_id, starred=not undo) for job_id in ids]
    if as_json:
        print_json(changed)
        return
    for job in changed:
        out.say(f"{job['id']} {'starred' if job['starred_at'] else 'not starred'}")


@app.command(rich_help_panel=RUN)
def reference(
    job: JobId,
    undo: Annotated[bool, typer.Option("--undo", help="Make it the reference no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a training the reference of its dataset.

    The list, the charts and comparisons show the other jobs of the dataset against it.
    """
    with WclClient.connect() as client:
        job_id = find_job(client, job, "pretrain")["id"]
        changed = client.unreference(job_id) if undo else client.reference(job_id)
    if as_json:
        print_json(changed)
        return
    is_reference = "the reference" if changed["reference_at"] else "not the reference"
    out.say(f"{changed['id']} is {is_reference} of {changed['dataset']['name']}")


@app.command(rich_help_panel=RUN)
def note(
    job: JobId,
    text: Annotated[str | None, typer.Argument(help="The new note, in Markdown; without it, print the note.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the note from a file.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the note.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print or write the note of a job."""
    if sum([text is not None, file is not None, remove]) > 1:
        raise typer.BadParameter("expected only one of TEXT, --file, --remove")
    if file is not None:
        try:
            refuse_device(file)
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"--file {file}: {getattr(error, 'strerror', None) or error}") from error
    if text is not None and not text.strip():
        raise typer.BadParameter("the note is empty; --remove removes the note")
    with WclClient.connect() as client:
        shown = find_job(client, job)
        if text is not None or remove:
            shown = client.change(shown["id"], note=text or "")
    if as_json:
        print_json({"id": shown["id"], "note": shown.get("note")})
    elif text is not None or remove:
        out.say(f"{shown['id']} note {'removed' if remove else 'written'}")
    else:
        for line in (shown.get("note") or "").splitlines():
            out.say(line)


@app.command(rich_help_panel=RUN)
def retry(job: JobId, as_json: AsJson = False) -> None:
    """Continue a failed or cancelled job as a new one.

    The new job continues from the last checkpoint.
    """
    with WclClient.connect() as client:
        new = client.retry(find_job(client, job)["id"])
        if not as_json:
            say_submitted(client.url, new, expected_time(new))
    print_json(new) if as_json else out.say(new["id"])


@app.command(name="continue", rich_help_panel=RUN)
def go_on(
    job: JobId,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs more; default: those that it lacks to 1,000 steps, else as many as it had."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Another dataset, for a run of its own from the weights of the job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a finished job further.

    The new job goes on from the last full checkpoint, and the learning rate starts again.
    """
    with WclClient.connect() as client:
        trained = find_job(client, job, "pretrain")
        new = client.go_on(trained["id"], epochs=epochs, data=data)
        if not as_json:
            before = 0 if data else trained["spec"]["epochs"]
            length = f"  {counted(new['spec']['epochs'] - before, 'epoch' if data else 'more epoch')}"
            length += "" if epochs else ", as no number was given: --epochs N for another one"
            say_submitted(client.url, new, [length, f"  learning rate: {new['schedule']}", *expected_time(new)])
    print_json(new) if as_json else out.say(new["id"])


@app.command(rich_help_panel=RUN)
def clone(
    job: JobId,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Of the new job; default: the name of the old one with the next number.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job's spec again, changed by --set.

    The new job starts from scratch.
    """
    spec = apply_overrides({}, overrides or ())
    with WclClient.connect() as client:
        cloned = find_job(client, job)
        if dry_run:
            body = apply_overrides(cloned["spec"], overrides or ())
            options: JobOptions = {"name": name, "pool": cloned["pool"], "gpus": cloned["gpus"]}
            plan = client.plan(cast(JobKind, cloned["kind"]), body, **options)
            plan["name"] = name or f"A clone of {cloned['name']}"
            print_json(plan) if as_json else print_plan(plan)
            return
        new = client.clone(cloned["id"], spec, name=name)
        if not as_json:
            describe_submitted(client, [new])
    print_json(new) if as_json else out.say(new["id"])


@app.command(rich_help_panel=RUN)
def change(
    job: JobId,
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="A higher priority runs earlier; only for a waiting job.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Replaces all tags; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change name, tags or priority of a job.

    Only a waiting job can change its priority.
    """
    if name is None and priority is None and tag is None:
        raise typer.BadParameter("expected at least one of --name, --priority, --tag")
    with WclClient.connect() as client:
        changed = client.change(find_job(client, job)["id"], name=name, priority=priority, tags=tag)
        print_json(changed) if as_json else _say(client.url, changed)
