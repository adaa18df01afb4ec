"""The rule of collapse, and the errors that end or pause a run.

StoppedError ── NonFiniteLossError    the loss or the weights are not finite
             └─ CollapseError         all images have nearly the same embedding
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wcl_core.config import PretrainSpec
from wcl_core.protocol import COMPONENT_SHARE, EMBEDDING_DEVIATION, EMBEDDING_RANKME, FailureReason, Outcome

# Three bounds [D]. On digits, runs that learn had at least 0.09, 2.0 and 0.21 from their first epoch on; a run that
# hardly learnt had 0.05 and 1.55; runs with an absurd rate or weight decay had mostly less than 0.012 and 1.25.
MIN_DEVIATION = 0.02
MIN_RANKME = 1.2
MIN_COMPONENT_SHARE = 0.05
CHECKS = 3


class StoppedError(ArithmeticError):
    """Training has become useless for `reason`; the spec chooses the `outcome` of the run."""

    reason: ClassVar[FailureReason]

    def __init__(self, message: str, outcome: Outcome = "failed") -> None:
        super().__init__(message)
        self.outcome = outcome


class NonFiniteLossError(StoppedError):
    """The loss or the weights are not finite; the last checkpoint is good."""

    reason = "non_finite_loss"


def non_finite_error(spec: PretrainSpec, message: str) -> NonFiniteLossError:
    """Return the error with the outcome that the spec's `on_non_finite` chooses."""
    return NonFiniteLossError(message, "paused" if spec.on_non_finite == "pause" else "failed")


class CollapseError(StoppedError):
    """The representation has collapsed, see `CollapseWatch`."""

    reason = "collapse"


class CollapseWatch:
    """The rule of collapse: three checks in a row show a sign of it. [D]

    A sign is any of

    - `embedding/std` below 0.02 (equal rows give 0, evenly spread rows 1);
    - `embedding/rankme` below 1.2 (rows in one direction give 1);
    - `weak/component_share` below 0.05 (healthy graphs have about 1/4).

    A value that is absent or not finite is no sign; losses that are not finite have their own rule.

    Attributes:
        signs_in_a_row: the count, which a checkpoint stores, so that it continues after a resume.
    """

    def __init__(self) -> None:
        self.signs_in_a_row = 0

    @property
    def is_new(self) -> bool:
        """Whether the last check was exactly the third sign in a row."""
        return self.signs_in_a_row == CHECKS

    def check(self, values: Mapping[str, float]) -> str | None:
        """Count one check.

        Returns:
            A description of the collapse, from the third sign in a row on; None before.
        """
        signs = collapse_signs(values)
        self.signs_in_a_row = self.signs_in_a_row + 1 if signs else 0
        if self.signs_in_a_row < CHECKS:
            return None
        return f"the representation has collapsed: {', '.join(signs)}, in {self.signs_in_a_row} checks in a row"


def collapse_signs(values: Mapping[str, float]) -> list[str]:
    """Return a phrase for each bound that the monitors are below."""
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
