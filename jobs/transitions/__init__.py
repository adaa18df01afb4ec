"""Every change of a job's status, each one guarded statement; nothing else assigns one.

    claim           queued  -> running       a new open attempt
    deliver         running -> running, or where an `end` line leads
    end_attempt     running -> queued | paused | terminal     by its supervisor
    reap            running -> queued | failed                by an observer, when nobody renews the attempt
    cancel          blocked, queued, paused -> cancelled;     a running job is asked
    pause, resume   queued -> paused -> queued;               a running job is asked
    preempt         a running job is asked to give way
    unblock         blocked -> queued | failed

An attempt is open while `ended_at` is null.  Every transition out of running ends it in the same transaction, so the
fence at the start of `deliver` turns away whoever comes late.

    guard ── claims, outcomes ── attempts
          └─ requests ── observers

Import from the package itself; its modules are how it is told.
"""

from __future__ import annotations

from jobs.transitions.attempts import Requests, deliver, end_attempt, reap
from jobs.transitions.claims import (
    Claim,
    claim,
    is_claimable,
)
from jobs.transitions.observers import has_blocked, preempt, unblock
from jobs.transitions.requests import cancel, pause, resume

__all__ = [
    "Claim",
    "Requests",
    "cancel",
    "claim",
    "deliver",
    "end_attempt",
    "has_blocked",
    "is_claimable",
    "pause",
    "preempt",
    "reap",
    "resume",
    "unblock",
]
