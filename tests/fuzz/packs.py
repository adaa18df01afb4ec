"""Packed datasets (.wclpack) with mutated bytes, headers and labels, whose digests are right or not."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.fuzz import mutations
from tests.fuzz.tally import Tally
from wcl_core.data.images import DataError
from wcl_core.data.packed import describe_packed, load_packed
from wcl_core.data.packing import pack
from wcl_core.reporter import NullReporter

COUNT = 10_000
SLICE = 200
_MAX_GROWTH = 256 << 20


def run(count: int, seed: int, tally: Tally) -> None:
    """Describe and load `count` mutated files."""
    with tempfile.TemporaryDirectory(prefix="wcl-fuzz-") as name:
        folder = Path(name)
        valid = _valid(folder)
        with tally.memory_within(_MAX_GROWTH, seed):
            for each in range(seed, seed + count):
                path = folder / "mutated.wclpack"
                path.unlink(missing_ok=True)  # an earlier case may have mapped it
                path.write_bytes(_mutated(random.Random(each), valid))
                for use in (_describe, _load):
                    try:
                        use(path, each, tally)
                        tally.add(use.__name__.removeprefix("_"))
                    except DataError:
                        tally.add("refused")
                    except Exception as error:
                        tally.fail(f"{use.__name__.removeprefix('_')}: {type(error).__name__}", each, str(error))


def _describe(path: Path, seed: int, tally: Tally) -> None:
    description = describe_packed("photos", path)
    for which, counts in description.class_counts.items():
        if sum(counts) != description.counts[which]:
            tally.fail("describe: images without a class", seed, f"{which}: {counts} of {description.counts}")


def _load(path: Path, seed: int, tally: Tally) -> None:
    loaded = load_packed("photos", path, 8)
    for split in (loaded.train, loaded.test):
        if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(loaded.classes):
            tally.fail("load: a label outside of the classes", seed, str(split.labels.tolist()))
        split.images[:].float().mean()  # touches every byte


def _valid(folder: Path) -> bytes:
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = folder / "photos" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number * 40, label * 90, 10)).save(path)
    pack("photos", folder / "photos", folder / "valid.wclpack", 8, 0.0, NullReporter())
    return (folder / "valid.wclpack").read_bytes()


def _mutated(generator: random.Random, valid: bytes) -> bytes:
    """Return the file with other bytes, another header, or other images and labels; mostly with digests that agree."""
    choice = generator.random()
    if choice < 0.3:
        return mutations.of_bytes(generator, valid)
    start = 16 + int.from_bytes(valid[8:16], "little")
    fields: dict[str, Any] = json.loads(valid[16:start])
    body = valid[start:]
    if choice < 0.6:
        labels = generator.randrange(len(body) - 12 * 4, len(body))  # the last bytes are labels
        replaced = mutations.of_bytes(generator, body[labels:], most=2)[: len(body) - labels]
        body = body[:labels] + replaced.ljust(len(body) - labels, b"\0")
    changed = mutations.of_json(generator, fields) if choice >= 0.6 else fields
    if isinstance(changed, dict) and generator.random() < 0.8:
        size = fields["block_bytes"]
        changed["blocks"] = [hashlib.sha256(body[at : at + size]).hexdigest() for at in range(0, len(body), size)]
    text = json.dumps(changed).encode(errors="surrogatepass")
    padded = text.ljust(-(-(16 + len(text)) // 4_096) * 4_096 - 16)
    return valid[:8] + len(padded).to_bytes(8, "little") + padded + body
