"""The part of a model card that the service knows: the recipe, the images, the results, and what the run comes from."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from wcl_client.responses import Evaluation, Job


def about(job: Job, evaluations: Sequence[Evaluation], step: int, sha256: str) -> str:
    """Return the sections as Markdown.

    Args:
        job: the training.
        evaluations: of the checkpoint that is exported.
        step: of the checkpoint.
        sha256: of the checkpoint's file.
    """
    dataset = job["dataset"]
    lines = [
        "## Training",
        "",
        f"Run {_plain(job['name'])}, job `{job['id']}`, step {step:,}; checkpoint sha256 `{sha256}`.",
        "",
        f"Images: dataset {_plain(dataset['name'])}, digest `{dataset['digest']}`. No label was used.",
        *_origins(job),
        "",
        "```yaml",
        yaml.safe_dump(dict(job["spec"]), sort_keys=False).rstrip(),
        "```",
        "",
        "## Results",
        "",
        *_results(evaluations),
        "",
        "## Licence",
        "",
        "The licence of the images and of the weights is not recorded. State both before you publish this folder.",
        "",
    ]
    return "\n".join(lines)


def _origins(job: Job) -> list[str]:
    origins = [f"{each['relation'].replace('_', ' ')} {_plain(each['name'])}" for each in job.get("lineage") or ()]
    return ["", f"It comes from: {'; '.join(origins)}."] if origins else []


def _results(evaluations: Sequence[Evaluation]) -> list[str]:
    rows = []
    for each in evaluations:
        if each["value"] is None:
            continue
        interval = each["interval"]
        between = "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"
        settings = ", ".join(
            f"{name} {value}" for name, value in each["params"].items() if not isinstance(value, dict | list)
        )
        rows.append(f"| {_plain(each['title'])} | {each['value']:.4g} | {between} | {each['n'] or ''} | {settings} |")
    if not rows:
        return ["This checkpoint has not been evaluated."]
    return ["| measure | value | 95 % interval | images | settings |", "|---|---|---|---|---|", *rows]


def _plain(name: str) -> str:
    """Return a name that Markdown shows as it is, on one line."""
    line = " ".join(name.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in line)
