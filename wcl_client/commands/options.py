"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="The job's id, a unique beginning or end of it, or `last`.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE, for example epochs=20; may be repeated.")
]
