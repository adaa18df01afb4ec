"""The server's listening socket, and the host names that requests may use."""

from __future__ import annotations

import ipaddress
import re
import socket

from jobs.settings import Settings

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKLOG = 2048
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free port.

    Raises:
        OSError: the address is in use, or does not belong to this machine.
    """
    # asyncio disables Nagle's algorithm only if the protocol is named; responses would wait 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Return a URL that a program on this machine can use."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (nothing binds here)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


class Hosts:
    """The names that a Host header may carry; any other name belongs to another site (DNS rebinding).

    A server that other machines reach also accepts plain IP addresses, which DNS cannot redirect.
    """

    def __init__(self, settings: Settings) -> None:
        self._names = {settings.host.lower(), *(name.lower() for name in settings.allowed_hosts), *_LOOPBACK_NAMES}
        self._takes_addresses = not is_loopback(settings.host)
        if self._takes_addresses:
            self._names.add(socket.gethostname().lower())

    def allows(self, header: str) -> bool:
        """Return whether the header names this server; the port does not matter."""
        match = _HOST.fullmatch(header.lower())
        if match is None:
            return False
        name = match.group(1).strip("[]")
        return name in self._names or (self._takes_addresses and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
