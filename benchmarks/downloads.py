"""Downloads of a checkpoint: time and CPU of the server that sends it, beside nginx and Starlette.

    python benchmarks/downloads.py [--megabytes 256] [--rounds 5] [--parallel 10]

Each server has a process of its own, and curl reads from it over loopback.  The ratios are of one round each, in which
all servers send the same bytes one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the servers that the tests start

import psutil
from measure.report import save_results, setting
from measure.rounds import Row, share, table

from tests import servers
from tests.api.web.served import Site
from tests.waiting import eventually

_STARLETTE = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route
path, port = sys.argv[1], int(sys.argv[2])
uvicorn.run(Starlette(routes=[Route("/file", lambda request: FileResponse(path))]), port=port, log_level="error")
"""
_NGINX = """
server {{
    listen 127.0.0.1:{port};
    location /v1/ {{
        proxy_pass http://127.0.0.1:{server};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_buffering off;
    }}
    location /files/ {{ alias {folder}/; sendfile on; }}
    location /wcl-files/ {{ internal; alias {folder}/; sendfile on; etag off; add_header ETag $upstream_http_etag; }}
}}
"""


@dataclass(frozen=True)
class Source:
    """A server that sends the file.

    Attributes:
        words: arguments of curl.
        pids: returns the processes whose CPU time counts.
    """

    name: str
    words: tuple[str, ...]
    pids: Callable[[], list[int]]

    def read(self, times: int = 1) -> tuple[float, float, int]:
        """Let so many clients read the file at once; return seconds, CPU seconds, and the most memory in bytes."""
        before, began = self._cpu(), time.perf_counter()
        command = ["curl", "--silent", "--show-error", "--fail", "--output", os.devnull, *self.words]
        clients = [subprocess.Popen(command) for _ in range(times)]
        memory = 0
        while any(client.poll() is None for client in clients):
            memory = max(memory, sum(psutil.Process(pid).memory_info().rss for pid in self.pids()))
            time.sleep(0.02)
        assert all(client.returncode == 0 for client in clients), self.name
        return time.perf_counter() - began, self._cpu() - before, memory

    def _cpu(self) -> float:
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wcl-downloads-") as folder, ExitStack() as stack:
        site, nginx, starlette, forwarded = stack.enter_context(_sources(Path(folder), options.megabytes))
        for source in (site, nginx, starlette, forwarded):
            source.read()  # the server compares the digest once
        rounds = [[each.read() for each in (site, nginx, starlette, forwarded)] for _ in range(options.rounds)]
        parallel = {each.name: max(0, each.read(options.parallel)[2] - each.read()[2]) for each in (site, forwarded)}
    seconds, cpu = ([[part[kind] for part in each] for each in zip(*rounds, strict=True)] for kind in (0, 1))
    rows: list[Row] = []
    for place, name in ((0, "from the server"), (3, "through nginx, WCL_NGINX_FILES")):
        rows.append(share(f"time, {name}", "nginx, sendfile", seconds[place], seconds[1], 1 / 0.75))
        rows.append(share(f"time, {name}", "Starlette's FileResponse", seconds[place], seconds[2], 1))
        rows.append(share(f"CPU, {name}", "nginx, sendfile", cpu[place], cpu[1], 3))
        rows.append(share(f"CPU, {name}", "Starlette's FileResponse", cpu[place], cpu[2], 1))
    grown = ", ".join(f"{size / 2**20:.0f} MiB {name}" for name, size in parallel.items())
    text = (
        f"{table(rows)}\n\n{options.megabytes} MB over loopback, medians of {options.rounds} rounds. "
        f"{options.parallel} downloads at once need more memory than one: {grown}."
    )
    print(text)
    save_results("downloads", setting() | {"seconds": seconds, "cpu": cpu, "parallel_bytes": parallel}, text)


@contextmanager
def _sources(folder: Path, megabytes: int) -> Iterator[tuple[Source, Source, Source, Source]]:
    site = Site(folder / "data", WCL_TRUSTED_PROXIES='["127.0.0.1"]', WCL_NGINX_FILES="/wcl-files")
    site.database.migrate()
    site.register()
    site.start()
    run = site.running()
    run.start()
    path = site.settings.checkpoints_dir / f"{run.attempt.folder}/step-00000001.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(1_000_000) * megabytes)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = path.relative_to(site.settings.checkpoints_dir).as_posix()
    facts = {"step": 1, "epoch": 1, "path": key, "sha256": digest, "size": path.stat().st_size, "metrics": {}}
    run.report({"type": "checkpoint", **facts})
    (checkpoint,) = site.checkpoints(run.job_id)
    download = f"/v1/checkpoints/{checkpoint.id}/download"
    header = ("--header", f"Authorization: Bearer {(site.settings.data_dir / 'key').read_text().strip()}")
    port, other = servers.free_port(), servers.free_port()
    process = subprocess.Popen([sys.executable, "-c", _STARLETTE, str(path), str(other)])
    text = _NGINX.format(port=port, server=site.settings.port, folder=site.settings.data_dir)
    assert site._process is not None
    server = [site._process.pid]
    try:
        with servers.nginx(text, port):
            nginx = _nginx_pids(port)
            url = f"http://127.0.0.1:{other}/file"
            eventually(lambda: subprocess.run(["curl", "-sIo", os.devnull, url]).returncode == 0, "Starlette's start")
            yield (
                Source("from the server", (*header, f"{site.url}{download}"), lambda: server),
                Source("nginx", (f"http://127.0.0.1:{port}/files/checkpoints/{key}",), lambda: nginx),
                Source("Starlette", (url,), lambda: [process.pid]),
                Source("through nginx", (*header, f"http://127.0.0.1:{port}{download}"), lambda: server + nginx),
            )
    finally:
        process.terminate()
        site.stop()


def _nginx_pids(port: int) -> list[int]:
    """Return the processes of the nginx that listens on a port."""
    listening = [
        each
        for each in psutil.process_iter(["name"])
        if each.info["name"] == "nginx" and any(c.laddr.port == port for c in each.net_connections() if c.laddr)
    ]
    return [each.pid for each in listening]


if __name__ == "__main__":
    main()
