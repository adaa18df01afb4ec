"""A TCP proxy that simulates a bad network: slow, cut, silent, or losing a particular response."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 1 << 16


class Proxy:
    """Forwards connections to a port of the loopback.

        mended ──► cut      every connection is reset, new ones too
               ├─► silent   connections stay open and nothing passes (half-open); the sent bytes pass once mended
               └─► slow     each piece takes `seconds` more

    `lose_next_answer` is a fault of its own: the next message that holds a word reaches the server, its answer does not
    come back and the connection ends.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._is_cut = False
        self._delay = 0.0
        self._word: bytes | None = None
        self.num_lost_answers = 0
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port = int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        self._do(self._cut)

    def silence(self) -> None:
        self._do(self._passes.clear)

    def slow(self, seconds: float) -> None:
        self._delay = seconds

    def lose_next_answer(self, word: bytes = b"COMMIT") -> None:
        self._word = word

    def mend(self) -> None:
        self._is_cut, self._delay, self._word = False, 0.0, None
        self._do(self._passes.set)

    def close(self) -> None:
        self._do(self._server.close)
        self._do(self._cut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, act: Callable[[], object]) -> None:
        async def call() -> None:
            act()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _cut(self) -> None:
        self._is_cut = True
        for link in list(self._links):
            link.reset()

    async def _listen(self) -> asyncio.Server:
        self._passes.set()
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        await self._passes.wait()
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(reader, server_writer, link, to_server=True),
                self._pump(server_reader, writer, link, to_server=False),
            )
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, *, to_server: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._passes.wait()
                if to_server and self._word is not None and self._word in data:
                    self._word, link.loses_answer = None, True
                elif not to_server and link.loses_answer:
                    self.num_lost_answers += 1
                    break
                writer.write(data)
                await writer.drain()
        link.reset()


class _Link:
    """Both halves of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.loses_answer = False

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, as a crash does."""
    if not writer.transport.is_closing():
        linger_not = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
    writer.transport.abort()
