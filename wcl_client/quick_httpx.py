"""The import of httpx without its own command line, whose libraries take a quarter of the start of `wcl`."""

import sys

if "httpx" not in sys.modules:
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # httpx takes it as one that is not installed
    import httpx  # noqa: F401

    del sys.modules["httpx._main"]
