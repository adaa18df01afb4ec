"""Commands for saved views of the list of jobs: list, save, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from wcl_client.api import WclClient
from wcl_client.commands.shared import USE, AsJson
from wcl_client.terminal import Rows, out, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Save views of the list of jobs: filters, group and order.")
app.add_typer(group, name="views", rich_help_panel=USE)


@group.command("list")
def list_views(as_json: AsJson = False) -> None:
    """List the views of this key, and those that others share, by name."""
    with WclClient.connect() as client:
        views, url = client.views(), client.url
    if as_json:
        print_json(views)
        return
    table = Rows("name", "for", "by", "page", cut=("name",))
    for view in views:
        address = f"{url}/?{view['query']}" if view["query"] else f"{url}/"
        table.add(view["name"], "everyone" if view["is_shared"] else "this key", view["created_by_name"], address)
    out.show(table)


@group.command()
def save(
    name: Annotated[str, typer.Argument(help="Of the view; a view of this key with the same name is replaced.")],
    query: Annotated[
        str, typer.Argument(help="The query of the page's address, such as `status=running&group=method`.")
    ] = "",
    shared: Annotated[bool, typer.Option("--shared", help="Other keys see it, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save filters, group and order of the list of jobs under a name, and print the address of the page."""
    with WclClient.connect() as client:
        view, url = client.save_view(name, query, shared=shared), client.url
    print_json(view) if as_json else out.say(f"{url}/?{view['query']}")


@group.command()
def remove(
    name: Annotated[str, typer.Argument(help="Of the view, or its id.")],
    as_json: AsJson = False,
) -> None:
    """Remove a saved view."""
    with WclClient.connect() as client:
        views = [view for view in client.views() if name in (view["id"], view["name"])]
        if len(views) != 1:
            those = "several saved views have" if views else "no saved view has"
            raise typer.BadParameter(f"{those} the name or id {name!r}; `wcl views list --json` lists them")
        client.remove_view(views[0]["id"])
    print_json({"id": views[0]["id"]}) if as_json else out.say(f"{views[0]['name']} removed")
