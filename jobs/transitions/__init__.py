"""Every change of a job's status, each one guarded statement; no other code assigns a status.

    claim           queued  -> running       a new open attempt
    begin_node      running -> running             a further worker of an attempt on several
    deliver         running -> running, or to the status that follows from an `end` record
    end_attempt     running -> queued | paused | terminal     by the attempt's supervisor
    reap            running -> queued | failed                by a reconciler, when the attempt is not renewed
    cancel          blocked, queued, paused -> cancelled;     sets a request on a running job
    pause, resume   queued -> paused -> queued;               sets a request on a running job
    preempt         sets a request on a running job
    unblock         blocked -> queued | failed
    resume_held     paused -> queued                by a reconciler, when a worker has room or its storage again

An attempt is open while `ended_at` is null.  Every transition out of running ends it in the same transaction, so the
fence at the start of `deliver` rejects every later write.

    status_change ── claims, outcomes ── fence ── nodes
                  └─ requests ── observers

Import from this package, not from its modules.
"""

from jobs.transitions.claims import Claim, claim, is_claimable, may_have_work, unused
from jobs.transitions.fence import Requests, deliver, end_attempt, reap, requests_of, requests_query
from jobs.transitions.nodes import (
    NodeState,
    announce_rendezvous,
    begin_node,
    end_node,
    has_node,
    leave_nodes,
    renew_node,
    request_drain,
)
from jobs.transitions.observers import has_blocked, has_held, preempt, resume_held, unblock
from jobs.transitions.requests import cancel, cancel_below, pause, resume

__all__ = [
    "Claim",
    "NodeState",
    "Requests",
    "announce_rendezvous",
    "begin_node",
    "cancel",
    "cancel_below",
    "claim",
    "deliver",
    "end_attempt",
    "end_node",
    "has_blocked",
    "has_held",
    "has_node",
    "is_claimable",
    "leave_nodes",
    "may_have_work",
    "pause",
    "preempt",
    "reap",
    "renew_node",
    "request_drain",
    "requests_of",
    "requests_query",
    "resume",
    "resume_held",
    "unblock",
    "unused",
]
