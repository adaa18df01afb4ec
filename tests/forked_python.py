"""`python -I -S tests/forked_python.py SOCKET ARGUMENTS`: as `python ARGUMENTS`, with everything already imported.

The process at the socket, see tests/parallel.py, forks that process and gives it the arguments, the variables, the
folder, the network and the open files of this one, which waits for its exit code.  Signals to this one reach that
process, which is killed when this one is.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys


def _inherited() -> list[int]:
    """Return the open files that this process was started with: Python closes its own ones at an exec."""
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the others
            if os.get_inheritable(int(name)):
                descriptors.append(int(name))
    return descriptors


def _end_by(number: int) -> None:
    """End this process by a signal, without a core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the other process by itself
path, *arguments = sys.argv[1:]
descriptors = _inherited()
request = {
    "arguments": arguments,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "descriptors": descriptors,
    "launcher": os.getpid(),
}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, lambda number, _: connection.sendall(bytes([number])))
    code = int(connection.recv(16) or 1)  # without a code, the process has ended with the one that forks
if code < 0:
    _end_by(-code)
sys.exit(code)
