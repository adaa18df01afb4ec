"""Shared parameters of routes: the database, the settings and the storage of the running application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request

from jobs.database import Database
from jobs.settings import Settings
from jobs.storage import Storage


async def _database(request: Request) -> Database:
    """Return the database; its transactions act for the request's principal."""
    database = cast(Database, request.app.state.database)
    return database.acting_for(getattr(request.state, "principal", None))


async def _settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


async def _storage(request: Request) -> Storage:
    return cast(Storage, request.app.state.storage)


async def _heavy_slot(request: Request) -> AsyncIterator[None]:
    async with request.app.state.heavy_slots:
        yield


def heavy_slots() -> asyncio.Semaphore:
    """Return the slots of requests that read whole files or all rows; other threads serve all other requests."""
    return asyncio.Semaphore(12)


TheDatabase = Annotated[Database, Depends(_database)]
TheSettings = Annotated[Settings, Depends(_settings)]
TheStorage = Annotated[Storage, Depends(_storage)]
HeavySlot = Annotated[None, Depends(_heavy_slot, scope="function")]  # given back before the response is sent
