"""Commands for operators on the server's machine: backup, restore, settings.

They work on the database directly, also while no server runs, so they start `python -m jobs` with the same settings.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from wcl_client.address import data_folder
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.processes import module_environment

app = typer.Typer()

Folder = Annotated[str, typer.Argument(metavar="DIR", help="The folder of backups, on another disk.")]


@app.command(rich_help_panel=SERVICE)
def backup(
    folder: Folder,
    keep: Annotated[
        int | None, typer.Option(min=1, max=999_999, help="Keep so many backups, and remove older ones.")
    ] = None,
) -> None:
    """Back up database and files while jobs run.

    Run it on the server's machine, with the server's settings.  Files that an earlier backup in the folder has are not
    copied again.  The exit code is 1 if a file is damaged or missing that is not marked so.
    """
    _run("backup", *([] if keep is None else [f"--keep={keep}"]), "--", folder)


@app.command(rich_help_panel=SERVICE)
def restore(
    folder: Folder,
    name: Annotated[
        str, typer.Option("--backup", metavar="NAME", help="One of the backups; by default the newest complete one.")
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Read everything and compare it with its digests; restore nothing.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of the original, which is gone or stopped.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Restore only files that the present database names and its storage lacks.")
    ] = False,
) -> None:
    """Restore a backup, as a copy or in the original's place.

    It goes into WCL_DATA_DIR and WCL_DATABASE_URL, which are empty.  Without --replace the result is a copy: it has
    another storage id, its webhooks are disabled, and its running jobs wait for workers of its own.
    """
    options = [option for option, is_set in (("--check", check), ("--replace", replace), ("--files", files)) if is_set]
    _run("restore", *options, *([f"--backup={name}"] if name else []), "--", folder)


@app.command(rich_help_panel=SERVICE)
def settings(as_json: AsJson = False) -> None:
    """Print every setting of server and workers.

    Each has its value in this environment, where it comes from, and its meaning.  Passwords are stars.  A wrong value
    is one line, and the exit code is 1.
    """
    _run("settings", *(["--json"] if as_json else []))


def _run(*words: str) -> None:
    """Run a command of `python -m jobs`, which writes to the same terminal; exit with its code."""
    environment = module_environment()
    if "WCL_DATA_DIR" in environment:  # an empty one names the default, as for other commands
        environment["WCL_DATA_DIR"] = str(data_folder())
    done = subprocess.run([sys.executable, "-m", "jobs", *words], env=environment)
    if done.returncode:
        raise typer.Exit(min(abs(done.returncode), 2))
