"""The connection to one server: requests with retries, errors as exceptions, the stream of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import uuid4

import httpx

from wcl_client.address import find_address
from wcl_client.errors import Unreachable, api_error
from wcl_client.responses import Json
from wcl_client.sse import Message, parse

T = TypeVar("T")


class Connection:
    """The base of `WclClient`: an HTTP client with one server's address and key; a context manager."""

    def __init__(self, url: str, key: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/")
        # trust_env off: a proxy from the environment must not see a loopback server's key.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False)

    @classmethod
    def connect(cls, data_dir: Path | None = None) -> Self:
        """Return a client of the server that the environment or the local data folder names."""
        address = find_address(data_dir)
        return cls(address.url, address.key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _create(self, response_type: type[T], path: str, body: Json | None, idempotency_key: str | None) -> T:
        """Send a POST with an idempotency key and up to 3 retries, and return the created object."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
        return self._json(response_type, "POST", path, json=body, headers=headers, retries=3)

    def _items(self, _type: type[T], path: str) -> list[T]:
        """Return the items of a list without pages."""
        return cast(list[T], self._json(Json, "GET", path)["items"])

    def _newest(self, path: str, limit: int, **filters: str | None) -> list[Any]:
        """Return the first `limit` items of a list with pages; a filter that is None is left out."""
        items: list[Any] = []
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        params["limit"] = min(limit, 100)
        while True:
            page = self._json(Json, "GET", path, params=params)
            items += page["items"]
            params["cursor"] = page["next_cursor"]
            if not params["cursor"] or len(items) >= limit:
                return items[:limit]

    def _json(self, _type: type[T], method: str, path: str, *, retries: int | None = None, **request: Any) -> T:
        """Send a request and return the JSON of the response, typed as `_type` and not checked."""
        response = self._response(method, path, retries=retries, **request)
        return cast(T, response.json() if response.content else {})

    def _response(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> httpx.Response:
        """Send a request; retry after a connection error, by default only a GET."""
        tries = 1 + (retries if retries is not None else 3 if method == "GET" else 0)
        for attempt in range(1, tries + 1):
            try:
                response = self._http.request(method, path, **request)
                break
            except httpx.TransportError as error:
                if attempt == tries or isinstance(error, httpx.UnsupportedProtocol):
                    raise self._unreachable(error) from error
                time.sleep(0.1 * 2**attempt)
        check(response)
        return response

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.url} does not respond: {error}")

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Message | None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        # The server sends a heartbeat every 15 s; after three missed ones the connection is dead.
        timeout = httpx.Timeout(10.0, read=50.0)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/stream", headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            check(response)
            yield from parse(response.iter_lines())


def check(response: httpx.Response) -> None:
    """Raise the exception of an error response (wcl_client.errors)."""
    if not response.is_error:
        return
    try:
        body = response.json()
    except ValueError:
        body = None
    raise api_error(response.status_code, body, response.reason_phrase)
