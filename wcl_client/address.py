"""The address and the key of the server: from the environment, else from the data folder of a local server."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Address:
    """The URL of a server and a key for it."""

    url: str
    key: str | None


def data_folder() -> Path:
    """Return the data folder of the local service."""
    return Path(os.environ.get("WCL_DATA_DIR") or "wcl-data")


def find_address(data_dir: Path | None = None) -> Address:
    """Return `WCL_URL` and `WCL_KEY`; an unset one comes from the data folder of the local server.

    The local key is used only for the local server. It is never sent to another address.
    """
    folder = data_dir or data_folder()
    url, key = os.environ.get("WCL_URL"), os.environ.get("WCL_KEY")
    local = _local_url(folder)
    if not key and (not url or url.rstrip("/") == local):
        key = _read(folder / "key")
    return Address((url or local or DEFAULT_URL).rstrip("/"), key or None)


def _local_url(folder: Path) -> str | None:
    try:
        url = json.loads(_read(folder / "server.json") or "{}").get("url")
    except (ValueError, AttributeError):
        return None
    return str(url).rstrip("/") if url else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
