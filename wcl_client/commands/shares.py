"""Commands for links that show jobs without a key: create, list, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from wcl_client.api import WclClient
from wcl_client.commands.shared import USE, AsJson
from wcl_client.references import find_job
from wcl_client.responses import Json
from wcl_client.terminal import Rows, err, out, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Show jobs to people without a key, by a link that expires.")
app.add_typer(group, name="share", rich_help_panel=USE)


@group.command()
def create(
    jobs: Annotated[
        list[str], typer.Argument(help="One job, or several for a comparison: names, ids, parts of ids, or `last`.")
    ],
    days: Annotated[int, typer.Option(min=1, max=90, help="The link expires after this time.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Create a link to a job or to a comparison, and print its address.

    Everyone who has the address sees names, states, settings, notes, evaluations and curves of these jobs only.
    """
    with WclClient.connect() as client:
        created = client.share([find_job(client, reference)["id"] for reference in jobs], days=days)
    if as_json:
        print_json(created)
        return
    out.say(created["url"])
    err.say(f"expires {created['expires_at']}; the address is not shown again")
    err.say(f"revoke it: wcl share revoke {created['id'][-12:]}")


@group.command("list")
def list_links(as_json: AsJson = False) -> None:
    """List the links, newest first; for an administrator those of all keys."""
    with WclClient.connect() as client:
        links = client.shares()
    if as_json:
        print_json(links)
        return
    table = Rows("id", "jobs", "state", "expires", "by", cut=("jobs",))
    for link in links:
        names = ", ".join(job["name"] for job in link["jobs"]) or "deleted"
        table.add(link["id"][-12:], names, _state(link), link["expires_at"], link["created_by_name"])
    out.show(table)


def _state(link: Json) -> str:
    if link["is_open"]:
        return "open"
    return f"revoked by {link['revoked_by_name']}" if link["revoked_at"] else "ended"


@group.command()
def revoke(
    link: Annotated[str, typer.Argument(metavar="LINK", help="The id of a link, or its unique beginning or end.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a link at once."""
    with WclClient.connect() as client:
        ids = [each["id"] for each in client.shares() if each["id"].startswith(link) or each["id"].endswith(link)]
        if len(ids) != 1 or not link:
            raise typer.BadParameter(f"{'no' if not ids else 'more than one'} link has the id {link}")
        client.revoke_share(ids[0])
    print_json({"id": ids[0]}) if as_json else out.say(f"{ids[0]} revoked")
