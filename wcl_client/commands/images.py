"""Commands for images: features, neighbours, classify.

This machine computes them, and no image is sent to the server.  The features of a registered dataset are the exception:
a job of the service computes them once, and this machine downloads them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TextIO

import typer

from wcl_client.api import WclClient
from wcl_client.commands.checkpoints import announced_checkpoint, download_to, file_facts
from wcl_client.commands.shared import USE, Force, follow_jobs, output_file, require_success
from wcl_client.references import checkpoint_sentence, find_checkpoint, find_job
from wcl_client.responses import Job, Json
from wcl_client.terminal import err

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Fit a classifier on few images, and use it on others.")
app.add_typer(group, name="classify", rich_help_panel=USE)

JobOrFile = Annotated[
    str, typer.Argument(metavar="JOB_OR_FILE", help="A job, a checkpoint, or a downloaded weight file.")
]


def _existing(places: Sequence[Path] | None) -> list[Path]:
    """Return folders, lists or images, before weights are downloaded for them.

    Raises:
        BadParameter: one does not exist.
    """
    for place in places or ():
        if not place.exists():
            raise typer.BadParameter(f"{place} does not exist; expected the path of images here, not a dataset's name")
    return list(places or ())


_IMAGES = "An image folder at any depth, a list of images, or image files."
_Size = Annotated[
    int | None, typer.Option(min=8, max=512, help="Side of the images in pixels; default: that of the training.")
]


@app.command(rich_help_panel=USE)
def features(
    reference: JobOrFile,
    images: Annotated[list[Path] | None, typer.Argument(metavar="FOLDER_OR_IMAGES...", help=_IMAGES)] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file that ends in .csv, .parquet or .npy.")
    ] = None,
    size: _Size = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of a folder: a dataset of the service; a job computes its features.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of the dataset: train, test or unlabelled alone; default: all.")
    ] = None,
    force: Force = False,
) -> None:
    """Compute the features of new images.

    This machine computes those of a folder, and no image is sent to the server. A job computes those of a dataset, once
    for each checkpoint and version of the dataset; then they are downloaded. With neither, the features that an
    evaluation or a downloaded file has are written.
    """
    if target is None:
        raise typer.BadParameter("expected a file to write, for example --output features.csv")
    if images and dataset is not None:
        raise typer.BadParameter("expected either a folder or images, or --dataset NAME")
    if split is not None and (images or split not in _SPLITS):
        raise typer.BadParameter(f"--split {split}: expected {', '.join(_SPLITS)}, with --dataset")
    places = [str(each) for each in _existing(images)]
    _check_ending(target)
    with output_file(target, force):
        if places:
            on_weights(reference, lambda file: ["features", file, *places, str(target)], size)
        else:
            _write_dataset_features(reference, dataset, size, target, split)


def _write_dataset_features(
    reference: str, dataset: str | None, size: int | None, target: Path, split: str | None
) -> None:
    """Write the features of a dataset, or those that an evaluation or a file has."""
    chosen = [] if split is None else [f"--split={split}"]
    if dataset is None and Path(reference).is_file():
        run_library(["dataset-features", reference, str(target), *chosen])
        return
    with tempfile.TemporaryDirectory(prefix="wcl-features-") as place, WclClient.connect() as client:
        if dataset is None:
            file = _stored_features(client, find_job(client, reference, "evaluate"), Path(place))
        else:
            file = _dataset_features(client, reference, dataset, size, Path(place))
        run_library(["dataset-features", str(file), str(target), *chosen])


_SPLITS = ("train", "test", "unlabelled")


@app.command(rich_help_panel=USE)
def neighbours(
    reference: JobOrFile,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--in",
            metavar="FOLDER_OR_DATASET",
            help="The folder or list to search, else a dataset of the service; default: the folder of the image.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Number of neighbours.")] = 10,
    target: Annotated[Path | None, typer.Option("--output", "-o", help="A .csv file, in place of the output.")] = None,
    size: _Size = None,
    force: Force = False,
) -> None:
    """Find the images that are most similar to an image.

    This machine searches a folder, or the features of a dataset that a job has computed; the nearest image comes first.
    """
    place = image.parent if folder is None else folder
    with nullcontext() if target is None else output_file(target, force):
        _write_neighbours(reference, image, place, count, target, size)


def _write_neighbours(
    reference: str, image: Path, place: Path, count: int, target: Path | None, size: int | None
) -> None:
    """Print the neighbours of an image in a folder, a list or a dataset, or write them into a file."""
    if not image.is_file():
        raise typer.BadParameter(f"{image} is no file; expected an image")
    if not Path(reference).is_file():  # before weights are downloaded, and a job is submitted for it
        run_library(["check-image", str(image)])
    out = [] if target is None else [f"--output={target}"]
    if target is None:  # on standard error, so that a script reads rows alone
        err.say(f"cosine similarity to {image.name}, the nearest image first:")
    if place.exists() or Path(reference).is_file():
        on_weights(reference, lambda file: ["neighbours", file, str(image), str(place), f"--count={count}", *out], size)
        return
    with tempfile.TemporaryDirectory(prefix="wcl-features-") as downloads, WclClient.connect() as client:
        weights, stored, _ = _of_dataset(client, reference, str(place), size, Path(downloads))
        run_library(["neighbours", str(weights), str(image), str(stored), f"--count={count}", *out])


def _check_ending(target: Path) -> None:
    """Raise before a job is submitted if no table has the name.

    Raises:
        BadParameter: it has another ending.
    """
    if target.suffix.lower() not in (".csv", ".parquet", ".npy"):
        raise typer.BadParameter(f"{target}: expected a name that ends in .csv, .parquet or .npy")


def _of_dataset(
    client: WclClient, reference: str, dataset: str, size: int | None, place: Path
) -> tuple[Path, Path, str]:
    """Return the weights of a job, the features of a dataset by them, and the checkpoint; raise as `_dataset_features`.

    Both files are downloaded.
    """
    stored = _dataset_features(client, reference, dataset, size, place)
    checkpoint_id = find_checkpoint(client, reference)
    return download_to(client, checkpoint_id, place, "backbone").path, stored, checkpoint_id


def _dataset_features(client: WclClient, reference: str, dataset: str, size: int | None, place: Path) -> Path:
    """Return a downloaded file of the features of a dataset; a job computes them unless one has.

    Args:
        client: of the service.
        reference: a job or a checkpoint.
        dataset: its name.
        size: side of the images in pixels; by default that of the training.
        place: the folder for the file.

    Raises:
        Exit: the job did not succeed.
    """
    if Path(reference).is_file():
        raise typer.BadParameter(f"{reference} is a file; a dataset of the service needs a job or a checkpoint of it")
    names = [each["name"] for each in client.datasets()]
    if dataset not in names:
        known = ", ".join(names[:10]) or "none"
        raise typer.BadParameter(f"{dataset} is no file or folder here and no dataset of the service ({known})")
    checkpoint = client.checkpoint(find_checkpoint(client, reference))
    trained = client.job(checkpoint["job_id"])
    if trained["kind"] != "pretrain":
        raise typer.BadParameter(f"{reference} is the evaluation {trained['name']}; expected the job that trained")
    # Limits that the training had for its own files stay.
    data = {**trained["spec"]["data"], "name": dataset, "held_out_share": 0}
    data |= {} if size is None else {"image_size": size}
    job = client.evaluate(checkpoint["id"], {"protocols": ["embed"], "data": data})
    err.say(f"features of {dataset} by {checkpoint_sentence(checkpoint, trained)}: {client.url}/jobs/{job['id']}")
    if job["status"] == "succeeded":
        return _stored_features(client, job, place)
    err.say("a worker of the service computes them once; the job waits in the queue until one has room.")
    err.say("Ctrl-C is safe: the job stays. A folder in place of the dataset's name gives the answer here, at once.")
    require_success(follow_jobs(client, [job], to_stderr=True))
    return _stored_features(client, job, place)


def _stored_features(client: WclClient, job: Job, place: Path) -> Path:
    """Return a downloaded file of the features that an evaluation has written.

    Raises:
        BadParameter: the job has none.
    """
    stored = [each["id"] for each in client.checkpoints(job["id"]) if each["kind"] == "embeddings"]
    if not stored:
        raise typer.BadParameter(
            f"{job['name']} has no features of a dataset; expected a folder of images, or --dataset NAME"
        )
    return download_to(client, stored[-1], place, "native").path


@group.command(name="fit")
def classify_fit(
    reference: JobOrFile,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_DATASET",
            help="A folder with a folder for each class, or a list with classes, else a dataset of the service.",
        ),
    ],
    target: Annotated[Path, typer.Option("--output", "-o", help="The file to write; it ends in .safetensors.")],
    size: _Size = None,
    force: Force = False,
) -> None:
    """Fit a linear classifier on the features of few labelled images; one file holds it and its network."""
    if target.suffix.lower() != ".safetensors":
        raise typer.BadParameter(f"{target}: expected a name that ends in .safetensors")
    with output_file(target, force):
        if Path(reference).is_file():
            _existing([folder])
            on_weights(reference, lambda file: ["classify-fit", file, str(folder), str(target)], size)
            return
        with tempfile.TemporaryDirectory(prefix="wcl-features-") as place, WclClient.connect() as client:
            sizes = [f"--size={size}"] if size else []
            if folder.exists():
                images, checkpoint_id = folder, announced_checkpoint(client, reference)
                weights = download_to(client, checkpoint_id, Path(place), "backbone").path
            else:
                weights, images, checkpoint_id = _of_dataset(client, reference, str(folder), size, Path(place))
                sizes = []
            origin = f"--checkpoint={checkpoint_id}"
            run_library(["classify-fit", str(weights), str(images), str(target), origin, *sizes])


@group.command(name="predict")
def classify_predict(
    file: Annotated[Path, typer.Argument(help="A file of `wcl classify fit`.")],
    target: Annotated[Path, typer.Option("--output", "-o", help="The .csv file to write.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER_OR_IMAGES...", help=_IMAGES, callback=_existing)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of a folder: a dataset of the service; a job computes its features.")
    ] = None,
    force: Force = False,
) -> None:
    """Predict the classes of images: a table with the path, the class and the probability of each class.

    For a dataset, the classifier must have been fitted with the weights of a job of the service.
    """
    if bool(images) == (dataset is not None):
        raise typer.BadParameter("expected either a folder or images, or --dataset NAME")
    with output_file(target, force):
        if dataset is None:
            run_library(["classify-predict", str(file), *map(str, images or ()), str(target)])
            return
        checkpoint_id, size = _origin(file)
        with tempfile.TemporaryDirectory(prefix="wcl-features-") as place, WclClient.connect() as client:
            stored = _dataset_features(client, checkpoint_id, dataset, size, Path(place))
            run_library(["classify-predict", str(file), str(stored), str(target)])


def _origin(file: Path) -> tuple[str, int]:
    """Return the checkpoint that a classifier was fitted with, and the side of its images.

    Raises:
        BadParameter: the file is no classifier, or names no checkpoint.
    """
    facts: Json = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = file_facts(file)
    if "classifier" not in facts:
        raise typer.BadParameter(f"{file} is no classifier; expected a file of `wcl classify fit`")
    if (checkpoint_id := facts["classifier"].get("checkpoint_id")) is None:
        raise typer.BadParameter(f"{file} names no checkpoint of the service; fit it with a job, or predict a folder")
    return str(checkpoint_id), int(facts["spec"]["data"]["image_size"])


def on_weights(reference: str, arguments: Callable[[str], list[str]], size: int | None = None) -> None:
    """Run a verb of the library on a weight file, which is downloaded if the reference is no file."""
    with tempfile.TemporaryDirectory(prefix="wcl-weights-") as place:
        file = Path(reference)
        if not file.is_file():
            with WclClient.connect() as client:
                file = download_to(client, announced_checkpoint(client, reference), Path(place), "backbone").path
        run_library([*arguments(str(file)), *([f"--size={size}"] if size else [])])


def run_library(arguments: list[str], stdout: TextIO | None = None) -> None:
    """Run `python -m wcl_core`, which loads PyTorch; its messages are those of this command.

    Args:
        arguments: of the process.
        stdout: where its output goes, by default to this process's own.

    Raises:
        Exit: it has failed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    if subprocess.run([sys.executable, "-m", "wcl_core", *arguments], env=environment, stdout=stdout).returncode:
        raise typer.Exit(1)
