"""The typed Python client and the `wcl` command line.

Talks REST only; imports nothing of the service but `wcl_core.config`.

    from wcl_client.api import WclClient
    with WclClient.connect() as wcl:
        job = wcl.submit("pretrain", preset="digits-cpu")
        for message in wcl.follow(job["id"]): ...
"""
