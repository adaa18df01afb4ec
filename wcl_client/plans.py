"""Dry runs, as text for a person."""

from __future__ import annotations

from wcl_client import output
from wcl_client.responses import Json
from wcl_client.terminal import Styled, bold, out
from wcl_core.text import file_size


def print_plan(plan: Json) -> None:
    """Print a dry run for a person: the job that would be made, and nothing of it that its preset says."""
    dataset = plan["dataset"]
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset["counts"].items() if count)
    jobs = f"{len(plan['seeds'])} jobs, one for each seed" if plan.get("seeds") else f"one {plan['kind']} job"
    out.say(bold(plan["name"]), f"  {jobs}, on {dataset['name']} ({counts})")
    for line in plan_lines(plan):
        out.say(line)
    if plan["workers"]:
        out.say(f"  can run on: {', '.join(plan['workers'])}")
    if plan.get("deviations"):
        out.show(output.deviations_table(plan["deviations"]))
    out.say("Nothing was submitted. --json prints the whole spec with its defaults.")


def time_lines(time: Json | None) -> list[str | Styled]:
    """Return the expected time of a training, and what a busy machine makes of it; nothing without a time."""
    if not time:
        return []
    busy = time.get("busy")
    return [f"  time: {time['text']}", *([Styled(f"  {busy}", "yellow")] if busy else [])]


def plan_lines(plan: Json) -> list[str | Styled]:
    """Return the steps, the estimate and the warnings of a dry run."""
    lines: list[str | Styled] = []
    if plan.get("total_steps"):
        lines.append(f"  {plan['total_steps']:,} steps, {plan['steps_per_epoch']:,} an epoch")
    estimate = plan.get("estimate") or {}
    facts = time_lines(estimate.get("time"))
    if memory := estimate.get("memory"):
        needed, available = file_size(memory["process_bytes"]), file_size(memory["device_bytes"])
        facts.append(f"  memory: about {needed} of {available}")
    lines += facts
    repeated = [plan["repeats"]["text"]] if plan.get("repeats") else []
    warnings = [*plan.get("notes", ()), *repeated, *plan.get("warnings", ())]
    return lines + [Styled(f"  warning: {text}", "yellow") for text in warnings]
