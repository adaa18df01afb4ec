"""A server process with rows of every kind, and a client that judges each response."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.api.web.served import Site
from tests.fuzz.tally import Tally

SLOW_SECONDS = 5.0
_GROWTH = 64 * 2**20  # bytes; caches and pools fill during the first cases
_WARM_SHARE = 0.2


class Service:
    """A server, the ids of its rows by the parameters of addresses, and the judgement of its responses."""

    def __init__(self, site: Site, tally: Tally) -> None:
        self.url = site.url
        self.key = (site.settings.data_dir / "key").read_text().strip()
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60, trust_env=False
        )
        self.values = _rows(site, self.client)
        announced = json.loads((site.settings.data_dir / "server.json").read_text())
        self._process = psutil.Process(announced["pid"])
        self._log = site.settings.data_dir / "server.log"
        self._tally = tally

    def judge(self, response: httpx.Response, seconds: float, seed: int, kind: str, shown: str) -> None:
        """Count a response, and each way in which it is wrong.

        Args:
            response: of the server.
            seconds: that the response took.
            seed: of the case.
            kind: of request, such as `POST /submit`.
            shown: the request, as far as a reader needs it.
        """
        self._tally.add(str(response.status_code))
        path = response.request.url.path
        if response.status_code >= 500:
            self._tally.fail(f"{kind}: {response.status_code}, {self._last_logged()}", seed, shown)
        elif response.status_code >= 400 and path.startswith("/v1/") and not _is_problem(response):
            self._tally.fail(f"{kind}: {response.status_code} without a problem document", seed, shown)
        if seconds > SLOW_SECONDS:
            self._tally.fail(f"{kind}: over {SLOW_SECONDS:g} s", seed, f"{seconds:.1f} s, {shown}")

    def _last_logged(self) -> str:
        """Return the last line of the server's log: that of the exception."""
        return self._log.read_text(errors="replace").rstrip().rpartition("\n")[2][:100]

    def send(self, seed: int, kind: str, method: str, address: str, **content: Any) -> httpx.Response | None:
        """Send a request, and judge its response; return None for a request that cannot be written."""
        shown = f"{method} {address!r} {content!r}"
        try:
            request = self.client.build_request(method, address, **content)
        except (httpx.InvalidURL, UnicodeError, ValueError):
            self._tally.add("not sent")
            return None
        began = time.monotonic()
        try:
            response = self.client.send(request)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
            self._tally.add("not sent")
            return None
        except httpx.HTTPError as error:
            self._tally.add(type(error).__name__)
            self._tally.fail(f"{kind}: {type(error).__name__}", seed, shown)
            return None
        self.judge(response, time.monotonic() - began, seed, kind, shown)
        return response

    def cases(self, count: int, seed: int) -> Iterator[int]:
        """Yield the seed of each case; afterwards count it as a failure if the server's memory has grown."""
        warm, at_first = int(count * _WARM_SHARE), 0
        for number in range(count):
            if number == warm:
                at_first = self._process.memory_info().rss
            yield seed + number
        grown = self._process.memory_info().rss - at_first
        if count and grown > _GROWTH:
            self._tally.fail("the server's memory grows", seed, f"{grown / 2**20:.0f} MiB in {count - warm} cases")


def _is_problem(response: httpx.Response) -> bool:
    """Return whether an error is a problem document, or the page that a browser asked for."""
    is_page = "text/html" in response.request.headers.get("accept", "")
    return is_page or response.headers.get("content-type") == "application/problem+json"


@contextmanager
def service(tally: Tally) -> Iterator[Service]:
    """Start a server on a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="wcl-fuzz-") as folder:
        site = Site(Path(folder))
        site.start()
        try:
            opened = Service(site, tally)
            yield opened
            opened.client.close()
        finally:
            site.stop()


def _rows(site: Site, client: httpx.Client) -> dict[str, list[str]]:
    """Store jobs of every state, checkpoints, artifacts and a sweep; return the values of parameters of addresses."""
    site.register()
    run = site.running("a run", ["a"])
    run.start()
    run.losses([10, 20, 30])
    run.checkpoint(10)
    run.map()
    run.monitor_batch([(255, 0, 0), (0, 255, 0)], [0, 1], ["a", "b"])
    run.groups(1, [0, 0])
    run.end()
    checkpoint_id = site.checkpoints(run.job_id)[0].id
    site.submit_evaluation(checkpoint_id, "an evaluation")
    evaluation = site.claim()
    evaluation.evaluation("knn", 0.5, k=5)
    evaluation.end()
    jobs = [run.job_id, evaluation.job_id, site.running("running").job_id, site.submit("queued")]
    sweep = {"name": "s", "search": "grid", "preset": "digits-cpu", "metric": {"protocol": "knn"}}
    sweep |= {"parameters": {"loss.temperature": [0.1, 0.2]}}
    sweep_id = client.post("/v1/sweeps", json=sweep).raise_for_status().json()["id"]
    key_id = client.post("/v1/keys", json={"name": "k", "scopes": ["read"]}).raise_for_status().json()["id"]
    return {
        "job_id": jobs,
        "checkpoint_id": [checkpoint_id],
        "sweep_id": [sweep_id],
        "key_id": [key_id],
        "name": ["digits", "digits-cpu", "map.json"],
        "verb": ["cancel", "pause"],
    }
