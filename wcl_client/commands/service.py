"""Commands for the whole service: start, open, demo, list datasets, check, activity, audit."""

from __future__ import annotations

import contextlib
import re
import webbrowser
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wcl_client import output, unit
from wcl_client.address import data_folder
from wcl_client.api import WclClient
from wcl_client.commands.shared import SERVICE, AsJson
from wcl_client.demo import run_demo
from wcl_client.doctor import examine, verify_files
from wcl_client.errors import WclError
from wcl_client.registration import list_datasets
from wcl_client.terminal import Styled, bold, err, out, print_json
from wcl_client.up import UpOptions, free_port, run
from wcl_core.text import counted, time_of

app = typer.Typer()
service = typer.Typer(help="Let systemd run `wcl up`: install, remove.", no_args_is_help=True)
app.add_typer(service, name="service", rich_help_panel=SERVICE)
_BUILTIN = ("cifar10", "cifar100", "stl10")


_DataDir = Annotated[Path | None, typer.Option(help="The data folder; default: ./wcl-data.")]
_Host = Annotated[str, typer.Option(envvar="WCL_HOST", help="The address to listen on.")]
_Port = Annotated[
    int, typer.Option(envvar="WCL_PORT", min=0, max=65535, help="The port to listen on; 0 chooses a free one.")
]
_Workers = Annotated[int, typer.Option(min=1, max=64, help="Number of workers; one gives out all GPUs.")]
_Datasets = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=PATH of an image folder, list, archive or packed file, or cifar10, cifar100 or stl10; may be "
        "repeated. `wcl dataset add` adds one that the service remembers."
    ),
]


@app.command(rich_help_panel=SERVICE)
def up(
    data_dir: _DataDir = None,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    workers: _Workers = 1,
    dataset: _Datasets = None,
) -> None:
    """Start the service on this machine.

    It starts the server and its workers; Ctrl-C stops them.
    """
    folders = _folders(dataset or ())
    run(UpOptions(data_dir or data_folder(), host, port or free_port(host), workers, folders), err.say)


@service.command("install")
def install(
    data_dir: _DataDir = None,
    host: _Host = "127.0.0.1",
    port: _Port = 8000,
    workers: _Workers = 1,
    dataset: _Datasets = None,
) -> None:
    """Run `wcl up` with these options by your systemd: now, and after each restart of the machine.

    Repeat it to change the options.
    """
    path = unit.install(UpOptions(data_dir or data_folder(), host, port, workers, _folders(dataset or ())))
    out.say(f"{path} is written, and the service starts")
    out.say("  its state: systemctl --user status wcl; its messages: journalctl --user -u wcl")
    out.say("  to keep it while you are not logged in, once: loginctl enable-linger")


@service.command("remove")
def remove() -> None:
    """Stop the service, and start it no more; the data folder stays."""
    out.say(f"{unit.remove()} is removed; the data folder stays")


def _folders(entries: Sequence[str]) -> dict[str, Path | None]:
    """Return the datasets of `--dataset`; a built-in one has no path."""
    from wcl_core.config.fields import DATASET_NAME, proposed_name  # here, as it takes longer than the rest of `wcl`

    folders: dict[str, Path | None] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        folder = _expanded(path)
        if entry not in _BUILTIN and not (equals and name and path):
            expected = f"NAME=PATH of an image folder or a packed file, or {', '.join(_BUILTIN)}"
            raise typer.BadParameter(f"--dataset {entry}: expected {expected}")
        if not re.search(DATASET_NAME, name):
            expected = f"lower-case letters, digits, '.', '_' and '-': --dataset {proposed_name(name)}={path}"
            raise typer.BadParameter(f"--dataset {entry}: no spec can name {name!r}; expected {expected}")
        if equals and not folder.exists():
            raise typer.BadParameter(f"--dataset {entry}: there is no folder or file {folder}")
        folders[name] = folder if equals else None
    return folders


def _expanded(path: str) -> Path:
    """Return a path with the home folder of a user in place of `~`, if there is one."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


@app.command("open", rich_help_panel=SERVICE)
def open_pages() -> None:
    """Open the pages of the service in a browser, signed in."""
    with WclClient.connect() as client:
        if not out.is_terminal and not _has_browser():  # a link that nothing shows would stay valid for its 15 minutes
            raise WclError(
                "there is no browser here, and only a terminal shows a sign-in link; run `wcl open` in a terminal, or "
                f"open {client.url} and sign in there with a key"
            )
        link = client.sign_in_link()
        if webbrowser.open(link):
            out.say(f"{client.url} opens in the browser")
        elif out.is_terminal:
            out.say(f"there is no browser here; open this link in one within 15 minutes: {link}")
        else:
            raise WclError(f"the browser did not open; open {client.url} in one, and sign in there with a key")


def _has_browser() -> bool:
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


@app.command(rich_help_panel=SERVICE)
def demo(
    data: Annotated[
        str, typer.Option(help="digits, cifar10, or an image folder with train/CLASS/* and test/CLASS/*.")
    ] = ("digits"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the service running at the end.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder; default: ./wcl-data.")] = None,
    epochs: Annotated[int | None, typer.Option(min=2, help="Number of epochs, instead of the preset's.")] = None,
) -> None:
    """Train WCL and SimCLR on real images, and compare them.

    It also checks the weak labels and downloads the checkpoint.
    """
    run_demo(data, data_dir or data_folder(), keep=keep, epochs=epochs, terminal=out)


@app.command(hidden=True)  # the older name of `wcl dataset list` and `read`
def datasets(
    read: Annotated[
        str | None, typer.Option("--read", metavar="NAME", help="Let the workers read this folder again first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the datasets; as `wcl dataset list`."""
    with WclClient.connect() as client:
        if read is not None:
            client.read_dataset(read)
        list_datasets(client, as_json)


@app.command(rich_help_panel=SERVICE)
def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Let the server also read every registered file; this takes a while.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the server.

    The exit code is 1 if a check fails.
    """
    with WclClient.connect() as client:
        findings = examine(client, data_folder())
        if verify and any(finding.name == "Key" and finding.is_ok for finding in findings):
            findings += verify_files(client)
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    for finding in () if as_json else findings:
        mark = Styled("ok", "green") if finding.is_ok else Styled("no", "red")
        out.say(mark, "  ", bold(finding.name), f"  {finding.detail}")
    if not all(finding.is_ok for finding in findings):
        raise typer.Exit(1)


_Time = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="So long ago: 30m, 2h, 3d; or a time: 2026-11-30, 2026-11-30T08:00 (UTC)."),
]


@app.command(rich_help_panel=SERVICE)
def activity(
    actor: Annotated[str | None, typer.Option("--by", help="Only of a person or key, by name or id.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only an action, such as job.cancel, or those of a kind: job, key, worker.")
    ] = None,
    target: Annotated[str | None, typer.Option("--of", help="Only about an object, by name or id.")] = None,
    since: _Time = None,
    until: _Time = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Maximum number of entries.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List who did what, newest first.

    This needs an administrator's key.  With `--json` and a high limit it exports the log.
    """
    times = {name: _utc(f"--{name}", text) for name, text in (("since", since), ("until", until))}
    with WclClient.connect() as client:
        entries = client.activity(actor=actor, action=action, target=target, limit=limit, **times)
    print_json(entries) if as_json else out.show(output.activity_table(entries))


def _utc(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    if (time := time_of(text, datetime.now(UTC))) is None:
        raise typer.BadParameter(f"{option} {text}: expected 30m, 2h or 3d, or a time such as 2026-11-30T08:00")
    return time.isoformat()


@app.command(rich_help_panel=SERVICE)
def audit(as_json: AsJson = False) -> None:
    """Check the database against all events, and the storage.

    The exit code is 1 if a replay of the events does not match the rows, or if files belong to no job.
    """
    with WclClient.connect() as client:
        report = client.audit()
    if as_json:
        print_json(report)
    else:
        for finding in report["findings"]:
            err.say(f"{finding['job_id']} ", Styled(finding["rule"], "red"), f" {finding['message']}")
        numbers = (report["jobs"], "job"), (report["attempts"], "attempt"), (report["events"], "event")
        counts = ", ".join(counted(*each) for each in numbers)
        out.say(f"{counts}: {counted(len(report['findings']), 'finding')}")
    if report["findings"]:
        raise typer.Exit(1)
