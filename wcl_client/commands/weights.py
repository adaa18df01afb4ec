"""Commands for imported weights: import, list, show, remove."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.images import run_library
from wcl_client.commands.shared import USE, AsJson
from wcl_client.errors import ConflictError
from wcl_client.references import find_weights
from wcl_client.responses import Weights
from wcl_client.terminal import bold, err, out, print_json
from wcl_core.text import file_size

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Import weights of other programs, to start from.")
app.add_typer(group, name="weights", rich_help_panel=USE)

_Reference = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="The name of imported weights, their digest, or a part of it.")
]


@group.command(name="import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A file of torch.save, or in safetensors format.")],
    name: Annotated[str | None, typer.Option(help="Their name; default: that of the file.")] = None,
    prefix: Annotated[
        str | None, typer.Option(help="What stands before the encoder's names, if the file has several encoders.")
    ] = None,
    stem: Annotated[
        str | None, typer.Option(help="small or stride2, for a network that begins with a 3x3 convolution.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import weights of torchvision, timm, MoCo, SimCLR or WCL.

    This machine converts the file, and runs no code in it. The service checks and keeps the result.
    """
    from wcl_core.config.fields import DATASET_NAME, proposed_name  # here: it takes longer than the rest of `wcl`

    if stem not in (None, "small", "stride2"):
        raise typer.BadParameter(f"--stem {stem}: expected small or stride2")
    proposed = proposed_name(file.name.partition(".")[0] if name is None else name)
    if name is not None and not re.fullmatch(DATASET_NAME, name):
        raise typer.BadParameter(f"--name {name}: expected small letters, digits, dots and dashes, such as {proposed}")
    name = name or proposed
    with WclClient.connect() as client, tempfile.TemporaryDirectory(prefix="wcl-weights-") as folder:
        present = client.all_weights()
        converted = Path(folder) / "weights.safetensors"
        options = [f"--{key}={value}" for key, value in (("prefix", prefix), ("stem", stem)) if value is not None]
        run_library(["import-weights", *options, "--", str(file), str(converted)], sys.stderr if as_json else None)
        with converted.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        if any(row["name"] == name and row["sha256"] != sha256 for row in present):
            raise ConflictError(409, "Conflict", f"other weights are called {name}; choose another name with --name")
        row = _upload(client, converted, name, sha256)
    if as_json:
        print_json(row)
        return
    is_present = any(each["sha256"] == sha256 for each in present)
    note = f"  these weights are here already, as {row['name']}" if is_present else ""
    out.say(bold(row["name"]), f"  {file_size(row['size'])}  sha256 {row['sha256']}{note}")
    out.say(f"  to train from them: wcl submit --preset NAME --weights {row['name']}")


def _upload(client: WclClient, file: Path, name: str, sha256: str) -> Weights:
    with err.download_bars() as bars:
        number = bars.add(name)

        def show(sent: int, total: int) -> None:
            bars.update(number, completed=sent, total=total)

        return client.add_weights(file, name, sha256, on_bytes=show)


@group.command(name="list")
def list_weights(as_json: AsJson = False) -> None:
    """List the imported weights."""
    with WclClient.connect() as client:
        rows = client.all_weights()
    if as_json:
        print_json(rows)
    elif rows:
        out.show(output.weights_table(rows))
    else:
        out.say("no weights are imported; `wcl weights import FILE` imports some")


@group.command()
def show(reference: _Reference, as_json: AsJson = False) -> None:
    """Show imported weights: their network, and what was taken of the imported file."""
    with WclClient.connect() as client:
        row = find_weights(client, reference)
    if as_json:
        print_json(row)
        return
    out.say(bold(row["name"]))
    out.show(output.weights_facts(row))


@group.command()
def remove(reference: _Reference) -> None:
    """Remove imported weights; refused while an unfinished job needs them."""
    with WclClient.connect() as client:
        row = find_weights(client, reference)
        client.remove_weights(row["sha256"])
    out.say(f"{row['name']} is removed")
