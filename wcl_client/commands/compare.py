"""The command that compares jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from wcl_client import output
from wcl_client.api import WclClient
from wcl_client.commands.shared import LOOK, AsCsv, AsJson, JobIds, refuse_both, twin_texts
from wcl_client.references import find_job
from wcl_client.terminal import Rows, Styled, bold, out, print_csv, print_json
from wcl_core.text import counted

app = typer.Typer()


@app.command(rich_help_panel=LOOK)
def compare(
    jobs: JobIds,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare jobs, or one job with its twin.

    The twin is a SimCLR run with the settings of a WCL run, or the other way round. All seeds of both count.
    """
    refuse_both(as_json, as_csv)
    with WclClient.connect() as client:
        jobs_of = [find_job(client, reference) for reference in jobs]
        ids = [job["id"] for job in jobs_of]
        if as_csv:
            print_csv(client.compare_csv(ids, twin=len(ids) == 1))
            return
        comparison = client.compare(ids, twin=len(ids) == 1)
        query = "&".join([*(f"job={job_id}" for job_id in ids), *(["twin=true"] if len(ids) == 1 else [])])
        page = f"{client.url}/compare?{query}"
        texts = twin_texts(client, jobs_of[0]) if len(comparison["configurations"]) < 2 else []
    if as_json:
        print_json(comparison)
        return
    _say(comparison, texts)
    for table in (_results(comparison), _differing(comparison)):
        if table.has_rows:
            out.say()
            out.show(table)
    out.say()
    out.say(page)


def _say(comparison: Mapping[str, Any], texts: Sequence[str]) -> None:
    """Print the verdict, or how to train the twin, as `texts` say; then what makes the comparison unfair."""
    if verdict := comparison.get("verdict"):
        out.say(bold(f"{verdict.get('title', 'kNN accuracy')}, as the trainings measured it: {verdict['sentence']}"))
    elif len(comparison["configurations"]) < 2:
        out.say(bold("There is nothing to compare it with: no twin has run on this dataset with these settings."))
        for text in texts:
            out.say(f"  {text}")
    else:
        out.say(bold("The accuracies cannot be compared: a job has none yet, or not all have labels."))
    for row in comparison["results"]:
        if sentence := row.get("verdict"):
            out.say(f"{_title(row)}: {sentence}.")
    for text in comparison["warnings"]:
        out.say(Styled(f"warning: {text}", "yellow"))
    if waiting := comparison.get("unevaluated"):
        out.say(f"  evaluate first: wcl evaluate {' '.join(each['id'][-12:] for each in waiting)}")


def _names(comparison: Mapping[str, Any]) -> list[str]:
    return [each["name"] for each in comparison["configurations"]]


def _results(comparison: Mapping[str, Any]) -> Rows:
    """Return a table of each measure with the results of each configuration."""
    has_difference = any(row.get("difference") for row in comparison["results"])
    pinned = comparison.get("reference")
    columns = [*(["difference"] if has_difference else []), *([f"reference: {pinned['name']}"] if pinned else [])]
    beaten = [{each["name"]: each["value"] for each in row.get("to_beat", ())} for row in comparison["results"]]
    baselines = list(dict.fromkeys(name for each in beaten for name in each))
    columns += baselines
    table = Rows("result", "checkpoint", *_names(comparison), *columns)
    for row, to_beat in zip(comparison["results"], beaten, strict=True):
        cells = [_mean(each) for each in row["results"]]
        table.add(
            _title(row),
            row["rule"],
            *cells,
            *([_difference(row.get("difference"))] if has_difference else []),
            *([_mean(row.get("reference"))] if pinned else []),
            *(output.share(to_beat[name], 1) if name in to_beat else "–" for name in baselines),
        )
    return table


def _title(row: Mapping[str, Any]) -> str:
    """Return the name of a measure with its settings."""
    settings = output.settings_text(row["params"])
    return str(row["title"]) + (f" ({settings})" if settings else "")


def _mean(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "–"
    ends = result["interval"]
    margin = f" ± {(ends[1] - ends[0]) / 2:.1%}" if ends else ""
    return f"{result['mean']:.1%}{margin} ({counted(len(result['seeds']), 'seed')})"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    margin = (difference["high"] - difference["low"]) / 2
    interval = f" ± {100 * margin:.1f}" if margin < 1 else ""  # a wider one says nothing
    return f"{100 * difference['value']:+.1f}{interval} points"


def _differing(comparison: Mapping[str, Any]) -> Rows:
    table = Rows("setting", *_names(comparison))
    rows: Sequence[Mapping[str, Any]] = comparison["differing"]
    for row in rows:
        table.add(row["field"], *(json.dumps(value, ensure_ascii=False) for value in row["values"]))
    return table
