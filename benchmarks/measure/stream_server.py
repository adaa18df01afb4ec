"""A server with one more route: streams whose viewers each query the database themselves.

    WCL_PORT=… WCL_DATABASE_URL=… python benchmarks/measure/stream_server.py

This is the peer of the shared feeds, in the same process as they are; the product does not have it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from fastapi.responses import StreamingResponse

from api.app import create_app
from api.http.auth import Reader
from api.rest import responses
from api.rest.responses import EventResponse
from api.streams.watcher import POLL_SECONDS
from jobs import changes, keys, queries, waiting
from jobs.changes import Cursor
from jobs.database import Database
from jobs.settings import Settings

_READERS = 4


class PollingViewer:
    """The changes of one job after a cursor, read for one viewer."""

    def __init__(self, database: Database, job_id: str, key_id: str, cursor: Cursor) -> None:
        self._database, self._job_id, self._key_id, self._cursor = database, job_id, key_id, cursor
        self._shown: Any = None

    def poll(self) -> list[bytes]:
        with self._database.read() as session:
            if not keys.active(session, [self._key_id]):
                return []
            job = queries.get_job(session, self._job_id)
            now = changes.now_cursor(session, self._job_id)
            batch = changes.changes(session, self._job_id, self._cursor, now)
            tags = queries.tags(session, [self._job_id])[self._job_id]
            shown = responses.job(job, tags, waiting.explain(session, job)).model_dump()
        self._cursor = batch.cursor
        messages = [self._message("event", EventResponse.of(event).model_dump()) for event in batch.events]
        if shown["status"] != self._shown:
            self._shown = shown["status"]
            messages.append(self._message("job", shown))
        if batch.points:
            points = [dict(zip(("attempt", "name", "step", "value"), point, strict=True)) for point in batch.points]
            messages.append(self._message("metrics", {"points": points}))
            messages.append(self._message("progress", job.progress))
        return messages

    def _message(self, event: str, data: Any) -> bytes:
        return f"id: {self._cursor}\nevent: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def main() -> None:
    settings = Settings()
    database = Database(settings.resolved_database_url)
    app = create_app(settings, database)
    threads = anyio.CapacityLimiter(_READERS)

    async def chunks(viewer: PollingViewer) -> AsyncIterator[bytes]:
        yield b": open\n\n"
        while True:
            for message in await anyio.to_thread.run_sync(viewer.poll, limiter=threads):
                yield message
            await asyncio.sleep(POLL_SECONDS)

    @app.get("/peer/jobs/{job_id}/stream")
    def follow(job_id: str, principal: Reader) -> StreamingResponse:
        with database.read() as session:
            now = changes.now_cursor(session, job_id)
        viewer = PollingViewer(database, job_id, principal.key_id, now)
        return StreamingResponse(chunks(viewer), media_type="text/event-stream")

    config = uvicorn.Config(app, port=settings.port, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
