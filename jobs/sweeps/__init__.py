"""Sweeps: searches over fields of a training spec by grid, at random, or by successive halving.

    space      the settings of each trial      metric     ranks the trials      halving    rungs: how many, how long
        └────────── trials: each one's spec ──────────────┘                       │
                      └── trial_results: from its jobs ─┬─ progress: the next step, taken by the reconciler
                                                        └─ standings: the same for display
                          new_sweep: a request becomes a design, and the design becomes rows

A sweep and its trials are rows; its jobs are ordinary ones that carry the sweep's id.  Import from this package, not
from its modules.
"""

from jobs.sweeps.metric import MEASURES, Direction, Metric
from jobs.sweeps.new_sweep import HELD_OUT_SHARE, MAX_RUNS, NewSweep, Search, designed, held_out_share, plan, submit
from jobs.sweeps.progress import advance, cancel, due
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
from jobs.sweeps.trial_results import Run, TrialResult, trial_results
from jobs.sweeps.trials import Design, Place, located

__all__ = [
    "HELD_OUT_SHARE",
    "MAX_RUNS",
    "MAX_TRIALS",
    "MEASURES",
    "Design",
    "Direction",
    "Metric",
    "NewSweep",
    "Place",
    "Range",
    "Run",
    "Search",
    "Standing",
    "TrialResult",
    "Values",
    "advance",
    "cancel",
    "designed",
    "due",
    "get_sweep",
    "held_out_share",
    "leader",
    "list_sweeps",
    "located",
    "newest_states",
    "parameter_pointer",
    "plan",
    "standings",
    "submit",
    "trial_counts",
    "trial_results",
    "values_at",
]
