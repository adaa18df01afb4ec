"""How results look in the terminal: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from wcl_client.responses import Checkpoint, Evaluation, Job, WeakGroups

COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "paused": "yellow",
}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def styled_status(status: str) -> str:
    colour = COLOURS.get(status)
    return f"[{colour}]{status}[/{colour}]" if colour else status


def print_json(value: Any) -> None:
    """Machine-readable output: one JSON value on stdout, nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def progress_text(job: Job) -> str:
    progress = job.get("progress")
    if not progress or not progress.get("total_steps"):
        return ""
    return f"{progress['step'] / progress['total_steps']:.0%}"


def jobs_table(jobs: Sequence[Job]) -> Table:
    """A job a row; the end of its id is enough for every command, and its beginning is only the time."""
    names = (Column("id", no_wrap=True), "name", "kind", "dataset", "status", "progress", "created")
    table = Table(*names, box=None, header_style="bold")
    for job in jobs:
        reason = f" ({job['status_reason']})" if job.get("status_reason") else ""
        table.add_row(
            job["id"][-12:],
            job.get("name") or "",
            job["kind"],
            str((job.get("dataset") or {}).get("name") or ""),
            styled_status(job["status"]) + reason,
            progress_text(job),
            job["created_at"][:19].replace("T", " "),
        )
    return table


def job_table(job: Job) -> Table:
    """One job, a fact a row."""
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    facts: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("name", job.get("name")),
        ("kind", job["kind"]),
        ("status", styled_status(job["status"])),
        ("reason", job.get("status_reason")),
        ("message", job.get("status_message")),
        ("waits", _waits(job)),
        ("dataset", (job.get("dataset") or {}).get("name")),
        ("progress", progress_text(job)),
        ("attempt", job.get("attempt")),
        ("group", job.get("group_id")),
        ("preset", _preset(job)),
        ("tags", ", ".join(job.get("tags") or ())),
        ("created", job.get("created_at")),
        ("started", job.get("started_at")),
        ("ended", job.get("ended_at")),
        ("page", (job.get("links") or {}).get("page")),
    ]
    facts += [(name, f"{value:.4g}") for name, value in sorted((job.get("latest_metrics") or {}).items()) if value]
    for name, value in facts:
        if value not in (None, ""):
            table.add_row(name, str(value))
    return table


def _waits(job: Job) -> str | None:
    if not (waiting := job.get("waiting")):
        return None
    place = f", place {waiting['position']} in the queue" if waiting.get("position") else ""
    until = f", until {waiting['until']}" if waiting.get("until") else ""
    return f"{waiting['message']}{until}{place} ({waiting['cause']})"


def workers_table(workers: Sequence[Mapping[str, Any]]) -> Table:
    """A worker a row; one that was asked to drain says so."""
    names = (Column("id", no_wrap=True), "name", "pool", "gpus", "state", "job", "datasets", "seen")
    table = Table(*names, box=None, header_style="bold")
    for worker in workers:
        drains = worker.get("drain_requested_at") and worker["is_live"]
        table.add_row(
            worker["id"][-12:],
            worker["name"],
            worker["pool"],
            str(worker["gpus"]),
            worker["state"] + (", draining" if drains else ""),
            (worker.get("job_id") or "")[-12:],
            ", ".join(sorted(worker["datasets"])),
            worker["seen_at"][:19].replace("T", " "),
        )
    return table


def _preset(job: Job) -> str | None:
    if not (name := job.get("preset")):
        return None
    deviations = job.get("deviations")
    if deviations is None:
        return f"{name}, which is no longer known"
    return f"{name} (deviations: {len(deviations)})" if deviations else f"{name}, as it is"


def deviations_table(deviations: Sequence[Mapping[str, Any]]) -> Table:
    """Where a job departs from its preset."""
    table = Table("field", "preset", "this job", box=None, header_style="bold", title="Deviations from the preset")
    for entry in deviations:
        table.add_row(entry["pointer"], _json_text(entry["preset"]), _json_text(entry["job"]))
    return table


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def group_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Numbers over the seeds, with the 95 % t-interval of their mean."""
    names = ("protocol", "parameters", "metric", "epoch", "seeds", "mean", "deviation", "95 % interval")
    table = Table(*names, box=None, header_style="bold")
    for entry in results:
        interval = entry["interval"]
        table.add_row(
            entry["protocol"],
            _params(entry["params"]),
            entry["metric"],
            _epoch_of(entry),
            ", ".join(map(str, entry["seeds"])),
            f"{entry['mean']:.2%}",
            "" if entry["deviation"] is None else f"{entry['deviation']:.2%}",
            "one seed has none" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}",
        )
    return table


def _epoch_of(result: Mapping[str, Any]) -> str:
    """An older server has no `selection`."""
    return result.get("selection") or ("" if result["epoch"] is None else str(result["epoch"]))


def _params(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in params.items())


def sweeps_table(sweeps: Sequence[Mapping[str, Any]]) -> Table:
    """A sweep a row."""
    names = (Column("id", no_wrap=True), "name", "search", "dataset", "status", "trials", "metric", "best", "created")
    table = Table(*names, box=None, header_style="bold")
    for sweep in sweeps:
        table.add_row(
            sweep["id"][-12:],
            sweep["name"],
            sweep["search"],
            sweep["dataset"]["name"],
            styled_status(sweep["status"]),
            str(sweep["trials"]),
            f"{sweep['metric']['protocol']} {sweep['metric']['name']}",
            share(sweep["best_value"]),
            sweep["created_at"][:19].replace("T", " "),
        )
    return table


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """One sweep, a fact a row."""
    best = sweep.get("best")
    metric = sweep["metric"]
    facts = [
        ("id", sweep["id"]),
        ("name", sweep["name"]),
        ("status", styled_status(sweep["status"])),
        ("message", sweep["status_message"]),
        ("search", sweep["search"]),
        ("metric", f"{metric['protocol']} {metric['name']}, {sweep['direction']}d"),
        ("measured on", measured_on(sweep)),
        ("rungs", ", ".join(f"{r['trials']} x {r['epochs']} epochs" for r in sweep["rungs"] if r["epochs"])),
        ("best", f"trial {best['trial']}, {share(best['value'])}: {_params(best['settings'])}" if best else None),
        ("page", sweep["links"]["page"]),
    ]
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in facts:
        if value:
            table.add_row(name, str(value))
    return table


def measured_on(sweep: Mapping[str, Any]) -> str:
    """Which images decide."""
    share = sweep["held_out_share"]
    return f"{share:.0%} of train, held out" if share else "the test split: the best value is selected on test"


def trials_table(sweep: Mapping[str, Any]) -> Table:
    """Trials of the furthest rung first, the best of each first; those without a value last."""
    names = list(dict.fromkeys(name for trial in sweep["table"] for name in trial["settings"]))
    rungs = [f"{rung['epochs']} epochs" if rung["epochs"] else "value" for rung in sweep["rungs"]]
    table = Table("trial", *names, *rungs, "state", box=None, header_style="bold")
    sign = 1 if sweep["direction"] == "minimize" else -1
    for trial in sorted(sweep["table"], key=lambda trial: _place(trial, sign)):
        values = [rung["value"] for rung in trial["rungs"]] + [None] * (len(rungs) - len(trial["rungs"]))
        settings = [_json_text(trial["settings"][name]) for name in names]
        table.add_row(str(trial["number"]), *settings, *map(share, values), trial["state"])
    return table


def _place(trial: Mapping[str, Any], sign: int) -> tuple[float, ...]:
    measured = [rung["value"] for rung in trial["rungs"] if rung["value"] is not None]
    return (-len(measured), sign * measured[-1] if measured else 0.0, trial["number"])


def share(value: float | None) -> str:
    """A share as a percentage; nothing for none."""
    return "" if value is None else f"{value:.2%}"


def print_weak_groups(found: WeakGroups) -> None:
    """What was seen at one epoch in a line, then a group a row."""
    if found["epoch"] is None:
        out.print("no groups were reported: the run has not looked at its probe, or makes no weak labels")
        return
    precision, chance = found["pair_precision"], found["pair_precision_chance"]
    known = f", pair precision {share(precision)} (chance {share(chance)})" if precision is not None else ""
    out.print(f"epoch {found['epoch']}: {found['num_groups']} groups of {found['num_images']} images{known}")
    table = Table("images", "precision", "true classes", box=None, header_style="bold")
    for group in found["groups"]:
        made = ", ".join(f"{name} ({count})" for name, count in (group["classes"] or {}).items())
        table.add_row(str(len(group["places"])), share(group["pair_precision"]), escape(made))
    out.print(table)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> Table:
    table = Table("id", "step", "epoch", "size", "sha256", box=None, header_style="bold")
    for checkpoint in checkpoints:
        table.add_row(
            checkpoint["id"],
            str(checkpoint["step"]),
            f"{checkpoint['epoch']:g}",
            size(checkpoint["size"]),
            checkpoint["sha256"][:16] + "…",
        )
    return table


def evaluations_table(evaluations: Sequence[Evaluation]) -> Table:
    table = Table("protocol", "parameters", "metric", "value", box=None, header_style="bold")
    for entry in evaluations:
        error = f" ± {entry['stderr']:.2%}" if entry.get("stderr") is not None else ""
        table.add_row(entry["protocol"], _params(entry["params"]), entry["metric"], f"{entry['value']:.2%}{error}")
    return table
