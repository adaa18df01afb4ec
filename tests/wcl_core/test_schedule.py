"""Learning rates and the weak-label weight, at their fixed points and as monotone curves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_core.config import OptimizerConfig
from wcl_core.schedule import base_learning_rate, learning_rate, weak_weight


@pytest.mark.parametrize(("scaling", "expected"), [("sqrt", 4.8), ("linear", 1.2), ("none", 0.075)])
def test_scaling(scaling: str, expected: float) -> None:
    config = OptimizerConfig.model_validate({"learning_rate": 0.075, "scaling": scaling})
    assert base_learning_rate(config, 4096) == pytest.approx(expected)


def test_fixed_points() -> None:
    assert learning_rate(0, 100, 10, 2.0) == 0
    assert learning_rate(5, 100, 10, 2.0) == pytest.approx(1.0)
    assert learning_rate(10, 100, 10, 2.0) == 2.0
    assert learning_rate(55, 100, 10, 2.0) == pytest.approx(1.0)
    assert learning_rate(100, 100, 10, 2.0) == pytest.approx(0.0)
    assert learning_rate(0, 100, 0, 2.0) == 2.0


@given(total=st.integers(2, 300), share=st.floats(0, 0.99))
def test_rises_then_falls(total: int, share: float) -> None:
    warmup = share * (total - 1)
    rates = [learning_rate(s, total, warmup, 1.0) for s in range(total + 1)]
    peak = next(s for s in range(total + 1) if s >= warmup)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(("step", "total", "warmup"), [(0, 10, 10), (-1, 10, 1), (11, 10, 1), (0, 10, -1)])
def test_outside_the_run(step: int, total: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="; expected "):
        learning_rate(step, total, warmup, 1.0)


def test_weight_is_constant_without_a_ramp() -> None:
    assert [weak_weight(s, 10, 0.5, 0.0) for s in (0, 3, 10)] == [0.5] * 3


def test_weight_ramps_linearly() -> None:
    assert [weak_weight(s, 100, 2.0, 0.2) for s in (0, 5, 10, 20, 99)] == pytest.approx([0, 0.5, 1, 2, 2])
