"""Clients of a service under faults: they submit, cancel, pause and resume by REST, and retry until one answers."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.chaos import body
from tests.chaos.ledger import Accepted
from tests.chaos.stage import spec
from tests.worker.running import SHORT

_ENDS_OF = {body.WELL: "succeeded", body.DEAF: "succeeded", body.CRASHES: "failed"}
_RETRY_SECONDS = 0.1
_TIMEOUT_SECONDS = 15


class Caller:
    """One client, which retries on any of the servers until one answers.

    Args:
        urls: the servers, which share their database.
        key_file: the key they wrote.
        stop: set when no client waits for a response any more.
    """

    def __init__(self, urls: list[str], key_file: Path, stop: threading.Event) -> None:
        headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
        self._client = httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False)
        self._urls, self._stop = urls, stop
        self.num_retries = 0
        self.surprises: list[str] = []

    def submit(self, requested: dict[str, Any], key: str) -> str | None:
        """Return the id of the job that was submitted under the key."""
        answer = self._post("", {"Idempotency-Key": key}, {"kind": "pretrain", "spec": requested})
        return None if answer is None else str(answer["id"])

    def send(self, job_id: str, verb: str) -> None:
        """Cancel, pause or resume, unless it is too late for that."""
        self._post(f"/{job_id}/{verb}")

    def close(self) -> None:
        self._client.close()

    def _post(
        self, path: str, headers: dict[str, str] | None = None, content: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        while not self._stop.is_set():
            try:
                response = self._client.post(
                    f"{random.choice(self._urls)}/v1/jobs{path}", headers=headers, json=content
                )
            except httpx.HTTPError:
                response = None
            if response is not None and response.status_code in (200, 201):
                result: dict[str, Any] = response.json()
                return result
            if response is not None and response.status_code < 500:
                if response.status_code != 409:
                    self.surprises.append(f"POST {path or '/'}: {response.status_code} {response.text[:300]}")
                return None
            self.num_retries += 1
            time.sleep(_RETRY_SECONDS)
        return None


class Clients:
    """Several callers that submit jobs, each job once, and sometimes cancel, pause or resume them.

    Args:
        callers: one for each thread.
        seed: of everything that is drawn.
        num_jobs: how many are submitted.
        num_trainings: how many of them train with the real training.
        max_waiting: submitters pause while so many have not ended.
    """

    def __init__(self, callers: list[Caller], seed: int, num_jobs: int, num_trainings: int, max_waiting: int) -> None:
        self.callers = callers
        self._seed, self._num_jobs, self._max_waiting = seed, num_jobs, max_waiting
        self._trained = {place * num_jobs // num_trainings + 1 for place in range(num_trainings)}
        self._lock = threading.Lock()
        self._next = 0
        self._accepted: dict[str, Accepted] = {}
        self.num_ended = 0  # as last counted by the storm

    def accepted(self) -> list[Accepted]:
        with self._lock:
            return list(self._accepted.values())

    def are_done(self) -> bool:
        return len(self._accepted) >= self._num_jobs

    def run(self, caller: Caller, stop: threading.Event) -> None:
        """Submit jobs with one caller until all are submitted."""
        while not stop.is_set() and (number := self._take()) is not None:
            while len(self._accepted) - self.num_ended > self._max_waiting and not stop.is_set():
                time.sleep(_RETRY_SECONDS)
            self._submit(caller, number)

    def _take(self) -> int | None:
        with self._lock:
            self._next += 1
            return self._next if self._next <= self._num_jobs else None

    def _submit(self, caller: Caller, number: int) -> None:
        draw = random.Random(f"{self._seed}/{number}")
        behaviour = draw.choices((body.WELL, body.CRASHES, body.DEAF), (0.95, 0.03, 0.02))[0]
        verb = draw.choices((None, "cancel", "pause"), (0.9, 0.05, 0.05))[0]
        requested = spec(number, draw.randint(1, 4), draw.choice((1, 1, 5, 30, 100)), behaviour)
        epochs = requested["epochs"]
        if number in self._trained:
            behaviour, epochs = body.WELL, None
            requested = SHORT | {"seed": number}
        may_end = {_ENDS_OF[behaviour]} | ({"cancelled"} if verb == "cancel" else set())
        key = f"job-{number}"
        if (job_id := caller.submit(requested, key)) is None:
            return
        with self._lock:
            self._accepted[job_id] = Accepted(job_id, number, epochs, frozenset(may_end), key)
        if verb is not None:
            time.sleep(draw.choice((0, 0.3, 1)))
            caller.send(job_id, verb)
        if verb == "pause":
            time.sleep(draw.choice((0, 0.5)))
            caller.send(job_id, "resume")
