"""`WclClient`: every route of the service as one typed method; errors are exceptions (client.errors)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypedDict
from uuid import uuid4

import httpx

from client.address import find_address
from client.download import Downloaded, download
from client.errors import Unreachable, api_error
from client.sse import Message, parse

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
Json = dict[str, Any]


class Progress(TypedDict):
    """Where a run is, as it last said."""

    step: int
    total_steps: int
    epoch: float
    total_epochs: int
    images_per_second: float | None
    eta_seconds: float | None
    phase: str


class Job(TypedDict, total=False):
    """A job as the server renders it; status, reason and kind are open strings."""

    id: str
    kind: str
    name: str | None
    status: str
    status_reason: str | None
    status_message: str | None
    priority: int
    pool: str
    tags: list[str]
    dataset: Json
    spec: Json
    attempt: int
    failures: int
    parent_id: str | None
    group_id: str | None
    preset: str | None
    deviations: list[Json] | None
    max_seconds: int | None
    preemptible: bool
    waiting: Json | None
    progress: Progress | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    latest_metrics: dict[str, float | None]
    links: dict[str, str]


class Checkpoint(TypedDict, total=False):
    """A registered checkpoint."""

    id: str
    job_id: str
    attempt: int
    kind: str
    step: int
    epoch: float
    sha256: str
    size: int
    metrics: Json
    created_at: str
    links: dict[str, str]


class Evaluation(TypedDict, total=False):
    """One measured number."""

    protocol: str
    protocol_version: int
    metric: str
    value: float
    stderr: float | None
    n: int | None
    params: Json
    details: Json | None
    seed: int


class Group(TypedDict, total=False):
    """Jobs that differ in their seed alone; `results` are numbers over the seeds."""

    group_id: str
    items: list[Job]
    results: list[Json]


class WclClient:
    """A connection to one server; use as a context manager."""

    def __init__(self, url: str, key: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        # trust_env off: a proxy from the environment must not see a loopback server's key.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False)

    @classmethod
    def connect(cls, data_dir: Path | None = None) -> WclClient:
        """The server that the environment or the local data folder names."""
        address = find_address(data_dir)
        return cls(address.url, address.key)

    def __enter__(self) -> WclClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ---- jobs

    def submit(
        self,
        kind: Literal["pretrain", "evaluate"],
        spec: Mapping[str, Any] | None = None,
        *,
        preset: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        after: Sequence[str | Mapping[str, str]] = (),
        priority: int | None = None,
        pool: str | None = None,
        gpus: int | None = None,
        max_seconds: int | None = None,
        preemptible: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Send a job; safe to repeat with the same `idempotency_key`, of which one is made up when absent.

        Args:
            after: ids of jobs that have to succeed first, or `{"job_id": ..., "until": "checkpoint"}`.
            max_seconds: of running time, after which the job ends with the reason `timeout`.
            preemptible: whether a job of higher priority may take its worker; it then goes on later.
        """
        body = _job_body(
            kind,
            spec,
            preset=preset,
            name=name,
            tags=list(tags) or None,
            after=list(after) or None,
            priority=priority,
            pool=pool,
            gpus=gpus,
            max_seconds=max_seconds,
            preemptible=preemptible,
        )
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        job: Job = self._json("POST", "/v1/jobs", json=body, headers=headers, retries=3)
        return job

    def submit_group(
        self,
        kind: Literal["pretrain", "evaluate"],
        spec: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int],
        preset: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        after: Sequence[str | Mapping[str, str]] = (),
        priority: int | None = None,
        pool: str | None = None,
        gpus: int | None = None,
        max_seconds: int | None = None,
        preemptible: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Group:
        """Send one job for each seed, otherwise as `submit`; all are made or none."""
        body = _job_body(
            kind,
            spec,
            preset=preset,
            name=name,
            tags=list(tags) or None,
            after=list(after) or None,
            priority=priority,
            pool=pool,
            gpus=gpus,
            max_seconds=max_seconds,
            preemptible=preemptible,
            seeds=list(seeds),
        )
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        group: Group = self._json("POST", "/v1/jobs", json=body, headers=headers, retries=3)
        return group

    def group(self, group_id: str) -> Group:
        """The jobs, and every measured number with mean, deviation and 95 % t-interval over the seeds."""
        group: Group = self._json("GET", f"/v1/groups/{group_id}")
        return group

    def plan(
        self,
        kind: Literal["pretrain", "evaluate"],
        spec: Mapping[str, Any] | None = None,
        *,
        preset: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Json:
        """What submitting would do, without doing it."""
        body = _job_body(kind, spec, preset=preset, seeds=None if seeds is None else list(seeds))
        plan: Json = self._json("POST", "/v1/jobs", json=body, params={"dry_run": "true"})
        return plan

    def job(self, job_id: str) -> Job:
        job: Job = self._json("GET", f"/v1/jobs/{job_id}")
        return job

    def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """The newest jobs that match, at most `limit`, over as many pages as it takes."""
        found: list[Job] = []
        params: dict[str, Any] = {"status": status, "kind": kind, "tag": tag, "q": q, "limit": min(limit, 100)}
        while True:
            page = self._json("GET", "/v1/jobs", params={k: v for k, v in params.items() if v is not None})
            found += page["items"]
            params["cursor"] = page.get("next_cursor")
            if not params["cursor"] or len(found) >= limit:
                return found[:limit]

    def cancel(self, job_id: str) -> Job:
        return self._action(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        return self._action(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        return self._action(job_id, "resume")

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job that starts from the last good checkpoint of this one; safe to repeat, as `submit` is."""
        return self._made(f"/v1/jobs/{job_id}/retry", None, idempotency_key)

    def clone(self, job_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None) -> Job:
        """A new job with the same spec, the fields of `spec` laid over it, from scratch; safe to repeat."""
        return self._made(f"/v1/jobs/{job_id}/clone", {"spec": dict(spec or {})}, idempotency_key)

    def evaluate(
        self, checkpoint_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """A job that measures a checkpoint; safe to repeat.

        Args:
            spec: an EvaluateSpec without `features`; its data is the training data unless given.
        """
        return self._made(f"/v1/checkpoints/{checkpoint_id}/evaluate", dict(spec or {}), idempotency_key)

    def change(
        self, job_id: str, *, name: str | None = None, priority: int | None = None, tags: Sequence[str] | None = None
    ) -> Job:
        """Rename or retag a job, or change the priority of one that waits."""
        values = {"name": name, "priority": priority, "tags": None if tags is None else list(tags)}
        said = {key: value for key, value in values.items() if value is not None}
        job: Job = self._json("PATCH", f"/v1/jobs/{job_id}", json=said)
        return job

    def wait(self, job_id: str, *, timeout_seconds: float | None = None, poll_seconds: float = 1.0) -> Job:
        """The job once its status is final."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = self.job(job_id)
            if job["status"] in TERMINAL:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout_seconds:g} s")
            time.sleep(poll_seconds)

    # ---- what a job left behind

    def events(self, job_id: str) -> list[Json]:
        return self._items(f"/v1/jobs/{job_id}/events")

    def attempts(self, job_id: str) -> list[Json]:
        return self._items(f"/v1/jobs/{job_id}/attempts")

    def logs(self, job_id: str) -> list[Json]:
        return self._items(f"/v1/jobs/{job_id}/logs")

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Registered checkpoints, ordered by step."""
        found: list[Checkpoint] = self._json("GET", f"/v1/jobs/{job_id}/checkpoints")["items"]
        return sorted(found, key=lambda checkpoint: checkpoint["step"])

    def evaluations(self, job_id: str) -> list[Evaluation]:
        found: list[Evaluation] = self._json("GET", f"/v1/jobs/{job_id}/evaluations")["items"]
        return found

    def metrics(self, job_id: str, keys: Sequence[str] = (), max_points: int = 1000) -> list[Json]:
        """One entry per series: {name, points: [{step, value, min, max, attempt}]}."""
        params: dict[str, Any] = {"max_points": max_points}
        if keys:
            params["keys"] = ",".join(keys)
        series: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/metrics", params=params)["series"]
        return series

    def download(
        self,
        checkpoint_id: str,
        target: Path,
        *,
        kind: Literal["native", "backbone"] = "native",
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> Downloaded:
        """Fetch a checkpoint's file, going on where an interrupted call stopped; the bytes are verified."""
        url = f"/v1/checkpoints/{checkpoint_id}/download?kind={kind}"
        try:
            return download(self._http, url, target, _check, on_bytes)
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} does not answer: {error}") from error

    def follow(self, job_id: str, *, last_id: str | None = None, patience_seconds: float = 60.0) -> Iterator[Message]:
        """A job's stream until its end, reconnecting where it broke off.

        Args:
            last_id: go on after this message.
            patience_seconds: how long the server may stay away before `Unreachable`.
        """
        away_since: float | None = None
        while True:
            try:
                for message in self._stream(job_id, last_id):
                    away_since = None
                    if message is None:
                        continue
                    last_id = message.id or last_id
                    yield message
                    if message.event == "end":
                        return
            except httpx.TransportError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > patience_seconds:
                    raise Unreachable(f"{self.url} does not answer: {error}") from error
            time.sleep(0.5)

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Message | None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        # The server's heartbeat comes each 15 s: three missed ones are a dead connection.
        timeout = httpx.Timeout(10.0, read=50.0)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/stream", headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            _check(response)
            yield from parse(response.iter_lines())

    # ---- the service

    def datasets(self) -> list[Json]:
        return self._items("/v1/datasets")

    def presets(self) -> Json:
        presets: Json = self._json("GET", "/v1/presets")
        return presets

    def workers(self) -> list[Json]:
        return self._items("/v1/workers")

    def drain_worker(self, worker_id: str) -> Json:
        """Ask a worker to save its job, return it to the queue, take nothing more, and end."""
        worker: Json = self._json("POST", f"/v1/workers/{worker_id}/drain")
        return worker

    def audit(self) -> Json:
        """What the events of all jobs say against the rows: `jobs`, `events`, `attempts` and `findings`."""
        report: Json = self._json("GET", "/v1/audit")
        return report

    def sign_in_link(self) -> str:
        """A new one-time link that opens the page signed in."""
        return str(self._json("POST", "/v1/sign-in-links")["url"])

    def is_ready(self) -> bool:
        """Whether the server answers and its database is there."""
        try:
            return self._http.get("/readyz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    # ---- plumbing

    def _made(self, path: str, body: Json | None, idempotency_key: str | None) -> Job:
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        job: Job = self._json("POST", path, json=body, headers=headers, retries=3)
        return job

    def _action(self, job_id: str, verb: str) -> Job:
        job: Job = self._json("POST", f"/v1/jobs/{job_id}/{verb}")
        return job

    def _items(self, path: str) -> list[Json]:
        answer = self._json("GET", path)
        items: list[Json] = answer["items"] if isinstance(answer, dict) else answer
        return items

    def _json(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> Any:
        """One request; a broken connection is retried where repeating is harmless."""
        tries = 1 + (retries if retries is not None else 3 if method == "GET" else 0)
        for attempt in range(1, tries + 1):
            try:
                response = self._http.request(method, path, **request)
                break
            except httpx.TransportError as error:
                if attempt == tries or isinstance(error, httpx.UnsupportedProtocol):
                    raise Unreachable(f"{self.url} does not answer: {error}") from error
                time.sleep(0.1 * 2**attempt)
        _check(response)
        return response.json() if response.content else {}


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        body = response.json()
    except ValueError:
        body = None
    raise api_error(response.status_code, body, response.reason_phrase)


def _job_body(kind: str, spec: Mapping[str, Any] | None, **optional: Any) -> Json:
    """The request's JSON; what is not said is left out, so the server's defaults hold."""
    said = {name: value for name, value in optional.items() if value is not None}
    return {"kind": kind, "spec": dict(spec or {})} | said
