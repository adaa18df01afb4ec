"""`python -m wcl_client` runs the `wcl` command."""

from wcl_client.cli import main

main()
