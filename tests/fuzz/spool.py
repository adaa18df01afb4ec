"""Spools of attempts whose worker died, with mutated bytes, records and files, beside an attempt that is right."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from jobs.attempts import AttemptRef
from jobs.audit import audit
from jobs.database import Database
from tests.fuzz import mutations
from tests.fuzz.tally import Tally
from tests.worker.leftovers import PRECIOUS, Leftovers, lines_of, valid_records
from wcl_core.protocol import OUTPUT_FILE, RUN_FILE, SPOOL_FILE
from worker import recovery
from worker.attempt_folder import LOCK_FILE

COUNT = 10_000
SLICE = 60
_SLOW_SECONDS = 10.0
_PER_DATABASE = 200  # cases


def run(count: int, seed: int, tally: Tally) -> None:
    """Recover `count` mutated attempts."""
    logging.disable(logging.CRITICAL)
    try:
        for first in range(seed, seed + count, _PER_DATABASE):
            with tempfile.TemporaryDirectory(prefix="wcl-fuzz-") as folder:
                database = Database(f"sqlite:///{folder}/wcl.sqlite3")
                database.migrate()
                left = Leftovers(database, Path(folder), stall_seconds=2)
                for each in range(first, min(first + _PER_DATABASE, seed + count)):
                    _case(left, each, tally)
                findings = audit(database).findings
                for finding in findings[:1]:
                    tally.fail("the audit of the database", first, str(finding))
                database.dispose()
    finally:
        logging.disable(logging.NOTSET)


def _case(left: Leftovers, seed: int, tally: Tally) -> None:
    generator = random.Random(seed)
    bad, good = sorted((left.attempt(), left.attempt()), key=lambda attempt: attempt.job_id)
    left.write_spool(good, lines_of(valid_records(left.folder(good))))
    kind = _spoil(left, left.folder(bad), generator)
    began = time.monotonic()
    try:
        recovery.recover(left.database, left.storage, left.settings)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        tally.fail(f"{type(error).__name__} in {Path(place.filename).name}: {place.name}", seed, f"{kind}: {error}")
    seconds = time.monotonic() - began
    status = left.job(bad).status
    tally.add(f"{kind}: {status}")
    if left.job(good).status != "succeeded":
        tally.fail("the attempt beside it is not recovered", seed, f"{kind}: {left.job(good).status}")
    if not left.has_ended(bad) and kind not in ("replaced", "run file"):
        tally.fail("the attempt does not end", seed, f"{kind}: {status}")
    if seconds > _SLOW_SECONDS:
        tally.fail(f"over {_SLOW_SECONDS:g} s", seed, f"{kind}: {seconds:.1f} s")
    if left.precious.read_bytes() != PRECIOUS or left.foreign_files():
        tally.fail("a file outside of the folder is taken", seed, f"{kind}: {left.foreign_files()}")
        left.precious.write_bytes(PRECIOUS)
    for attempt in (bad, good):
        _remove(left, attempt)


def _remove(left: Leftovers, attempt: AttemptRef) -> None:
    shutil.rmtree(left.folder(attempt).parent, ignore_errors=True)


def _spoil(left: Leftovers, folder: Path, generator: random.Random) -> str:
    """Write an attempt's files with mutations, and return the kind of mutation."""
    records = valid_records(folder)
    kind = generator.choice(("records", "records", "records", "bytes", "bytes", "files", "replaced", "run file"))
    lines = lines_of(records)
    match kind:
        case "records":
            for _ in range(generator.choice((1, 1, 1, 2, 4))):
                place = generator.randrange(len(records))
                lines[place] = _line(mutations.of_json(generator, records[place]))
            if generator.random() < 0.2:
                generator.shuffle(lines)
        case "bytes":
            lines = [mutations.of_bytes(generator, b"\n".join(lines))]
        case "files":
            _point_elsewhere(left, folder, records, generator)
            lines = lines_of(records)
        case "run file":
            path = folder / RUN_FILE
            path.write_bytes(mutations.of_bytes(generator, path.read_bytes()))
    (folder / SPOOL_FILE).write_bytes(b"\n".join(lines) + b"\n" * (generator.random() < 0.9))
    if kind == "replaced":
        _replace(
            left, folder / generator.choice((SPOOL_FILE, RUN_FILE, OUTPUT_FILE, LOCK_FILE, "checkpoints")), generator
        )
    return kind


def _line(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def _point_elsewhere(left: Leftovers, folder: Path, records: list[dict[str, Any]], generator: random.Random) -> None:
    """Let the records of files name a file of the user, in many ways."""
    (folder / "link").symlink_to(left.precious)
    (folder / "out").symlink_to(left.precious.parent)
    places = [
        str(left.precious),
        os.path.relpath(left.precious, folder),
        "link",
        "out/precious",
        "./link",
        "out/./precious",
    ]
    places += ["checkpoints/../link", "a" * 5_000, "ä" * 150, "checkpoints", ".", "", "/", "\0", RUN_FILE, SPOOL_FILE]
    places += [f"./{SPOOL_FILE}", f"checkpoints/../{RUN_FILE}", "link/", "//etc/hostname", "~/x", "link/x"]
    for record in records:
        if "path" in record and generator.random() < 0.8:
            record |= {"path": generator.choice(places), "size": len(PRECIOUS)}
            record["sha256"] = hashlib.sha256(PRECIOUS).hexdigest()


def _replace(left: Leftovers, path: Path, generator: random.Random) -> None:
    """Put another kind of file in the place of a file."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match generator.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(left.precious)
        case 3:
            path.symlink_to(path)
        case 4:
            path.write_bytes(generator.randbytes(1_000))
