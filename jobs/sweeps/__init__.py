"""Sweeps: searches over fields of a training spec by grid, at random, or by successive halving.

    space       what is tried            metric      what ranks it          halving   how many go on, and how far
        └────────── trials: each one's spec ──────────────┘                    │
                      └── outcomes: what became of them ─┬─ progress: what comes next, by whoever looks
                                                         └─ standings: the same for people

A sweep is a row, its trials are rows, its jobs are ordinary ones that carry its id.  Import from the package itself.
"""

from __future__ import annotations

from jobs.sweeps.metric import MEASURES, Direction, Metric
from jobs.sweeps.outcomes import Outcome, Outcomes, Run, outcomes
from jobs.sweeps.progress import Step, advance, cancel, design_of, due, next_step
from jobs.sweeps.space import MAX_TRIALS, Range, Values
from jobs.sweeps.space import pointer as parameter_pointer
from jobs.sweeps.standings import (
    Standing,
    get_sweep,
    leader,
    list_sweeps,
    newest_states,
    standings,
    trial_counts,
    values_at,
)
from jobs.sweeps.submission import held_out_share, plan, submit
from jobs.sweeps.trials import HELD_OUT_SHARE, MAX_RUNS, Design, NewSweep, Place, Search, designed, located

__all__ = [
    "HELD_OUT_SHARE",
    "MAX_RUNS",
    "MAX_TRIALS",
    "MEASURES",
    "Design",
    "Direction",
    "Metric",
    "NewSweep",
    "Outcome",
    "Outcomes",
    "Place",
    "Range",
    "Run",
    "Search",
    "Standing",
    "Step",
    "Values",
    "advance",
    "cancel",
    "design_of",
    "designed",
    "due",
    "get_sweep",
    "held_out_share",
    "leader",
    "list_sweeps",
    "located",
    "newest_states",
    "next_step",
    "outcomes",
    "parameter_pointer",
    "plan",
    "standings",
    "submit",
    "trial_counts",
    "values_at",
]
