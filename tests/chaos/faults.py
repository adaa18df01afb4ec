"""Kinds of faults: each is injected into a running service and removed; a seed draws the next one.

Some are shorter than a lease, which must cost nothing, and some longer, which must cost no more than an attempt.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import redis

from jobs import wake_up
from jobs.settings import Settings
from tests.chaos.processes import Node
from tests.chaos.proxy import Proxy
from tests.chaos.stage import SCALED, Stage, arm

LEASE = float(SCALED["WCL_LEASE_SECONDS"])
_BRIEF, _LONG = (0.1, LEASE / 3), (LEASE * 1.3, LEASE * 2)


@dataclass
class Target:
    """A node with its network and failpoints; the thread that injects a fault holds `lock`."""

    node: Node
    proxy: Proxy | None
    failpoints: Path

    def __post_init__(self) -> None:
        self.lock = threading.RLock()

    @property
    def name(self) -> str:
        return self.node.start_as.host


class Faults:
    """Injects faults into a stage.

    Args:
        stage, targets: the service.
        draw: the random numbers of one thread.
    """

    def __init__(self, stage: Stage, targets: list[Target], draw: random.Random) -> None:
        self._stage, self._targets, self._draw = stage, targets, draw
        self._kinds = [kind for kind in _KINDS if self._can(kind)]

    def one(self) -> tuple[str, str]:
        """Inject one fault and remove it; return its kind and its target."""
        kind = self._draw.choice(self._kinds)
        if kind in _OF_SERVERS_BELOW:
            with self._stage.lock:
                _OF_SERVERS_BELOW[kind](self)
            return kind, "all"
        requested = [target for target in self._targets if self._fits(kind, target)]
        target = self._draw.choice(requested)
        with target.lock:
            _OF_NODES[kind](self, target)
        return kind, target.name

    def _can(self, kind: str) -> bool:
        if kind in _OF_SERVERS_BELOW:
            return self._stage.postgres is not None
        return any(self._fits(kind, target) for target in self._targets)

    def _fits(self, kind: str, target: Target) -> bool:
        is_worker = target.node.start_as.module == "worker"
        return (is_worker or kind not in _OF_WORKERS) and (target.proxy is not None or kind not in _OF_NETWORKS)

    def _hold(self, span: tuple[float, float]) -> None:
        time.sleep(self._draw.uniform(*span))

    def _either(self) -> tuple[float, float]:
        return self._draw.choice((_BRIEF, _LONG))

    # --- processes ---

    def _kill(self, target: Target) -> None:
        target.node.end(signal.SIGKILL)
        self._hold(self._either())
        target.node.start()

    def _kill_machine(self, target: Target) -> None:
        trainings = target.node.trainings()
        target.node.end(signal.SIGKILL)
        for training in trainings:
            with suppress(psutil.Error):
                training.kill()
        self._hold(self._either())
        target.node.start()

    def _kill_training(self, target: Target) -> None:
        for training in target.node.trainings():
            with suppress(psutil.Error):
                training.kill()

    def _stop_and_continue(self, target: Target) -> None:
        target.node.send(signal.SIGSTOP)
        self._hold(self._either())
        target.node.send(signal.SIGCONT)

    def _stop_training(self, target: Target) -> None:
        trainings = target.node.trainings()
        for number, span in ((signal.SIGSTOP, _BRIEF), (signal.SIGCONT, (0, 0))):
            for training in trainings:
                with suppress(psutil.Error):
                    training.send_signal(number)
            self._hold(span)

    def _terminate(self, target: Target) -> None:
        target.node.end(signal.SIGTERM)
        target.node.start()

    def _skew_clock(self, target: Target) -> None:
        target.node.end(signal.SIGTERM)
        hours = self._draw.choice((-24, -1, 1, 24))
        target.node.start_as = replace(target.node.start_as, clock_seconds=3600.0 * hours)
        target.node.start()

    # --- networks ---

    def _cut(self, target: Target) -> None:
        assert target.proxy
        target.proxy.cut()
        self._hold(self._either())
        target.proxy.mend()

    def _silence(self, target: Target) -> None:
        assert target.proxy
        target.proxy.silence()
        self._hold(self._either())
        if self._draw.random() < 0.5:  # data in transit arrives late, or never
            target.proxy.cut()
        target.proxy.mend()

    def _slow(self, target: Target) -> None:
        assert target.proxy
        target.proxy.slow(self._draw.uniform(0.01, 0.15))
        self._hold(_BRIEF)
        target.proxy.mend()

    def _lose_answer(self, target: Target) -> None:
        assert target.proxy
        before = target.proxy.num_lost_answers
        target.proxy.lose_next_answer(b"COMMIT")
        deadline = time.monotonic() + LEASE
        while target.proxy.num_lost_answers == before and time.monotonic() < deadline:
            time.sleep(0.05)
        target.proxy.mend()

    # --- failpoints ---

    def _arm(self, target: Target, name: str, action: str) -> None:
        (target.failpoints / "fired").unlink(missing_ok=True)
        arm(target.failpoints, f"{name} {action} {LEASE * 1.5}")
        deadline = time.monotonic() + LEASE
        while (target.failpoints / "armed").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        (target.failpoints / "armed").unlink(missing_ok=True)

    def _fill_disk(self, target: Target) -> None:
        self._arm(target, self._draw.choice(("storage.before_rename", "storage.after_rename")), "error")

    def _kill_at_failpoint(self, target: Target) -> None:
        self._arm(target, self._reached(target), "kill")

    def _hang_at_failpoint(self, target: Target) -> None:
        self._arm(target, self._reached(target), "hang")

    def _reached(self, target: Target) -> str:
        with suppress(FileNotFoundError):
            names = sorted(set((target.failpoints / "reached").read_text().splitlines()))
            return self._draw.choice(names)
        return "nothing"

    # --- database and broker ---

    def _restart_postgres(self) -> None:
        assert self._stage.postgres
        # SIGQUIT crashes PostgreSQL without leaving shared memory behind; it recovers from its log.
        self._stage.postgres.end(self._draw.choice((signal.SIGQUIT, signal.SIGINT)))
        self._hold(self._either())
        self._stage.postgres.start()

    def _kill_redis(self) -> None:
        assert self._stage.redis
        self._stage.redis.end(signal.SIGKILL)
        self._hold(self._either())
        self._stage.redis.start()

    def _flush_redis(self) -> None:
        with redis.Redis.from_url(self._stage.settings["WCL_BROKER_URL"]) as client, suppress(redis.ConnectionError):
            client.flushall()

    def _send_wake_ups(self) -> None:
        settings = Settings(broker_url=self._stage.settings["WCL_BROKER_URL"])
        with suppress(Exception):  # the broker may be down
            for _ in range(20):
                wake_up.send(settings, settings.pool)


_OF_NODES: dict[str, Callable[[Faults, Target], None]] = {
    "kill": Faults._kill,
    "kill machine": Faults._kill_machine,
    "kill training": Faults._kill_training,
    "SIGSTOP, SIGCONT": Faults._stop_and_continue,
    "SIGSTOP, SIGCONT of training": Faults._stop_training,
    "SIGTERM": Faults._terminate,
    "wrong clock": Faults._skew_clock,
    "network cut": Faults._cut,
    "half-open connections": Faults._silence,
    "slow network": Faults._slow,
    "answer lost after commit": Faults._lose_answer,
    "disk full": Faults._fill_disk,
    "kill at a failpoint": Faults._kill_at_failpoint,
    "hang at a failpoint": Faults._hang_at_failpoint,
}
_OF_WORKERS = {"kill machine", "kill training", "SIGSTOP, SIGCONT of training", "wrong clock", "disk full"}
_OF_NETWORKS = {"network cut", "half-open connections", "slow network", "answer lost after commit"}
_OF_SERVERS_BELOW: dict[str, Callable[[Faults], None]] = {
    "restart of PostgreSQL": Faults._restart_postgres,
    "kill of Redis": Faults._kill_redis,
    "FLUSHALL": Faults._flush_redis,
    "doubled wake-ups": Faults._send_wake_ups,
}
_KINDS = [*_OF_NODES, *_OF_SERVERS_BELOW]
