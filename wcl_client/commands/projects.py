"""Commands for projects: list, create, rename."""

from __future__ import annotations

from typing import Annotated

import typer

from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.terminal import Rows, err, out, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Projects: keys see the jobs of their own project only.")
app.add_typer(group, name="projects", rich_help_panel=SERVICE)


@group.command("list")
def list_projects(as_json: AsJson = False) -> None:
    """List the projects that the key sees: its own one, or all."""
    with WclClient.connect() as client:
        projects = client.projects()
    if as_json:
        print_json(projects)
        return
    table = Rows("id", "name", cut=("name",))
    for project in projects:
        table.add(project["id"][-12:], project["name"])
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
        ids = {name: each["id"] for each in client.projects() for name in (each["name"], each["id"])}
        if project not in ids:
            raise typer.BadParameter(f"there is no project {project[:100]!r}; `wcl projects list` shows them")
        row = client.rename_project(ids[project], new_name)
    print_json(row) if as_json else out.say(row["name"])
