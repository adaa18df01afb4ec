"""Formatting for the pages: numbers, sizes, durations, and words for states and failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from jobs.models import Job
from jobs.reasons import Explanation, explain
from wcl_core.config import method_title
from wcl_core.metrics import metric_facts
from wcl_core.text import capitalised, counted, file_size, noun_of, visible_json, visible_lines

NOTHING = "–"


def number(value: Any) -> str:
    """Format a number with four significant digits, thousands separators, and an exponent for extreme values."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(value: Any) -> str:
    """Format a share of one as a percentage with one decimal."""
    return f"{value:.1%}" if isinstance(value, int | float) and math.isfinite(value) else NOTHING


def points(value: float) -> str:
    """Format a difference of shares in percentage points, with its sign: +1.2 points."""
    return f"{100 * value:+.1f} points"


def share(value: float) -> str:
    """Format progress as a percentage with one decimal, and 100% without decimals."""
    return "100%" if value == 1 else f"{value:.1%}"


def measured(value: Any) -> str:
    """Format a reported metric; None stands for a value that was not finite."""
    return "not finite" if value is None else number(value)


def metric(value: Any, name: str = "") -> str:
    """Format the value of a metric, shares of one as percentages."""
    return percent(value) if metric_facts(name).is_share else number(value)


def duration(seconds: Any) -> str:
    """Format a duration in its two largest units: 45 s, 3 min 20 s, 2 h 03 min, 4 d 1 h."""
    if not isinstance(seconds, int | float) or seconds < 0 or not math.isfinite(seconds):
        return NOTHING
    whole = round(seconds)
    for size, unit, below, under, digits in (
        (86_400, "d", 3_600, "h", 1),
        (3_600, "h", 60, "min", 2),
        (60, "min", 1, "s", 2),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // below:0{digits}d} {under}"
    return f"{whole} s"


def brief(seconds: Any) -> str:
    """Format a duration for lists, without seconds from ten minutes on."""
    if isinstance(seconds, int | float) and 600 <= seconds < 3_600:
        return f"{round(seconds / 60)} min"
    return duration(seconds)


def rough(seconds: float) -> str:
    """Format an estimate in one unit: 1 min, 17 min, 2.5 h, 3 d."""
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    if seconds < 36 * 3_600:
        hours = seconds / 3_600
        return f"{hours:.0f} h" if hours >= 9.5 else f"{hours:.1f} h".replace(".0 ", " ")
    return f"{seconds / 86_400:.0f} d"


def age(at: int, now: int) -> str:
    """Format the time since `at` in its largest unit."""
    seconds = max(0, (now - at) // 1000)
    if seconds < 5:
        return "now"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def ago(at: int, now: int) -> str:
    """Format the time since `at` for a sentence: 3 h ago."""
    text = age(at, now)
    return text if text == "now" else f"{text} ago"


def exact(at: int | None) -> str:
    """Format a date and time in UTC, to the second."""
    return NOTHING if at is None else f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(at: int | None) -> str:
    """Format a time for `datetime` attributes."""
    return "" if at is None else datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


def explanation(name: str | None) -> Explanation:
    """Return what a reason means and what to do; also for one of a newer version."""
    return explain(name or "") or Explanation(f"Failed: {words(name or 'unknown reason')}", "", "See the log.")


_REASONS = {"user": "on request"}


def reason(name: str) -> str:
    """Return the words for a status reason."""
    return _REASONS.get(name, words(name))


def words(name: Any) -> str:
    """Return an identifier with spaces in place of underscores."""
    return str(name).replace("_", " ").replace("gpu", "GPU")


# Events of webhooks in words; those of jobs follow "a job".
EVENT_WORDS = {
    "job.succeeded": "succeeds",
    "job.failed": "fails",
    "job.cancelled": "is cancelled",
    "job.lost": "loses its worker",
    "job.collapsed": "collapses",
    "job.stalled": "stands still",
    "job.metric": "passes a limit of a metric",
    "worker.lost": "a worker is lost",
    "webhook.test": "test message",
}


def event_words(name: str) -> str:
    """Return an event of a webhook in words."""
    return EVENT_WORDS.get(name, name)


def method(spec: dict[str, Any]) -> str:
    """Return the method of a training spec, or the kind of features of an evaluation spec, in words."""
    if name := spec.get("method"):
        return method_title(str(name))
    kind = str(spec.get("features", {}).get("kind", ""))
    return {"checkpoint": "of a checkpoint", "untrained": "of an untrained net", "pixels": "of raw pixels"}.get(
        kind, kind
    )


def whole(value: Any) -> str:
    """Format a number without decimals."""
    return f"{value:,.0f}" if isinstance(value, int | float) and math.isfinite(value) else NOTHING


def epochs(count: int) -> str:
    """Format a number of epochs: 1 epoch, 20 epochs."""
    return counted(count, "epoch")


def clock(at: int) -> str:
    """Format the time of day in UTC."""
    return f"{datetime.fromtimestamp(at / 1000, UTC):%H:%M:%S}"


def pretty_json(value: Any) -> str:
    """Format JSON in lines; hidden characters are escapes of JSON, so a copy has the same value."""
    return visible_json(json.dumps(value, indent=2, ensure_ascii=False))


def compact_json(value: Any) -> str:
    """Format JSON in one line, as `pretty_json` does."""
    return visible_json(json.dumps(value, ensure_ascii=False))


def as_typed(value: Any) -> Markup:
    """Return the value of a form's field with every character that was typed: a form returns what it was given."""
    return escape(value)


def visible_text(value: Any) -> Any:
    """Return the text of a value with hidden characters as escapes; markup of the templates stays as it is."""
    return value if hasattr(value, "__html__") else visible_lines(str(value))


def steps_per_epoch(job: Job) -> str:
    """Return the steps per epoch from the latest report; empty before the first one."""
    progress = job.progress or {}
    steps, count = progress.get("total_steps"), progress.get("total_epochs")
    return str(steps / count) if steps and count else ""


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "whole": whole,
    "epochs": epochs,
    "counted": counted,
    "capitalised": capitalised,
    "noun": noun_of,
    "clock": clock,
    "json": pretty_json,
    "compact_json": compact_json,
    "as_typed": as_typed,
    "percent": percent,
    "points": points,
    "metric": metric,
    "metric_title": lambda name: metric_facts(name).title,
    "duration": duration,
    "brief": brief,
    "rough": rough,
    "share": share,
    "measured": measured,
    "age": age,
    "ago": ago,
    "exact": exact,
    "iso": iso,
    "file_size": file_size,
    "reason": reason,
    "words": words,
    "event_words": event_words,
    "method": method,
    "explanation": explanation,
    "steps_per_epoch": steps_per_epoch,
}
