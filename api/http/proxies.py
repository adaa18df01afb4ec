"""The public address of a request, and the person whom a proxy has signed in, also behind several reverse proxies.

`X-Forwarded-For`, `-Host` and `-Proto` count only from the proxies that `WCL_TRUSTED_PROXIES` names; any other client
could write them itself.  `WCL_ROOT_PATH` is the path below which a proxy shows the service.  The proxy may remove that
prefix or pass it on.

`WCL_PROXY_USER_HEADER` names the header in which such a proxy names the person.  It counts only if the connection comes
from a named proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from api.http.problems import Unauthenticated
from jobs.settings import Settings
from wcl_core.text import visible

_ROOT = ContextVar("root_path", default="")
_SCHEMES = ("http", "https")
_MAX_NAME = 200

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def rooted(path: str) -> str:
    """Return a path of the service as clients see it, below the root path."""
    return f"{_ROOT.get()}{path}" if path.startswith("/") and not path.startswith("//") else path


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path."""
    path: str = scope["path"]
    return path[len(scope.get("app_root_path", scope.get("root_path", ""))) :]


@dataclass(frozen=True)
class Person:
    """A person whom a proxy has signed in."""

    name: str
    scopes: tuple[str, ...]


class Proxies:
    """Restores the public address of requests."""

    def __init__(self, settings: Settings) -> None:
        self._networks = settings.trusted_proxies
        self._settings = settings
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
        result["wcl.is_of_proxy"] = True
        client = self._client(peer, _items(headers, "x-forwarded-for"))
        result["client"] = (str(client), 0)
        # The last value is the one of the nearest proxy; a client may have sent the ones before it.
        proto = _items(headers, "x-forwarded-proto")[-1:]
        result["scheme"] = proto[0].lower() if proto and proto[0].lower() in _SCHEMES else scope["scheme"]
        if hosts := _items(headers, "x-forwarded-host")[-1:]:
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            result["headers"] = [(b"host", hosts[0].encode("latin-1")), *others]
        return result

    def person(self, scope: Scope) -> Person | None:
        """Return the person whom the proxy of a request has signed in; None if there is none, or no such proxy.

        Raises:
            Unauthenticated: the header occurs twice, or cannot be the name of one person.
        """
        name = self._settings.proxy_user_header
        if name is None or not scope.get("wcl.is_of_proxy"):
            return None
        values = _values(scope, name)
        if not values or values == [b""]:
            return None
        user = values[0].decode("utf-8", "replace").strip()
        is_name = 0 < len(user) <= _MAX_NAME and "," not in user and "\ufffd" not in user and visible(user) == user
        if len(values) > 1 or not is_name:
            raise Unauthenticated(
                f"the proxy sends {len(values)} values of {name}; expected one name of 1 to {_MAX_NAME} visible "
                "characters without a comma.  The proxy must replace the header of the client, not add to it"
            )
        return Person(user, self._scopes(scope))

    def _scopes(self, scope: Scope) -> tuple[str, ...]:
        """Return the scopes of a person: those of all people, and those of the person's groups."""
        header = self._settings.proxy_groups_header
        values = _values(scope, header) if header else []
        groups = {part.strip() for value in values[:1] for part in value.decode("utf-8", "replace").split(",")}
        of_groups = [scopes for group, scopes in self._settings.proxy_group_scopes.items() if group in groups]
        if len(values) > 1:  # a client may have sent the other one
            of_groups = []
        return tuple({scope for scopes in (self._settings.proxy_scopes, *of_groups) for scope in scopes})

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


def _values(scope: Scope, name: str) -> list[bytes]:
    """Return the values of a header; a name with underscores is another name."""
    return [value.strip() for each, value in scope["headers"] if each == name.lower().encode()]


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
