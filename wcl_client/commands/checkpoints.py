"""Commands for checkpoints: list, evaluate, download."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import (
    LOOK,
    USE,
    AsJson,
    Force,
    JobId,
    Overrides,
    follow_jobs,
    output_file,
    require_success,
)
from wcl_client.download import Downloaded
from wcl_client.errors import ConflictError, ForeignServer
from wcl_client.references import checkpoint_sentence, find_checkpoint, find_job
from wcl_client.responses import FileKind, Job, Json
from wcl_client.specfile import apply_overrides
from wcl_client.terminal import err, out, print_json
from wcl_core.text import file_size

app = typer.Typer()
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
# Kinds of files by the names that people use, and by those of REST.
_KINDS: Final[dict[str, FileKind]] = {
    "full": "native",
    "weights": "backbone",
    "native": "native",
    "backbone": "backbone",
}
CheckpointId = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's id, or a job, which stands for its last checkpoint.")
]


@app.command(rich_help_panel=LOOK)
def checkpoints(job: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints by step."""
    with WclClient.connect() as client:
        rows = client.checkpoints(find_job(client, job, "pretrain")["id"])
    print_json(rows) if as_json else out.show(output.checkpoints_table(rows))


@app.command(rich_help_panel=USE)
def evaluate(
    references: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help="Checkpoints' ids, or jobs: each stands for its last checkpoint."),
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="Of one job: the step of the checkpoint, or its id; default: its last one.")
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="May be repeated; default: knn, linear, few_labels; without labels a map.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also measure the raw pixels and the untrained network in the same way.")
    ] = False,
    priority: Annotated[int | None, typer.Option(help="A higher priority runs earlier; default: 0.")] = None,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--watch", help="Show progress until the jobs end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit jobs that evaluate checkpoints.

    Two trainings that are evaluated with `--protocol knn` are compared image by image by `wcl compare`.
    """
    spec = apply_overrides({"protocols": list(protocol)} if protocol else {}, overrides or ())
    if checkpoint is not None and len(references) > 1:
        raise typer.BadParameter(f"--checkpoint: expected one job, but there are {len(references)}")
    with WclClient.connect() as client:
        # All are looked up before the first is submitted.
        ids = [find_checkpoint(client, reference, checkpoint) for reference in references]
        evaluations: list[Job] = []
        jobs: list[Job] = []
        for checkpoint_id in ids:
            job = client.evaluate(checkpoint_id, spec)
            if measures := job.get("measures"):
                err.say(f"measures {measures['sentence']}")
            added = [job, *(_baselines(client, job) if baselines else ())]
            evaluations.append(job)
            jobs += [each for each in added if each["id"] not in {other["id"] for other in jobs}]
        if priority is not None:
            jobs = [_with_priority(client, each, priority) for each in jobs]
        submitted = {each["id"] for each in evaluations}
        for baseline in jobs:
            if baseline["id"] not in submitted:
                err.say(f"{baseline['name']}: {baseline['id']}")
        if follow:
            jobs = follow_jobs(client, jobs, to_stderr=as_json)
        shown = {each["id"]: each for each in jobs}
        evaluations = [shown.get(each["id"], each) for each in evaluations]
        if as_json:
            print_json(evaluations[0] if len(references) == 1 else evaluations)
        else:
            for each in evaluations:
                out.say(each["id"])
        if follow:
            require_success(jobs)


def _with_priority(client: WclClient, job: Job, priority: int) -> Job:
    """Change the priority of a job; one that a worker has taken already needs none."""
    try:
        return client.change(job["id"], priority=priority)
    except ConflictError:
        return job


def _baselines(client: WclClient, evaluation: Job) -> Iterator[Job]:
    """Submit evaluations of the raw pixels and of the untrained network, with the settings of an evaluation.

    The evaluation is submitted already, so one that can have no baselines goes on without them.
    """
    try:
        yield from client.baselines(evaluation["id"])
    except ConflictError as error:
        err.say(f"without baselines: {error.detail}")


@app.command(rich_help_panel=USE)
def download(
    reference: CheckpointId,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file or a folder; default: a file in this folder.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="full: to go on training, or weights: the backbone alone, for other libraries.")
    ] = "full",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint and verify its checksum.

    An interrupted download continues.
    """
    if kind not in _KINDS:
        raise typer.BadParameter(f"--kind {kind}: expected full or weights")
    # The default name is that of the content, so a file of this name is the same one.
    check = nullcontext() if target is None or target.is_dir() else output_file(target, force)
    with check, WclClient.connect() as client:
        file = download_to(client, announced_checkpoint(client, reference), target, _KINDS[kind])
    facts = {"path": str(file.path), "sha256": file.sha256, "size": file.size, "resumed_from": file.resumed_from}
    if as_json:
        print_json(facts)
        return
    out.say(f"{file.path}  {file_size(file.size)}  sha256 {file.sha256}")
    if _KINDS[kind] == "native":
        out.say(
            "this is the full checkpoint, to go on training; for the weights alone, which other libraries load, add"
        )
        out.say("--kind weights")
    for line in _loading_lines(file.path) if _KINDS[kind] == "backbone" else ():
        out.say(f"  {line}")


def _loading_lines(path: Path) -> list[str]:
    """Return the lines of Python that load an exported backbone, by the metadata of the file."""
    try:
        facts = file_facts(path)
        lines = [line.replace("'backbone.safetensors'", repr(str(path))) for line in facts["load"]]
        side = int(facts["data"]["image_size"])
        return [
            *lines,
            f"# images: shorter side {side}, middle square, RGB from 0 to 1, minus ImageNet's means, by its",
            "# deviations; `wcl features` does this",
        ]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # of a server of an older version
        return []


def file_facts(path: Path) -> Json:
    """Return the metadata of a weight file or a classifier.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: it cannot be read, or is of another kind.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(min(_MAX_HEADER_BYTES, int.from_bytes(file.read(8), "little"))))
    facts: Json = json.loads(header["__metadata__"]["wcl"])
    return facts


def announced_checkpoint(client: WclClient, reference: str) -> str:
    """Return the id of a checkpoint as `find_checkpoint` does; of a training that has not succeeded, say its epoch."""
    checkpoint = client.checkpoint(_checked(client, find_checkpoint(client, reference)))
    if (job := client.job(checkpoint["job_id"]))["status"] != "succeeded":
        err.say(f"takes {checkpoint_sentence(checkpoint, job)}")
    return checkpoint["id"]


def _checked(client: WclClient, checkpoint_id: str) -> str:
    """Return an id that a server has sent, which is a part of addresses and of the name of a file.

    Raises:
        ForeignServer: it could lead to another place.
    """
    if not re.fullmatch(r"[0-9A-Za-z-]{1,100}", checkpoint_id):
        raise ForeignServer(f"{client.url} names a checkpoint {checkpoint_id[:100]!r}; expected a WCL server there")
    return checkpoint_id


def download_to(client: WclClient, checkpoint_id: str, target: Path | None, kind: FileKind) -> Downloaded:
    """Download with a progress bar into a file, or into a folder under a name made of id and kind.

    Raises:
        ForeignServer: the server calls its checkpoint by a name that could lead to another folder.
    """
    name = f"{_checked(client, checkpoint_id)}-{kind}.safetensors"
    path = target / name if target and target.is_dir() else target or Path(name)
    with err.download_bars() as bars:
        number = bars.add(path.name)

        def show(received: int, total: int) -> None:
            bars.update(number, completed=received, total=total)

        return client.download(checkpoint_id, path, kind=kind, on_bytes=show)
