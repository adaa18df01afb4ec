"""`AsyncWclClient`: `WclClient` for asyncio, with the same methods, results and errors.

docs/write_async_client.py writes this file from the sources of `WclClient`: change these, and run it.
"""

# ruff: noqa: ASYNC240 (files are read and written in small parts between awaits)

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, Unpack, cast
from uuid import uuid4

import httpx

from wcl_client.address import checked_key, checked_url, find_address
from wcl_client.api import Archived, UsageBy, _job_body, _schema_of, _without_none
from wcl_client.connection import (
    _PART_BYTES,
    _UPLOAD_SECONDS,
    _UPLOADS,
    Answers,
    Page,
    T,
    _certificates,
    _is_like,
    check,
    part,
)
from wcl_client.download import _DIGEST, _READ_SECONDS, ATTEMPTS, Downloaded, _digest_in, _Partial, _verify, checked
from wcl_client.errors import (
    ForeignServer,
    InvalidError,
    TransferError,
    Unreachable,
    WclError,
)
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
from wcl_client.sse import Message, Parser
from wcl_core.files import refuse_device
from wcl_core.text import Secret


class AsyncConnection:
    """The base of `WclClient`: an HTTP client with one server's address and key; a context manager."""

    def __init__(self, url: str, key: str | Secret | None = None, *, timeout_seconds: float = 30.0) -> None:
        """Make a connection; nothing is sent yet.

        Raises:
            InvalidAddress: the URL or the key cannot be one.
        """
        secret = checked_key(key)
        headers = {"Authorization": f"Bearer {secret.reveal()}"} if secret else {}
        self.url = checked_url(url)
        # trust_env off: a proxy from the environment must not see a loopback server's key.
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout_seconds,
            trust_env=False,
            verify=_certificates() if self.url.startswith("https:") else False,  # loading them takes a while
        )

    @classmethod
    def connect(cls, data_dir: Path | None = None) -> Self:
        """Return a client of the server that the environment or the local data folder names."""
        address = find_address(data_dir)
        return cls(address.url, address.key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _create(self, response_type: type[T], path: str, body: Json | None, idempotency_key: str | None) -> T:
        """Send a POST with an idempotency key and up to 3 retries, and return the created object."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return await self._json(response_type, "POST", path, json=body, headers=headers, retries=3)

    async def _items(self, _type: type[T], path: str) -> list[T]:
        """Return the items of a list without pages."""
        return cast(list[T], (await self._json(Page, "GET", path))["items"])

    async def _newest(self, path: str, limit: int, **filters: str | None) -> list[Any]:
        """Return the first `limit` items of a list with pages; a filter that is None is left out."""
        items: list[Any] = []
        cursors: set[Any] = set()
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        params["limit"] = min(limit, 100)
        while True:
            page = await self._json(Page, "GET", path, params=params)
            items += page["items"]
            params["cursor"] = cursor = page.get("next_cursor")
            if not cursor or len(items) >= limit:
                return items[:limit]
            if cursor in cursors:
                raise ForeignServer(f"{self.url} sent a page of a list twice; expected a WCL server there")
            cursors.add(cursor)

    async def _json(self, _type: type[T], method: str, path: str, *, retries: int | None = None, **request: Any) -> T:
        """Send a request and return the JSON object of the response, typed as `_type`.

        Raises:
            ForeignServer: the response holds no JSON object, so it is not of this service.
        """
        return self._decoded(_type, (await self._response(method, path, retries=retries, **request)))

    def _decoded(self, _type: type[T], response: httpx.Response) -> T:
        """Return the JSON object of a response; raise as `_json`."""
        try:
            value = response.json() if response.content else {}
        except (ValueError, RecursionError) as error:
            raise ForeignServer(f"{self.url} sent no JSON; expected a WCL server there") from error
        if not _is_like(value, _type):
            raise ForeignServer(f"{self.url} sent JSON of another kind; expected a WCL server there")
        Answers.url = self.url
        return cast(T, value)

    async def _response(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> httpx.Response:
        """Send a request; retry after a connection error, by default only a GET."""
        try:
            # Half surrogates of a command line travel as JSON escapes, so that the server names the field.
            if (body := request.pop("json", None)) is not None:
                request["content"] = json.dumps(body, allow_nan=False).encode()
                request["headers"] = {"Content-Type": "application/json"} | (request.get("headers") or {})
            prepared = self._http.build_request(method, path, **request)
        except (ValueError, TypeError, RecursionError, httpx.InvalidURL) as error:
            raise InvalidError(400, "Not sent", f"the request cannot be written: {error}") from error
        tries = 1 + (retries if retries is not None else 3 if method == "GET" else 0)
        for attempt in range(1, tries + 1):
            try:
                response = await self._http.send(prepared)
                break
            except httpx.DecodingError as error:
                raise ForeignServer(f"{self.url} sent a body that cannot be decoded: {error}") from error
            except httpx.TransportError as error:
                if attempt == tries or isinstance(error, httpx.UnsupportedProtocol):
                    raise self._unreachable(error) from error
                await asyncio.sleep(0.1 * 2**attempt)
        Answers.key_expires = response.headers.get("X-Key-Expires", Answers.key_expires)
        check(response)
        return response

    async def _uploaded(
        self,
        _type: type[T],
        path: str,
        params: Mapping[str, str],
        file: Path,
        on_bytes: Callable[[int, int], None] | None,
    ) -> T:
        """Send a file as the body of a PUT; begin again while the connection breaks, for half a minute.

        Args:
            _type: of the JSON object in the response.
            path, params: of the address.
            file: whose bytes are sent.
            on_bytes: called with the sent and the total number of bytes.
        """
        size = file.stat().st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        for attempt in range(1, _UPLOADS + 1):
            body = _parts(file, size, on_bytes)
            try:
                timeout = httpx.Timeout(30.0, read=_UPLOAD_SECONDS)
                response = await self._http.put(path, params=params, content=body, headers=headers, timeout=timeout)
                break
            except httpx.TransportError as error:
                if attempt == _UPLOADS:
                    raise self._unreachable(error) from error
                await asyncio.sleep(0.5 * 2**attempt)
        check(response)
        return self._decoded(_type, response)

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            advice = "Set SSL_CERT_FILE to the certificates of the authority that the server's certificate is from"
            return Unreachable(f"the certificate of {self.url} is not trusted: {error}. {advice}")
        return Unreachable(f"{self.url} does not respond: {error}")

    async def _stream(self, job_id: str, last_id: str | None) -> AsyncIterator[Message | None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        # The server sends a heartbeat every 15 s; after three missed ones the connection is dead.
        timeout = httpx.Timeout(10.0, read=50.0)
        async with self._http.stream(
            "GET", f"/v1/jobs/{part(job_id)}/stream", headers=headers, timeout=timeout
        ) as response:
            if response.is_error:
                await response.aread()
            check(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ForeignServer(f"{self.url} sent no stream of events; expected a WCL server there")
            Answers.url = self.url
            parser = Parser()
            async for line in response.aiter_lines():
                for each in parser.feed(line):
                    yield each


async def _parts(file: Path, size: int, on_bytes: Callable[[int, int], None] | None) -> AsyncIterator[bytes]:
    sent = 0
    with file.open("rb") as opened:
        while content := opened.read(_PART_BYTES):
            yield content
            sent += len(content)
            if on_bytes is not None:
                on_bytes(sent, size)


class AsyncSweepClient(AsyncConnection):
    async def submit_sweep(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a sweep and return it; a repeated call with the same `idempotency_key` returns the first sweep.

        Args:
            body: `name`, `search`, `parameters`, `metric` and the other fields of `POST /v1/sweeps`.
            idempotency_key: by default a new random key.
        """
        return await self._create(Json, "/v1/sweeps", dict(body), idempotency_key)

    async def plan_sweep(self, body: Mapping[str, Any]) -> Json:
        """Return the trials, rungs and jobs of a sweep without submitting it (dry run)."""
        return await self._json(Json, "POST", "/v1/sweeps", json=dict(body), params={"dry_run": "true"})

    async def sweep(self, sweep_id: str) -> Json:
        """Return a sweep; `table` holds its trials with their jobs and values."""
        return await self._json(Json, "GET", f"/v1/sweeps/{part(sweep_id)}")

    async def sweeps(self, *, status: str | None = None, limit: int = 50) -> list[Json]:
        """Return the newest sweeps, at most `limit`; `status` may hold several states, separated by commas."""
        return await self._newest("/v1/sweeps", limit, status=status)

    async def follow_sweep(
        self, sweep_id: str, *, poll_seconds: float = 1.0, patience_seconds: float = 60.0
    ) -> AsyncIterator[Json]:
        """Yield the sweep now and after each change, until it ends.

        Args:
            poll_seconds: pause between two requests.
            patience_seconds: how long the server may be unreachable before `Unreachable` is raised.
        """
        latest: Json = {"status": None}
        responded_at = time.monotonic()
        while latest["status"] not in TERMINAL:
            try:
                sweep = await self.sweep(sweep_id)
            except Unreachable:
                if time.monotonic() - responded_at > patience_seconds:
                    raise
            else:
                responded_at = time.monotonic()
                if sweep != latest:
                    latest = sweep
                    yield sweep
            if latest["status"] not in TERMINAL:
                await asyncio.sleep(poll_seconds)

    async def cancel_sweep(self, sweep_id: str) -> Json:
        """Cancel a sweep: its waiting jobs at once, its running jobs within 2 s; checkpoints are kept."""
        return await self._json(Json, "POST", f"/v1/sweeps/{part(sweep_id)}/cancel")


async def download(
    http: httpx.AsyncClient,
    url: str,
    target: Path,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None = None,
) -> Downloaded:
    """Download `url` into `target`; continue an interrupted download of an earlier call.

    Args:
        http: the HTTP client, with base URL and key.
        check: raises for an error response.
        on_bytes: called with the received and the total number of bytes.

    Raises:
        TransferError: the connection kept breaking, the bytes do not match the ETag's sha256, or the file cannot be
            written.
    """
    try:
        refuse_device(target)
        return await _download(http, url, target, check, on_bytes)
    except OSError as error:  # a full disk, for example
        reason = f"{target} cannot be written: {error.strerror or error}"
        raise TransferError(f"{reason}. What was received is kept; run again to continue") from error


async def _download(
    http: httpx.AsyncClient,
    url: str,
    target: Path,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> Downloaded:
    head = await http.head(url, timeout=httpx.Timeout(30.0, read=_READ_SECONDS))
    if head.is_error:  # the response to a HEAD has no body that gives the reason
        async with http.stream("GET", url) as response:
            if response.is_error:
                await response.aread()
                check(response)
    check(head)
    etag, size = head.headers.get("etag", ""), (await _size(http, url, head))
    if not _DIGEST.fullmatch(_digest_in(etag)):
        raise TransferError(f"the server names no sha256 of the file (its ETag is {etag[:100]!r}), so it is not kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _Partial(target)
    first = have = partial.start(etag)
    for attempt in range(ATTEMPTS):
        if have >= size:
            break
        try:
            await _append(http, url, partial.path, etag, have, size, check, on_bytes)
        except httpx.TransportError as error:
            if attempt == ATTEMPTS - 1:
                raise TransferError(
                    f"the connection broke at {partial.path.stat().st_size} of {size} bytes; run again to continue"
                ) from error
            await asyncio.sleep(0.5 * 2**attempt)
        have = partial.path.stat().st_size if partial.path.exists() else 0
    return await asyncio.to_thread(_verify, partial, target, etag, size, first)


async def _size(http: httpx.AsyncClient, url: str, head: httpx.Response) -> int:
    """Return the size of the file; some proxies remove it from the response to a HEAD.

    Raises:
        TransferError: no response names it.
    """
    text = head.headers.get("content-length", "")
    if not text.isdecimal():
        async with http.stream("GET", url, headers={"Accept-Encoding": "identity", "Range": "bytes=0-0"}) as response:
            is_part = response.status_code == 206
            text = response.headers.get("content-range", "").rpartition("/")[2] if is_part else ""
            text = text or response.headers.get("content-length", "")
    if not text.isdecimal():
        raise TransferError("no response names the size of the file; a proxy in front of the server may remove it")
    return int(text)


async def _append(
    http: httpx.AsyncClient,
    url: str,
    path: Path,
    etag: str,
    start: int,
    size: int,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    # The checksum and the ranges are of the stored bytes, so transfer compression is off.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag.removeprefix("W/")}
    async with http.stream("GET", url, headers=headers) as response:
        if (onward := response.next_request) is None:
            await _receive(response, path, start, size, check, on_bytes)
            return
    # To the storage of the server: without the key, and without an ETag that is not the storage's.
    request = http.build_request("GET", onward.url, headers=headers)
    for name in ("Authorization", "If-Range"):
        request.headers.pop(name, None)
    response = await http.send(request, stream=True)
    try:
        await _receive(response, path, start, size, check, on_bytes)
    finally:
        await response.aclose()


async def _receive(
    response: httpx.Response,
    path: Path,
    start: int,
    size: int,
    check: Callable[[httpx.Response], None],
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    if response.is_error:
        await response.aread()
    check(response)
    # Status 200 for a Range request: the file changed or the server ignores ranges. The bytes start at 0.
    have = start if response.status_code == 206 else 0
    with path.open("ab" if have else "wb") as file:
        # Without a chunk size: httpx buffers an incomplete chunk and loses it if the connection breaks.
        async for chunk in response.aiter_raw():
            file.write(chunk)
            have += len(chunk)
            if on_bytes:
                on_bytes(have, size)


class AsyncWclClient(AsyncSweepClient):
    """A client of one server; a context manager."""

    # ---- jobs

    async def submit(
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
        return await self._create(Job, "/v1/jobs", _job_body(kind, spec, options), idempotency_key)

    async def submit_group(
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
        return await self._create(Group, "/v1/jobs", body, idempotency_key)

    async def submit_batch(
        self, jobs: Sequence[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> list[Json]:
        """Submit up to 1,000 jobs by one request: all of them, or none; otherwise as `submit`.

        Args:
            jobs: bodies of `POST /v1/jobs`, such as `{"kind": "pretrain", "spec": {...}, "name": "first"}`.

        Returns:
            `id`, `name` and `status` of each job, in the order of `jobs`.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        items: list[Json] = (await self._create(Json, "/v1/jobs:batch", body, idempotency_key))["items"]
        return items

    async def group(self, group_id: str) -> Group:
        """Return a seed group: its jobs, and each result with mean, deviation and 95 % t-interval over the seeds."""
        return await self._json(Group, "GET", f"/v1/groups/{part(group_id)}")

    async def plan(
        self,
        kind: JobKind,
        spec: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        **options: Unpack[JobOptions],
    ) -> Json:
        """Return the plan of a submission without submitting it (dry run)."""
        body = _job_body(kind, spec, options) | ({} if seeds is None else {"seeds": list(seeds)})
        return await self._json(Json, "POST", "/v1/jobs", json=body, params={"dry_run": "true"})

    async def recommendation(
        self, dataset: str, *, minutes: float | None = None, content: str = "photos", pool: str = "default"
    ) -> Json:
        """Return a spec that fits a dataset, with the reason for each field, its steps, time and memory."""
        params = _without_none({"minutes": minutes, "content": content, "pool": pool})
        return await self._json(Json, "GET", f"/v1/datasets/{part(dataset)}/recommendation", params=params)

    async def job(self, job_id: str) -> Job:
        """Return a job with its spec."""
        return await self._json(Job, "GET", f"/v1/jobs/{part(job_id)}")

    async def twin(self, job_id: str) -> Json:
        """Return the twin of a training: `method`, `title`, and `job_id`, `name`, `status`, None while there is none.

        Raises:
            ConflictError: the job is an evaluation or a trial of a sweep.
        """
        return await self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/twin")

    async def compare(self, job_ids: Sequence[str], *, twin: bool = False) -> Json:
        """Return the verdict about jobs, their results side by side, and the fields that differ.

        Args:
            job_ids: of the jobs; those that differ in their seed only are one configuration.
            twin: whether to add the other seeds of each job, and its twin: SimCLR for WCL, or the other way round.
        """
        return await self._json(Json, "GET", "/v1/compare", params={"job": list(job_ids), "twin": twin})

    async def jobs(
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
        return await self._newest("/v1/jobs", limit, status=status, starred="true" if starred else None, **filters)

    async def archive(self, job_id: str) -> Job:
        """Leave an ended job out of the lists."""
        return await self._action(job_id, "archive")

    async def unarchive(self, job_id: str) -> Job:
        """Show an archived job in the lists again."""
        return await self._action(job_id, "unarchive")

    async def reference(self, job_id: str) -> Job:
        """Make a training the reference of its dataset, which the others are compared with."""
        return await self._action(job_id, "reference")

    async def unreference(self, job_id: str) -> Job:
        """Make a training the reference no more."""
        return await self._action(job_id, "unreference")

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running job ends within 2 s and keeps its checkpoints."""
        return await self._action(job_id, "cancel")

    async def pause(self, job_id: str) -> Job:
        """Pause a job until `resume`; a running job finishes its step and saves a checkpoint first."""
        return await self._action(job_id, "pause")

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job again; it continues from its last checkpoint."""
        return await self._action(job_id, "resume")

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Submit a new job that starts from the last good checkpoint of this job; repeatable as `submit`."""
        return await self._create(Job, f"/v1/jobs/{part(job_id)}/retry", None, idempotency_key)

    async def go_on(
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
        return await self._create(Job, f"/v1/jobs/{part(job_id)}/continue", body, idempotency_key)

    async def clone(
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
        return await self._create(Job, f"/v1/jobs/{part(job_id)}/clone", body, idempotency_key)

    async def evaluate(
        self, checkpoint_id: str, spec: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Submit a job that evaluates a checkpoint; repeatable as `submit`.

        Args:
            checkpoint_id: the checkpoint to measure.
            spec: an EvaluateSpec without `features`; by default it uses the training data.
            idempotency_key: as for `submit`.
        """
        return await self._create(
            Job, f"/v1/checkpoints/{part(checkpoint_id)}/evaluate", dict(spec or {}), idempotency_key
        )

    async def baselines(self, job_id: str, *, idempotency_key: str | None = None) -> list[Job]:
        """Submit jobs that measure the raw pixels and the untrained network as an evaluation has measured a checkpoint.

        Args:
            job_id: of the evaluation, or of a training, which stands for its newest evaluation.
            idempotency_key: as for `submit`.
        """
        created = await self._create(Json, f"/v1/jobs/{part(job_id)}/baselines", {}, idempotency_key)
        items: list[Job] = created["items"]
        return items

    async def change(
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
        return await self._json(Job, "PATCH", f"/v1/jobs/{part(job_id)}", json=_without_none(values))

    async def delete(self, job_ids: Sequence[str], *, dry_run: bool = False) -> Json:
        """Delete jobs with all that belongs to them; return what was deleted, and `refused`: the jobs that stay.

        Args:
            job_ids: at most 1,000; those that wait are cancelled first.
            dry_run: whether to delete nothing, and return what would be deleted.
        """
        return await self._json(Json, "POST", "/v1/jobs/delete", json={"jobs": list(job_ids), "dry_run": dry_run})

    async def delete_matching(
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
        return await self._json(Json, "POST", "/v1/jobs/delete", json={"filter": chosen, "dry_run": dry_run})

    async def change_many(
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
        return await self._json(Json, "POST", f"/v1/jobs/{verb}", json=body, headers=headers)

    async def restore(self, job_id: str) -> Job:
        """Restore a deleted job with its evaluations; only an administrator's key may, and only for some days."""
        return await self._action(job_id, "restore")

    async def deletions(self) -> list[Json]:
        """Return the newest 1,000 deletions of jobs, newest first; only an administrator's key may."""
        return await self._items(Json, "/v1/deletions")

    async def purge(self, job_ids: Sequence[str] = (), *, by: str = "", dry_run: bool = False) -> Json:
        """Remove deleted jobs at once, before they could no longer be restored; only an administrator's key may.

        Args:
            job_ids: ids of deleted jobs.
            by: in place of ids, the name or id of a key: all deleted jobs that it has submitted.
            dry_run: whether to remove nothing, and return what would be removed.
        """
        body = {"jobs": list(job_ids), "by": by, "dry_run": dry_run}
        return await self._json(Json, "POST", "/v1/deletions/purge", json=body)

    async def clean_storage(self, job_ids: Sequence[str] = (), *, by: str = "", dry_run: bool = False) -> Json:
        """Remove the removable checkpoints of jobs: neither pinned, nor a job's newest, nor needed.

        Args:
            job_ids: only of these; by default of all that the key may change.
            by: only of the key with this name or id.
            dry_run: whether to remove nothing, and return what would be removed.
        """
        body = {"jobs": list(job_ids), "by": by, "dry_run": dry_run}
        return await self._json(Json, "POST", "/v1/storage/clean", json=body)

    async def _action(self, job_id: str, verb: str) -> Job:
        return await self._json(Job, "POST", f"/v1/jobs/{part(job_id)}/{verb}")

    async def wait(self, job_id: str, *, timeout_seconds: float | None = None, poll_seconds: float = 1.0) -> Job:
        """Poll a job until its status is final, and return it.

        Raises:
            TimeoutError: the job has not ended after `timeout_seconds`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = await self.job(job_id)
            if job["status"] in TERMINAL:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout_seconds:g} s")
            await asyncio.sleep(poll_seconds)

    # ---- the parts of a job

    async def events(self, job_id: str) -> list[Json]:
        """Return the first 1,000 events of a job, in order."""
        return await self._items(Json, f"/v1/jobs/{part(job_id)}/events")

    async def attempts(self, job_id: str) -> list[Json]:
        """Return the attempts of a job, in order."""
        return await self._items(Json, f"/v1/jobs/{part(job_id)}/attempts")

    async def logs(self, job_id: str) -> list[Json]:
        """Return the last 500 lines that the training runs of a job wrote."""
        return await self._items(Json, f"/v1/jobs/{part(job_id)}/logs")

    async def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Return the registered checkpoints of a job, ordered by step."""
        checkpoints = await self._items(Checkpoint, f"/v1/jobs/{part(job_id)}/checkpoints")
        return sorted(checkpoints, key=lambda checkpoint: checkpoint["step"])

    async def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        return await self._json(Checkpoint, "GET", f"/v1/checkpoints/{part(checkpoint_id)}")

    async def artifacts(self, job_id: str) -> list[Artifact]:
        """Return the artifacts of a job: small files for display that its run wrote."""
        return await self._items(Artifact, f"/v1/jobs/{part(job_id)}/artifacts")

    async def artifact(self, job_id: str, name: str) -> bytes:
        """Return the content of an artifact.

        Raises:
            TransferError: the bytes do not match the checksum.
        """
        response = await self._response("GET", f"/v1/jobs/{part(job_id)}/artifacts/{part(name)}")
        return checked(response.content, response.headers.get("etag", ""))

    async def weak_groups(self, job_id: str, *, epoch: int | None = None) -> WeakGroups:
        """Return the weak-label groups of the monitor batch at the end of an epoch, by default the last one."""
        params = {} if epoch is None else {"epoch": epoch}
        return await self._json(WeakGroups, "GET", f"/v1/jobs/{part(job_id)}/groups", params=params)

    async def evaluations(self, job_id: str) -> list[Evaluation]:
        """Return the numbers that a job measured."""
        return await self._items(Evaluation, f"/v1/jobs/{part(job_id)}/evaluations")

    async def metrics(
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
        response = await self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/metrics", params=_without_none(query))
        return list(response["series"])

    async def metrics_csv(self, job_ids: Sequence[str]) -> bytes:
        """Return every reported point of every metric of jobs as CSV: job_id, metric, step, value, attempt."""
        return (await self._response("GET", "/v1/metrics.csv", params={"job": list(job_ids)}, timeout=None)).content

    async def jobs_csv(self, **filters: Any) -> bytes:
        """Return the list of jobs as CSV; the filters are those of `GET /v1/jobs.csv`."""
        return (await self._response("GET", "/v1/jobs.csv", params=_without_none(filters), timeout=None)).content

    async def compare_csv(self, job_ids: Sequence[str], *, twin: bool = False) -> bytes:
        """Return the results of a comparison as CSV: a row for each measure and configuration."""
        params = {"job": list(job_ids), "twin": twin}
        return (await self._response("GET", "/v1/compare.csv", params=params, timeout=None)).content

    async def timed_metrics(self, job_id: str, from_step: int, to_step: int) -> Json:
        """Return the curves of a range of steps as `series`, and as `times` when steps were reported.

        A range of at most 1,000 steps, shared out among its attempts, holds every reported point.
        """
        query = {"from_step": from_step, "to_step": to_step, "times": True}
        return await self._json(Json, "GET", f"/v1/jobs/{part(job_id)}/metrics", params=query)

    async def verify(self, checkpoint_id: str) -> Checkpoint:
        """Let the server read the whole file of a checkpoint; return the checkpoint with its marks."""
        return await self._json(Checkpoint, "POST", f"/v1/checkpoints/{part(checkpoint_id)}/verify", timeout=None)

    async def download(
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
            return await download(self._http, url, target, check, on_bytes)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    async def follow(
        self, job_id: str, *, last_id: str | None = None, patience_seconds: float = 60.0
    ) -> AsyncIterator[Message]:
        """Yield the messages of a job's stream until the job ends; reconnect after a broken connection.

        Args:
            last_id: the id of the last received message; the stream continues after it.
            patience_seconds: how long the server may be unreachable before `Unreachable` is raised.
        """
        unreachable_since: float | None = None
        while True:
            try:
                async for message in self._stream(job_id, last_id):
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
            await asyncio.sleep(0.5)

    # ---- imported weights

    async def all_weights(self) -> list[Weights]:
        """Return the imported weights by name."""
        return await self._items(Weights, "/v1/weights")

    async def weights(self, sha256: str) -> Weights:
        """Return imported weights by their digest."""
        return await self._json(Weights, "GET", f"/v1/weights/{part(sha256)}")

    async def add_weights(
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
        return await self._uploaded(Weights, f"/v1/weights/{part(sha256)}", {"name": name}, file, on_bytes)

    async def verify_weights(self, sha256: str) -> Json:
        """Let the server read the whole file of imported weights; `flaw` says what is wrong with it, or is None."""
        return await self._json(Json, "POST", f"/v1/weights/{part(sha256)}/verify", timeout=None)

    async def remove_weights(self, sha256: str) -> None:
        """Remove imported weights and their file; refused while an unfinished job needs them."""
        await self._response("DELETE", f"/v1/weights/{part(sha256)}")

    # ---- links without a key

    async def share(self, job_ids: Sequence[str], *, days: int = 7) -> Json:
        """Create a link that shows a job, or the comparison of several, without a key; `url` is in this response only.

        Args:
            job_ids: of the jobs.
            days: the time until the link expires, at most 90 days.
        """
        return await self._json(Json, "POST", "/v1/shares", json={"jobs": list(job_ids), "days": days})

    async def shares(self) -> list[Json]:
        """Return the links that the key manages, newest first."""
        return await self._items(Json, "/v1/shares")

    async def revoke_share(self, share_id: str) -> None:
        """Revoke a link at once."""
        await self._response("DELETE", f"/v1/shares/{part(share_id)}")

    # ---- saved views of the list of jobs

    async def views(self) -> list[Json]:
        """Return the saved views of this key, and those that others share, by name."""
        return await self._items(Json, "/v1/views")

    async def save_view(self, name: str, query: str = "", *, shared: bool = False) -> Json:
        """Save filters, group and order of the list of jobs under a name.

        Args:
            name: a view of this key with the same name is replaced.
            query: of the address of the page of jobs, such as `status=running&group=method`.
            shared: whether other keys see it, too.
        """
        return await self._json(Json, "POST", "/v1/views", json={"name": name, "query": query, "shared": shared})

    async def remove_view(self, view_id: str) -> None:
        """Remove a saved view."""
        await self._response("DELETE", f"/v1/views/{part(view_id)}")

    # ---- keys; they need an administrator's key

    async def keys(self) -> KeyList:
        """Return all keys, newest first, without their secrets."""
        return await self._json(KeyList, "GET", "/v1/keys")

    async def create_key(
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
        return await self._json(NewKey, "POST", "/v1/keys", json=body, headers=headers)

    async def projects(self) -> list[Json]:
        """Return the projects that the key sees: its own one, or all."""
        items: list[Json] = (await self._json(dict, "GET", "/v1/projects"))["items"]
        return items

    async def create_project(self, name: str) -> Json:
        """Create a project, and return it; this needs `admin` for all projects."""
        return await self._json(dict, "POST", "/v1/projects", json={"name": name})

    async def rename_project(self, project_id: str, name: str) -> Json:
        """Rename a project, and return it; this needs `admin` for all projects."""
        return await self._json(dict, "PATCH", f"/v1/projects/{part(project_id)}", json={"name": name})

    async def remove_project(self, project_id: str) -> None:
        """Remove a project without keys and jobs; this needs `admin` for all projects."""
        await self._response("DELETE", f"/v1/projects/{part(project_id)}")

    async def limit_project(self, project_id: str, limits: Mapping[str, int | None]) -> Json:
        """Change limits of a project, which hold at once, and return it; this needs `admin` for all projects.

        Args:
            project_id: of the project.
            limits: some of `max_gpus`, `max_waiting` and `max_bytes`; None for none.
        """
        return await self._json(dict, "PATCH", f"/v1/projects/{part(project_id)}", json=dict(limits))

    async def change_key(
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
        return await self._json(Key, "PATCH", f"/v1/keys/{part(key_id)}", json=body)

    async def whoami(self) -> WhoAmI:
        """Return the key of this client, with its role, scopes, project and limits, and the server's version."""
        return await self._json(WhoAmI, "GET", "/v1/whoami")

    async def rotate_key(self, key_id: str, *, days: int | Literal["keep"] | None = "keep") -> NewKey:
        """Give a key a new secret and return it; the former one ends at once.

        Args:
            key_id: of the key, which keeps its jobs.
            days: until it expires; None for never; `keep` leaves that time as it is.
        """
        body = {} if days == "keep" else {"days": days}
        return await self._json(NewKey, "POST", f"/v1/keys/{part(key_id)}/rotate", json=body)

    async def revoke_key(self, key_id: str, *, last_administrator: bool = False) -> None:
        """Revoke a key at once; the last one with `admin` only with `last_administrator`."""
        params = {"last_administrator": "true"} if last_administrator else {}
        await self._response("DELETE", f"/v1/keys/{part(key_id)}", params=params)

    # ---- webhooks

    async def webhooks(self) -> list[Webhook]:
        """Return the webhooks that the key manages, newest first."""
        return await self._items(Webhook, "/v1/webhooks")

    async def add_webhook(self, body: Mapping[str, Any]) -> NewWebhook:
        """Add a webhook and return it with its secret; `body` is that of `POST /v1/webhooks`."""
        return await self._json(NewWebhook, "POST", "/v1/webhooks", json=dict(body))

    async def remove_webhook(self, webhook_id: str) -> None:
        """Remove a webhook with its messages."""
        await self._response("DELETE", f"/v1/webhooks/{part(webhook_id)}")

    async def test_webhook(self, webhook_id: str) -> Delivery:
        """Add a test message, which a server sends within seconds."""
        return await self._json(Delivery, "POST", f"/v1/webhooks/{part(webhook_id)}/test")

    async def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """Return the newest messages of a webhook, with the results of sending them."""
        return await self._items(Delivery, f"/v1/webhooks/{part(webhook_id)}/deliveries?limit={limit}")

    # ---- the service

    async def datasets(self) -> list[Dataset]:
        """Return the datasets that workers announced."""
        return await self._items(Dataset, "/v1/datasets")

    async def dataset(self, name: str) -> Dataset:
        """Return a dataset; `samples` is the address and the layout of a picture of its images."""
        return await self._json(Dataset, "GET", f"/v1/datasets/{part(name)}")

    async def read_dataset(self, name: str) -> Dataset:
        """Request that the workers read a folder again; files that have not changed are not read."""
        return await self._json(Dataset, "POST", f"/v1/datasets/{part(name)}/read")

    async def add_dataset(self, name: str, path: str, *, labels: bool = True) -> Json:
        """Add a dataset, which every worker reads that has this path; needs an administrator's key.

        Args:
            name: of the dataset in specs.
            path: absolute, of an image folder, list of images, archive or packed file.
            labels: whether folders, or the list, may name classes.
        """
        return await self._json(Json, "POST", "/v1/datasets", json={"name": name, "path": path, "labels": labels})

    async def rename_dataset(self, name: str, new_name: str) -> Json:
        """Rename a dataset that was added; needs an administrator's key."""
        return await self._json(Json, "PATCH", f"/v1/datasets/{part(name)}", json={"name": new_name})

    async def remove_dataset(self, name: str) -> None:
        """Remove a dataset that was added; its files stay; needs an administrator's key."""
        await self._response("DELETE", f"/v1/datasets/{part(name)}")

    async def unsettled_datasets(self) -> Json:
        """Return the datasets that workers still read (`pending`) or refuse (`refused`), with the reasons."""
        page = await self._json(Json, "GET", "/v1/datasets")
        return {"pending": page.get("pending", []), "refused": page.get("refused", [])}

    async def dataset_samples(self, name: str) -> bytes:
        """Return a PNG with some images of each class."""
        return (await self._response("GET", f"/v1/datasets/{part(name)}/samples.png")).content

    async def presets(self) -> Json:
        """Return the presets: `{"items": [...]}` with name, kind, description and spec."""
        return await self._json(Json, "GET", "/v1/presets")

    async def spec_schema(self, kind: JobKind) -> Json:
        """Return the JSON schema of the specs of a kind, as the server's OpenAPI document has it."""
        name = {"pretrain": "PretrainSpec", "evaluate": "EvaluateSpec"}[kind]
        models = (await self._json(Json, "GET", "/openapi.json"))["components"]["schemas"]
        return _schema_of(name, models)

    async def workers(self) -> list[Worker]:
        """Return the workers, live ones first."""
        return await self._items(Worker, "/v1/workers")

    async def drain_worker(self, worker_id: str) -> Worker:
        """Drain a worker: it saves its job, returns the job to the queue, claims no other job, and ends."""
        return await self._json(Worker, "POST", f"/v1/workers/{part(worker_id)}/drain")

    async def cordon_worker(self, worker_id: str, *, undo: bool = False) -> Worker:
        """Cordon a worker: its jobs go on, and it takes no other one until a call with `undo`."""
        return await self._json(Worker, "POST", f"/v1/workers/{part(worker_id)}/{'uncordon' if undo else 'cordon'}")

    async def invite_worker(self) -> Json:
        """Return the `token` with which one machine joins as a worker; needs an administrator's key."""
        return await self._json(Json, "POST", "/v1/workers/invitations")

    async def worker_invitations(self) -> list[Json]:
        """Return the invitations of machines that still work, newest first; needs an administrator's key."""
        items: list[Json] = (await self._json(Json, "GET", "/v1/workers/invitations"))["items"]
        return items

    async def revoke_invitation(self, invitation_id: str) -> None:
        """Revoke an invitation of a machine; needs an administrator's key."""
        await self._response("DELETE", f"/v1/workers/invitations/{part(invitation_id)}")

    async def join_worker(self, host: str, version: str) -> dict[str, str]:
        """Return the settings of a worker for a machine; the key of this client is the token of an invitation."""
        machine = {"host": host, "version": version}
        settings: dict[str, str] = (await self._json(Json, "POST", "/v1/workers/join", json=machine))["settings"]
        return settings

    async def activity(
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
        return await self._newest("/v1/activity", limit, actor=actor, action=action, target=target, **times)

    async def usage(
        self, month: str | None = None, by: UsageBy = "key", *, first: str | None = None, last: str | None = None
    ) -> list[Json]:
        """Return the use of devices of each key or project in each month, newest first.

        Args:
            month: only this one, such as 2026-11.
            by: what a row is about.
            first, last: in place of `month`, the first and the last one.
        """
        params = _without_none({"month": month, "by": by, "from": first, "to": last})
        items: list[Json] = (await self._json(Json, "GET", "/v1/usage", params=params))["items"]
        return items

    async def usage_csv(
        self, month: str | None = None, by: UsageBy = "key", *, first: str | None = None, last: str | None = None
    ) -> bytes:
        """Return the same as CSV."""
        params = _without_none({"month": month, "by": by, "from": first, "to": last})
        return (await self._response("GET", "/v1/usage.csv", params=params)).content

    async def storage(self, *, by: str | None = None, limit: int = 50) -> Json:
        """Return the stored files: `size`, `owners`, `projects` and `jobs`, the largest first; `by` is a key."""
        return await self._json(Json, "GET", "/v1/storage", params=_without_none({"by": by, "limit": limit}))

    async def audit(self) -> Audit:
        """Replay the events of all jobs and return `jobs`, `events`, `attempts` and `findings`: the differences."""
        return await self._json(Audit, "GET", "/v1/audit")

    async def page_link(self, is_terminal: bool) -> str:
        """Return a sign-in link for a terminal, else the plain URL: a file would keep the link's secret."""
        return (await self.sign_in_link()) if is_terminal else f"{self.url} (only a terminal shows a sign-in link)"

    async def sign_in_link(self) -> str:
        """Return a new one-time link that signs a browser in."""
        return str((await self._json(Json, "POST", "/v1/sign-in-links"))["url"])

    async def is_ready(self) -> bool:
        """Return whether the server responds and can use its database."""
        return (await self.obstacle()) is None

    async def obstacle(self) -> WclError | None:
        """Return why the server is not ready; None if it responds and can use its database."""
        try:
            check(await self._http.get("/readyz", timeout=5.0))
        except httpx.HTTPError as error:
            return self._unreachable(error)
        except WclError as error:
            return error
        return None

    async def problems(self) -> list[str]:
        """Return sentences on what a server that is ready cannot do meanwhile, such as serving files."""
        return list((await self._json(Json, "GET", "/readyz")).get("problems", []))
