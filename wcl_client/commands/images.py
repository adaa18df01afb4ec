"""Commands for new images on this machine: features, neighbours, classify.  No image is sent to the server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TextIO

import typer

from wcl_client.api import WclClient
from wcl_client.commands.checkpoints import download_to
from wcl_client.commands.shared import USE
from wcl_client.references import find_checkpoint

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Fit a classifier on few images, and use it on others.")
app.add_typer(group, name="classify", rich_help_panel=USE)

JobOrFile = Annotated[
    str, typer.Argument(metavar="JOB_OR_FILE", help="A job, a checkpoint, or a downloaded weight file.")
]
_Folder = Annotated[Path, typer.Argument(help="An image folder at any depth, or a list of images.")]
_Size = Annotated[
    int | None, typer.Option(min=8, max=512, help="Side of the images in pixels; default: that of the training.")
]


@app.command(rich_help_panel=USE)
def features(
    reference: JobOrFile,
    folder: _Folder,
    target: Annotated[Path, typer.Option("--output", "-o", help="A file that ends in .csv, .parquet or .npy.")],
    size: _Size = None,
) -> None:
    """Compute the features of new images.

    This machine computes them; no image is sent to the server.
    """
    on_weights(reference, lambda file: ["features", file, str(folder), str(target)], size)


@app.command(rich_help_panel=USE)
def neighbours(
    reference: JobOrFile,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    folder: Annotated[
        Path | None, typer.Option("--in", help="The folder or list to search; default: the folder of the image.")
    ] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Number of neighbours.")] = 10,
    target: Annotated[Path | None, typer.Option("--output", "-o", help="A .csv file, in place of the output.")] = None,
    size: _Size = None,
) -> None:
    """Find the images that are most similar to an image.

    This machine searches a folder; each line has the cosine similarity and the path, the nearest image first.
    """
    place = str(image.parent if folder is None else folder)
    out = [] if target is None else [f"--output={target}"]
    on_weights(reference, lambda file: ["neighbours", file, str(image), place, f"--count={count}", *out], size)


@group.command(name="fit")
def classify_fit(
    reference: JobOrFile,
    folder: Annotated[Path, typer.Argument(help="A folder with a folder for each class, or a list with classes.")],
    target: Annotated[Path, typer.Option("--output", "-o", help="The file to write; it ends in .safetensors.")],
    size: _Size = None,
) -> None:
    """Fit a linear classifier on the features of few labelled images; one file holds it and its network."""
    on_weights(reference, lambda file: ["classify-fit", file, str(folder), str(target)], size)


@group.command(name="predict")
def classify_predict(
    file: Annotated[Path, typer.Argument(help="A file of `wcl classify fit`.")],
    folder: _Folder,
    target: Annotated[Path, typer.Option("--output", "-o", help="The .csv file to write.")],
) -> None:
    """Predict the classes of images: a table with the path, the class and the probability of each class."""
    run_library(["classify-predict", str(file), str(folder), str(target)])


def on_weights(reference: str, arguments: Callable[[str], list[str]], size: int | None = None) -> None:
    """Run a verb of the library on a weight file, which is downloaded if the reference is no file."""
    with tempfile.TemporaryDirectory(prefix="wcl-weights-") as place:
        file = Path(reference)
        if not file.is_file():
            with WclClient.connect() as client:
                file = download_to(client, find_checkpoint(client, reference), Path(place), "backbone").path
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
