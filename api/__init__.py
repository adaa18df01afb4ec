"""The web process: thin routes over `jobs`, problem+json, server-sent events, pages.  No torch."""
