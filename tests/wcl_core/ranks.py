"""Runs of several ranks for the tests: one process imports torch once and forks the ranks of each world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import parallel

ROOT = Path(__file__).parents[2]


class Worlds:
    """Forks worlds of real processes that call a function of this module's `TASKS`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, size: int, task: str, folder: Path, **arguments: Any) -> list[Any]:
        """Run a task on each rank; return its results in rank order, as JSON values."""
        folder.mkdir(parents=True, exist_ok=True)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([size, task, str(folder), arguments]) + "\n")
        self._process.stdin.flush()
        statuses = json.loads(self._process.stdout.readline())
        assert statuses == [0] * size, [(folder / f"rank-{rank}.log").read_text() for rank in range(size)]
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]


@contextmanager
def worlds() -> Iterator[Worlds]:
    """Yield the worlds and end all processes at the end."""
    command = [parallel.python(), "-m", "tests.wcl_core.ranks"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        yield Worlds(process)
        assert process.stdin
        process.stdin.close()


def _serve() -> None:
    import sklearn.metrics  # noqa: F401 (otherwise every rank imports it by itself, at a second each)
    import torch
    import torch._dynamo

    from tests.wcl_core import rank_tasks, small

    small.few_digits()
    torch.set_num_threads(1)  # threads do not survive a fork
    for line in sys.stdin:
        size, task, folder, arguments = json.loads(line)
        children = []
        for rank in range(size):
            if (child := os.fork()) == 0:
                _become(rank, size, Path(folder), getattr(rank_tasks, task), arguments)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


def _become(rank: int, size: int, folder: Path, task: Any, arguments: dict[str, Any]) -> None:
    from wcl_core.distributed import joined

    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
    status = 1
    try:
        with joined(rendezvous=folder / "rendezvous") as ranks:
            result = task(ranks, folder, **arguments)
        (folder / f"rank-{rank}.json").write_text(json.dumps(result))
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
