"""A sweep in the terminal: a line for each trial that is measured or fails, and how far all are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from wcl_client.api import WclClient
from wcl_client.output import share
from wcl_client.responses import Json

_SETTLED = ("measured", "failed")


def watch(client: WclClient, sweep_id: str, console: Console) -> Json:
    """Follow the sweep to its end; as it ended."""
    said: set[tuple[int, int]] = set()
    sweep: Json = {}
    with console.status("") as line:
        for sweep in client.follow_sweep(sweep_id):
            for place, told in _settled(sweep):
                if place not in said:
                    said.add(place)
                    console.print(told, highlight=False, markup=False)
            line.update(f"{len(said)} of {sum(rung['trials'] for rung in sweep['rungs'])} trials and rungs are over")
    return sweep


def _settled(sweep: Mapping[str, Any]) -> Iterator[tuple[tuple[int, int], str]]:
    """Trials that are over at a rung, by trial and rung, in the order of the rungs."""
    for rung in range(len(sweep["rungs"])):
        for trial in sweep["table"]:
            found = next((each for each in trial["rungs"] if each["rung"] == rung), None)
            if found is None or found["state"] not in _SETTLED:
                continue
            length = f", {found['epochs']} epochs" if found["epochs"] else ""
            settings = ", ".join(f"{name} = {value}" for name, value in trial["settings"].items())
            result = "failed" if found["value"] is None else share(found["value"])
            yield (trial["number"], rung), f"trial {trial['number']}{length}: {result}  ({settings})"
