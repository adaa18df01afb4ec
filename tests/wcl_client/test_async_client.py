"""The asynchronous client against a server: calls beside each other, streams, cancellation, errors."""

from __future__ import annotations

import asyncio

import pytest

from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import run_apart
from wcl_client import AsyncWclClient
from wcl_client.errors import InvalidError, NotFoundError, Unreachable
from wcl_client.sse import Message
from wcl_client.up import free_port

SPEC = {"data": {"name": "digits", "image_size": 8}}


@pytest.mark.server
def test_calls_run_beside_each_other_and_errors_are_exceptions(server: Served) -> None:
    async def use() -> None:
        async with AsyncWclClient.connect() as wcl:
            submitted = await asyncio.gather(*(wcl.submit("pretrain", SPEC, name=f"run {n}") for n in range(4)))
            listed, first = await asyncio.gather(wcl.jobs(limit=3), wcl.job(submitted[0]["id"]))
            assert len({each["id"] for each in submitted}) == 4
            assert len(listed) == 3
            assert first["name"] == "run 0"
            ended = await asyncio.gather(wcl.wait(first["id"], poll_seconds=0.05), wcl.cancel(first["id"]))
            assert ended[0]["status"] == "cancelled"
            with pytest.raises(TimeoutError):
                await wcl.wait(submitted[1]["id"], timeout_seconds=0, poll_seconds=0.05)
            with pytest.raises(NotFoundError):
                await wcl.job("absent")
            with pytest.raises(InvalidError) as wrong:
                await wcl.submit("pretrain", SPEC | {"epochs": 0})
            assert [each.pointer for each in wrong.value.errors] == ["/spec/epochs"]
        with pytest.raises(Unreachable):
            await AsyncWclClient(f"http://127.0.0.1:{free_port()}").change(first["id"], name="x")

    run_apart(use())


@pytest.mark.server
def test_a_stream_leaves_the_event_loop_free_and_can_be_cancelled(server: Served) -> None:
    run = rows.Run(server.database, rows.running(server.database))
    run.deliver(rows.started())

    async def follow(wcl: AsyncWclClient, received: list[Message], first: asyncio.Event) -> None:
        async for message in wcl.follow(run.job_id):
            received.append(message)
            first.set()

    async def use() -> None:
        received: list[Message] = []
        async with AsyncWclClient.connect() as wcl:
            waiting, first = asyncio.Event(), asyncio.Event()
            abandoned = asyncio.create_task(follow(wcl, [], waiting))
            complete = asyncio.create_task(follow(wcl, received, first))
            async with asyncio.timeout(20):
                await asyncio.gather(waiting.wait(), first.wait())
            abandoned.cancel()
            with pytest.raises(asyncio.CancelledError):
                await abandoned
            assert (await wcl.job(run.job_id))["status"] == "running"  # while the other stream is open
            await asyncio.to_thread(run.deliver, rows.metrics(1, **{"train/loss": 2.0}), rows.end("succeeded"))
            await complete
        assert received[-1].event == "end"
        assert any(message.event == "metrics" for message in received)

    run_apart(use())
