"""A service for fault injection: database, broker, servers and workers, each behind a network that a test can break."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, make_url
from sqlalchemy.orm import Session

from jobs import queries, submission, workers
from jobs.database import Database, new_id
from jobs.eligibility import WorkerFacts
from jobs.models import Job
from jobs.status import TERMINAL
from jobs.submission import NewJob
from tests import servers
from tests.chaos.processes import STANDIN, Node, Start
from tests.chaos.proxy import Proxy
from tests.disks import CannotMount, Disk, mount
from tests.waiting import eventually
from wcl_core.config import SPEC_VERSIONS, parse_spec

# A fifteenth of the real 60 s, 5 s and 25 s, so that all proportions stay the same.
SCALED = {"WCL_LEASE_SECONDS": "4", "WCL_LOOK_SECONDS": "0.4", "WCL_CLAIM_SECONDS": "0.5", "WCL_DRAIN_SECONDS": "9"}
REAL = {"WCL_LEASE_SECONDS": "60", "WCL_LOOK_SECONDS": "5", "WCL_CLAIM_SECONDS": "10", "WCL_DRAIN_SECONDS": "25"}
SCALE = 15.0


def spec(seed: int, epochs: int = 2, step_ms: int = 20, behaviour: int | None = None) -> dict[str, Any]:
    """Return the part of a spec that a stand-in body reads."""
    data = {"name": STANDIN.name, "image_size": 8}
    return {"data": data, "seed": seed, "epochs": epochs, "log_every_steps": step_ms, "threads": behaviour}


def arm(failpoints: Path, order: str) -> None:
    """Arm one of a folder's failpoints atomically, so that no process reads half a file."""
    beside = failpoints / "armed.part"
    beside.write_text(order)
    beside.rename(failpoints / "armed")


@dataclass
class Stage:
    """The parts of one service in a folder.

    Args:
        folder: data, logs and failpoints.
        url: the database as the tests reach it.
        settings: of every process.
        postgres, redis: the servers, where there are such.
        flipped: storage keys of the files whose bits a fault has flipped.
        disks: small disks of workers by their names.
    """

    folder: Path
    url: str
    settings: dict[str, str]
    postgres: servers.Server | None = None
    redis: servers.Server | None = None
    nodes: list[Node] = field(default_factory=list)
    proxies: list[Proxy] = field(default_factory=list)
    flipped: set[str] = field(default_factory=set)
    disks: dict[str, Disk] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.database = Database(self.url)
        self.lock = threading.Lock()  # held while a fault stops the database or the broker
        self.checkpoints_dir.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints_dir(self) -> Path:
        return self.folder / "checkpoints"

    def proxied(self, url: str) -> tuple[str, Proxy]:
        """Return the same server behind a network of its own."""
        parts = make_url(url)
        assert parts.port
        proxy = Proxy(parts.port)
        self.proxies.append(proxy)
        return parts.set(port=proxy.port).render_as_string(hide_password=False), proxy

    def worker(self, name: str, url: str | None = None, **changes: Any) -> Node:
        """Return a worker on a machine of its own: its attempts folder is local, the checkpoints folder is shared."""
        data_dir = self._data_dir(name)
        settings = {"WCL_WORKER_NAME": name} | changes.pop("settings", {})
        return self._node(
            Start("worker", self._environment(data_dir, url) | settings, data_dir / "log", name, **changes)
        )

    def server(self, name: str, url: str | None = None, **changes: Any) -> Node:
        data_dir = self._data_dir(name)
        settings = {"WCL_PORT": str(servers.free_port())} | changes.pop("settings", {})
        environment = self._environment(data_dir, url) | settings
        return self._node(Start("api", environment, data_dir / "log", name, **changes))

    def failpoints(self, node: Node) -> Path:
        """Create the folder of a node's failpoints; the node reads it from its next start on."""
        folder = Path(node.start_as.environment["WCL_DATA_DIR"]) / "failpoints"
        folder.mkdir(exist_ok=True)
        node.start_as = replace(node.start_as, environment=node.start_as.environment | {"FAILPOINTS": str(folder)})
        return folder

    def give_small_disk(self, node: Node) -> None:
        """Put a worker's attempts on a small disk of their own, which a fault can fill; without root it gets none."""
        try:
            disk = mount(Path(node.start_as.environment["WCL_DATA_DIR"]) / "attempts", "24m")
        except CannotMount as reason:
            print(reason)
        else:
            self.disks[node.start_as.host] = disk

    def submit(self, requested: dict[str, Any], **fields: Any) -> str:
        """Submit a job as a server does."""
        new = NewJob("pretrain", requested, parse_spec("pretrain", requested), **fields)
        return self.database.write(lambda session: submission.submit(session, new)).id

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return queries.get_job(session, job_id)

    def workers(self) -> list[Any]:
        with self.database.read() as session:
            return list(queries.workers(session))

    def wait_for_workers(self, *names: str, seconds: float = 90) -> None:
        def are_there() -> bool:
            return set(names) <= {row.name for row in self.workers() if row.is_live and not row.pending_datasets}

        eventually(are_there, f"the start of {', '.join(names)}", seconds)

    def wait_for(self, job_id: str, *statuses: str) -> Job:
        return eventually(lambda: job if (job := self.job(job_id)).status in statuses else None, f"{statuses}", 120)

    def wait_for_end(self, job_id: str) -> Job:
        """Wait until the job has ended; one that a full disk has paused continues by itself."""
        return eventually(lambda: job if (job := self.job(job_id)).status in TERMINAL else None, "the end", 240)

    def close(self) -> None:
        for node in self.nodes:
            node.send(signal.SIGCONT)
            node.end(signal.SIGKILL)
        for proxy in self.proxies:
            proxy.close()
        for disk in self.disks.values():
            disk.unmount()
        self.database.dispose()

    def _node(self, start: Start) -> Node:
        self.nodes.append(Node(start))
        return self.nodes[-1]

    def _environment(self, data_dir: Path, url: str | None) -> dict[str, str]:
        return SCALED | {"WCL_DATA_DIR": str(data_dir), "WCL_DATABASE_URL": url or self.url} | self.settings

    def _data_dir(self, name: str) -> Path:
        data_dir = self.folder / name
        data_dir.mkdir(parents=True, exist_ok=True)
        if not (data_dir / "checkpoints").exists():
            (data_dir / "checkpoints").symlink_to(self.checkpoints_dir)
        return data_dir


@dataclass(frozen=True)
class Theatre:
    """The resources of all stages: one PostgreSQL, one Redis, a folder, and an empty SQLite file to copy."""

    folder: Path
    postgres: servers.Server
    postgres_url: str
    redis: servers.Server
    redis_url: str
    template: Path

    @contextmanager
    def stage(self, name: str, kind: str = "postgres", *, is_migrated: bool = True, **settings: str) -> Iterator[Stage]:
        """Yield a service with a fresh database, on `postgres` or `sqlite`; `is_migrated` concerns the former."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        if kind == "postgres":
            stage = self._on_postgres(name, folder, settings, "chaos_template" if is_migrated else "template1")
        else:
            stage = self._on_sqlite(folder, settings)
        try:
            yield stage
        finally:
            stage.close()

    def _on_sqlite(self, folder: Path, settings: dict[str, str]) -> Stage:
        shutil.copyfile(self.template, folder / "wcl.sqlite3")
        url = URL.create("sqlite", database=str(folder / "wcl.sqlite3"))
        return Stage(folder, url.render_as_string(), settings)

    def _on_postgres(self, name: str, folder: Path, settings: dict[str, str], template: str) -> Stage:
        database_name = f"chaos_{name.replace('-', '_')}"
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database_name}" TEMPLATE {template}')
        url = _with_driver(self.postgres_url, database_name)
        broker = {"WCL_BROKER_URL": self.redis_url}  # shared: stages see each other's wake-ups as doubled or lost ones
        return Stage(folder, url, broker | settings, self.postgres, self.redis)


@contextmanager
def theatre(folder: Path) -> Iterator[Theatre]:
    """Configure servers to survive a crash of their processes; a crash of the machine is not tested."""
    template = folder / "template.sqlite3"
    _migrate(f"sqlite:///{template}")
    with ExitStack() as stack:
        postgres, url = stack.enter_context(servers.postgres_server(synchronous_commit="on", autovacuum="on"))
        redis, redis_url = stack.enter_context(servers.restartable_redis())
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos_template")
        _migrate(_with_driver(url, "chaos_template"))
        yield Theatre(folder, postgres, url, redis, redis_url, template)


def _with_driver(url: str, database_name: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg", database=database_name).render_as_string()


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.write(_announce)
    database.dispose()


def _announce(session: Session) -> None:
    """Register a worker that has stopped again."""
    facts = WorkerFacts(new_id(), "gone", "default", (), {STANDIN.name: STANDIN.digest}, SPEC_VERSIONS)
    workers.register(session, facts, 1, [STANDIN])
    workers.stop(session, facts.id)
