"""The typed Python client and the `wcl` command line.

The client talks REST only. Of the project it imports only `wcl_core.config`, `wcl_core.spec_files` and
`wcl_core.text`.

    from wcl_client import WclClient

    with WclClient.connect() as client:
        job = client.submit("pretrain", preset="digits-cpu")
        for message in client.follow(job["id"]):
            print(message.event, message.data)
"""

from wcl_client import quick_httpx  # noqa: F401  before the first import of httpx
from wcl_client.api import WclClient

__all__ = ["WclClient"]
