"""What each reason of a status means for a user, and what to do: for pages, the command line and the documentation."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.status import Reason


@dataclass(frozen=True)
class Explanation:
    """A reason in words.

    Attributes:
        title: a few words, as a heading.
        meaning: what happened, and what became of the job.
        advice: what the user can do.
    """

    title: str
    meaning: str
    advice: str


EXPLANATIONS: dict[Reason, Explanation] = {
    Reason.USER: Explanation(
        "On request",
        "A user, or a program with a key, cancelled or paused the job. It keeps its checkpoints and metrics.",
        "A paused job continues with `wcl resume`. `wcl retry` makes a new job that starts from the last checkpoint of"
        " a cancelled one.",
    ),
    Reason.WORKER_LOST: Explanation(
        "The worker was lost",
        "The worker stopped renewing the attempt: its machine went down, lost its network, or its process was killed."
        " The job starts again from its last checkpoint; after `WCL_MAX_FAILURES` such ends it fails.",
        "Check that the machine is up, then retry from the last checkpoint.",
    ),
    Reason.KILLED: Explanation(
        "The process was killed",
        "The training process ended without a last report. The system kills processes so when memory runs out. The job"
        " starts again from its last checkpoint; after `WCL_MAX_FAILURES` such ends it fails.",
        "See the last lines of the log, and the kernel's log (`dmesg`) on the worker's machine. If memory ran out, take"
        " a smaller batch or image size.",
    ),
    Reason.STALLED: Explanation(
        "The process stopped reporting",
        "The run reported nothing for `WCL_STALL_SECONDS`, and the worker ended it. The job starts again from its last"
        " checkpoint; after `WCL_MAX_FAILURES` such ends it fails.",
        "The log may show where it hangs. A storage of data that does not respond is a common cause. If a step takes"
        " that long, raise `WCL_STALL_SECONDS` on the worker.",
    ),
    Reason.DEVICE_FAILED: Explanation(
        "GPUs of its runs broke or cannot be used",
        "The driver reported a fault of the GPU. The worker offers that GPU to no further job, and the job starts again"
        " from its last checkpoint on another one.",
        "The page Workers names each GPU and its problem. Retry once another GPU is free. A reset of the GPU or a"
        " restart of its machine, then of the worker, brings it back if it is not broken.",
    ),
    Reason.DEVICE_ERROR: Explanation(
        "CUDA failed",
        "CUDA or NCCL ended the run with an error whose cause may be the code or the GPU.",
        "The log has the traceback. If only this job fails so, its code or a plugin is the cause; if others do, too, a"
        " GPU is.",
    ),
    Reason.DEVICE_ASSERT: Explanation(
        "A check in a GPU kernel failed",
        "A kernel found a value that it does not allow, such as an index outside of a tensor. A retry would fail in the"
        " same way.",
        "The code of the run or of a plugin is at fault. With `device: cpu` the error names the line.",
    ),
    Reason.NODE_LATE: Explanation(
        "A worker did not begin its part",
        "One of the workers of a job on several machines did not start its processes within 20 s. The job is tried"
        " again by itself; after five such attempts in a row it is paused.",
        "The log of the worker that the message names may show what it does. Restart or drain it, then resume the job.",
    ),
    Reason.WORKER_STOPPED: Explanation(
        "Its worker was stopped",
        "The worker was drained or stopped in order. It saved a checkpoint, and the job went back to the queue.",
        "Nothing: the next worker that fits continues the job.",
    ),
    Reason.PREEMPTED: Explanation(
        "It gave way to a job of higher priority",
        "A job of higher priority needed the devices. This job saved a checkpoint and went back to the queue.",
        "Nothing: it continues once devices are free. A job with `preemptible: false` does not give way.",
    ),
    Reason.TIMEOUT: Explanation(
        "It reached its time limit",
        "The job ran for its `max_seconds` over all attempts, saved a checkpoint and failed.",
        "`wcl retry` makes a new job that continues from that checkpoint, with the same limit again.",
    ),
    Reason.OUT_OF_MEMORY: Explanation(
        "Out of memory",
        "The run needed more memory than the GPU or the machine has. The message names both amounts where they are"
        " known, and the largest batch that fits.",
        "Submit the job again with a smaller batch size, image size or backbone, with `micro_batch_size`, or with"
        " `batch_size: auto`.",
    ),
    Reason.NON_FINITE_LOSS: Explanation(
        "The loss is not finite",
        "The loss became infinite or not a number. No checkpoint of that state is registered.",
        "A lower learning rate or a longer warm-up usually helps. Earlier checkpoints are usable.",
    ),
    Reason.COLLAPSE: Explanation(
        "The representation collapsed",
        "Nearly all images have the same embedding, so nothing can be told apart by it.",
        "Try a lower learning rate, less weight decay or a larger batch.",
    ),
    Reason.BAD_DATA: Explanation(
        "The data is invalid",
        "A file, a class or a setting of the dataset does not fit the job. The message names it.",
        "Fix the problem that the message names, then retry. `wcl dataset check PATH` shows what would be read.",
    ),
    Reason.DISK_FULL: Explanation(
        "The disk is full",
        "A disk of the worker has no room for a checkpoint or a report. The job is paused.",
        "Free disk space on the worker; if the folder of checkpoints is full, `wcl storage --remove` removes"
        " checkpoints that nothing needs. The job then continues from its last checkpoint by itself.",
    ),
    Reason.STORAGE_UNAVAILABLE: Explanation(
        "The storage cannot be used",
        "The folder of checkpoints is absent, read-only or another one, or it does not respond; or it lacks all files"
        " of this job. The job is paused.",
        "Check that it is mounted on the worker, and writable, and that the message's files are there. The job then"
        " continues by itself.",
    ),
    Reason.NO_RESOURCES: Explanation(
        "The worker has no free file descriptor, process or memory",
        "The worker could not start the run's process. The job is paused.",
        "Raise its limits, or end other programs on its machine. The job then continues by itself.",
    ),
    Reason.MISSING_CHECKPOINT: Explanation(
        "A required checkpoint is missing or damaged",
        "The job starts from a checkpoint or imported weights, or measures a checkpoint, whose file is gone or has"
        " other bytes.",
        "Start from another checkpoint, or from scratch. A job whose imported weights are missing is paused: import the"
        " file again, and it continues.",
    ),
    Reason.DAMAGED_CHECKPOINT: Explanation(
        "A checkpoint changed while it was read",
        "The worker had read the checkpoint as it was registered, and the run then read other bytes or none.",
        "Nothing, at first: the job marks that checkpoint and continues from an older one. If it happens again, check "
        "the disk or the network folder that holds the checkpoints.",
    ),
    Reason.INTERNAL_ERROR: Explanation(
        "Unexpected error",
        "The run ended with an error that has no reason of its own.",
        "The log has the traceback. A retry starts from the last checkpoint.",
    ),
    Reason.UPSTREAM_FAILED: Explanation(
        "A dependency did not succeed",
        "The job waited for another job, and that one failed or was cancelled.",
        "Retry the dependency, then submit this job again.",
    ),
}


def explain(reason: str) -> Explanation | None:
    """Return the explanation of a status reason; None for one of a newer version."""
    return EXPLANATIONS.get(Reason(reason)) if reason in set(Reason) else None
