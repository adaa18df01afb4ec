"""When a run is no longer worth its time: the rule of collapse, and the errors that end or hold a run.

StoppedError ── NonFiniteLossError    the loss or the weights are no longer finite
             └─ CollapseError         every image has nearly the same embedding
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wcl_core.config import PretrainSpec
from wcl_core.protocol import COMPONENT_SHARE, EMBEDDING_DEVIATION, EMBEDDING_RANKME, FailureReason, Outcome

# Three bounds [D]. Runs on digits that learn showed at least .09, 2.0 and .21, from their first epoch on, one that
# hardly did about .05 and 1.55; most looks at runs with an absurd rate or weight decay less than .012 and 1.25.
MIN_DEVIATION = 0.02
MIN_RANKME = 1.2
MIN_COMPONENT_SHARE = 0.05
CHECKS = 3


class StoppedError(ArithmeticError):
    """Training stopped making sense; `outcome` is what the spec wants then, `reason` why."""

    reason: ClassVar[FailureReason]

    def __init__(self, message: str, outcome: Outcome = "failed") -> None:
        super().__init__(message)
        self.outcome = outcome


class NonFiniteLossError(StoppedError):
    """The loss or the weights are no longer finite; the last checkpoint is still good."""

    reason = "non_finite_loss"


def non_finite_error(spec: PretrainSpec, message: str) -> NonFiniteLossError:
    """The error with the outcome that the spec wants."""
    return NonFiniteLossError(message, "paused" if spec.on_non_finite == "pause" else "failed")


class CollapseError(StoppedError):
    """The representation has collapsed, see `CollapseWatch`."""

    reason = "collapse"


class CollapseWatch:
    """Says when the representation has collapsed: a sign of it in three checks in a row. [D]

    A sign is any of: `embedding/std` below .02 (equal rows give 0, an even spread 1), `embedding/rankme` below 1.2 (one
    direction gives 1), `weak/component_share` below .05 (healthy graphs have about 1/4).  A value that is absent or not
    finite is no sign: losses that are not finite have a rule of their own.  The count starts anew with every attempt.
    """

    def __init__(self) -> None:
        self._count = 0

    @property
    def is_new(self) -> bool:
        """Whether the last check was the third sign in a row, and not a later one."""
        return self._count == CHECKS

    def check(self, values: Mapping[str, float]) -> str | None:
        """One check.

        Returns:
            What is seen, from the third sign in a row on; None before.
        """
        signs = collapse_signs(values)
        self._count = self._count + 1 if signs else 0
        if self._count < CHECKS:
            return None
        return f"the representation has collapsed, seen in {self._count} checks in a row: {', '.join(signs)}"


def collapse_signs(values: Mapping[str, float]) -> list[str]:
    """The bounds that a set of monitors is below, each in words."""
    bounds = {
        EMBEDDING_DEVIATION: MIN_DEVIATION,
        EMBEDDING_RANKME: MIN_RANKME,
        COMPONENT_SHARE: MIN_COMPONENT_SHARE,
    }
    return [
        f"{name} = {values[name]:.3g} is below {bound:g}"
        for name, bound in bounds.items()
        if name in values and values[name] < bound
    ]
