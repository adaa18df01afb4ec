"""Backoff: growing pauses with a cap and jitter."""

from __future__ import annotations

import threading

import pytest

from tests.waiting import patch_clock
from worker import backoff as module
from worker.backoff import Backoff, DrainableBackoff, KeepSpool


def test_pauses_grow_to_a_cap_that_fits_several_times_into_a_lease() -> None:
    for lease_seconds, cap in ((60.0, 10.0), (4.0, 4 / 6), (3600.0, 10.0)):
        backoff = Backoff(lease_seconds)
        pauses = [backoff.pause() for _ in range(50)]

        assert max(pauses) <= cap
        assert min(pauses[10:]) >= cap / 2
        assert pauses[0] <= 1.0


def test_many_waiters_do_not_retry_together() -> None:
    backoffs = [Backoff(60.0) for _ in range(200)]
    for _ in range(6):
        pauses = [backoff.pause() for backoff in backoffs]

    assert len({round(pause, 3) for pause in pauses}) > 150
    assert max(pauses) - min(pauses) > 4


def test_a_success_resets_the_pauses() -> None:
    backoff = Backoff(60.0)
    for _ in range(10):
        backoff.pause()
    backoff.reset()

    assert backoff.pause() <= 1.0


def test_retries_end_soon_when_the_worker_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    patch_clock(
        monkeypatch,
        module,
        monotonic=lambda: now[0],
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    draining = threading.Event()
    draining.set()
    backoff = DrainableBackoff(draining, 60.0)
    while now[0] <= 4:
        backoff.wait()

    with pytest.raises(KeepSpool):
        backoff.wait()
