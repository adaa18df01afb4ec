"""`python -I -S tests/forked_python.py SOCKET ARGUMENTS`: as `python ARGUMENTS`, with everything already imported.

The process at the socket, see tests/parallel.py, forks that process and gives it the arguments, the variables, the
folder and the open files of this one, which waits for its exit code.
"""

import contextlib
import json
import os
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


signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the other process
path, *arguments = sys.argv[1:]
descriptors = _inherited()
request = {
    "arguments": arguments,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "descriptors": descriptors,
}
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(path)
    socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    code = connection.recv(16)
sys.exit(int(code or 1))  # without a code, the process has ended with the one that forks
