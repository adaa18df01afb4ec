"""The time of the server for a page and its data, and of a browser until the page is usable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from measure.history import History
from playwright.sync_api import Browser, sync_playwright

from jobs import keys
from tests.servers import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
# The running job must not be declared lost, because no worker renews its lease.
_SETTINGS = {"WCL_LEASE_SECONDS": "100000"}
_READY = {
    "/": "#connection[data-state='live']",
    "/jobs/": "figure.chart:nth-of-type(6) canvas",
    "/compare": "figure.chart:nth-of-type(3) canvas",
}


@dataclass(frozen=True)
class Server:
    """A server process on a filled database, and an API key."""

    url: str
    pid: int
    key: str
    history: History


@contextmanager
def serving(history: History, command: tuple[str, ...] = ("-m", "api")) -> Iterator[Server]:
    """Start `python -m api`, or another program that listens on WCL_PORT, in a temporary folder."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="wcl-bench-") as folder:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WCL_")}
        url = history.database.engine.url.render_as_string(hide_password=False)
        own = {"WCL_DATA_DIR": folder, "WCL_PORT": str(port), "WCL_DATABASE_URL": url} | _SETTINGS
        with (Path(folder) / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=clean | own | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        base = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: _answers(base), f"the start of {command}", 60)
            key = history.database.write(lambda session: keys.create(session, "bench", ("read", "submit", "admin"))[1])
            yield Server(base, process.pid, key, history)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def addresses(history: History) -> dict[str, str]:
    """Return the requested addresses by their names in the table."""
    job, other, deep = history.run.job_id, history.other_id, history.deep_cursor
    return {
        "job list, page": "/",
        "job list, page, deep": f"/?cursor={deep}",
        "job list, one status": "/?status=failed",
        "job list, waiting jobs": "/?status=queued",
        "job list, one kind": "/?kind=evaluate",
        "search, no hit, page": "/?q=zebra",
        "search, no hit, REST": "/v1/jobs?q=zebra",
        "search, every job": "/?q=run",
        "job list, REST": "/v1/jobs?limit=50",
        "job list, REST, deep": f"/v1/jobs?limit=50&cursor={deep}",
        "last of the waiting jobs, REST": f"/v1/jobs/{history.waiting_id}",
        "run, page": f"/jobs/{job}",
        "run, its 20 curves": f"/v1/jobs/{job}/metrics?max_points=500&times=true",
        "run, one curve of 1,000 points": f"/v1/jobs/{job}/metrics?keys=series/00&max_points=1000",
        "run, zoom to 1 % of its steps": f"/v1/jobs/{job}/metrics?{_hundredth(history)}",
        "compare, page": f"/compare?job={job}&job={other}",
        "compare, curves of a run": f"/v1/jobs/{job}/metrics?max_points=500",
        "leaderboard, page": "/leaderboard?dataset=digits&protocol=linear",
        "checkpoints, page": "/checkpoints",
    }


def _hundredth(history: History) -> str:
    middle, width = history.run.seq // 2, history.run.seq // 100
    return f"max_points=500&from_step={middle}&to_step={middle + width - 1}"


class Connection:
    """Requests to one server over one connection."""

    def __init__(self, server: Server) -> None:
        headers = {"Authorization": f"Bearer {server.key}", "Accept": "text/html, application/json"}
        self._client = httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False)
        self._addresses = addresses(server.history)

    def seconds(self, name: str) -> float:
        began = time.perf_counter()
        self._client.get(self._addresses[name]).raise_for_status()
        return time.perf_counter() - began


def interactive_seconds(server: Server, rounds: int) -> dict[str, list[float]]:
    """Return the seconds from the start of loading to a usable page, with an empty cache; empty without a browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        return {}
    history, times = server.history, {}
    paths = {
        "job list in the browser": ("/", "/"),
        "run in the browser": (f"/jobs/{history.run.job_id}", "/jobs/"),
        "comparison in the browser": (f"/compare?job={history.run.job_id}&job={history.other_id}", "/compare"),
    }
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        for name, (path, kind) in paths.items():
            times[name] = [_load(browser, server, path, kind) for _ in range(rounds + 1)][1:]
        browser.close()
    return times


def _load(browser: Browser, server: Server, path: str, kind: str) -> float:
    context = browser.new_context(base_url=server.url)
    link = httpx.post(
        f"{server.url}/v1/sign-in-links", headers={"Authorization": f"Bearer {server.key}"}, trust_env=False
    )
    signed_in = httpx.get(link.json()["url"], trust_env=False)
    name, value = next(iter(signed_in.cookies.items()))
    context.add_cookies([{"name": name, "value": value, "url": server.url}])
    page = context.new_page()
    page.goto(path, wait_until="commit")
    page.wait_for_selector(_READY[kind], state="attached")
    seconds = page.evaluate("performance.now()") / 1000
    context.close()
    return float(seconds)
