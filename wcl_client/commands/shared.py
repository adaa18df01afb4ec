"""Options and steps that several commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from wcl_client import completion
from wcl_client.api import WclClient
from wcl_client.errors import NotFoundError, WclError
from wcl_client.output import twin_text, verdict_text
from wcl_client.plans import plan_lines, time_lines
from wcl_client.progress import watch
from wcl_client.responses import Job, JobOptions, Json
from wcl_client.terminal import Styled, bold, err, out

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, and submit nothing.")]
JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="A job's name, its id, a unique part of one of them, or `last`.",
        autocompletion=completion.jobs,
    ),
]
JobIds = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB...",
        help="One or more jobs: names, ids, unique parts of them, or `last`.",
        autocompletion=completion.jobs,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="NAME=VALUE sets a field of the spec, for example epochs=20; may be repeated.",
        autocompletion=completion.fields,
    ),
]


Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


# The subjects of the commands, in the order of the help.
RUN: Final = "Run"
LOOK: Final = "Look"
USE: Final = "Measure and use"
SERVICE: Final = "Service"


class Commands(TyperGroup):
    """The commands of `wcl`; its help lists them by subject, one line each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each subject; a command without one is listed in the first."""
        commands = [(name, self.commands[name]) for name in self.list_commands(ctx) if not self.commands[name].hidden]
        width = max(len(name) for name, _ in commands)
        for subject in (RUN, LOOK, USE, SERVICE):
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - 6 - width))
                for name, command in commands
                if (getattr(command, "rich_help_panel", None) or RUN) == subject
            ]
            with formatter.section(subject):
                formatter.write_dl(rows)


def follow_jobs(client: WclClient, jobs: list[Job], to_stderr: bool) -> list[Job]:
    """Show the progress of jobs until they end, then their verdicts and the next commands; return the ended jobs."""
    terminal = err if to_stderr else out
    ended = watch(client, jobs, terminal)
    for job in ended:
        for line in conclusion(client, job):
            terminal.say(line)
    return ended


def conclusion(client: WclClient, ended: Job) -> list[str | Styled]:
    """Return the verdict of a job that succeeded, and the next commands, as lines; nothing for others."""
    if ended["status"] != "succeeded":
        return []
    job = client.job(ended["id"])  # its baselines may have ended later
    if job["kind"] == "evaluate" and not job.get("measures"):  # a baseline
        return []
    short, sentence = job["id"][-12:], verdict_text(job)
    lines: list[str | Styled] = [bold(f"{job['name']}: {sentence}")] if sentence else []
    lines.append(f"  all results: wcl show {short}")
    if job["kind"] != "pretrain":
        return lines
    measures = (job.get("verdict") or {}).get("measures") or ()
    if not _has_labels(client, job):
        lines.append(f"  a map of its images, as no labels can be compared: wcl evaluate {short} --watch")
    elif all(each["evaluation_id"] is None for each in measures):
        lines.append(f"  more measures, beside the untrained network: wcl evaluate {short} --baselines --watch")
    lines.append(f"  features of new images: wcl features {short} FOLDER -o features.csv")
    lines.append(f"  classes of new images: wcl classify fit {short} LABELLED_FOLDER -o classifier.safetensors")
    return [*lines, *(f"  {text}" for text in twin_texts(client, job))]


def twin_texts(client: WclClient, job: Job) -> list[str]:
    """Return the twin of a training with the next command, as `twin_text`; nothing for a job that has none."""
    if job["kind"] != "pretrain" or job.get("sweep_id") or job["status"] in ("failed", "cancelled"):
        return []
    try:
        return [twin_text(job, client.twin(job["id"]))]
    except NotFoundError:  # a server of an older version
        return []


def _has_labels(client: WclClient, job: Job) -> bool:
    """Return whether the job's dataset has classes; a dataset that no worker offers any more may have had some."""
    classes = {entry["name"]: entry["classes"] for entry in client.datasets()}
    return bool(classes.get(job["spec"]["data"]["name"], True))


@contextlib.contextmanager
def output_file(target: Path, force: bool) -> Iterator[None]:
    """Check the file that a command writes before its work, and say afterwards which folder was made for it.

    Raises:
        BadParameter: it exists and may not be replaced, or no file can be written there.
    """
    existing = [target, *([target.with_suffix(".txt")] if target.suffix.lower() == ".npy" else [])]  # its names
    for each in existing:
        if each.is_file() and not force:
            raise typer.BadParameter(f"--output: {each} exists; choose another name, or replace it with --force")
    folder = target.absolute().parent
    present = next(each for each in (folder, *folder.parents) if each.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise typer.BadParameter(f"--output {target}: this account can write no file into {present}")
    yield
    if present != folder and folder.is_dir():
        err.say(f"made the folder {folder}")


def say_submitted(url: str, job: Job, facts: Sequence[str | Styled] = (), group: Sequence[Job] = ()) -> None:
    """Print a new job on standard error: its name, page, facts, place in the queue, and the next command.

    Standard output has the id alone, for scripts.

    Args:
        url: of the server.
        job: the new job.
        facts: lines to print after its page.
        group: all jobs that were submitted together, if there are more.
    """
    err.say(bold(job["name"]), f"  {url}/jobs/{job['id']}")
    for fact in facts:
        err.say(fact)
    waiting = job.get("waiting") or {}
    if waiting.get("position"):
        about = "about " if waiting.get("is_estimate") else ""
        err.say(f"  place {about}{waiting['position']} in the queue of pool {job['pool']}: {waiting['message']}")
    ids = [each["id"][-12:] for each in group or (job,)]
    err.say(f"  follow {'them' if len(ids) > 1 else 'it'}: wcl watch {' '.join(ids)}")


def describe_submitted(
    client: WclClient, jobs: Sequence[Job], facts: Sequence[str] = (), warnings: Sequence[str] = ()
) -> None:
    """Print new jobs on standard error, as `say_submitted`: a training with its steps, its estimate and its warnings.

    Args:
        client: of the service.
        jobs: as the service has returned them; more than one is a seed group.
        facts: lines to print before those of the plan.
        warnings: to print before those of the plan.
    """
    warnings = [*warnings, *(jobs[0].get("warnings") or ())]
    with contextlib.suppress(WclError):  # the jobs are accepted, whatever becomes of the server now
        first = client.job(jobs[0]["id"])
        lines: list[str | Styled] = list(facts)
        if len(jobs) > 1:
            lines.append(f"  {len(jobs)} jobs, one for each seed; for each of them:")
        plan: Json = {"warnings": []}
        if first["kind"] == "pretrain":
            options: JobOptions = {"preset": first.get("preset"), "pool": first["pool"], "gpus": first["gpus"]}
            plan = client.plan("pretrain", first["spec"], **options)
            if (plan.get("repeats") or {}).get("id") in {each["id"] for each in jobs}:
                plan["repeats"] = None  # the plan comes later, and names one of these jobs
        lines += plan_lines(plan | {"warnings": dict.fromkeys([*warnings, *plan["warnings"]])})
        lines += [f"  {text}" for text in (twin_texts(client, first) if len(jobs) == 1 else ())]
        say_submitted(client.url, first, lines, jobs)


def expected_time(job: Job) -> list[str | Styled]:
    """Return the time that a new training is expected to take, as lines; nothing for other jobs."""
    return time_lines(job.get("expected_time"))


def require_success(jobs: list[Job]) -> None:
    """Print each job that did not succeed, and exit with code 1 if there is one."""
    failed = [job for job in jobs if job["status"] != "succeeded"]
    for job in failed:
        reason = job["status_message"] or job["status_reason"] or "no reason given"
        err.say(f"{job['id']} {job['status']}: {reason}")
    if failed:
        raise typer.Exit(1)


def refuse_both(as_json: bool, as_csv: bool) -> None:
    """Refuse two forms of one output."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv are two forms of one output; give one of them")


def confirm(question: str, advice: str, refusal: str) -> None:
    """Ask; end the command with code 1 unless the user agrees.

    Args:
        question: that is asked.
        advice: printed where no terminal can reply.
        refusal: printed without agreement.
    """
    try:
        is_agreed = typer.confirm(question, err=True)
    except typer.Abort:  # also without a terminal
        err.say(f"\nno reply; {advice}")
        is_agreed = False
    if not is_agreed:
        err.say(refusal)
        raise typer.Exit(1)
