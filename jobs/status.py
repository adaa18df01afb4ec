"""The states of a job and the reasons it is in one.

blocked ──> queued ──> running ──> succeeded | failed | cancelled
   │          │ ▲        │  │
   │          │ └────────┘  └──> paused ──> queued | cancelled
   └──────────┴──> cancelled | failed
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Cancel and pause are requests, a time on the row, not states."""

    BLOCKED = "blocked"  # waits for another job
    QUEUED = "queued"  # waits for a worker that fits
    RUNNING = "running"  # has exactly one open attempt
    PAUSED = "paused"  # held by a person until resumed
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

# Where each state may lead.
LEGAL: dict[Status, frozenset[Status]] = {
    Status.BLOCKED: frozenset({Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.PAUSED}) | TERMINAL,
    Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


class Reason(StrEnum):
    """Why; to clients an open string."""

    USER = "user"
    WORKER_LOST = "worker_lost"  # its worker stopped renewing the attempt
    KILLED = "killed"  # the training process died without a last word
    STALLED = "stalled"  # it lived, but reported nothing for too long
    WORKER_STOPPED = "worker_stopped"  # a drain: costs nothing
    PREEMPTED = "preempted"  # gave way to a job of higher priority: costs nothing
    TIMEOUT = "timeout"  # ran for as long as it may
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    COLLAPSE = "collapse"  # every image has nearly the same embedding
    BAD_DATA = "bad_data"
    DISK_FULL = "disk_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"  # the folder of the checkpoints is not there, perhaps not mounted
    MISSING_CHECKPOINT = "missing_checkpoint"
    INTERNAL_ERROR = "internal_error"
    UPSTREAM_FAILED = "upstream_failed"


# Failures of the infrastructure, tried again up to a limit; every other one would only repeat itself.
INFRASTRUCTURE = frozenset({Reason.WORKER_LOST, Reason.KILLED, Reason.STALLED})

# What only a person can put right, and then the job goes on: it is paused, not failed.
HELD = frozenset({Reason.DISK_FULL, Reason.STORAGE_UNAVAILABLE})
