"""`WclClient`: one typed method for each route of the service; errors are exceptions (wcl_client.errors)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Unpack

import httpx

from wcl_client.connection import check, part
from wcl_client.download import Downloaded, checked, download
from wcl_client.errors import WclError
from wcl_client.responses import (
    TERMINAL,
    Activity,
    Artifact,
    Audit,
    Checkpoint,
    Dataset,
    Delivery,
    Evaluation,
    FileKind,
    Group,
    Job,
    JobKind,
    JobOptions,
    Json,
    Key,
    KeyList,
    NewKey,
    NewWebhook,
    WeakGroups,
    Webhook,
    Weights,
    WhoAmI,
    Worker,
)
from wcl_client.sse import Message
from wcl_client.sweeps import SweepClient

if TYPE_CHECKING:
    from wcl_client.notebook import Run

UsageBy = Literal["key", "project", "key,project"]
Archived = Literal["only", "all"]  # archived jobs alone, or with the others


class WclClient(SweepClient):
    """A client of one server; a context manager."""

    # ---- jobs

    def submit(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a job and return it; a repeated call with the same `idempotency_key` returns the first job.

        Without `idempotency_key` the call makes a random key, and retries of this call use it.
        """
        return self._create(Job, "/v1/jobs", _job_body(kind, spec, options), idempotency_key)

    def submit_group(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int],
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Group:
        """Submit one job for each seed, otherwise as `submit`; the server makes all of them or none."""
        body = _job_body(kind, spec, options) | {"seeds": list(seeds)}
        return self._create(Group, "/v1/jobs", body, idempotency_key)

    def submit_batch(self, jobs: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None) -> list[Json]:
        """Submit up to 1,000 jobs by one request: all of them, or none; otherwise as `submit`.

        Args:
            jobs: bodies of `POST /v1/jobs`, such as `{"kind": "pretrain", "spec": {...}, "name": "first"}`.

        Returns:
            `id`, `name` and `status` of each job, in the order of `jobs`.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        items: list[Json] = self._create(Json, "/v1/jobs:batch", body, idempotency_key)["items"]
        return items

    def group(self, group_id: str) -> Group:
        """Return a seed group: its jobs, and each result with mean, deviation and 95 % t-interval over the seeds."""
        return self._json(Group, "GET", f"/v1/groups/{part(group_id)}")

    def plan(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        **options: Unpack[JobOptions],
    ) -> Json:
        """Return the plan of a submission without submitting it (dry run)."""
        body = _job_body(kind, spec, options) | ({} if seeds is None else {"seeds": list(seeds)})
        return self._json(Json, "POST", "/v1/jobs", json=body, params={"dry_run": "true"})

    def recommendation(
        self, dataset: str, *, minutes: float | None = None, content: str = "photos", pool: str = "default"
    ) -> Json:
        """Return a spec that fits a dataset, with the reason for each field, its steps, time and memory."""
        params = _without_none({"minutes": minutes, "content": content, "pool": pool})
        return self._json(Json, "GET", f"/v1/datasets/{part(dataset)}/recommendation", params=params)

    def job(self, job_id: str) -> Job:
        """Return a job with its spec."""
        return self._json(Job, "GET", f"/v1/jobs/{part(job_id)}")

    def run(self, reference: str) -> Run:
        """Return a job for a notebook by its id, a part of the id, its name, or `last`; see `wcl_client.notebook`."""
        from wcl_client.notebook import Run
        from wcl_client.references import find_job

        return Run(self, find_job(self, reference))

    def train(
        self,
        spec: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Run:
        """Submit a training as `submit` does, and return it for a notebook; see `wcl_client.notebook`."""
        from wcl_client.notebook import Run

        return Run(self, self.submit("pretrain", spec, idempotency_key=idempotency_key, **options))

    def twin(self, job_id: str) -> Json:
        """Return the twin of a training: `method`, `title`, and `job_id`, `name`, `status`, None while there is none.

        Raises:
            ConflictError: the job is an evaluation or a trial of a sweep.
        """
        return self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/twin")

    def compare(self, job_ids: Sequence[str], *, twin: bool = False) -> Json:
        """Return the verdict about jobs, their results side by side, and the fields that differ.

        Args:
            job_ids: of the jobs; those that differ in their seed only are one configuration.
            twin: whether to add the other seeds of each job, and its twin: SimCLR for WCL, or the other way round.
        """
        return self._json(Json, "GET", "/v1/compare", params={"job": list(job_ids), "twin": twin})

    def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        tag: str | None = None,
        q: str | None = None,
        archived: Archived | None = None,
        starred: bool = False,
        by: str | None = None,
        project: str | None = None,
        folded: bool = False,
        limit: int = 50,
    ) -> list[Job]:
        """Return the newest jobs that match, at most `limit`.

        `q` is a part of the name, `by` the name or id of a key, `project` that of a project.

        Archived jobs are left out, unless `archived` is `all`, or `only` for these alone. `folded` leaves out
        evaluations of a training and trials of a sweep.
        """
        filters = {"kind": kind, "tag": tag, "q": q, "archived": archived, "by": by, "project": project}
        filters |= {"folded": "true" if folded else None}
        return self._newest("/v1/jobs", limit, status=status, starred="true" if starred else None, **filters)

    def archive(self, job_id: str) -> Job:
        """Leave an ended job out of the lists."""
        return self._action(job_id, "archive")

    def unarchive(self, job_id: str) -> Job:
        """Show an archived job in the lists again."""
        return self._action(job_id, "unarchive")

    def reference(self, job_id: str) -> Job:
        """Make a training the reference of its dataset, which the others are compared with."""
        return self._action(job_id, "reference")

    def unreference(self, job_id: str) -> Job:
        """Make a training the reference no more."""
        return self._action(job_id, "unreference")

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running job ends within 2 s and keeps its checkpoints."""
        return self._action(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Pause a job until `resume`; a running job finishes its step and saves a checkpoint first."""
        return self._action(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it continues from its last checkpoint."""
        return self._action(job_id, "resume")

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Submit a new job that starts from the last good checkpoint of this job; repeatable as `submit`."""
        return self._create(Job, f"/v1/jobs/{part(job_id)}/retry", None, idempotency_key)

    def go_on(
        self, job_id: str, *, epochs: int | None = None, data: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Submit a job that trains a finished one further; repeatable as `submit`.

        Args:
            job_id: the finished training.
            epochs: number of epochs more, before which the learning rate starts again; None for the number that the
                page proposes: those that it lacks to 1,000 steps, else as many as it had.
            data: another dataset, for a run of its own from the weights of the job.
            idempotency_key: as for `submit`.
        """
        body = _without_none({"epochs": epochs, "data": data})
        return self._create(Job, f"/v1/jobs/{part(job_id)}/continue", body, idempotency_key)

    def clone(
        self,
        job_id: str,
        spec: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Submit a new job with this job's spec and the fields of `spec` over it; repeatable as `submit`.

        Args:
            job_id: the job.
            spec: the fields that differ.
            name: of the new job; None for the name of the job with the next number.
            idempotency_key: as for `submit`.
        """
        body = {"spec": dict(spec or {})} | _without_none({"name": name})
        return self._create(Job, f"/v1/jobs/{part(job_id)}/clone", body, idempotency_key)

    def evaluate(
        self, checkpoint_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Submit a job that evaluates a checkpoint; repeatable as `submit`.

        Args:
            checkpoint_id: the checkpoint to measure.
            spec: an EvaluateSpec without `features`; by default it uses the training data.
            idempotency_key: as for `submit`.
        """
        return self._create(Job, f"/v1/checkpoints/{part(checkpoint_id)}/evaluate", dict(spec or {}), idempotency_key)

    def baselines(self, job_id: str, *, idempotency_key: str | None = None) -> list[Job]:
        """Submit jobs that measure the raw pixels and the untrained network as an evaluation has measured a checkpoint.

        Args:
            job_id: of the evaluation, or of a training, which stands for its newest evaluation.
            idempotency_key: as for `submit`.
        """
        created = self._create(Json, f"/v1/jobs/{part(job_id)}/baselines", {}, idempotency_key)
        items: list[Job] = created["items"]
        return items

    def change(
        self,
        job_id: str,
        *,
        name: str | None = None,
        priority: int | None = None,
        tags: Sequence[str] | None = None,
        starred: bool | None = None,
        note: str | None = None,
    ) -> Job:
        """Change the name, tags, star or note of a job, or the priority of a waiting one; `note=""` removes it."""
        values: Json = {"name": name, "priority": priority, "starred": starred, "note": note}
        values["tags"] = None if tags is None else list(tags)
        return self._json(Job, "PATCH", f"/v1/jobs/{part(job_id)}", json=_without_none(values))

    def delete(self, job_ids: Sequence[str], *, dry_run: bool = False) -> Json:
        """Delete jobs with all that belongs to them; return what was deleted, and `refused`: the jobs that stay.

        Args:
            job_ids: at most 1,000; those that wait are cancelled first.
            dry_run: whether to delete nothing, and return what would be deleted.
        """
        return self._json(Json, "POST", "/v1/jobs/delete", json={"jobs": list(job_ids), "dry_run": dry_run})

    def delete_matching(
        self,
        *,
        status: Sequence[str] = (),
        kind: str = "",
        tag: str = "",
        q: str = "",
        by: str = "",
        dry_run: bool = False,
    ) -> Json:
        """Delete the newest jobs that match, at most 1,000; as `delete`.  `by` is the name or id of a key."""
        chosen = {"status": list(status), "kind": kind, "tag": tag, "q": q}
        chosen |= {"by": by} if by else {}  # a former server does not know it
        return self._json(Json, "POST", "/v1/jobs/delete", json={"filter": chosen, "dry_run": dry_run})

    def change_many(
        self,
        verb: Literal["cancel", "pause", "resume"],
        chosen: Json,
        *,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Json:
        """Cancel, pause or resume jobs; return `count`, `jobs`, `refused`, `has_more` and `num_foreign`.

        `num_foreign` counts the jobs of other keys that a filter matches; this key may not change them.

        Args:
            verb: the request.
            chosen: `{"jobs": [ids]}`, or `{"filter": {...}}` with some of `status`, `kind`, `tag`, `q`, `archived`,
                `starred` and `by`.  A filter changes at most 1,000 jobs; `has_more` says that there are more.
            dry_run: whether to change nothing, and return what would change.
            idempotency_key: a call that repeats it changes no job that was submitted after the first one.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        body = {**chosen, "dry_run": dry_run}
        return self._json(Json, "POST", f"/v1/jobs/{verb}", json=body, headers=headers)

    def restore(self, job_id: str) -> Job:
        """Restore a deleted job with its evaluations; only an administrator's key may, and only for some days."""
        return self._action(job_id, "restore")

    def deletions(self) -> list[Json]:
        """Return the newest 1,000 deletions of jobs, newest first; only an administrator's key may."""
        return self._items(Json, "/v1/deletions")

    def purge(self, job_ids: Sequence[str] = (), *, by: str = "", dry_run: bool = False) -> Json:
        """Remove deleted jobs at once, before they could no longer be restored; only an administrator's key may.

        Args:
            job_ids: ids of deleted jobs.
            by: in place of ids, the name or id of a key: all deleted jobs that it has submitted.
            dry_run: whether to remove nothing, and return what would be removed.
        """
        body = {"jobs": list(job_ids), "by": by, "dry_run": dry_run}
        return self._json(Json, "POST", "/v1/deletions/purge", json=body)

    def clean_storage(self, job_ids: Sequence[str] = (), *, by: str = "", dry_run: bool = False) -> Json:
        """Remove the removable checkpoints of jobs: neither pinned, nor a job's newest, nor needed.

        Args:
            job_ids: only of these; by default of all that the key may change.
            by: only of the key with this name or id.
            dry_run: whether to remove nothing, and return what would be removed.
        """
        body = {"jobs": list(job_ids), "by": by, "dry_run": dry_run}
        return self._json(Json, "POST", "/v1/storage/clean", json=body)

    def _action(self, job_id: str, verb: str) -> Job:
        return self._json(Job, "POST", f"/v1/jobs/{part(job_id)}/{verb}")

    def wait(self, job_id: str, *, timeout_seconds: float | None = None, poll_seconds: float = 1.0) -> Job:
        """Poll a job until its status is final, and return it.

        Raises:
            TimeoutError: the job has not ended after `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = self.job(job_id)
            if job["status"] in TERMINAL:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout_seconds:g} s")
            time.sleep(poll_seconds)

    # ---- the parts of a job

    def events(self, job_id: str) -> list[Json]:
        """Return the first 1,000 events of a job, in order."""
        return self._items(Json, f"/v1/jobs/{part(job_id)}/events")

    def attempts(self, job_id: str) -> list[Json]:
        """Return the attempts of a job, in order."""
        return self._items(Json, f"/v1/jobs/{part(job_id)}/attempts")

    def logs(self, job_id: str) -> list[Json]:
        """Return the last 500 lines that the training runs of a job wrote."""
        return self._items(Json, f"/v1/jobs/{part(job_id)}/logs")

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return the registered checkpoints of a job, ordered by step."""
        checkpoints = self._items(Checkpoint, f"/v1/jobs/{part(job_id)}/checkpoints")
        return sorted(checkpoints, key=lambda checkpoint: checkpoint["step"])

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        return self._json(Checkpoint, "GET", f"/v1/checkpoints/{part(checkpoint_id)}")

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Return the artifacts of a job: small files for display that its run wrote."""
        return self._items(Artifact, f"/v1/jobs/{part(job_id)}/artifacts")

    def artifact(self, job_id: str, name: str) -> bytes:
        """Return the content of an artifact.

        Raises:
            TransferError: the bytes do not match the checksum.
        """
        response = self._response("GET", f"/v1/jobs/{part(job_id)}/artifacts/{part(name)}")
        return checked(response.content, response.headers.get("etag", ""))

    def weak_groups(self, job_id: str, *, epoch: int | None = None) -> WeakGroups:
        """Return the weak-label groups of the monitor batch at the end of an epoch, by default the last one."""
        params = {} if epoch is None else {"epoch": epoch}
        return self._json(WeakGroups, "GET", f"/v1/jobs/{part(job_id)}/groups", params=params)

    def evaluations(self, job_id: str) -> list[Evaluation]:
        """Return the numbers that a job measured."""
        return self._items(Evaluation, f"/v1/jobs/{part(job_id)}/evaluations")

    def metrics(
        self,
        job_id: str,
        keys: Sequence[str] = (),
        max_points: int = 1000,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
    ) -> list[Json]:
        """Return the curves of a job: `{name, points: [{step, value, min, max, attempt}]}` for each series.

        Args:
            keys: names of series; by default all.
            max_points: limit on the points of a series; a point then stands for several steps.
            from_step: the first step; a shorter range comes in more detail.
            to_step: the last step.
        """
        query = {"max_points": max_points, "from_step": from_step, "to_step": to_step, "keys": ",".join(keys) or None}
        response = self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/metrics", params=_without_none(query))
        return list(response["series"])

    def metrics_csv(self, job_ids: Sequence[str]) -> bytes:
        """Return every reported point of every metric of jobs as CSV: job_id, metric, step, value, attempt."""
        return self._response("GET", "/v1/metrics.csv", params={"job": list(job_ids)}, timeout=None).content

    def jobs_csv(self, **filters: Any) -> bytes:
        """Return the list of jobs as CSV; the filters are those of `GET /v1/jobs.csv`."""
        return self._response("GET", "/v1/jobs.csv", params=_without_none(filters), timeout=None).content

    def compare_csv(self, job_ids: Sequence[str], *, twin: bool = False) -> bytes:
        """Return the results of a comparison as CSV: a row for each measure and configuration."""
        params = {"job": list(job_ids), "twin": twin}
        return self._response("GET", "/v1/compare.csv", params=params, timeout=None).content

    def timed_metrics(self, job_id: str, from_step: int, to_step: int) -> Json:
        """Return the curves of a range of steps as `series`, and as `times` when steps were reported.

        A range of at most 1,000 steps, shared out among its attempts, holds every reported point.
        """
        query = {"from_step": from_step, "to_step": to_step, "times": True}
        return self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/metrics", params=query)

    def verify(self, checkpoint_id: str) -> Checkpoint:
        """Let the server read the whole file of a checkpoint; return the checkpoint with its marks."""
        return self._json(Checkpoint, "POST", f"/v1/checkpoints/{part(checkpoint_id)}/verify", timeout=None)

    def download(
        self,
        checkpoint_id: str,
        target: Path,
        *,
        kind: FileKind = "native",
        on_bytes: Callable[[int, int], None] | None = None,
    ) -> Downloaded:
        """Download a checkpoint's file and verify its checksum; continue an interrupted download of an earlier call.

        Args:
            kind: `native`, or `backbone` for the weights under torchvision's names.
            on_bytes: called with the received and the total number of bytes.

        Raises:
            TransferError: the connection kept breaking, or the bytes do not match the checksum.
        """
        url = f"/v1/checkpoints/{part(checkpoint_id)}/download?kind={kind}"
        try:
            return download(self._http, url, target, check, on_bytes)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def follow(self, job_id: str, *, last_id: str | None = None, patience_seconds: float = 60.0) -> Iterator[Message]:
        """Yield the messages of a job's stream until the job ends; reconnect after a broken connection.

        Args:
            last_id: the id of the last received message; the stream continues after it.
            patience_seconds: how long the server may be unreachable before `Unreachable` is raised.
        """
        unreachable_since: float | None = None
        while True:
            try:
                for message in self._stream(job_id, last_id):
                    unreachable_since = None
                    if message is None:
                        continue
                    last_id = message.id or last_id
                    yield message
                    if message.event == "end":
                        return
            except httpx.TransportError as error:
                unreachable_since = unreachable_since or time.monotonic()
                if time.monotonic() - unreachable_since > patience_seconds:
                    raise self._unreachable(error) from error
            time.sleep(0.5)

    # ---- imported weights

    def all_weights(self) -> list[Weights]:
        """Return the imported weights by name."""
        return self._items(Weights, "/v1/weights")

    def weights(self, sha256: str) -> Weights:
        """Return imported weights by their digest."""
        return self._json(Weights, "GET", f"/v1/weights/{part(sha256)}")

    def add_weights(
        self, file: Path, name: str, sha256: str, *, on_bytes: Callable[[int, int], None] | None = None
    ) -> Weights:
        """Upload a file of imported weights; begin again while the connection breaks, as at a restart of the server.

        Args:
            file: that `python -m wcl_core import-weights` has written.
            name: for people. Of equal files the first name stays.
            sha256: digest of the file.
            on_bytes: called with the sent and the total number of bytes.

        Raises:
            ConflictError: other weights have the name.
        """
        return self._uploaded(Weights, f"/v1/weights/{part(sha256)}", {"name": name}, file, on_bytes)

    def verify_weights(self, sha256: str) -> Json:
        """Let the server read the whole file of imported weights; `flaw` says what is wrong with it, or is None."""
        return self._json(Json, "POST", f"/v1/weights/{part(sha256)}/verify", timeout=None)

    def remove_weights(self, sha256: str) -> None:
        """Remove imported weights and their file; refused while an unfinished job needs them."""
        self._response("DELETE", f"/v1/weights/{part(sha256)}")

    # ---- links without a key

    def share(self, job_ids: Sequence[str], *, days: int = 7) -> Json:
        """Create a link that shows a job, or the comparison of several, without a key; `url` is in this response only.

        Args:
            job_ids: of the jobs.
            days: the time until the link expires, at most 90 days.
        """
        return self._json(Json, "POST", "/v1/shares", json={"jobs": list(job_ids), "days": days})

    def shares(self) -> list[Json]:
        """Return the links that the key manages, newest first."""
        return self._items(Json, "/v1/shares")

    def revoke_share(self, share_id: str) -> None:
        """Revoke a link at once."""
        self._response("DELETE", f"/v1/shares/{part(share_id)}")

    # ---- saved views of the list of jobs

    def views(self) -> list[Json]:
        """Return the saved views of this key, and those that others share, by name."""
        return self._items(Json, "/v1/views")

    def save_view(self, name: str, query: str = "", *, shared: bool = False) -> Json:
        """Save filters, group and order of the list of jobs under a name.

        Args:
            name: a view of this key with the same name is replaced.
            query: of the address of the page of jobs, such as `status=running&group=method`.
            shared: whether other keys see it, too.
        """
        return self._json(Json, "POST", "/v1/views", json={"name": name, "query": query, "shared": shared})

    def remove_view(self, view_id: str) -> None:
        """Remove a saved view."""
        self._response("DELETE", f"/v1/views/{part(view_id)}")

    # ---- keys; they need an administrator's key

    def keys(self) -> KeyList:
        """Return all keys, newest first, without their secrets."""
        return self._json(KeyList, "GET", "/v1/keys")

    def create_key(
        self,
        name: str,
        scopes: Iterable[str] = ("read", "submit"),
        *,
        days: int | None = None,
        limits: Mapping[str, int | None] | None = None,
        project: str | None = None,
        idempotency_key: str | None = None,
    ) -> NewKey:
        """Create a key and return it with its secret.

        Args:
            name: of the person or program that uses it.
            scopes: `read`, `submit`, `priority`, `admin`.
            days: until it expires; None for a key that does not expire.
            limits: as of `change_key`.
            project: its name, or `*` for all; None for all projects with `admin`, else that of the caller.
            idempotency_key: a repeated call returns the first call's key with None as its secret, which the server
                does not store; `rotate_key` makes another one.
        """
        body = {"name": name, "scopes": list(scopes), "days": days, **(limits or {})}
        body |= {} if project is None else {"project": project}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        return self._json(NewKey, "POST", "/v1/keys", json=body, headers=headers)

    def projects(self) -> list[Json]:
        """Return the projects that the key sees: its own one, or all."""
        items: list[Json] = self._json(dict, "GET", "/v1/projects")["items"]
        return items

    def create_project(self, name: str) -> Json:
        """Create a project, and return it; this needs `admin` for all projects."""
        return self._json(dict, "POST", "/v1/projects", json={"name": name})

    def rename_project(self, project_id: str, name: str) -> Json:
        """Rename a project, and return it; this needs `admin` for all projects."""
        return self._json(dict, "PATCH", f"/v1/projects/{part(project_id)}", json={"name": name})

    def remove_project(self, project_id: str) -> None:
        """Remove a project without keys and jobs; this needs `admin` for all projects."""
        self._response("DELETE", f"/v1/projects/{part(project_id)}")

    def limit_project(self, project_id: str, limits: Mapping[str, int | None]) -> Json:
        """Change limits of a project, which hold at once, and return it; this needs `admin` for all projects.

        Args:
            project_id: of the project.
            limits: some of `max_gpus`, `max_waiting` and `max_bytes`; None for none.
        """
        return self._json(dict, "PATCH", f"/v1/projects/{part(project_id)}", json=dict(limits))

    def change_key(
        self,
        key_id: str,
        limits: Mapping[str, int | None] = MappingProxyType({}),
        project: str | None = None,
        *,
        name: str | None = None,
        scopes: Iterable[str] | None = None,
        days: int | Literal["keep"] | None = "keep",
    ) -> Key:
        """Change a key at once, also for its browser sessions and waiting jobs; return it.  Its secret stays.

        Args:
            key_id: of the key.
            limits: some of `max_waiting`, `max_devices` and `max_submissions`; None for that of the service.
            project: its name, or `*` for all; None leaves the key where it is.
            name, scopes: new ones; None leaves them as they are.
            days: until it expires; `keep` leaves that time as it is, None is never.
        """
        facts = {"project": project, "name": name, "scopes": None if scopes is None else list(scopes)}
        body = dict(limits) | {each: value for each, value in facts.items() if value is not None}
        body |= {} if days == "keep" else {"days": days}
        return self._json(Key, "PATCH", f"/v1/keys/{part(key_id)}", json=body)

    def whoami(self) -> WhoAmI:
        """Return the key of this client, with its role, scopes, project and limits, and the server's version."""
        return self._json(WhoAmI, "GET", "/v1/whoami")

    def rotate_key(self, key_id: str, *, days: int | Literal["keep"] | None = "keep") -> NewKey:
        """Give a key a new secret and return it; the former one ends at once.

        Args:
            key_id: of the key, which keeps its jobs.
            days: until it expires; None for never; `keep` leaves that time as it is.
        """
        body = {} if days == "keep" else {"days": days}
        return self._json(NewKey, "POST", f"/v1/keys/{part(key_id)}/rotate", json=body)

    def revoke_key(self, key_id: str, *, last_administrator: bool = False) -> None:
        """Revoke a key at once; the last one with `admin` only with `last_administrator`."""
        params = {"last_administrator": "true"} if last_administrator else {}
        self._response("DELETE", f"/v1/keys/{part(key_id)}", params=params)

    # ---- webhooks

    def webhooks(self) -> list[Webhook]:
        """Return the webhooks that the key manages, newest first."""
        return self._items(Webhook, "/v1/webhooks")

    def add_webhook(self, body: Mapping[str, Any]) -> NewWebhook:
        """Add a webhook and return it with its secret; `body` is that of `POST /v1/webhooks`."""
        return self._json(NewWebhook, "POST", "/v1/webhooks", json=dict(body))

    def remove_webhook(self, webhook_id: str) -> None:
        """Remove a webhook with its messages."""
        self._response("DELETE", f"/v1/webhooks/{part(webhook_id)}")

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Add a test message, which a server sends within seconds."""
        return self._json(Delivery, "POST", f"/v1/webhooks/{part(webhook_id)}/test")

    def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """Return the newest messages of a webhook, with the results of sending them."""
        return self._items(Delivery, f"/v1/webhooks/{part(webhook_id)}/deliveries?limit={limit}")

    # ---- the service

    def datasets(self) -> list[Dataset]:
        """Return the datasets that workers announced."""
        return self._items(Dataset, "/v1/datasets")

    def dataset(self, name: str) -> Dataset:
        """Return a dataset; `samples` is the address and the layout of a picture of its images."""
        return self._json(Dataset, "GET", f"/v1/datasets/{part(name)}")

    def read_dataset(self, name: str) -> Dataset:
        """Request that the workers read a folder again; files that have not changed are not read."""
        return self._json(Dataset, "POST", f"/v1/datasets/{part(name)}/read")

    def add_dataset(self, name: str, path: str, *, labels: bool = True) -> Json:
        """Add a dataset, which every worker reads that has this path; needs an administrator's key.

        Args:
            name: of the dataset in specs.
            path: absolute, of an image folder, list of images, archive or packed file.
            labels: whether folders, or the list, may name classes.
        """
        return self._json(Json, "POST", "/v1/datasets", json={"name": name, "path": path, "labels": labels})

    def rename_dataset(self, name: str, new_name: str) -> Json:
        """Rename a dataset that was added; needs an administrator's key."""
        return self._json(Json, "PATCH", f"/v1/datasets/{part(name)}", json={"name": new_name})

    def remove_dataset(self, name: str) -> None:
        """Remove a dataset that was added; its files stay; needs an administrator's key."""
        self._response("DELETE", f"/v1/datasets/{part(name)}")

    def unsettled_datasets(self) -> Json:
        """Return the datasets that workers still read (`pending`) or refuse (`refused`), with the reasons."""
        page = self._json(Json, "GET", "/v1/datasets")
        return {"pending": page.get("pending", []), "refused": page.get("refused", [])}

    def dataset_samples(self, name: str) -> bytes:
        """Return a PNG with some images of each class."""
        return self._response("GET", f"/v1/datasets/{part(name)}/samples.png").content

    def presets(self) -> Json:
        """Return the presets: `{"items": [...]}` with name, kind, description and spec."""
        return self._json(Json, "GET", "/v1/presets")

    def spec_schema(self, kind: JobKind) -> Json:
        """Return the JSON schema of the specs of a kind, as the server's OpenAPI document has it."""
        name = {"pretrain": "PretrainSpec", "evaluate": "EvaluateSpec"}[kind]
        models = self._json(Json, "GET", "/openapi.json")["components"]["schemas"]
        return _schema_of(name, models)

    def workers(self) -> list[Worker]:
        """Return the workers, live ones first."""
        return self._items(Worker, "/v1/workers")

    def drain_worker(self, worker_id: str) -> Worker:
        """Drain a worker: it saves its job, returns the job to the queue, claims no other job, and ends."""
        return self._json(Worker, "POST", f"/v1/workers/{part(worker_id)}/drain")

    def cordon_worker(self, worker_id: str, *, undo: bool = False) -> Worker:
        """Cordon a worker: its jobs go on, and it takes no other one until a call with `undo`."""
        return self._json(Worker, "POST", f"/v1/workers/{part(worker_id)}/{'uncordon' if undo else 'cordon'}")

    def invite_worker(self) -> Json:
        """Return the `token` with which one machine joins as a worker; needs an administrator's key."""
        return self._json(Json, "POST", "/v1/workers/invitations")

    def worker_invitations(self) -> list[Json]:
        """Return the invitations of machines that still work, newest first; needs an administrator's key."""
        items: list[Json] = self._json(Json, "GET", "/v1/workers/invitations")["items"]
        return items

    def revoke_invitation(self, invitation_id: str) -> None:
        """Revoke an invitation of a machine; needs an administrator's key."""
        self._response("DELETE", f"/v1/workers/invitations/{part(invitation_id)}")

    def join_worker(self, host: str, version: str) -> dict[str, str]:
        """Return the settings of a worker for a machine; the key of this client is the token of an invitation."""
        machine = {"host": host, "version": version}
        settings: dict[str, str] = self._json(Json, "POST", "/v1/workers/join", json=machine)["settings"]
        return settings

    def activity(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 50,
    ) -> list[Activity]:
        """Return the newest entries of the activity log, newest first; only an administrator's key may.

        Args:
            actor: only those of a person or key, by name or id.
            action: only an action, such as `job.cancel`, or those of a kind of object, such as `job`.
            target: only those about an object, by name or id.
            since, until: times in ISO 8601 with a time zone; `until` is exclusive.
            limit: the most entries.
        """
        times = {"since": since, "until": until}
        return self._newest("/v1/activity", limit, actor=actor, action=action, target=target, **times)

    def usage(
        self, month: str | None = None, by: UsageBy = "key", *, first: str | None = None, last: str | None = None
    ) -> list[Json]:
        """Return the use of devices of each key or project in each month, newest first.

        Args:
            month: only this one, such as 2026-11.
            by: what a row is about.
            first, last: in place of `month`, the first and the last one.
        """
        params = _without_none({"month": month, "by": by, "from": first, "to": last})
        items: list[Json] = self._json(Json, "GET", "/v1/usage", params=params)["items"]
        return items

    def usage_csv(
        self, month: str | None = None, by: UsageBy = "key", *, first: str | None = None, last: str | None = None
    ) -> bytes:
        """Return the same as CSV."""
        params = _without_none({"month": month, "by": by, "from": first, "to": last})
        return self._response("GET", "/v1/usage.csv", params=params).content

    def storage(self, *, by: str | None = None, limit: int = 50) -> Json:
        """Return the stored files: `size`, `owners`, `projects` and `jobs`, the largest first; `by` is a key."""
        return self._json(Json, "GET", "/v1/storage", params=_without_none({"by": by, "limit": limit}))

    def audit(self) -> Audit:
        """Replay the events of all jobs and return `jobs`, `events`, `attempts` and `findings`: the differences."""
        return self._json(Audit, "GET", "/v1/audit")

    def page_link(self, is_terminal: bool) -> str:
        """Return a sign-in link for a terminal, else the plain URL: a file would keep the link's secret."""
        return self.sign_in_link() if is_terminal else f"{self.url} (only a terminal shows a sign-in link)"

    def sign_in_link(self) -> str:
        """Return a new one-time link that signs a browser in."""
        return str(self._json(Json, "POST", "/v1/sign-in-links")["url"])

    def is_ready(self) -> bool:
        """Return whether the server responds and can use its database."""
        return self.obstacle() is None

    def obstacle(self) -> WclError | None:
        """Return why the server is not ready; None if it responds and can use its database."""
        try:
            check(self._http.get("/readyz", timeout=5.0))
        except httpx.HTTPError as error:
            return self._unreachable(error)
        except WclError as error:
            return error
        return None

    def problems(self) -> list[str]:
        """Return sentences on what a server that is ready cannot do meanwhile, such as serving files."""
        return list(self._json(Json, "GET", "/readyz").get("problems", []))


def _schema_of(name: str, models: Mapping[str, Any]) -> Json:
    """Return the JSON schema of a model alone, from the models of an OpenAPI document that refer to each other."""
    definitions: Json = {}
    waiting = [name]
    while waiting:
        for used in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(models[waiting.pop()])):
            if used not in definitions:
                definitions[used] = models[used]
                waiting.append(used)
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **models[name], "$defs": definitions}
    schema: Json = json.loads(json.dumps(whole).replace('"#/components/schemas/', '"#/$defs/'))
    return schema


def _job_body(kind: JobKind, spec: Mapping[str, Any] | None, options: JobOptions) -> Json:
    """Return the request's JSON; it omits options that are None or empty, so that the server's defaults apply."""
    given = {name: value for name, value in options.items() if value not in (None, (), [])}
    return {"kind": kind, "spec": dict(spec or {})} | given


def _without_none(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}
