"""The `wcl` command line.

Exit codes:
    0  done
    1  a job failed or was cancelled, or the service could not run
    2  wrong usage, or the server rejected the request as invalid
    3  no server responds
    4  the object does not exist
    5  the key is absent, unknown or lacks the permission
    6  the current state of the object forbids the request
    7  a download is incomplete or does not match its checksum
    130  interrupted

With `--json` a command prints one JSON value to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from wcl_client.commands import checkpoints, jobs, service, submission, sweeps, workers
from wcl_client.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    TransferError,
    Unreachable,
    WclError,
)
from wcl_client.output import err
from wcl_client.specfile import SpecFileError

app = typer.Typer(
    name="wcl",
    help="Self-supervised pretraining as a service: submit, watch, evaluate, download.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 job failed, 2 invalid, 3 no server, 4 not found, 5 denied, 6 conflict, 7 transfer.",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"wcl {version('wcl-service')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Define the options of `wcl` itself."""


for commands in (submission, jobs, sweeps, checkpoints, workers, service):
    app.add_typer(commands.app)

_EXIT_CODES: list[tuple[type[WclError], int]] = [
    (Unreachable, 3),
    (NotFoundError, 4),
    (DeniedError, 5),
    (ConflictError, 6),
    (TransferError, 7),
    (InvalidError, 2),
    (ApiError, 1),
    (WclError, 1),
]


def main() -> None:
    """Run the command line; the docstring of this module lists the exit codes."""
    try:
        app(prog_name="wcl")
    except SpecFileError as error:
        _fail(str(error), 2)
    except WclError as error:
        _fail(_advice(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
    except KeyboardInterrupt:
        _fail("interrupted; submitted jobs continue", 130)


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(message)}")
    sys.exit(code)


def _advice(error: WclError) -> str:
    if isinstance(error, Unreachable):
        return f"{error}\nStart the service with `wcl up`, or set WCL_URL and WCL_KEY for another one."
    if isinstance(error, DeniedError):
        return f"{error}\nSet WCL_KEY to a valid key. For the local service, the key is read from its data folder."
    return str(error)
