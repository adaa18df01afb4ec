"""Every failpoint that a job passes, once with each action; the job must still end correctly.

The sweep first runs jobs without faults and records the failpoints that they pass.  So it tries a new failpoint or a
new commit without further code.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from jobs.status import TERMINAL
from tests.chaos.clients import Caller
from tests.chaos.faults import LEASE
from tests.chaos.ledger import Accepted, Ledger
from tests.chaos.stage import Stage, arm, spec
from tests.waiting import eventually
from tests.worker.running import SHORT

ACTIONS = ("kill", "error", "hang")
# An error inside the training itself may end the job, with that reason.
_MAY_FAIL = ("process.", "spool.", "checkpoint.")
SCIENCE = ("checkpoint.", "spool.write", "spool.fsync")  # only real training passes these
_HANG_SECONDS = LEASE * 1.5
_TRIES = 3  # some failpoints are passed only by the first process
_WATCH_SECONDS = 0.1
_UNHURRIED = {"epochs": 20, "step_ms": 30}


@dataclass(frozen=True)
class Place:
    """A failpoint of one of the nodes, and the scenes in which it was passed."""

    node: str
    name: str
    scenes: tuple[str, ...]


@dataclass
class Sweep:
    """A server and a worker, restarted whenever they die, and scenes of jobs on them.

    Args:
        stage: a fresh service.
        trains: with the real science, whose own failpoints alone are then tried.
    """

    stage: Stage
    trains: bool = False
    _accepted: list[Accepted] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self._nodes = {"server": self.stage.server("server"), "worker": self.stage.worker("worker", trains=self.trains)}
        self._folders = {name: self.stage.failpoints(node) for name, node in self._nodes.items()}
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._held: str | None = None  # the node that stays down in the scene

    @contextmanager
    def running(self) -> Iterator[Sweep]:
        """Run both nodes, and restart them when they die."""
        environment = self._nodes["server"].start_as.environment
        data_dir = Path(environment["WCL_DATA_DIR"])
        guard = threading.Thread(target=self._start_again, daemon=True)
        guard.start()
        try:
            eventually((data_dir / "server.json").exists, "the start of the server")
            self.stage.wait_for_workers("worker")
            self._caller = Caller([f"http://127.0.0.1:{environment['WCL_PORT']}"], data_dir / "key", self._is_over)
            yield self
            self._caller.close()
        finally:
            self._is_over.set()
            guard.join()

    def places(self) -> list[Place]:
        """Run every scene without faults; return the failpoints that were passed."""
        result: dict[tuple[str, str], tuple[str, ...]] = defaultdict(tuple)
        for scene in self._scenes():
            for folder in self._folders.values():
                (folder / "reached").unlink(missing_ok=True)
            self._play(scene, frozenset())
            for node, folder in self._folders.items():
                for name in set((folder / "reached").read_text().splitlines()):
                    result[node, name] += (scene,)
        return [
            Place(node, name, scenes)
            for (node, name), scenes in sorted(result.items())
            if not self.trains or name.startswith(SCIENCE)
        ]

    def try_at(self, place: Place, action: str) -> list[str] | None:
        """Inject one fault at one failpoint; return the problems, or None if the failpoint was not passed again.

        That happens where nodes race for one task, and in tasks that run once an hour.
        """
        folder = self._folders[place.node]
        for name in ("fired", "release"):
            (folder / name).unlink(missing_ok=True)
        arm(folder, f"{place.name} {action} {_HANG_SECONDS}")
        may_fail = action == "error" and place.name.startswith(_MAY_FAIL)
        for scene in (*place.scenes, "fresh") * _TRIES:
            self._play(scene, frozenset({"failed"} if may_fail else ()))
            if (folder / "fired").exists():
                return [f"{place.node} {place.name} {action}: {problem}" for problem in self.problems()]
        (folder / "armed").unlink(missing_ok=True)
        return None

    def problems(self) -> list[str]:
        """Return the problems of all jobs so far, by the ledger and the responses."""
        surprises, self._caller.surprises = self._caller.surprises, []
        return Ledger(self.stage.database, self.stage.checkpoints_dir).problems(self._accepted) + surprises

    # --- scenes: a job from its submission to its end ---

    def _scenes(self) -> dict[str, Callable[[str], None]]:
        if self.trains:
            return {"job": lambda job_id: None, "fresh": self._restart}
        return {
            "job": lambda job_id: None,
            "fresh": self._restart,
            "cancel": lambda job_id: self._caller.send(job_id, "cancel"),
            "pause": self._pause,
            "drain": lambda job_id: self._nodes["worker"].send(signal.SIGTERM),
            "crash": lambda job_id: self._nodes["worker"].send(signal.SIGKILL),
            "lost": self._lose,
        }

    def _play(self, scene: str, may_also_end: frozenset[str]) -> None:
        number = next(self._numbers)
        is_short = scene == "job"
        requested = spec(number, 1, 1) if is_short else spec(number, **_UNHURRIED)
        epochs = None if self.trains else requested["epochs"]
        key = f"{scene}-{number}"
        job_id = self._caller.submit(SHORT | {"seed": number} if self.trains else requested, key)
        assert job_id
        may_end = frozenset({"succeeded", "cancelled"} if scene == "cancel" else {"succeeded"}) | may_also_end
        self._accepted.append(Accepted(job_id, number, epochs, may_end, key))
        if not is_short:
            self.stage.wait_for(job_id, "running", *TERMINAL)
        self._scenes()[scene](job_id)
        self.stage.wait_for_end(job_id)

    def _restart(self, job_id: str) -> None:
        """Restart all nodes; send the server a request, because each server stores the use of a key once a minute."""
        server = self._nodes["server"]
        starts = server.starts
        for node in self._nodes.values():
            node.send(signal.SIGTERM)
        eventually(lambda: server.starts > starts, "the server's next start")
        self._caller.send(job_id, "resume")  # a refusal, because it is too late or too early, is fine

    def _pause(self, job_id: str) -> None:
        self._caller.send(job_id, "pause")
        self.stage.wait_for(job_id, "paused", *TERMINAL)
        self._caller.send(job_id, "resume")

    def _lose(self, job_id: str) -> None:
        """Kill the worker and restart it once the server has noticed."""
        with self._lock:
            self._held = "worker"
            self._nodes["worker"].end(signal.SIGKILL)
        self.stage.wait_for(job_id, "queued", *TERMINAL)
        self._held = None

    def _start_again(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                for name, node in self._nodes.items():
                    if name != self._held and not node.is_alive():
                        node.start()
            time.sleep(_WATCH_SECONDS)
