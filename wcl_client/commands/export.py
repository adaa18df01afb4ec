"""Commands that write a job for other tools: ONNX, timm, TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from wcl_client import model_card, trackers
from wcl_client.api import WclClient
from wcl_client.commands.checkpoints import announced_checkpoint, download_to
from wcl_client.commands.images import JobOrFile, on_weights, run_library
from wcl_client.commands.shared import USE, Force, JobIds, output_file
from wcl_client.references import find_job
from wcl_client.terminal import out

group = typer.Typer(no_args_is_help=True, help="Write a job for other tools.")
app = typer.Typer()
app.add_typer(group, name="export", rich_help_panel=USE)


@group.command()
def onnx(
    reference: JobOrFile,
    target: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    force: Force = False,
) -> None:
    """Write the network as an ONNX graph for any number of images.

    This machine converts it, with the package onnx.
    """
    with output_file(target, force):
        on_weights(reference, lambda file: ["export", file, str(target), "--form=onnx"])
    out.say(str(target))


@group.command()
def timm(
    reference: JobOrFile,
    target: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    force: Force = False,
) -> None:
    """Write a folder that timm loads and the Hugging Face Hub takes, with a model card.

    The card of a job has its settings, the digest of its images and its results.
    """
    if target.is_dir() and any(target.iterdir()) and not force:
        raise typer.BadParameter(f"--output: {target} has files; choose another name, or replace them with --force")
    arguments = ["export", "", str(target), "--form=timm"]
    with tempfile.TemporaryDirectory(prefix="wcl-export-") as place:
        file = Path(reference)
        if not file.is_file():
            with WclClient.connect() as client:
                checkpoint = client.checkpoint(announced_checkpoint(client, reference))
                file = download_to(client, checkpoint["id"], Path(place), "backbone").path
                job = client.job(checkpoint["job_id"])
                results = [each for each in client.evaluations(job["id"]) if each["checkpoint_id"] == checkpoint["id"]]
            about = Path(place) / "about.md"
            about.write_text(model_card.about(job, results, checkpoint["step"], checkpoint["sha256"]))
            arguments.append(f"--about={about}")
        arguments[1] = str(file)
        run_library(arguments)
    out.say(str(target))


@group.command()
def tensorboard(
    jobs: JobIds,
    target: Annotated[Path, typer.Option("--output", "-o", help="The log directory; each job has a folder in it.")],
    follow: Annotated[bool, typer.Option("--follow", help="Of one job: go on until it ends.")] = False,
) -> None:
    """Write the curves and results as event files of TensorBoard.

    A job that is written again replaces its files.
    """
    if follow and len(jobs) > 1:
        raise typer.BadParameter("--follow takes one job; start a command for each")
    with WclClient.connect() as client:
        for each in jobs:
            out.say(str(trackers.to_tensorboard(client, find_job(client, each), target, follow=follow)))


@group.command()
def mlflow(
    jobs: JobIds,
    uri: Annotated[str, typer.Option("--to", envvar="MLFLOW_TRACKING_URI", help="The address of the MLflow server.")],
    experiment: Annotated[str, typer.Option(help="The name of the experiment; it is made if there is none.")] = "wcl",
    weights: Annotated[bool, typer.Option(help="Also send the weights of the last checkpoint.")] = True,
) -> None:
    """Write the settings, curves, results and weights as runs of an MLflow server.

    A job that is written again gets what its run lacks.
    """
    with WclClient.connect() as client, tempfile.TemporaryDirectory(prefix="wcl-export-") as place:
        for each in jobs:
            job = find_job(client, each)
            checkpoints = client.checkpoints(job["id"]) if weights and job["kind"] == "pretrain" else []
            file = download_to(client, checkpoints[-1]["id"], Path(place), "backbone").path if checkpoints else None
            out.say(trackers.to_mlflow(client, job, uri, experiment, file))


@group.command()
def wandb(
    jobs: JobIds,
    target: Annotated[Path, typer.Option("--output", "-o", help="The folder for the offline runs.")],
    project: Annotated[str, typer.Option(help="The project in Weights & Biases.")] = "wcl",
) -> None:
    """Write the settings, curves and results as offline runs of Weights & Biases.

    Nothing is sent anywhere; `wandb sync` sends the printed folder.
    """
    with WclClient.connect() as client:
        for each in jobs:
            out.say(str(trackers.to_wandb(client, find_job(client, each), target, project)))
