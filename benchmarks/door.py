"""Benchmark of the open door: how long a normal request waits while other clients hold connections or send large work.

    python benchmarks/door.py [--idle 2000] [--slow 500] [--readers 100] [--seconds 30]

Idle connections send nothing, slow ones a byte of a header a second, and readers request a large file and read nothing.
A connection that the server closes is opened anew.  The server uses SQLite.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the server that the tests start

import httpx
import psutil
from measure.report import save_results, setting

from tests.api.web.served import Site
from tests.fuzz.pages import multipart

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
FILE_BYTES = 50_000_000
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SWEEP: dict[str, Any] = {"name": "s", "search": "random", "preset": "digits-cpu", "metric": {"protocol": "knn"}}
UNKNOWN = {f"epoch_{number}_of_the_training_run": 1 for number in range(9_000)}


@dataclass
class Waits:
    """A client that sends a small request ten times a second, each on a connection of its own."""

    url: str
    key: str
    seconds: list[float] = field(default_factory=list)
    failed: int = 0

    def ask(self) -> None:
        began = time.perf_counter()
        try:
            headers = {"Authorization": f"Bearer {self.key}", "Connection": "close"}
            httpx.get(f"{self.url}/v1/jobs?limit=1", headers=headers, timeout=30, trust_env=False).raise_for_status()
        except httpx.HTTPError:
            self.failed += 1
        self.seconds.append(time.perf_counter() - began)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Ask from a thread."""
        stop = threading.Event()

        def repeat() -> None:
            while not stop.is_set():
                self.ask()
                stop.wait(0.1)

        thread = threading.Thread(target=repeat)
        thread.start()
        yield
        stop.set()
        thread.join()


class Crowd:
    """Connections that are opened anew when the server closes them."""

    def __init__(self, address: tuple[str, int], count: int, first: bytes, more: bytes = b"") -> None:
        self._address, self._first, self._more = address, first, more
        self._open: list[socket.socket | None] = [None] * count
        self.num_closed = -count

    def turn(self) -> None:
        """Open what is closed, and send a little on each connection."""
        for place, connection in enumerate(self._open):
            if connection is None or _is_closed(connection, self._more):
                self.num_closed += 1
                with suppress(OSError):
                    self._open[place] = opened = socket.create_connection(self._address, timeout=5)
                    opened.setblocking(False)
                    opened.send(self._first)


def _is_closed(connection: socket.socket, more: bytes) -> bool:
    try:
        if more:
            connection.send(more)
            return connection.recv(10, socket.MSG_PEEK) == b""
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def crowd(address: tuple[str, int], options: argparse.Namespace, download: bytes, results: Any) -> None:
    """Hold the connections, in a process of their own: opening thousands would delay the measured client."""
    crowds = {
        "idle": Crowd(address, options.idle, b""),
        "slow": Crowd(address, options.slow, HEAD + b"X: ", b"x"),
        "readers": Crowd(address, options.readers, download),
    }
    ends_at = time.monotonic() + options.seconds
    while time.monotonic() < ends_at:
        for each in crowds.values():
            each.turn()
        time.sleep(1)
    results.send({name: each.num_closed for name, each in crowds.items()})


def crowded(address: tuple[str, int], waits: Waits, options: argparse.Namespace, file: str) -> dict[str, Any]:
    """Return the waits of the normal client among the crowds."""
    download = f"GET {file} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {waits.key}\r\n\r\n".encode()
    results, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=crowd, args=(address, options, download, sender))
    process.start()
    with waits.meanwhile():
        closed = results.recv()
    process.join()
    return {"worst_s": max(waits.seconds), "requests": len(waits.seconds), "failed": waits.failed, "closed": closed}


def expensive(client: httpx.Client) -> dict[str, Callable[[], httpx.Response]]:
    """Return requests at the edges of their bounds, and above."""
    punycode = {"Content-Type": "multipart/form-data; boundary=x; charset=punycode"}
    emoji = multipart([("checkpoint_id", ("\U0001f600" * 320_000).encode("punycode").decode())])
    lists = {"loss.temperature": [0.1, ["x" * 800_000]]}
    ranges = {f"method_options.{name}": {"min": 0.1, "max": 1} for name in "abcdefghijklmnop"}
    bodies: dict[str, tuple[str, Any, dict[str, str]]] = {
        "a pointer bomb without a key": (
            "/healthz",
            json.dumps({"~" * 100_000: [0] * 9_990}),
            JSON | {"Authorization": ""},
        ),
        "a pointer bomb": ("/v1/jobs", json.dumps({"~" * 100_000: [0] * 9_990}), JSON),
        "a form in punycode": ("/jobs/none/evaluate", emoji, punycode),
        "a form of 250,000 percent signs": ("/submit", "a=" + "%" * 249_998, FORM),
        "a form of 900,000 percent signs": ("/submit", "a=" + "%" * 900_000, FORM),
        "a form of 100,000 fields": ("/submit", "a=1&" * 100_000, FORM),
        "JSON of 300,000 lists": ("/v1/jobs", "[" + "[]," * 300_000 + "1]", JSON),
        "JSON of 20,000 levels": ("/v1/jobs", "[" * 20_000, JSON),
        "9,000 unknown fields": ("/v1/jobs", json.dumps({"kind": "pretrain", "spec": UNKNOWN}), JSON),
        "9,000 unknown fields of a sweep": ("/v1/sweeps", _sweep({"epochs": [1, 2]}, spec=UNKNOWN), JSON),
        "256 draws of a large value": ("/v1/sweeps", _sweep(lists), JSON),
        "256 draws of 16 parameters": ("/v1/sweeps?dry_run=true", _sweep(ranges), JSON),
        "256 trials": ("/v1/sweeps", _sweep({"optimizer.learning_rate": {"min": 0.1, "max": 1}}), JSON),
    }
    requests = {
        name: lambda at=address, content=content, headers=headers: client.post(at, content=content, headers=headers)  # type: ignore[misc]
        for name, (address, content, headers) in bodies.items()
    }
    group = {"kind": "pretrain", "preset": "digits-cpu", "seeds": list(range(32))}
    group_id = client.post("/v1/jobs", json=group).raise_for_status().json()["group_id"]
    requests["a comparison of 32 jobs"] = lambda: client.get("/compare", params={"group": group_id})
    requests["a search of 200 letters"] = lambda: client.get("/v1/jobs", params={"q": "%_" * 100})
    return requests


def _sweep(parameters: dict[str, Any], **changes: Any) -> str:
    return json.dumps(SWEEP | {"trials": 256, "parameters": parameters} | changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("idle", 2000), ("slow", 500), ("readers", 100), ("seconds", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wcl-door-") as folder:
        site = Site(Path(folder))
        site.start()
        try:
            facts = measure(site, options)
        finally:
            site.stop()
    text = "\n".join(_lines(facts))
    print(text)
    save_results("door", setting() | facts, text)


def measure(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    site.register()
    run = site.running()
    run.start()
    run.artifact("map.png", b"x" * FILE_BYTES, "image/png")
    key = (site.settings.data_dir / "key").read_text().strip()
    process = psutil.Process(json.loads((site.settings.data_dir / "server.json").read_text())["pid"])
    log = site.settings.data_dir / "server.log"
    client = httpx.Client(base_url=site.url, headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False)
    rows = []
    for name, request in expensive(client).items():
        waits = Waits(site.url, key)
        began = time.perf_counter()
        with waits.meanwhile():
            status = request().status_code
        rows.append(
            {"request": name, "status": status, "seconds": time.perf_counter() - began, "others": max(waits.seconds)}
        )
    facts: dict[str, Any] = {"options": vars(options), "expensive": rows, "log_bytes": -log.stat().st_size}
    facts["rss_before"] = process.memory_info().rss
    address, file = ("127.0.0.1", site.settings.port), f"/v1/jobs/{run.job_id}/artifacts/map.png"
    client.head(file).raise_for_status()  # the server compares its digest once
    facts["crowd"] = crowded(address, Waits(site.url, key), options, file)
    facts["rss_after"] = process.memory_info().rss
    facts["log_bytes"] += log.stat().st_size
    return facts


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    options, crowd = facts["options"], facts["crowd"]
    before, after = (facts[name] / 2**20 for name in ("rss_before", "rss_after"))
    yield (
        f"A small request, ten times a second for {options['seconds']} s, among {options['idle']} idle connections, "
        f"{options['slow']} that send a byte a second, and {options['readers']} clients that request a large file and "
        f"read nothing: worst wait {crowd['worst_s']:.2f} s, {crowd['failed']} of {crowd['requests']} failed. The "
        f"server closed {crowd['closed']['idle']} idle and {crowd['closed']['slow']} slow ones. Its memory went from "
        f"{before:.0f} to {after:.0f} MiB, and its log grew by {facts['log_bytes']} bytes."
    )
    yield "\n| one request | response | took | another client waited at most |\n|---|---|---|---|"
    for row in facts["expensive"]:
        yield f"| {row['request']} | {row['status']} | {row['seconds']:.2f} s | {row['others']:.2f} s |"


if __name__ == "__main__":
    main()
