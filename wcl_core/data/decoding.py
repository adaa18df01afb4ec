"""Image files read and decoded: in this process at first, in one process for each core if they are many.

    parent ── paths, a chunk at a time ──► python -m wcl_core.data.decoding
           ◄── digests, facts, pixels ───┘

Threads do not help: small images spend their time holding the interpreter's lock.  A process that ends by a signal in
the middle of a damaged image takes no run with it.  The processes load neither torch nor the rest of the project, and
end with their parent, because they read the end of its pipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from wcl_core.data.image_file import Facts, UnreadableError, read_image, share_pixels
from wcl_core.limits import num_cores

_ALONE_SECONDS = 0.5  # before other processes are started, each of which takes a quarter of a second
_MAX_PROCESSES = 64
_FILES_AT_ONCE = 64
_BYTES_AT_ONCE = 1 << 20  # of pixels
_WHOLE_BYTES = 4 << 20  # of a file that is read once, for its digest and its pixels
_CHUNKS_AHEAD = 3  # for each process
_STOP_SECONDS = 5.0

Pixels = np.ndarray[Any, Any]  # (3, side, side) uint8


@dataclass(frozen=True)
class Read:
    """One file after reading.

    Attributes:
        digest: sha256 of the file's bytes; empty if it cannot be opened.
        facts: None if it cannot be read.
        error: the reason.
    """

    digest: bytes
    facts: Facts | None
    error: str = ""


@dataclass(frozen=True)
class Wish:
    """The form of the images: their side in pixels; None for facts and digests only."""

    side: int | None

    @property
    def image_bytes(self) -> int:
        return 3 * self.side**2 if self.side else 0


def read_all(root: Path, paths: Sequence[str], wish: Wish) -> Iterator[tuple[Read, Pixels | None]]:
    """Read, hash and decode files, and yield them in order.

    Args:
        root: the folder that the paths are relative to.

    Raises:
        MemoryError: there is not enough memory, here or in another process, or a process was killed twice.
        UnreadableError: a process crashed in the middle of some files; the message names one of them.
    """
    cores, started_at = min(_MAX_PROCESSES, num_cores()), time.monotonic()
    for done, path in enumerate(paths):
        if cores > 1 and time.monotonic() - started_at >= _ALONE_SECONDS:
            try:
                processes = _Processes(cores, root, wish)
            except OSError:  # no memory or no place for further processes
                cores = 1
            else:
                with processes:
                    yield from processes.read(paths[done:])
                return
        yield read_file(root / path, wish)


def read_file(path: Path, wish: Wish) -> tuple[Read, Pixels | None]:
    """Read, hash and decode one file."""
    digest = b""
    try:
        file: io.FileIO | io.BytesIO = io.FileIO(path)
        with file:
            size = os.fstat(file.fileno()).st_size
            if size <= _WHOLE_BYTES:
                content = file.read(size) or b""
                digest, file = hashlib.sha256(content).digest(), io.BytesIO(content)
            else:
                digest = hashlib.file_digest(file, "sha256").digest()
                file.seek(0)
            image, facts = read_image(path, wish.side or 1, is_preview=wish.side is None, file=file)
    except UnreadableError as error:
        return Read(digest, None, str(error)), None
    except OSError as error:
        return Read(digest, None, f"it cannot be opened: {error.strerror}"), None
    return Read(digest, facts), np.asarray(image).transpose(2, 0, 1) if wish.side else None


def check_image(path: Path) -> str:
    """Return why one file cannot be read as an image; empty for one that can."""
    if not path.is_file():
        return f"{path} is no file; expected an image"
    read, _ = read_file(path, Wish(None))
    return f"{path} is no image that is read: {read.error}" if read.error else ""


class _KilledError(MemoryError):
    """A process was killed: a lack of memory is the usual cause."""


class _Processes:
    """The processes, and the threads of this process that talk to them, one each."""

    def __init__(self, count: int, root: Path, wish: Wish) -> None:
        self._count, self._wish, self._root = count, wish, root
        self._guard, self._is_over = threading.Lock(), False  # of the list
        self._turns = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `__exit__`)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoding")
        self._all: list[_Process] = []
        try:
            for _ in range(count):
                self._idle.put(self._started())
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._is_over = True
            for process in self._all:
                process.stop()  # a thread that waits for it gets an error
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.close()
        self._turns.close()

    def _started(self) -> _Process:
        with self._guard:
            if self._is_over:
                raise _KilledError
            self._all.append(_Process(self._count, self._turns, self._wish))
            return self._all[-1]

    def read(self, paths: Sequence[str]) -> Iterator[tuple[Read, Pixels | None]]:
        """Yield the files in order; only a few chunks are in memory."""
        size = max(1, min(_FILES_AT_ONCE, _BYTES_AT_ONCE // max(1, self._wish.image_bytes)))
        ahead: deque[Future[list[tuple[Read, Pixels | None]]]] = deque()
        for start in range(0, len(paths), size):
            ahead.append(self._threads.submit(self._chunk, paths[start : start + size]))
            if len(ahead) > _CHUNKS_AHEAD * len(self._all):
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()

    def _chunk(self, paths: Sequence[str]) -> list[tuple[Read, Pixels | None]]:
        process, places = self._idle.get(), [self._root / path for path in paths]
        try:
            try:
                return process.read(places)
            except _KilledError:  # once, since another one may be killed for the same reason
                process = self._started()
                return process.read(places)
        finally:
            self._idle.put(process)


class _Process:
    """One process: a chunk of paths in, the files' facts and pixels out."""

    def __init__(self, count: int, turns: IO[bytes], wish: Wish) -> None:
        self._wish = wish
        arguments = [str(count), str(turns.fileno()), str(wish.side or 0)]
        package = str(Path(__file__).parents[2])
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([package, inherited] if inherited else [package])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "wcl_core.data.decoding", *arguments],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(turns.fileno(),),
        )

    def read(self, paths: Sequence[Path]) -> list[tuple[Read, Pixels | None]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, b"\0".join(map(os.fsencode, paths)))
            answer = json.loads(_receive(self._process.stdout))
            pixels = _receive(self._process.stdout)
        except (OSError, EOFError) as error:
            raise self._death(paths) from error
        if answer == "out of memory":
            raise MemoryError("the decoding of images")
        reads = [_from_json(*each) for each in answer]
        if self._wish.side is None:
            return [(read, None) for read in reads]
        images = iter(np.frombuffer(pixels, np.uint8).reshape(-1, 3, self._wish.side, self._wish.side))
        return [(read, next(images) if read.facts else None) for read in reads]

    def _death(self, paths: Sequence[Path]) -> Exception:
        code = self._process.wait(_STOP_SECONDS)
        if code == -signal.SIGKILL:
            return _KilledError("a process that decodes images was killed twice; is there too little memory?")
        first, last = paths[0].name, paths[-1].name
        return UnreadableError(f"the decoder crashed (exit code {code}) in one of the files from {first} to {last}")

    def stop(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _from_json(digest: str, facts: dict[str, Any] | None, error: str) -> Read:
    kept = None if facts is None else Facts(**facts | {"notes": tuple(facts["notes"])})
    return Read(bytes.fromhex(digest), kept, error)


def _send(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(len(content).to_bytes(8, "little") + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Return the next message.

    Raises:
        EOFError: the other process has ended.
    """
    size = pipe.read(8)
    content = pipe.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    if len(size) < 8 or len(content) < int.from_bytes(size, "little"):
        raise EOFError
    return content


def _answer(paths: Sequence[Path], wish: Wish) -> tuple[bytes, bytes]:
    reads, images = [], []
    try:
        for path in paths:
            read, pixels = read_file(path, wish)
            reads.append((read.digest.hex(), read.facts and vars(read.facts), read.error))
            if pixels is not None:
                images.append(pixels.tobytes())
        return json.dumps(reads).encode(), b"".join(images)
    except MemoryError:
        return json.dumps("out of memory").encode(), b""


def main(count: int, turns: int, side: int, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    share_pixels(count, turns)
    wish = Wish(side or None)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            paths = [Path(os.fsdecode(path)) for path in _receive(requests).split(b"\0")]
            for part in _answer(paths, wish):
                _send(answers, part)


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for libraries that print
    processes, lock, length = map(int, sys.argv[1:4])
    main(processes, lock, length, sys.stdin.buffer, own)
