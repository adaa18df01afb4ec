"""A job as the pages show it: its row, and the values derived from the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.models import Job
from jobs.status import TERMINAL, Status
from jobs.weak_labels import Quality, quality
from wcl_core.text import phase_text, share_done

_NO_PROGRESS = dict.fromkeys(
    ("step", "total_steps", "epoch", "total_epochs", "images_per_second", "eta_seconds", "phase", "share", "part")
)


@dataclass(frozen=True)
class JobView:
    """A job with values derived from its row."""

    job: Job
    tags: list[str]

    @property
    def is_over(self) -> bool:
        return self.job.status in TERMINAL

    @property
    def request(self) -> str | None:
        """The user's request that the running attempt has not carried out yet."""
        if self.is_over:
            return None
        if self.job.cancel_requested_at is not None:
            return "cancelling"
        return "pausing" if self.job.pause_requested_at is not None else None

    @property
    def progress(self) -> dict[str, Any]:
        """The latest progress report; missing values are None."""
        return _NO_PROGRESS | (self.job.progress or {})

    @property
    def fraction(self) -> float | None:
        """The share of its own steps that are done; None before the first report."""
        return 1.0 if self.job.status == Status.SUCCEEDED else share_done(self.progress, self.job.earlier_epochs)

    @property
    def seconds_left(self) -> float | None:
        """The time that the run still takes, by its latest steps; None in the preparation and before the third step."""
        return None if self.progress["phase"] == "prepare" else self.progress["eta_seconds"]

    @property
    def phase(self) -> str:
        """What the run does now."""
        return phase_text(self.progress) or "starting"

    @property
    def metrics(self) -> dict[str, Any]:
        return self.job.latest_metrics or {}

    @property
    def weak_labels(self) -> Quality | None:
        """The quality of the weak labels; None until the run has reported some."""
        return quality(self.job)

    @property
    def actions(self) -> list[str]:
        """The verbs that the status allows."""
        if self.request == "cancelling":
            return []
        by_status = {
            "blocked": ["cancel"],
            "queued": ["pause", "cancel"],
            "running": ["cancel"] if self.request else ["pause", "cancel"],
            "paused": ["resume", "cancel"],
            "failed": ["retry"],
            "cancelled": ["retry"],
        }
        filing = "archive" if self.job.archived_at is None else "unarchive"
        return by_status.get(self.job.status, []) + ([filing] if self.is_over else [])

    @property
    def seconds(self) -> tuple[int, int | None] | None:
        """Start and end of the work; the end is None while it runs."""
        return None if self.job.started_at is None else (self.job.started_at, self.job.ended_at)
