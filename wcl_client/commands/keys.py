"""Commands for keys: list, create, change, rotate, revoke."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.references import find_key
from wcl_client.responses import Key, NewKey
from wcl_client.terminal import err, out, print_json

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Keys of people and programs: list, create, change, revoke.")
app.add_typer(group, name="keys", rich_help_panel=SERVICE)

_SCOPES: Final = ("read", "submit", "priority", "admin")
_MAX_DAYS: Final = 3_650
_Reference = Annotated[str, typer.Argument(metavar="KEY", help="A key's name, its id, or a unique part of the id.")]
_MAX_LIMIT: Final = 1_000_000
_Waiting = Annotated[str | None, typer.Option("--max-waiting", metavar="N", help="Most waiting jobs, or `default`.")]
_Devices = Annotated[
    str | None,
    typer.Option("--max-devices", metavar="N", help="Most devices that its jobs use at once, or `default`."),
]
_Project = Annotated[
    str | None, typer.Option("--project", metavar="NAME", help="The project that the key is in; `*` for all.")
]
_Submissions = Annotated[
    str | None, typer.Option("--max-submissions", metavar="N", help="Most jobs submitted a minute, or `default`.")
]


@group.command("list")
def list_keys(
    is_all: Annotated[bool, typer.Option("--all", help="Also revoked and expired keys.")] = False,
    as_json: AsJson = False,
) -> None:
    """List keys with their scopes, expiry and last use, newest first; this needs an administrator's key."""
    with WclClient.connect() as client:
        keys = client.keys()
    shown = [key for key in keys["items"] if is_all or key["is_active"]]
    print_json(shown) if as_json else out.show(output.keys_table(shown))
    if keys["notice"]:
        err.say(keys["notice"])


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Of the person or program that uses it.")],
    scopes: Annotated[
        str,
        typer.Option(
            help="read, submit, priority, admin, separated by commas. A viewer needs read, a member read,submit, an "
            "administrator read,submit,admin; priority allows priorities above 0."
        ),
    ] = "read,submit",
    expires: Annotated[str, typer.Option(metavar="DAYS", help="When it expires, such as 90d, or never.")] = "never",
    max_waiting: _Waiting = None,
    max_devices: _Devices = None,
    max_submissions: _Submissions = None,
    project: _Project = None,
    as_json: AsJson = False,
) -> None:
    """Create a key, and print its secret; no other command prints it."""
    chosen = _scopes(scopes)
    days, limits = _days(expires), _limits(max_waiting, max_devices, max_submissions)
    with WclClient.connect() as client:
        _print_secret(client.create_key(name, chosen, days=days, limits=limits, project=project), as_json)


@group.command()
def change(
    reference: _Reference,
    max_waiting: _Waiting = None,
    max_devices: _Devices = None,
    max_submissions: _Submissions = None,
    project: _Project = None,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    scopes: Annotated[str | None, typer.Option("--scopes", help="New scopes, as of `wcl keys create`.")] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DAYS", help="When it expires, such as 90d, or never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change a key: name, scopes, expiry, limits or project; `default` is the limit of the service.

    Changes hold at once, also for browser sessions and waiting jobs; the secret stays. Its jobs stay in the project
    that they were submitted in.
    """
    limits, chosen = _limits(max_waiting, max_devices, max_submissions), scopes and _scopes(scopes)
    days: int | Literal["keep"] | None = "keep" if expires is None else _days(expires)
    if not limits and days == "keep" and all(each is None for each in (project, name, scopes)):
        raise typer.BadParameter(
            "expected at least one of --name, --scopes, --expires, --max-waiting, --max-devices, --max-submissions, "
            "--project"
        )
    with WclClient.connect() as client:
        key_id = find_key(client, reference)["id"]
        key = client.change_key(key_id, limits, project, name=name, scopes=chosen or None, days=days)
    if as_json:
        print_json(key)
        return
    parts = [] if scopes is None else [", ".join(key["scopes"])]
    parts += [] if expires is None else [output.expiry(key)]
    parts += [output.key_limits(key)] if limits or not parts else []
    parts += [] if project is None else [f"project {key.get('project') or 'all'}"]
    out.say(f"{key['name']}: {'; '.join(parts)}")
    _warn(key)


@app.command(rich_help_panel=SERVICE)
def whoami(as_json: AsJson = False) -> None:
    """Show your key, its role and limits, and the server's version."""
    with WclClient.connect() as client:
        key = client.whoami()
        url = client.url
    print_json(key | {"url": url}) if as_json else out.show(output.whoami_table(key, url))


@group.command()
def rotate(
    reference: _Reference,
    expires: Annotated[
        str | None, typer.Option(metavar="DAYS", help="When it expires, such as 90d, or never; by default as before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret, and print it; the former one and its browser sessions end at once.

    Jobs, webhooks and shared links stay those of the key.
    """
    days: int | Literal["keep"] | None = "keep" if expires is None else _days(expires)
    with WclClient.connect() as client:
        _print_secret(client.rotate_key(find_key(client, reference)["id"], days=days), as_json)


@group.command()
def revoke(
    reference: _Reference,
    last_administrator: Annotated[
        bool, typer.Option("--last-administrator", help="Also if it is the last key with `admin`.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Revoke a key at once, with its browser sessions, streams and shared links.

    Its jobs stay, and only an administrator may change them then.
    """
    with WclClient.connect() as client:
        key: Key = find_key(client, reference)
        client.revoke_key(key["id"], last_administrator=last_administrator)
    print_json({"id": key["id"]}) if as_json else out.say(f"{key['name']} revoked")


def _print_secret(key: NewKey, as_json: bool) -> None:
    """Print a secret alone on standard output, for scripts, and the rest on standard error."""
    if as_json:
        print_json(key)
        return
    out.say(key["key"] or "")
    err.say(f"{key['name']}: {', '.join(key['scopes'])}; {output.expiry(key)}; the secret is not shown again")
    err.say("  to use it: WCL_KEY in the environment, or the sign-in page")
    _warn(key)


def _warn(key: Key) -> None:
    if warning := key.get("warning"):
        err.say(f"warning: {warning}")


def _scopes(text: str) -> list[str]:
    chosen = [scope.strip() for scope in text.split(",")]
    if wrong := [scope for scope in chosen if scope not in _SCOPES]:
        raise typer.BadParameter(f"--scopes: no scope {wrong[0]!r}; expected some of {', '.join(_SCOPES)}")
    return chosen


def _limits(waiting: str | None, devices: str | None, submissions: str | None) -> dict[str, int | None]:
    """Return the limits of the options that are set; None for `default`."""
    typed = {"max_waiting": waiting, "max_devices": devices, "max_submissions": submissions}
    return {name: _limit(name, text) for name, text in typed.items() if text is not None}


def _limit(name: str, text: str) -> int | None:
    if text == "default":
        return None
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= _MAX_LIMIT:
        option = "--" + name.replace("_", "-")
        raise typer.BadParameter(f"{option} {text}: expected a number from 1 to {_MAX_LIMIT:,}, or default")
    return int(text)


def _days(text: str) -> int | None:
    """Return the days of a text such as `90d`; None for `never`."""
    if text == "never":
        return None
    match = re.fullmatch(r"([0-9]{1,4})d", text)
    if match is None or not 1 <= int(match[1]) <= _MAX_DAYS:
        raise typer.BadParameter(f"--expires {text}: expected days such as 90d, at most {_MAX_DAYS}d, or never")
    return int(match[1])
