"""The metric that ranks a sweep: one number of an evaluation of the last checkpoint, never a series of the training.

A loss cannot rank methods, temperatures or batch sizes, because its scale differs between them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from wcl_core.config import PROTOCOLS, DataConfig, EvaluationPlan, protocol_facts

MEASURES: dict[str, tuple[str, ...]] = {
    name: tuple(measure.name for measure in facts.measures if not measure.is_selected_on_test)
    for name, facts in PROTOCOLS.items()
    if facts.measures
}
_NOT_BY_LOSS = (
    "a series of the training, such as a loss, cannot rank methods, temperatures or batch sizes; expected an "
    f"evaluation: one of the protocols {', '.join(MEASURES)}"
)
_OWN = ("protocols", "data", "when", "every_epochs")  # fields of the metric itself, or fixed


class Metric(BaseModel):
    """One number of an evaluation: protocol, name, and settings of the protocol as in a spec's `evaluations`."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    protocol: str = Field(max_length=100, description=f"One of {', '.join(MEASURES)}.", examples=["knn"])
    name: str = Field(
        default="", max_length=100, description="By default the first one of the protocol.", examples=["top1"]
    )
    data: DataConfig | None = Field(default=None, description="By default the training data.")
    settings: dict[str, Any] = Field(
        default={}, description="Settings of the protocol, such as knn_k.", examples=[{"knn_k": 5}]
    )

    @model_validator(mode="before")
    @classmethod
    def _is_no_series(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(_NOT_BY_LOSS)
        return value

    @field_validator("protocol")
    @classmethod
    def _is_a_protocol(cls, protocol: str) -> str:
        if protocol not in MEASURES:
            raise ValueError(_NOT_BY_LOSS)
        return protocol

    @field_validator("name")
    @classmethod
    def _is_measured(cls, name: str, info: ValidationInfo) -> str:
        measures = MEASURES.get(info.data.get("protocol", ""), ())
        if not name or not measures:
            return name or next(iter(measures), "")
        if "loss" in name or "/" in name:
            raise ValueError(_NOT_BY_LOSS)
        if name not in measures:
            raise ValueError(f"expected one of {', '.join(measures)}, which {info.data['protocol']} measures")
        return name

    @field_validator("settings")
    @classmethod
    def _are_only_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name in settings:
            if name in _OWN or name not in EvaluationPlan.model_fields:
                allowed = ", ".join(field for field in EvaluationPlan.model_fields if field not in _OWN)
                raise ValueError(f"{name} is not a setting of this metric; expected one of {allowed}")
        return settings

    @field_validator("settings")
    @classmethod
    def _make_one_number(cls, settings: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        protocol = info.data.get("protocol")
        try:
            plan = EvaluationPlan.model_validate({**settings, "protocols": [protocol]})
        except ValidationError:
            return settings  # the validation of the trials' specs reports the error
        facts = protocol_facts(str(protocol))
        if (count := facts.num_values(plan)) != 1:
            fields = facts.num_values_fields
            raise ValueError(f"expected one value of {fields}, because a metric is one number; there are {count}")
        return settings

    @property
    def plan(self) -> dict[str, Any]:
        """Return the entry of a training spec's `evaluations` that measures the metric."""
        data = {} if self.data is None else {"data": self.data.model_dump(mode="json")}
        return {**self.settings, **data, "protocols": [self.protocol], "when": "final"}


Direction = Literal["maximize", "minimize"]
