"""Options of VICReg, validated in the server, which has no PyTorch: this module must not import it.

pip install ./examples/method_plugin                 # beside the server and the workers
wcl submit --preset digits-cpu --set method=vicreg --set method_options.variance_weight=10
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from wcl_core.config import MethodOptions


class VicregOptions(MethodOptions):
    """The `method_options` of a spec with `method: vicreg`."""

    projection_dim: int = Field(default=256, ge=2, le=8192, description="Width of the projection.")
    invariance_weight: float = Field(default=25.0, ge=0, le=1000)
    variance_weight: float = Field(default=25.0, ge=0, le=1000)
    covariance_weight: float = Field(default=1.0, ge=0, le=1000)

    def build(self, spec: Any) -> Any:
        """Return the method; called in the training run only."""
        from vicreg import Vicreg

        return Vicreg(self)
