"""A real server on a data folder of its own, and runs that are played into its database line by line."""

from __future__ import annotations

import hashlib
import io
import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image

from api.http.auth import session_cookie
from jobs import keys, queries, submission, transitions, workers
from jobs.attempts import AttemptRef
from jobs.database import Database, new_id
from jobs.datasets import DatasetFacts, SampleSheet
from jobs.eligibility import WorkerFacts
from jobs.models import Checkpoint
from jobs.settings import Settings
from tests import servers
from tests.jobs.rows import delivered, make_due
from tests.processes import Forked, outside
from tests.servers import free_port
from tests.waiting import PATIENCE, eventually
from wcl_core.config import parse_spec

DIGEST = "d1" * 32
SCOPES = ("read", "submit", "admin")
SPEC: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8},
    "epochs": 10,
    "warmup_epochs": 1,
    "weak_augmentation_epochs": 1,
}
_PLACES = [(-1.0, -1.0), (-0.9, -1.0), (1.0, 1.0), (0.9, 1.0), (0.0, 0.0)]
MAP: dict[str, Any] = {
    "version": 1,
    "dataset": "digits",
    "split": "test",
    "split_images": 40,
    "class_names": ["zero", "<img src=x onerror=pwned=1>"],
    "tile": 8,
    "columns": 2,
    "indices": [3, 7, 11, 20, 35],
    "labels": [0, 0, 1, 1, None],
    "components": [0, 0, 1, 1, 0],
    "pca": [(y, x) for x, y in _PLACES],
    "pca_shares": [0.5, 0.25],
    "tsne": _PLACES,
    "perplexity": 1.33,
    "neighbours": [[1, 4], [0, 4], [3, 4], [2, 4], [2, 0]],
    "cosines": [[0.99, 0.5]] * 5,
}
T = TypeVar("T")


def sheet(colours: Sequence[tuple[int, int, int]], columns: int, side: int) -> SampleSheet:
    """Return samples of as many classes as there are colours; each class has one colour."""
    rows = [np.full((side, columns * side, 3), colour, dtype=np.uint8) for colour in colours]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, "png")
    return SampleSheet(buffer.getvalue(), len(rows), columns, side)


class Site:
    """`python -m api` as a process, with a database that the test writes to beside it, as a worker would."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.settings = Settings(data_dir=data_dir, port=free_port())
        self._environment = environment
        self.database = servers.without_syncs(Database(self.settings.resolved_database_url))
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self._process: Forked | None = None
        self._sessions: dict[tuple[str, ...], str] = {}
        self.worker = WorkerFacts(new_id(), "box-1", "default", (), {"digits": DIGEST}, (1,))

    def start(self) -> None:
        # The played attempts are not renewed, and must not be reaped either.
        own = {"WCL_DATA_DIR": str(self.settings.data_dir), "WCL_PORT": str(self.settings.port)}
        own |= {"WCL_LEASE_SECONDS": "100000"} | self._environment
        self._process = Forked("api", outside() | own, self.settings.data_dir / "server.log")
        eventually(self._is_up, f"the start of the server ({self.settings.data_dir}/server.log)", 40)

    def _is_up(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.settings.data_dir / "server.log").read_text(errors="replace")
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=2).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=PATIENCE)
        self.database.dispose()

    def session(self, scopes: Sequence[str] = SCOPES) -> str:
        """Return the cookie of a signed-in browser, the same for all windows of these scopes."""
        if (cookie := self._sessions.get(tuple(scopes))) is not None:
            return cookie
        key = self.database.write(lambda session: keys.create(session, "local", scopes)[1])
        cookie = self._sessions[tuple(scopes)] = self.signed_in(key)
        return cookie

    def signed_in(self, key: str) -> str:
        """Return the cookie of a browser that signs in with a link of the key."""
        return httpx.get(self.sign_in_link(key), trust_env=False, timeout=PATIENCE).cookies[self.cookie]

    @property
    def cookie(self) -> str:
        """The name of the session cookie."""
        storage_id = (self.settings.checkpoints_dir / "storage-id").read_text().strip()
        return session_cookie(storage_id, self.database.place())

    def sign_in_link(self, key: str | None = None) -> str:
        key = key or (self.settings.data_dir / "key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{self.url}/v1/sign-in-links", headers=headers, trust_env=False, timeout=PATIENCE)
        return str(answer.raise_for_status().json()["url"])

    def register(self, classes: Sequence[str] = ("0", "1"), samples: SampleSheet | None = None) -> None:
        """Register a worker with the digits."""
        counts = {"train": [719] * len(classes), "test": [180] * len(classes)} if samples else {}
        facts = DatasetFacts("digits", "builtin", DIGEST, {"train": 1438, "test": 359}, list(classes), counts)
        facts = replace(facts, sheet=samples)
        self.worker = replace(self.worker, id=new_id())
        self.database.write(lambda session: workers.register(session, self.worker, 4242, [facts]))

    def submit(self, name: str = "a job", tags: Sequence[str] = (), *, pool: str = "default", **spec: Any) -> str:
        sent = SPEC | spec
        new = submission.NewJob("pretrain", sent, parse_spec("pretrain", sent), name=name, tags=tuple(tags), pool=pool)
        return self.database.write(lambda session: submission.submit(session, new)).id

    def submit_evaluation(self, checkpoint_id: str, name: str) -> str:
        sent = {"data": SPEC["data"], "features": {"kind": "checkpoint", "checkpoint_id": checkpoint_id}}
        new = submission.NewJob("evaluate", sent, parse_spec("evaluate", sent), name=name)
        return self.database.write(lambda session: submission.submit(session, new)).id

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        with self.database.read() as session:
            return queries.checkpoints(session, job_id)

    def status(self, job_id: str) -> str:
        with self.database.read() as session:
            return queries.get_job(session, job_id).status

    def claim(self) -> PlayedRun:
        """Claim the first queued job."""
        claimed = self.try_claim()
        assert claimed is not None
        return claimed

    def try_claim(self) -> PlayedRun | None:
        """Claim the first queued job; return None if no job is queued."""
        claimed = self.database.write(lambda session: transitions.claim(session, self.worker))
        return None if claimed is None else PlayedRun(self, claimed.attempt)

    def running(self, name: str = "a run", tags: Sequence[str] = ()) -> PlayedRun:
        """Start a job of this name; no other job may be queued."""
        job_id = self.submit(name, tags)
        run = self.claim()
        assert run.job_id == job_id
        return run


class PlayedRun:
    """A played training run: it delivers the reports that a real one would."""

    def __init__(self, site: Site, attempt: AttemptRef) -> None:
        self.attempt, self.job_id, self.number = attempt, attempt.job_id, attempt.number
        self._site = site
        self._seq = 0
        self._output = 0

    def report(self, *lines: dict[str, Any], output: Sequence[str] = ()) -> None:
        numbered = [{"seq": self._seq + place, **line} for place, line in enumerate(lines, start=1)]
        self._seq += len(lines)
        printed = [(self._output + place, text) for place, text in enumerate(output, start=1)]
        self._output += len(output)
        write = self._site.database.write
        write(lambda session: transitions.deliver(session, self.attempt, delivered(numbered), printed))

    def start(self, step: int = 0) -> None:
        self.report({"type": "started", "start_step": step, "device": "cpu", "torch": "2.11.0", "threads": 1})

    def losses(self, steps: Sequence[int]) -> None:
        """Report the loss of each step, then the progress."""
        reports = [{"type": "metrics", "step": step, "values": {"train/loss": 5 - step / 100}} for step in steps]
        self.report(*reports, self.progress(steps[-1]))

    def progress(self, step: int, total: int = 100) -> dict[str, Any]:
        facts = {"step": step, "total_steps": total, "epoch": step / total * 10, "total_epochs": 10}
        return {"type": "progress", "phase": "train", "images_per_second": 1234.5, "eta_seconds": 95.0, **facts}

    def checkpoint(self, step: int, metrics: dict[str, float] | None = None) -> str:
        """Register a checkpoint file; return its digest."""
        content = f"checkpoint {self.job_id} {step}\n".encode() * 500
        key = f"{self.attempt.folder}/step-{step:08d}.safetensors"
        path = self._site.settings.checkpoints_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        facts = {"step": step, "epoch": 1, "path": key, "sha256": digest, "size": len(content)}
        self.report({"type": "checkpoint", "metrics": metrics or {"train/loss": 1.5}, **facts})
        return digest

    def map(self, **changes: Any) -> None:
        """Register a map of five images: one has no label, and one class has a hostile name."""
        buffer = io.BytesIO()
        Image.fromarray(np.full((24, 16, 3), 90, dtype=np.uint8)).save(buffer, "png")
        self.artifact("map.png", buffer.getvalue(), "image/png")
        self.artifact("map.json", json.dumps(MAP | changes).encode(), "application/json")

    def artifact(self, name: str, content: bytes, media_type: str) -> None:
        digest = hashlib.sha256(content).hexdigest()
        key = f"{self.attempt.folder}/{digest[:16]}-{name}"
        path = self._site.settings.checkpoints_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        file = {"name": name, "path": key, "sha256": digest, "size": len(content), "media_type": media_type}
        self.report({"type": "artifact", **file})

    def monitor_batch(
        self, colours: Sequence[tuple[int, int, int]], classes: Sequence[int | None], names: Sequence[str]
    ) -> None:
        """Deliver a monitor batch of images of one colour each, eight pixels wide, from index 100 on."""
        columns = 3
        tiles = [np.full((8, 8, 3), colour, dtype=np.uint8) for colour in colours]
        tiles += [np.zeros((8, 8, 3), dtype=np.uint8)] * (-len(tiles) % columns)
        rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(rows)).save(buffer, "png")
        self.artifact("probe.png", buffer.getvalue(), "image/png")
        facts = {"indices": list(range(100, 100 + len(colours))), "classes": list(classes), "class_names": list(names)}
        facts |= {"tile": 8, "columns": columns}
        self.artifact("probe.json", json.dumps(facts).encode(), "application/json")

    def groups(self, epoch: int, labels: Sequence[int]) -> None:
        """Deliver the weak labels of the monitor batch, then the metrics."""
        step = 10 * epoch
        self.report(
            {"type": "groups", "epoch": epoch, "step": step, "labels": list(labels)},
            {"type": "metrics", "step": step, "values": {"weak/ami": 0.5}},
        )

    def evaluation(self, protocol: str, value: float, stderr: float | None = None, **params: Any) -> None:
        identity = {"protocol": protocol, "protocol_version": 1, "metric": "top1", "seed": 0, "params": params}
        digests = {"dataset_digest": DIGEST, "split_digest": "e1" * 32}
        self.report({"type": "evaluation", "value": value, "stderr": stderr, "n": 359, **identity, **digests})

    def end(self, outcome: str = "succeeded", reason: str | None = None, message: str | None = None) -> None:
        self.report({"type": "end", "outcome": outcome, "reason": reason, "message": message})

    def lose(self) -> None:
        """Declare the attempt lost, and end the backoff of its job."""
        write = self._site.database.write
        write(lambda session: transitions.end_attempt(session, self.attempt, "failed", "worker_lost"))
        make_due(self._site.database)
