"""The connection to one server: requests with retries, errors as exceptions, the stream of a job."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, TypeVar, cast
from urllib.parse import quote
from uuid import uuid4

import httpx

from wcl_client.address import checked_key, checked_url, find_address
from wcl_client.errors import ForeignServer, InvalidAddress, InvalidError, NotFoundError, Unreachable, api_error
from wcl_client.responses import Json
from wcl_client.sse import Message, Parser
from wcl_core.text import Secret

T = TypeVar("T")
_UPLOADS = 6  # with pauses of 31 s in all: a server needs some seconds to start again
_UPLOAD_SECONDS = 600.0  # the server compares and stores the file before it answers
_PART_BYTES = 1 << 18


class Page(TypedDict):
    """A list, or a part of one; `next_cursor` is absent for a list without pages."""

    items: list[Json]
    next_cursor: NotRequired[str | None]


class Answers:
    """The server that has answered a command: where a value of another form than expected comes from."""

    url: str | None = None
    key_expires: str | None = None  # if that is soon

    @classmethod
    def forget(cls) -> None:
        """Start a new command."""
        cls.url = cls.key_expires = None


class Connection:
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
        self._http = httpx.Client(
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
        return cast(list[T], self._json(Page, "GET", path)["items"])

    def _newest(self, path: str, limit: int, **filters: str | None) -> list[Any]:
        """Return the first `limit` items of a list with pages; a filter that is None is left out."""
        items: list[Any] = []
        cursors: set[Any] = set()
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        params["limit"] = min(limit, 100)
        while True:
            page = self._json(Page, "GET", path, params=params)
            items += page["items"]
            params["cursor"] = cursor = page.get("next_cursor")
            if not cursor or len(items) >= limit:
                return items[:limit]
            if cursor in cursors:
                raise ForeignServer(f"{self.url} sent a page of a list twice; expected a WCL server there")
            cursors.add(cursor)

    def _json(self, _type: type[T], method: str, path: str, *, retries: int | None = None, **request: Any) -> T:
        """Send a request and return the JSON object of the response, typed as `_type`.

        Raises:
            ForeignServer: the response holds no JSON object, so it is not of this service.
        """
        return self._decoded(_type, self._response(method, path, retries=retries, **request))

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

    def _response(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> httpx.Response:
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
                response = self._http.send(prepared)
                break
            except httpx.DecodingError as error:
                raise ForeignServer(f"{self.url} sent a body that cannot be decoded: {error}") from error
            except httpx.TransportError as error:
                if attempt == tries or isinstance(error, httpx.UnsupportedProtocol):
                    raise self._unreachable(error) from error
                time.sleep(0.1 * 2**attempt)
        Answers.key_expires = response.headers.get("X-Key-Expires", Answers.key_expires)
        check(response)
        return response

    def _uploaded(
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
                response = self._http.put(path, params=params, content=body, headers=headers, timeout=timeout)
                break
            except httpx.TransportError as error:
                if attempt == _UPLOADS:
                    raise self._unreachable(error) from error
                time.sleep(0.5 * 2**attempt)
        check(response)
        return self._decoded(_type, response)

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            advice = "Set SSL_CERT_FILE to the certificates of the authority that the server's certificate is from"
            return Unreachable(f"the certificate of {self.url} is not trusted: {error}. {advice}")
        return Unreachable(f"{self.url} does not respond: {error}")

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Message | None]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        # The server sends a heartbeat every 15 s; after three missed ones the connection is dead.
        timeout = httpx.Timeout(10.0, read=50.0)
        with self._http.stream("GET", f"/v1/jobs/{part(job_id)}/stream", headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            check(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ForeignServer(f"{self.url} sent no stream of events; expected a WCL server there")
            Answers.url = self.url
            parser = Parser()
            for line in response.iter_lines():
                yield from parser.feed(line)


def _parts(file: Path, size: int, on_bytes: Callable[[int, int], None] | None) -> Iterator[bytes]:
    sent = 0
    with file.open("rb") as opened:
        while content := opened.read(_PART_BYTES):
            yield content
            sent += len(content)
            if on_bytes is not None:
                on_bytes(sent, size)


def _is_like(value: object, kind: type) -> bool:
    """Return whether a decoded JSON value can be of a kind: an object, with the id or the lists that its type names."""
    names = getattr(kind, "__annotations__", {})
    lists = [value.get(name) for name in ("items", "findings") if name in names] if isinstance(value, dict) else []
    return (
        isinstance(value, dict)
        and ("id" not in names or isinstance(value.get("id"), str))
        and all(isinstance(each, list) and all(isinstance(item, dict) for item in each) for each in lists)
    )


def part(text: str) -> str:
    """Return a text as one part of a path.

    Raises:
        NotFoundError: no object has such a name.
    """
    if text in ("", ".", ".."):
        raise NotFoundError(404, "Not found", f"nothing has the id {text!r}")
    return quote(text, safe="", errors="replace")


def _certificates() -> ssl.SSLContext:
    """Return the certificate authorities that a server's certificate may come from.

    `SSL_CERT_FILE` and `SSL_CERT_DIR` name private ones, as for other programs; they replace the public ones.

    Raises:
        InvalidAddress: a variable names no certificates.
    """
    file, folder = (os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    if not file and not folder:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()  # of the system, beside those of the library
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=file, capath=folder)
    except (OSError, ValueError) as error:  # an SSLError is an OSError; a NUL or an odd character is a ValueError
        reason = f"{file or folder} cannot be read as certificates: {getattr(error, 'strerror', None) or error}"
        raise InvalidAddress(f"{'SSL_CERT_FILE' if file else 'SSL_CERT_DIR'}: {reason}") from error
    return context


def check(response: httpx.Response) -> None:
    """Raise the exception of an error response (wcl_client.errors)."""
    if not response.is_error:
        return
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    raise api_error(response.status_code, body, response.reason_phrase)
