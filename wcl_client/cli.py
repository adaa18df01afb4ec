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

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import httpx
import typer
from typer import TyperException
from typer.main import get_command

from wcl_client.address import data_folder, find_address, is_loopback
from wcl_client.commands import (
    checkpoints,
    compare,
    control,
    datasets,
    deletion,
    export,
    images,
    jobs,
    keys,
    operation,
    projects,
    service,
    shares,
    submission,
    sweeps,
    usage,
    views,
    webhooks,
    weights,
    workers,
)
from wcl_client.commands.shared import Commands
from wcl_client.connection import Answers
from wcl_client.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    InvalidAddress,
    InvalidError,
    NotFoundError,
    RefusedTokenError,
    TransferError,
    Unreachable,
    WclError,
)
from wcl_client.key_expiry import ROTATION_ADVICE, expiry_text, is_first_of_day
from wcl_client.terminal import Styled, be_robust, closed_pipe, err, flush, write
from wcl_core.spec_files import SpecFileError
from wcl_core.text import visible
from wcl_core.version import VERSION

app = typer.Typer(
    name="wcl",
    cls=Commands,
    help="Self-supervised pretraining as a service: submit, watch, evaluate, download.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 job failed, 2 invalid, 3 no server, 4 not found, 5 denied, 6 conflict, 7 transfer.",
)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        write(f"wcl {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Define the options of `wcl` itself."""


for commands in (
    submission,
    control,
    jobs,
    deletion,
    compare,
    sweeps,
    checkpoints,
    weights,
    images,
    datasets,
    workers,
    webhooks,
    shares,
    views,
    export,
    datasets,
    workers,
    keys,
    projects,
    usage,
    service,
    operation,
):
    app.add_typer(commands.app)

_EXIT_CODES: list[tuple[type[WclError], int]] = [
    (Unreachable, 3),
    (NotFoundError, 4),
    (DeniedError, 5),
    (ConflictError, 6),
    (TransferError, 7),
    (InvalidError, 2),
    (ApiError, 1),
    (InvalidAddress, 2),
    (WclError, 1),
]


_MOST = 2_000  # characters of an error
# A value of a server is read where it is shown.  One of another form than expected raises one of these there.
_OF_OTHER_DATA = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)


def main() -> None:
    """Run the command line; the docstring of this module lists the exit codes."""
    be_robust()
    sys.exit(run(sys.argv[1:]))


_command = cache(lambda: get_command(app))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; an error of any kind is printed as one message."""
    Answers.forget()
    code = _run(arguments)
    if Answers.key_expires is not None and is_first_of_day(Answers.key_expires):
        err.say(f"the key of this command expires on {expiry_text(Answers.key_expires)}; {ROTATION_ADVICE}")
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        code = _command().main(list(arguments), prog_name="wcl", standalone_mode=False)
        flush()
    except TyperException as error:
        return _fail(visible(error.format_message()), error.exit_code)
    except SpecFileError as error:
        return _fail(visible(str(error)), 2)
    except WclError as error:
        return _fail(_advice(error), next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
    except BrokenPipeError:  # `wcl jobs | head -1`
        return closed_pipe()
    except OSError as error:
        return _fail(f"{error.filename or 'the machine'}: {error.strerror or error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:  # a defect: its place helps those who mend it, and a traceback helps nobody else
        if "_WCL_COMPLETE" in os.environ:  # a shell asks for completions and shows no errors
            return 1
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        if isinstance(error, _OF_OTHER_DATA) and Answers.url is not None:
            kind = f"{type(error).__name__} in {where}"
            return _fail(f"{Answers.url} sent JSON of another kind ({kind}); expected a WCL server there", 1)
        return _fail(f"unexpected {type(error).__name__} in {where}: {error}. Please report this defect of wcl.", 1)
    if code == 130:
        return _fail("interrupted; submitted jobs continue", 130)
    return int(code or 0)


def _fail(message: str, code: int) -> int:
    if message:  # a command without arguments has printed its help
        err.say(Styled("error:", "red"), f" {message if len(message) <= _MOST else message[:_MOST] + '…'}")
    return code


def _advice(error: WclError) -> str:
    if isinstance(error, Unreachable) and "certificate" not in str(error):
        address = find_address().url
        host = httpx.URL(address).host
        if os.environ.get("WCL_URL") and not is_loopback(host):
            return (
                f"{error}\nWCL_URL names a server on another machine. Compare it with the address that you were given, "
                f"and ask its administrator whether it runs; `curl {address}/healthz` shows what answers there."
            )
        if os.environ.get("WCL_URL"):
            return (
                f"{error}\nWCL_URL names a server on this machine. Start it as it is started here: `wcl up`, its unit "
                "(`systemctl status wcl-server`) or `python -m api`."
            )
        port = httpx.URL(address).port
        options = f" --port {port}" if port not in (None, 8000) else ""
        return (
            f"{error}\nStart the service with `wcl up{options}`. For another one on this machine, set "
            "WCL_DATA_DIR to its data folder; elsewhere, set WCL_URL and WCL_KEY."
        )
    if isinstance(error, RefusedTokenError):
        return str(error)
    if isinstance(error, DeniedError) and error.status != 403:  # the message of a 403 names the missing right
        if find_address().is_key_withheld:
            return (
                f"{error}\nWCL_KEY was not sent: {data_folder() / 'server.json'} names the server, and no process of "
                "this user listens there. Set WCL_URL to the address of the server that the key is for."
            )
        return (
            f"{error}\nSet WCL_KEY to a valid key. For a service on this machine, set WCL_DATA_DIR to its data folder."
        )
    return str(error)
