"""Many viewers of one running job: the reports that they receive, and the CPU time of the server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from measure.pages import Server

from jobs import keys
from tests.jobs import rows

PROGRAM = (str(Path(__file__).parent / "stream_server.py"),)
PEER, OURS = "/peer/jobs/{}/stream", "/v1/jobs/{}/stream"
_VIEWERS_PER_KEY = 100
_PAUSE_SECONDS = 0.5
_MOST_SECONDS = 90.0


@dataclass(frozen=True)
class Delivered:
    """The number of reports that reached viewers, the CPU time of the server, and the delay of the last report."""

    reports: int
    cpu_seconds: float
    lag_seconds: float

    @property
    def per_cpu_second(self) -> float:
        return self.reports / self.cpu_seconds


def deliver(server: Server, path: str, viewers: int, reports: int) -> Delivered:
    """Open `viewers` streams, report `reports` times, and wait until every viewer has all reports."""
    return asyncio.run(_deliver(server, path.format(server.history.run.job_id), viewers, reports))


async def _deliver(server: Server, path: str, viewers: int, reports: int) -> Delivered:
    database = server.history.database
    viewer_keys = [
        database.write(lambda session: keys.create(session, "viewer", ("read",))[1])
        for _ in range(-(-viewers // _VIEWERS_PER_KEY))
    ]
    opened = [await _Viewer.open(server.url, path, viewer_keys[number % len(viewer_keys)]) for number in range(viewers)]
    await asyncio.sleep(3)  # the first poll of each viewer is not measured
    process = psutil.Process(server.pid)
    for viewer in opened:
        viewer.reset()
    began = _cpu(process)
    for number in range(reports):
        await asyncio.sleep(_PAUSE_SECONDS if number else 0)
        await asyncio.to_thread(_report, server)
    reported_at = time.monotonic()
    while any(viewer.reports < reports for viewer in opened) and time.monotonic() - reported_at < _MOST_SECONDS:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    lag, used = time.monotonic() - reported_at, _cpu(process) - began
    for viewer in opened:
        viewer.close()
    await asyncio.sleep(1)
    return Delivered(sum(viewer.reports for viewer in opened), used, lag)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _report(server: Server) -> None:
    """Report one value of each series and the progress, as a training run does."""
    run = server.history.run
    step = run.seq + 1
    values = {f"series/{number:02}": 1.0 for number in range(20)}
    facts = {"step": step, "total_steps": 2 * step, "epoch": 1, "total_epochs": 2, "phase": "train"}
    run.deliver(rows.metrics(step, **values), {"type": "progress", **facts})


class _Viewer:
    """A reader of a stream that counts reports: the values of the first series in it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.reports = 0
        self._task = asyncio.create_task(self._read(reader))

    @classmethod
    async def open(cls, url: str, path: str, key: str) -> _Viewer:
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
        request = f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n"
        writer.write(request.encode())
        status = await reader.readline()
        assert b" 200 " in status, status
        return cls(reader, writer)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                self.reports += line.count(b'"name":"series/00"')

    def reset(self) -> None:
        self.reports = 0

    def close(self) -> None:
        self._task.cancel()
        self._writer.close()
