"""Addresses that webhooks may reach, and the request to one of them.

The address is checked where the connection is made: the name is resolved once, and the connection goes to an address
that was checked, so a name that resolves differently later (DNS rebinding) reaches nothing else.  httpcore follows no
redirect and reads no proxy from the environment.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpcore

from jobs.errors import FieldError, Invalid
from jobs.settings import Settings

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
SECONDS = 15.0  # for a whole request
_BODY_BYTES = 2_000  # that are read of a response
# Addresses that carry an IPv4 address; a gateway would forward them to it.
_CARRIERS = [ipaddress.ip_network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


class Refused(Exception):  # noqa: N818 (named as the state of the target)
    """The target is not one that webhooks may reach; the message says why."""


@dataclass(frozen=True)
class Response:
    """The status of a response, its `Retry-After` header, and the beginning of its body."""

    status: int
    retry_after: str | None
    body: str


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host name.

    Raises:
        OSError: there are none.
    """
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def check_url(url: str, settings: Settings) -> None:
    """Check the text of a URL, without resolving its host name.

    Raises:
        Invalid: it is no URL that a webhook may have.
    """
    try:
        parts = urlsplit(url)
        problem = _problem(parts, settings)
    except ValueError:
        problem = "expected a URL such as https://HOST/PATH"
    if problem is None and not url.isascii():
        problem = "expected ASCII; encode other characters, such as %C3%A4 for ä"
    if problem is None and any(each <= " " or each == "\x7f" for each in url):
        problem = "expected a URL without spaces and control characters"
    if problem is not None:
        raise Invalid([FieldError("/url", problem)])


def _problem(parts: SplitResult, settings: Settings) -> str | None:
    if parts.scheme not in ("http", "https"):
        return "expected a URL that begins with https:// or http://"
    if "@" in parts.netloc:
        return "expected a URL without user name and password"
    if not parts.hostname or parts.port == 0 or parts.fragment:
        return "expected a URL such as https://HOST/PATH, without a fragment"
    if parts.hostname in settings.webhook_hosts:
        return None
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return None
    return None if is_allowed(address, settings) else f"{refusal(parts.hostname)}"


def refusal(host: str) -> str:
    return (
        f"{host} is not a public address; an administrator allows others by WCL_WEBHOOK_NETWORKS or WCL_WEBHOOK_HOSTS"
    )


def is_allowed(address: IpAddress, settings: Settings) -> bool:
    """Return whether webhooks may reach an address: a public one, or one of a network that the settings name."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address.version == each.version and address in each for each in settings.webhook_networks):
        return True
    is_carrier = any(address.version == each.version and address in each for each in _CARRIERS)
    return address.is_global and not address.is_multicast and not is_carrier


class _Stream(httpcore.NetworkStream):
    """A connection that ends at a deadline, however slowly the receiver sends."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def _left(self, timeout: float | None) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout(f"no complete response within {SECONDS:.0f} s")
        return left if timeout is None else min(timeout, left)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._left(timeout)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Network(httpcore.NetworkBackend):
    """Connections to checked addresses only."""

    def __init__(self, settings: Settings, resolver: Resolver, deadline: float) -> None:
        self._settings, self._resolver, self._deadline = settings, resolver, deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 (the deadline of the whole request counts)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = Refused(refusal(host))
        for address in self._addresses(host, port):
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise httpcore.ConnectTimeout(f"no connection within {SECONDS:.0f} s")
            try:
                stream = self._backend.connect_tcp(address, port, left, local_address, socket_options)
                return _Stream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                error = failure
        raise error

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(dict.fromkeys(self._resolver(host, port)))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the host name {host} does not resolve") from error
        if host in self._settings.webhook_hosts:
            return addresses
        return [each for each in addresses if is_allowed(ipaddress.ip_address(each), self._settings)]


def post(url: str, headers: dict[str, str], body: bytes, settings: Settings, resolver: Resolver = resolve) -> Response:
    """Send a request and return its response, within `SECONDS` in all.

    Raises:
        Refused: the host has no address that webhooks may reach.
        httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: there was no whole response.
    """
    network = _Network(settings, resolver, time.monotonic() + SECONDS)
    with (
        httpcore.ConnectionPool(network_backend=network) as pool,
        pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
    ):
        received = b""
        for chunk in response.iter_stream():
            received += chunk
            if len(received) >= _BODY_BYTES:
                break
        by_name = {name.lower(): value for name, value in response.headers}
        retry_after = by_name.get(b"retry-after")
        text = received[:_BODY_BYTES].decode(errors="replace")
        return Response(response.status, None if retry_after is None else retry_after.decode("latin-1"), text)
