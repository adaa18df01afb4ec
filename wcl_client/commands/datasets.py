"""Commands for datasets: add, check, list, show, rename, remove."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wcl_client import completion
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.errors import ConflictError, NotFoundError
from wcl_client.registration import START_SECONDS, list_datasets, report_lines, state_of, summary
from wcl_client.responses import Dataset
from wcl_client.terminal import Styled, bold, err, out, print_json
from wcl_core.text import counted

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Add, check, list, show, rename and remove datasets.")
app.add_typer(group, name="dataset", rich_help_panel=SERVICE)

_POLL_SECONDS = 0.5
_NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The name of the dataset in specs.", autocompletion=completion.datasets)
]
_Images = Annotated[
    str,
    typer.Argument(metavar="PATH", help="An image folder, a list (CSV, text), a zip or tar archive, or a packed file."),
]
_WithoutLabels = Annotated[
    bool, typer.Option("--without-labels", help="Folders, or the list, name no classes: all images are unlabelled.")
]


@group.command()
def add(
    name: _NameArgument,
    path: _Images,
    without_labels: _WithoutLabels = False,
    wait: Annotated[bool, typer.Option(help="Wait until a worker has read it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Add a dataset to the running service, which remembers it.

    It needs an administrator's key, which the user of `wcl up` has.
    """
    place = Path(path).expanduser()
    with WclClient.connect() as client:
        client.add_dataset(name, str(place.absolute()), labels=not without_labels)
        row = _awaited(client, name, place) if wait else None
    if as_json:
        print_json(row or {"name": name})
    elif row is None:
        out.say(f"{name} is added; `wcl dataset show {name}` has its state")
    else:
        _say(row)


def _awaited(client: WclClient, name: str, place: Path) -> Dataset:
    """Wait until a worker has read a dataset.

    Raises:
        Exit: every worker that runs refuses it, and it is removed again; or none runs.
    """
    is_said = False
    deadline = time.monotonic() + START_SECONDS
    while True:
        state = client.unsettled_datasets()
        if (row := _found(client, name)) is not None and row["state"] == "ready":
            return row
        refused = [each for each in state["refused"] if each["name"] == name]
        is_pending = name in state["pending"] or (row is not None and row["state"] == "being_read")
        is_pending = is_pending or (time.monotonic() < deadline and _is_unseen(client, name))
        if not is_pending and (refused or row is not None):
            for each in refused:
                err.say(Styled(f"{each['worker']} refuses {place.absolute()}: {each['reason']}", "red"))
            err.say(_end(client, name))
            raise typer.Exit(1)
        if time.monotonic() > deadline and not any(worker["is_live"] for worker in client.workers()):
            err.say(f"{name} is added, and no worker runs that could read it")
            raise typer.Exit(1)
        if not is_said:
            err.say("a worker reads it (Ctrl-C stops the wait, not the reading)")
            is_said = True
        time.sleep(_POLL_SECONDS)


def _end(client: WclClient, name: str) -> str:
    """Remove a dataset that the workers refuse, unless a job waits for it, and say so."""
    try:
        client.remove_dataset(name)
    except ConflictError as error:
        return f"{name} stays added, as {error.detail}; the same command with another path replaces it"
    return f"{name} is not added; the service keeps nothing of it"


def _is_unseen(client: WclClient, name: str) -> bool:
    """Return whether a worker that runs has not looked at a dataset yet."""
    return any(
        name not in {*worker["datasets"], *worker["pending_datasets"], *worker["refused_datasets"]}
        for worker in client.workers()
        if worker["is_live"]
    )


def _say_unsettled(client: WclClient, name: str) -> bool:
    """Print why an added dataset cannot be used; return False where no worker reads or refuses it."""
    state = client.unsettled_datasets()
    refused = [each for each in state["refused"] if each["name"] == name]
    for each in refused:
        err.say(Styled(f"{each['worker']} refuses {name}: {each['reason']}", "red"))
    if refused:
        err.say(f"add it again with another path, or remove it: wcl dataset remove {name}")
    elif name in state["pending"]:
        err.say(f"a worker is still reading {name}")
    return bool(refused) or name in state["pending"]


def _found(client: WclClient, name: str) -> Dataset | None:
    try:
        return client.dataset(name)
    except NotFoundError:
        return None


@group.command()
def check(path: _Images, without_labels: _WithoutLabels = False, as_json: AsJson = False) -> None:
    """Read images on this machine and say what a dataset of them would be; no service is needed."""
    with tempfile.TemporaryDirectory(prefix="wcl-check-") as folder:
        place = str(Path(path).expanduser().absolute())
        request = {"name": "images", "path": place, "cache": f"{folder}/images.json", "lists": {}}
        done = subprocess.run(
            [sys.executable, "-m", "wcl_core.registration"],
            input=json.dumps(request | {"has_labels": not without_labels}),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    result: dict[str, Any] = next((each for each in messages if "description" in each or "error" in each), {})
    if "description" not in result:
        reason = str(result.get("error", "the process that reads it has ended")).removeprefix("dataset images: ")
        err.say(Styled(f"refused: {reason}", "red"))
        raise typer.Exit(1)
    row: Dataset = result["description"]
    if as_json:
        print_json({key: value for key, value in row.items() if key not in ("samples", "name")})
    else:
        _say(row, title=path)
        if len(row["classes"]) > 1 and Path(place).is_dir() and not Path(place, "train").is_dir():
            out.say("  if these folders are no classes, such as years or places: --without-labels")


@group.command(name="list")
def list_all(as_json: AsJson = False) -> None:
    """List the datasets with their state.

    It also shows what was read of each, and which datasets workers refuse.
    """
    with WclClient.connect() as client:
        list_datasets(client, as_json)


@group.command()
def show(name: _NameArgument, as_json: AsJson = False) -> None:
    """Show a dataset: its splits, classes, sizes and formats, and what was left out."""
    with WclClient.connect() as client:
        try:
            row = client.dataset(name)
        except NotFoundError:
            if not _say_unsettled(client, name):
                raise
            raise typer.Exit(1) from None
    _print(row, as_json)


@group.command()
def read(name: _NameArgument, as_json: AsJson = False) -> None:
    """Let the workers read a folder again, for example after images were added."""
    with WclClient.connect() as client:
        row = client.read_dataset(name)
    _print(row, as_json)


@group.command()
def rename(name: _NameArgument, new_name: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]) -> None:
    """Rename a dataset that was added; needs an administrator's key."""
    with WclClient.connect() as client:
        client.rename_dataset(name, new_name)
    out.say(f"{name} is now {new_name}; jobs that have ended keep the old name")


@group.command()
def remove(name: _NameArgument) -> None:
    """Remove a dataset that was added; its files stay. Needs an administrator's key."""
    with WclClient.connect() as client:
        client.remove_dataset(name)
    out.say(f"{name} is removed; its files stay")


def _print(row: Dataset, as_json: bool) -> None:
    """Print a registered dataset, and why workers refuse what its folder holds now."""
    print_json(row) if as_json else _say(row)
    if row["state"] == "refused":
        err.say(Styled(f"{row['name']}: {row['state_message']}", "red"))


def _say(row: Dataset, title: str | None = None) -> None:
    """Print what is in a dataset."""
    from wcl_core.config.images import proposed_image_size  # here, as it takes longer than the rest of `wcl`
    from wcl_core.config.protocols import WITHOUT_LABELS

    out.say(bold(title or row["name"]), f"  {summary(row)}", state_of(row))
    for line in report_lines(row):
        out.say(f"  {line}")
    if len(row["classes"]) > 1 and (counts := row.get("class_counts")):
        by_class = zip(row["classes"], *(counts[split] for split in ("train", "test")), strict=True)
        parts = [f"{label} {train:,} + {test:,}" for label, train, test in list(by_class)[:20]]
        more = "" if len(row["classes"]) <= 20 else f", and {len(row['classes']) - 20:,} more"
        out.say(f"  classes (train + test): {', '.join(parts)}{more}")
    if report := row.get("report"):
        side = counted(proposed_image_size(report["median"]), "pixel")
        out.say(f"  train at: up to {side} (data.image_size); wcl recommend weighs the time")
    if len(row["classes"]) < 2:
        out.say(f"  {WITHOUT_LABELS.format(name=title or row['name'])}.")
