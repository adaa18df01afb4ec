"""Commands for projects: list, create, rename, set limits, remove."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.output import project_limits
from wcl_client.terminal import Rows, err, out, print_json
from wcl_core.text import bytes_of

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Projects: keys see the jobs of their own project only.")
app.add_typer(group, name="projects", rich_help_panel=SERVICE)

_MAX_LIMIT: Final = 1_000_000
_MAX_BYTES: Final = 1 << 60


@group.command("list")
def list_projects(as_json: AsJson = False) -> None:
    """List the projects that the key sees: its own one, or all."""
    with WclClient.connect() as client:
        projects = client.projects()
    if as_json:
        print_json(projects)
        return
    table = Rows("id", "name", "limits", cut=("name",))
    for project in projects:
        table.add(project["id"][-12:], project["name"], project_limits(project).removeprefix("no limits"))
    out.show(table)


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Of a-z, 0-9, `.`, `_` and `-`, such as vision.")],
    as_json: AsJson = False,
) -> None:
    """Create a project; this needs an administrator's key of all projects."""
    with WclClient.connect() as client:
        project = client.create_project(name)
    if as_json:
        print_json(project)
        return
    out.say(project["name"])
    err.say(f"  to give a person access: wcl keys create PERSON --project {project['name']}")


@group.command()
def rename(
    project: Annotated[str, typer.Argument(help="The present name, or the id.")],
    new_name: Annotated[str, typer.Argument(help="Of a-z, 0-9, `.`, `_` and `-`, such as vision.")],
    as_json: AsJson = False,
) -> None:
    """Rename a project; its keys and their jobs stay in it. This needs an administrator's key of all projects."""
    with WclClient.connect() as client:
        row = client.rename_project(_id_of(client, project), new_name)
    print_json(row) if as_json else out.say(row["name"])


@group.command()
def remove(project: Annotated[str, typer.Argument(help="Its name, or the id.")], as_json: AsJson = False) -> None:
    """Remove a project without keys and jobs. This needs an administrator's key of all projects.

    Usage keeps its name; `wcl projects create` with this name brings it back.
    """
    with WclClient.connect() as client:
        project_id = _id_of(client, project)
        client.remove_project(project_id)
    print_json({"id": project_id}) if as_json else out.say(f"{project} removed")


@group.command("set")
def set_limits(
    project: Annotated[str, typer.Argument(help="Its name, or the id.")],
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N", help="Most GPUs that its jobs use at once, or `none`.")
    ] = None,
    waiting: Annotated[str | None, typer.Option("--waiting", metavar="N", help="Most waiting jobs, or `none`.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", metavar="SIZE", help="Stored files from which on submissions are refused: 500GiB, or `none`."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set limits of a project, which hold at once. This needs an administrator's key of all projects.

    A submission beyond a limit is refused. A job waits while the jobs of its project use the GPUs.
    """
    limits = _limits(gpus, waiting, storage)
    if not limits:
        raise typer.BadParameter("expected at least one of --gpus, --waiting, --storage")
    with WclClient.connect() as client:
        row = client.limit_project(_id_of(client, project), limits)
    if as_json:
        print_json(row)
        return
    out.say(f"{row['name']}: {project_limits(row)}")
    if warning := row.get("warning"):
        err.say(f"warning: {warning}")


def _id_of(client: WclClient, project: str) -> str:
    ids = {name: each["id"] for each in client.projects() for name in (each["name"], each["id"])}
    if project not in ids:
        raise typer.BadParameter(f"there is no project {project[:100]!r}; `wcl projects list` shows them")
    return str(ids[project])


def _limits(gpus: str | None, waiting: str | None, storage: str | None) -> dict[str, int | None]:
    """Return the limits of the options that are set; None for `none`."""
    limits: dict[str, int | None] = {}
    for option, name, text in (("--gpus", "max_gpus", gpus), ("--waiting", "max_waiting", waiting)):
        if text is None:
            continue
        if text != "none" and (not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= _MAX_LIMIT):
            raise typer.BadParameter(f"{option} {text}: expected a number from 1 to {_MAX_LIMIT:,}, or none")
        limits[name] = None if text == "none" else int(text)
    if storage is not None:
        size = bytes_of(storage)
        if storage != "none" and not (size and size <= _MAX_BYTES):
            raise typer.BadParameter(f"--storage {storage}: expected a size such as 500GiB or 2TB, or none")
        limits["max_bytes"] = size
    return limits
