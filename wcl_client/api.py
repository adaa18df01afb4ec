"""`WclClient`: every route of the service as one typed method; errors are exceptions (wcl_client.errors)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack
from urllib.parse import quote

import httpx

from wcl_client.connection import check
from wcl_client.download import Downloaded, download
from wcl_client.errors import Unreachable
from wcl_client.responses import (
    TERMINAL,
    Artifact,
    Checkpoint,
    Evaluation,
    FileKind,
    Group,
    Job,
    JobKind,
    JobOptions,
    Json,
    WeakGroups,
)
from wcl_client.sse import Message
from wcl_client.sweeps import SweepClient


class WclClient(SweepClient):
    """Every route of one server; use as a context manager."""

    # ---- jobs

    def submit(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Send a job; safe to repeat with the same `idempotency_key`, of which one is made up when absent."""
        job: Job = self._made("/v1/jobs", _job_body(kind, spec, options), idempotency_key)
        return job

    def submit_group(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int],
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Group:
        """Send one job for each seed, otherwise as `submit`; all are made or none."""
        body = _job_body(kind, spec, options) | {"seeds": list(seeds)}
        group: Group = self._made("/v1/jobs", body, idempotency_key)
        return group

    def group(self, group_id: str) -> Group:
        """The jobs, and every measured number with mean, deviation and 95 % t-interval over the seeds."""
        group: Group = self._json("GET", f"/v1/groups/{group_id}")
        return group

    def plan(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        preset: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Json:
        """What submitting would do, without doing it."""
        body = _job_body(kind, spec, {"preset": preset}) | ({} if seeds is None else {"seeds": list(seeds)})
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
        job: Job = self._made(f"/v1/jobs/{job_id}/retry", None, idempotency_key)
        return job

    def clone(self, job_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None) -> Job:
        """A new job with the same spec, the fields of `spec` laid over it, from scratch; safe to repeat."""
        job: Job = self._made(f"/v1/jobs/{job_id}/clone", {"spec": dict(spec or {})}, idempotency_key)
        return job

    def evaluate(
        self, checkpoint_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """A job that measures a checkpoint; safe to repeat.

        Args:
            spec: an EvaluateSpec without `features`; its data is the training data unless given.
        """
        job: Job = self._made(f"/v1/checkpoints/{checkpoint_id}/evaluate", dict(spec or {}), idempotency_key)
        return job

    def change(
        self, job_id: str, *, name: str | None = None, priority: int | None = None, tags: Sequence[str] | None = None
    ) -> Job:
        """Rename or retag a job, or change the priority of one that waits."""
        values = {"name": name, "priority": priority, "tags": None if tags is None else list(tags)}
        said = {key: value for key, value in values.items() if value is not None}
        job: Job = self._json("PATCH", f"/v1/jobs/{job_id}", json=said)
        return job

    def _action(self, job_id: str, verb: str) -> Job:
        job: Job = self._json("POST", f"/v1/jobs/{job_id}/{verb}")
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

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        found: Checkpoint = self._json("GET", f"/v1/checkpoints/{checkpoint_id}")
        return found

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Small files that the run made to be looked at, by name."""
        found: list[Artifact] = self._json("GET", f"/v1/jobs/{job_id}/artifacts")["items"]
        return found

    def artifact(self, job_id: str, name: str) -> bytes:
        """The bytes of one of them."""
        return self._response("GET", f"/v1/jobs/{job_id}/artifacts/{name}").content

    def weak_groups(self, job_id: str, *, epoch: int | None = None) -> WeakGroups:
        """How the weak labels group the probe's images at the end of an epoch, the last one unless given."""
        params = {} if epoch is None else {"epoch": epoch}
        found: WeakGroups = self._json("GET", f"/v1/jobs/{job_id}/groups", params=params)
        return found

    def evaluations(self, job_id: str) -> list[Evaluation]:
        found: list[Evaluation] = self._json("GET", f"/v1/jobs/{job_id}/evaluations")["items"]
        return found

    def metrics(
        self,
        job_id: str,
        keys: Sequence[str] = (),
        max_points: int = 1000,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> list[Json]:
        """One entry per series: {name, points: [{step, value, min, max, attempt}]}; fewer steps come in more detail."""
        asked = {"max_points": max_points, "from_step": from_step, "to_step": to_step, "keys": ",".join(keys) or None}
        params = {name: value for name, value in asked.items() if value is not None}
        series: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/metrics", params=params)["series"]
        return series

    def download(
        self,
        checkpoint_id: str,
        target: Path,
        *,
        kind: FileKind = "native",
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> Downloaded:
        """Fetch a checkpoint's file, going on where an interrupted call stopped; the bytes are verified."""
        url = f"/v1/checkpoints/{checkpoint_id}/download?kind={kind}"
        try:
            return download(self._http, url, target, check, on_bytes)
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

    # ---- the service

    def datasets(self) -> list[Json]:
        return self._items("/v1/datasets")

    def dataset(self, name: str) -> Json:
        """One of them; `samples` says where a picture of its images is, and how it is laid out."""
        found: Json = self._json("GET", f"/v1/datasets/{quote(name, safe='')}")
        return found

    def dataset_samples(self, name: str) -> bytes:
        """Some images of each class, as one PNG."""
        return self._response("GET", f"/v1/datasets/{quote(name, safe='')}/samples.png").content

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


def _job_body(kind: JobKind, spec: Mapping[str, Any] | None, options: JobOptions) -> Json:
    """The request's JSON; what is not said is left out, so the server's defaults hold."""
    said = {name: value for name, value in options.items() if value not in (None, (), [])}
    return {"kind": kind, "spec": dict(spec or {})} | said
