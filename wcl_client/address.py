"""The address and the key of the server: from the environment, else from the data folder of a local server."""

from __future__ import annotations

import ipaddress
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from wcl_client.errors import InvalidAddress
from wcl_core.files import read_regular
from wcl_core.text import Secret

DEFAULT_URL = "http://127.0.0.1:8000"
_MAX_BYTES = 100_000  # of a file in the data folder


@dataclass(frozen=True)
class Address:
    """The URL of a server and a key for it."""

    url: str
    key: Secret | None
    is_key_withheld: bool = False  # a file names the server, and the environment's key may not be for it


def data_folder() -> Path:
    """Return the data folder of the local service."""
    return Path(os.environ.get("WCL_DATA_DIR") or "wcl-data")


def find_address(data_dir: Path | None = None) -> Address:
    """Return `WCL_URL` and `WCL_KEY`; an unset one comes from the data folder of the local server.

    Without a local server, the address is that of the one that ran last in the folder, unless `WCL_KEY` is set.
    The local key is used only for the local server, and only from a file of the folder itself.  The key of the
    environment goes to `WCL_URL` and to the default address.  A data folder may come from elsewhere: the address that
    its file names gets that key only if a process of this user listens there, on loopback.

    Raises:
        InvalidAddress: `WCL_URL` or `WCL_KEY` cannot be one.
    """
    folder = data_dir or data_folder()
    url = _variable_url()
    key = checked_key(os.environ.get("WCL_KEY"))
    if key is None and "WCL_KEY" in os.environ:  # a script that could not read its key must not act as another one
        raise InvalidAddress(
            "WCL_KEY is set and empty; set it to a key, or unset it to use the key of the service on this machine"
        )
    announced = _announcement(folder)
    local = announced.get("url")
    if url is None and key and local and not _is_own_server(str(local), announced.get("pid")):
        return Address(str(local), _local_key(folder), is_key_withheld=True)
    if not key and (url is None or url == local):
        key = _local_key(folder)
        local = local or _announcement(folder, "last-server.json").get("url")  # a message names it
    return Address(url or local or DEFAULT_URL, key)


def checked_url(url: str, name: str = "the URL of the server") -> str:
    """Return the URL of a server without spaces around it and without a slash at its end.

    Raises:
        InvalidAddress: it is no HTTP URL, or holds a password, which would be shown in messages.
    """
    text = url.strip().rstrip("/")
    expected = "expected one such as https://wcl.example.org or http://127.0.0.1:8000"
    if "@" in text:
        raise InvalidAddress(f"{name} holds a user name or a password; {expected}, and the key in WCL_KEY")
    try:
        httpx.URL(text)  # refuses host names that cannot be one
        parsed = urlsplit(text)
        has_host = bool(parsed.hostname) and parsed.port != 0
        is_right = parsed.scheme in ("http", "https") and has_host and not parsed.query and not parsed.fragment
    except (httpx.InvalidURL, ValueError, TypeError):
        is_right = False
    if not is_right or not text.isprintable() or " " in text:
        raise InvalidAddress(f"{name} is {text[:200]!r}; {expected}")
    return text


def checked_key(key: str | Secret | None, name: str = "WCL_KEY") -> Secret | None:
    """Return a key without spaces and line ends around it; None for an empty one.

    Raises:
        InvalidAddress: it holds a character that no key has; the message does not show the key.
    """
    text = (key.reveal() if isinstance(key, Secret) else key or "").strip()
    for place, character in enumerate(text, start=1):
        if not "!" <= character <= "~":
            raise InvalidAddress(
                f"{name} has a character at place {place} of {len(text)} that no key has; "
                "expected the key alone, as `python -m jobs create-key` prints it"
            )
    return Secret(text) if text else None


def _variable_url() -> str | None:
    url = os.environ.get("WCL_URL")
    return checked_url(url, "WCL_URL") if url and url.strip() else None


def _announcement(folder: Path, name: str = "server.json") -> dict[str, Any]:
    """Return `url` and `pid` of the local server's file; nothing if the file is broken."""
    with suppress(ValueError, RecursionError, InvalidAddress):
        announced = json.loads(_read(folder / name) or "{}")
        if isinstance(announced, dict) and isinstance(url := announced.get("url"), str):
            return {"url": checked_url(url), "pid": announced.get("pid")}
    return {}


def _local_key(folder: Path) -> Secret | None:
    with suppress(InvalidAddress):
        return checked_key(_read(folder / "key"))
    return None


def _is_own_server(url: str, pid: object) -> bool:
    """Return whether a process of this user, by its number, listens at a loopback address."""
    parsed = httpx.URL(url)
    if not is_loopback(parsed.host) or not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 1 << 31:
        return False
    import psutil  # here, as few commands need it

    try:
        process = psutil.Process(pid)
        if process.uids().real != os.getuid():
            return False
        listening = [each for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return False
    return any(each.laddr.port == (parsed.port or 80) for each in listening)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str | None:
    """Return the text of a file in the data folder; None for a link, which may lead to a secret of the user."""
    try:
        return read_regular(path, _MAX_BYTES).decode(errors="replace").strip()
    except OSError:
        return None
