"""`python -m wcl_client` runs the `wcl` command."""

from __future__ import annotations

from wcl_client.cli import main

main()
