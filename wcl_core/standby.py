"""The standby process: it has imported everything that a run needs, and forks a run for each request of its worker.

    worker ── request, descriptors ──► standby ── fork ──► child ── fork ──► run
           ◄────── the run's id ──────┘                    exits at once

The worker adopts the orphaned run, so it waits for it and reads its exit code as for a child that it started itself.
The run waits for a byte on its first descriptor: a worker that has given up closes the pipe, and the run exits.

A run's environment and command line are written over those that the standby was started with.  Other processes then
read a run's own from /proc, as its worker does to find it by its mark.  Linux only.  The module itself imports neither
torch nor anything else of the project, so that the worker can import it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

READY, REFUSED, GO = b"ready", b"refused", b"go"
MARK = "WCL_ATTEMPT"  # the environment variable that identifies the attempt
ROOM = "-" * 8192  # as a value and as an argument at the start, it makes room for a run's own
_THREADS = "OMP_NUM_THREADS"
# Variables that no library reads at its import; the number of threads can be set later.
LATE = frozenset(
    {
        MARK,
        "RANK",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "WORLD_SIZE",
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
        "CUDA_VISIBLE_DEVICES",
        _THREADS,
    }
)
_MOST_BYTES = 1 << 17  # of a request
_DESCRIPTORS = 3
_DIGITS = 32
_HUGE_BYTES = 2 << 20
_MADV_COLLAPSE = 25
_METADATA = (".dist-info", ".egg-info", ".egg-link", ".pth")
# Not scikit-learn, which only maps need: with its libraries a fork copies twice as many mappings.
_MODULES = (
    "wcl_core.__main__",
    "wcl_core.attempt",
    "wcl_core.data.builtin",
    "wcl_core.data.packed",
    "numpy",
    "threadpoolctl",
    "torchvision.datasets",
    "torchvision.transforms.v2.functional",
)


@dataclass(frozen=True)
class Request:
    """A request for a run; its descriptors are the pipe that the run waits on, the output, and the control pipe.

    Attributes:
        arguments: of `python -m wcl_core`, without the number of the control pipe.
        environment: all variables of the run.
    """

    arguments: list[str]
    environment: dict[str, str]

    def encoded(self) -> bytes:
        """Return the request as a message."""
        return json.dumps(asdict(self)).encode()


def main(descriptor: int) -> int:
    """Import, then fork runs until the worker ends; in a run, return the exit code of its command."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    memory = Memory()
    memory.write([sys.executable, "-m", "wcl_core.standby"], os.environ)
    gc.disable()  # the imports make a million objects that stay; collecting meanwhile takes a quarter of the time
    for name in _MODULES:
        import_module(name)
    gc.freeze()  # a collection would copy the pages that all runs share
    gc.enable()
    use_huge_pages()
    arguments = serve(connection, memory)
    if arguments is None:
        return 0
    code: int = import_module("wcl_core.__main__").main(arguments)
    return code


def use_huge_pages() -> None:
    """Move the memory of this process into huge pages, where the kernel can: a fork then copies fewer page tables.

    A fork of a process that has imported torch takes 38 ms with small pages and 15 ms with huge ones.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for start, end in list(_own_memory()):
        first, last = -(-start // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
        if first < last:
            madvise(first, last - first, _MADV_COLLAPSE)  # an older kernel refuses it, and nothing changes


def _own_memory() -> Iterator[tuple[int, int]]:
    """Yield the places of the memory that this process has written and that belongs to no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, _, end = place.partition("-")
            yield int(start, 16), int(end, 16)


def serve(connection: socket.socket, memory: Memory) -> list[str] | None:
    """Fork a run for each request; return its arguments in the run, and None once the worker has ended."""
    installed = sorted(_installed())
    reply = READY
    while True:
        try:
            connection.send(reply)
            message, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, _DESCRIPTORS)
        except ConnectionError:  # a reset where the worker has left the reply unread
            return None
        if not message:
            return None
        request = Request(**json.loads(message))
        reply = REFUSED
        # A new process would have imported a distribution that has been installed or changed since.
        if installed == sorted(_installed()) and memory.has_room(request.environment):
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                connection.close()
                return _run(memory, request, descriptors, writer)
            os.close(writer)
            os.waitpid(child, 0)
            reply = os.read(reader, _DIGITS) or REFUSED
            os.close(reader)
        for each in descriptors:
            os.close(each)


def _run(memory: Memory, request: Request, descriptors: Sequence[int], writer: int) -> list[str]:
    """Fork the run and exit; in the run, return its arguments once the worker lets it go."""
    gate, output, control = descriptors
    arguments = [*request.arguments, "--control-fd", str(control)]
    # Before the fork, so that the run has its own mark from its first moment.
    memory.write([sys.executable, "-m", "wcl_core", *arguments], request.environment)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(writer, str(os.getpid()).encode())
    os.close(writer)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    if os.read(gate, len(GO)) != GO:
        os._exit(0)
    os.close(gate)
    _apply(request.environment)
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *arguments]
    return arguments


def _apply(environment: Mapping[str, str]) -> None:
    """Set what a new process has after its imports: its variables, its numbers of threads and its random states."""
    threads = environment.get(_THREADS)
    if threads is not None and threads != os.environ.get(_THREADS):
        import_module("threadpoolctl").threadpool_limits(int(threads))
        import_module("torch").set_num_threads(int(threads))
    os.environ.clear()
    os.environ.update(environment)
    import_module("numpy").random.seed()  # Python's own generator seeds itself after a fork


def _installed() -> Iterator[tuple[str, int]]:
    """Yield the metadata of the installed distributions, with the times of their last changes."""
    for place in filter(os.path.isdir, sys.path):
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.endswith(_METADATA):
                    yield entry.path, entry.stat().st_mtime_ns


class Memory:
    """The memory where other processes read the command line and the environment of this process.

    The constructor moves the variables elsewhere: the C library reads them where the kernel has put them.
    """

    def __init__(self) -> None:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        self._command, self._environment = ((int(fields[n]), int(fields[n + 1])) for n in (45, 47))
        variables = dict(os.environ)
        variables.pop(MARK, None)
        os.environ.clear()
        ctypes.CDLL(None).clearenv()
        os.environ.update(variables)

    def has_room(self, environment: Mapping[str, str]) -> bool:
        """Return whether an environment fits."""
        start, end = self._environment
        return len(_block(_pairs(environment))) < end - start

    def write(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Replace the command line, which is cut off if it is too long, and the environment."""
        for (start, end), strings in ((self._command, command), (self._environment, _pairs(environment))):
            content = _block(strings)[: end - start - 1]
            ctypes.memset(start, 0, end - start)
            ctypes.memmove(start, content, len(content))


def _pairs(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def _block(strings: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(each) + b"\0" for each in strings)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
