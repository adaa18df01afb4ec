"""Events of a job as sentences, newest first; consecutive checkpoints become one entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy.orm import Session

from api.web.format import number, words
from jobs import queries
from jobs.activity import described
from jobs.models import Event
from jobs.status import Reason
from wcl_core.text import file_size

MAX_EVENTS = 500  # per page of a timeline

_ABOUT_ANOTHER_JOB = ("evaluation_submitted", "preempt_requested")

Data = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One line of the timeline; `tone` chooses its icon, `job_id` is another job that the event is about."""

    seq: int
    tone: str
    title: str
    detail: str
    at: int
    job_id: str | None = None


def entries_before(session: Session, job_id: str, seq: int) -> list[Entry]:
    """Return the newest entries of a job before an event number; events are numbered without gaps."""
    start = max(0, seq - 1 - MAX_EVENTS)
    return entries_of(queries.events_after(session, job_id, start, MAX_EVENTS, seq - 1))


def entries_of(events: Sequence[Event]) -> list[Entry]:
    """Return the entries of events, which are given oldest first."""
    entries = [
        entry
        for kind, group in groupby(events, key=lambda event: event.type)
        for entry in (_checkpoints(list(group)) if kind == "checkpoint" else map(_entry, group))
    ]
    return entries[::-1]


def _checkpoints(events: list[Event]) -> list[Entry]:
    last = events[-1]
    if len(events) == 1:
        return [_entry(last)]
    steps = f"steps {number(events[0].data.get('step'))} to {number(last.data.get('step'))}"
    return [Entry(last.seq, "muted", f"{len(events)} checkpoints", steps, last.at)]


def _entry(event: Event) -> Entry:
    data, by = dict(event.data), event.data.get("by")
    if by and data.pop("by") and data.get("reason") == Reason.USER:
        del data["reason"]  # the name says it
    tone, title, detail = _SENTENCES.get(event.type, _unknown)(data)
    if by:
        title = f"{title or words(event.type).capitalize()} by {by}"
    other = event.data.get("job") if event.type in _ABOUT_ANOTHER_JOB else None
    return Entry(event.seq, tone, title or words(event.type).capitalize(), detail, event.at, other)


_Sentence = tuple[str, str, str]


def _unknown(data: Data) -> _Sentence:
    return "muted", "", ", ".join(f"{words(name)} {value}" for name, value in data.items())


def _reason(data: Data) -> str:
    """Return the reason and the message, if there are any."""
    parts = [words(data["reason"])] if data.get("reason") else []
    return ": ".join(parts + ([str(data["message"])] if data.get("message") else []))


def _submitted(data: Data) -> _Sentence:
    return "muted", "Submitted", "waits for another job" if data.get("status") == "blocked" else ""


def _claimed(data: Data) -> _Sentence:
    workers = data.get("workers") or [data.get("worker")]
    return "began", f"Attempt {data.get('attempt')} claimed", f"by {', '.join(map(str, workers))}"


def _started(data: Data) -> _Sentence:
    step = data.get("start_step")
    where = f"from step {number(step)}" if step else "from step 0"
    facts = [where, f"on {data['device']}"] if data.get("device") else [where]
    return "began", f"Attempt {data.get('attempt')} started", ", ".join(facts)


def _checkpoint(data: Data) -> _Sentence:
    size = f", {file_size(data['size'])}" if isinstance(data.get("size"), int) else ""
    return "muted", "Checkpoint", f"step {number(data.get('step'))}{size}"


def _warning(data: Data) -> _Sentence:
    return "warning", f"Warning: {words(data.get('reason', ''))}", str(data.get("message", ""))


def _changed(data: Data) -> _Sentence:
    return "muted", "Changed", described(data)


def _shared(data: Data) -> _Sentence:
    return "muted", "Shared as a link", f"for {data.get('days')} days"


def _unshared(_data: Data) -> _Sentence:
    return "muted", "Link revoked", ""


_MEASURED = {"final": "the last checkpoint", "best": "the best checkpoint, selected on test", "every": "a checkpoint"}


def _evaluation_submitted(data: Data) -> _Sentence:
    checkpoint = _MEASURED.get(str(data.get("when")), "a checkpoint")
    return "queued", "Evaluation submitted", f"of {checkpoint}, step {number(data.get('step'))}"


def _preempt_requested(_data: Data) -> _Sentence:
    return "muted", "Preemption requested", "a job with a higher priority needs the worker"


def _ending(tone: str, title: str) -> Callable[[Data], _Sentence]:
    return lambda data: (tone, title, _reason(data))


_SENTENCES: dict[str, Callable[[Data], _Sentence]] = {
    "submitted": _submitted,
    "claimed": _claimed,
    "started": _started,
    "checkpoint": _checkpoint,
    "warning": _warning,
    "changed": _changed,
    "shared": _shared,
    "unshared": _unshared,
    "evaluation_submitted": _evaluation_submitted,
    "queued": _ending("queued", "Queued: its dependencies are met"),
    "requeued": _ending("queued", "Requeued"),
    "paused": _ending("paused", "Paused"),
    "resumed": _ending("queued", "Resumed"),
    "cancel_requested": _ending("muted", "Cancel requested"),
    "pause_requested": _ending("muted", "Pause requested"),
    "preempt_requested": _preempt_requested,
    "succeeded": _ending("succeeded", "Succeeded"),
    "failed": _ending("failed", "Failed"),
    "cancelled": _ending("cancelled", "Cancelled"),
}
