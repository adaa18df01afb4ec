"""The public address of a request: the one that the client used, also behind a reverse proxy.

`X-Forwarded-For`, `-Host` and `-Proto` count only from the proxies that `WCL_TRUSTED_PROXIES` names; any other client
could write them itself.  `WCL_ROOT_PATH` is the path below which a proxy shows the service.  The proxy may remove that
prefix or pass it on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.types import Scope

from jobs.settings import Settings

_ROOT = ContextVar("root_path", default="")
_SCHEMES = ("http", "https")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def rooted(path: str) -> str:
    """Return a path of the service as clients see it, below the root path."""
    return f"{_ROOT.get()}{path}" if path.startswith("/") and not path.startswith("//") else path


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path."""
    path: str = scope["path"]
    return path[len(scope.get("app_root_path", scope.get("root_path", ""))) :]


class Proxies:
    """Restores the public address of requests."""

    def __init__(self, settings: Settings) -> None:
        self._networks = settings.trusted_proxies
        self.root_path = settings.root_path

    def public(self, scope: Scope) -> Scope:
        """Return the request's scope with the public client, scheme, host and path."""
        _ROOT.set(self.root_path)
        path = scope["path"].removeprefix(self.root_path) if self._is_below_root(scope["path"]) else scope["path"]
        result = {**scope, "path": self.root_path + (path or "/"), "root_path": self.root_path}
        peer = _address(scope["client"][0]) if scope.get("client") else None
        if peer is None or not self._trusts(peer):
            return result
        headers = Headers(scope=scope)
        client = self._client(peer, _items(headers, "x-forwarded-for"))
        result["client"] = (str(client), 0)
        # The last value is the one of the nearest proxy; a client may have sent the ones before it.
        proto = _items(headers, "x-forwarded-proto")[-1:]
        result["scheme"] = proto[0].lower() if proto and proto[0].lower() in _SCHEMES else scope["scheme"]
        if hosts := _items(headers, "x-forwarded-host")[-1:]:
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            result["headers"] = [(b"host", hosts[0].encode("latin-1")), *others]
        return result

    def is_trusted(self, host: str) -> bool:
        """Return whether a setting names the proxy of this address."""
        address = _address(host)
        return address is not None and self._trusts(address)

    def _is_below_root(self, path: str) -> bool:
        return path == self.root_path or path.startswith(f"{self.root_path}/")

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def _client(self, peer: _Address, forwarded: Sequence[str]) -> _Address:
        """Return the address before the last trusted proxy; each proxy appends the address that it sees."""
        client = peer
        for text in reversed(forwarded):
            before = _address(text) if self._trusts(client) else None
            if before is None:
                break
            client = before
        return client


def _items(headers: Headers, name: str) -> list[str]:
    return [item for value in headers.getlist(name) for item in (part.strip() for part in value.split(",")) if item]


def _address(text: str) -> _Address | None:
    """Return an address that may carry brackets or a port; None if it is not one."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
