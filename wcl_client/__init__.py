"""The typed Python client and the `wcl` command line.

The client talks REST only. Of the project it imports only `wcl_core.config`, `wcl_core.spec_files` and
`wcl_core.text`.

    from wcl_client import WclClient

    with WclClient.connect() as client:
        job = client.submit("pretrain", preset="digits-cpu")
        for message in client.follow(job["id"]):
            print(message.event, message.data)

`AsyncWclClient` has the same methods for asyncio.
"""

from typing import TYPE_CHECKING, Any

from wcl_client import quick_httpx  # noqa: F401  before the first import of httpx
from wcl_client.api import WclClient

if TYPE_CHECKING:
    from wcl_client.async_client import AsyncWclClient

__all__ = ["AsyncWclClient", "WclClient"]


def __getattr__(name: str) -> Any:
    """Import the asynchronous client when it is used: the command line does not need it."""
    if name != "AsyncWclClient":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wcl_client.async_client import AsyncWclClient

    return AsyncWclClient
