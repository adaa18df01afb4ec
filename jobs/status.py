"""The states of a job, and the reasons for a state.

blocked ──> queued ──> running ──> succeeded | failed | cancelled
   │          │ ▲        │  │
   │          │ └────────┘  └──> paused ──> queued | cancelled
   └──────────┴──> cancelled | failed
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The states of a job; cancel and pause are requests, stored as times on the row."""

    BLOCKED = "blocked"  # waits for another job
    QUEUED = "queued"  # waits for a worker that fits
    RUNNING = "running"  # has exactly one open attempt
    PAUSED = "paused"  # until a user resumes it, or a worker has room again
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

# The states that each state may change to.
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
    """The reason of a status; clients treat it as an open string."""

    USER = "user"
    WORKER_LOST = "worker_lost"  # its worker stopped renewing the attempt
    KILLED = "killed"  # the training process exited without an `end` record
    STALLED = "stalled"  # the run reported nothing for too long
    DEVICE_FAILED = "device_failed"  # a GPU of the run broke or cannot be used; the worker offers it no longer
    DEVICE_ERROR = "device_error"  # CUDA or NCCL failed, and the cause may be the code or the GPU
    DEVICE_ASSERT = "device_assert"  # a check in a kernel failed, a fault of the code
    NODE_LATE = "node_late"  # a worker did not begin its part of a job of several nodes; not a failure
    WORKER_STOPPED = "worker_stopped"  # the worker drained; not a failure
    PREEMPTED = "preempted"  # gave way to a job of higher priority; not a failure
    TIMEOUT = "timeout"  # reached its `max_seconds`
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE_LOSS = "non_finite_loss"
    COLLAPSE = "collapse"  # every image has nearly the same embedding
    BAD_DATA = "bad_data"
    DISK_FULL = "disk_full"
    STORAGE_UNAVAILABLE = "storage_unavailable"  # the storage folder is absent, perhaps not mounted
    NO_RESOURCES = "no_resources"  # the worker has no free file descriptor, process or memory to start a run
    MISSING_CHECKPOINT = "missing_checkpoint"
    DAMAGED_CHECKPOINT = "damaged_checkpoint"  # its file has changed between the worker's reading and the run's
    INTERNAL_ERROR = "internal_error"
    UPSTREAM_FAILED = "upstream_failed"


# Infrastructure failures, which are retried up to a limit; any other failure would repeat itself.
INFRASTRUCTURE = frozenset(
    {
        Reason.WORKER_LOST,
        Reason.KILLED,
        Reason.STALLED,
        Reason.DEVICE_FAILED,
        Reason.DEVICE_ERROR,
        Reason.DAMAGED_CHECKPOINT,  # the next attempt marks it, and starts from an older one
    }
)

# These are faults of a worker, not of the job.  The job is paused, and continues once a worker that fits takes jobs.
HELD = frozenset({Reason.DISK_FULL, Reason.STORAGE_UNAVAILABLE, Reason.NO_RESOURCES})
