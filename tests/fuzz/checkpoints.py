"""Checkpoint files (safetensors) with mutated bytes and headers: read, and exported as a backbone."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.fuzz import mutations
from tests.fuzz.tally import Tally
from tests.worker.running import SHORT
from wcl_core import checkpoint, export
from wcl_core.config import parse_spec, resolve_spec

COUNT = 10_000
SLICE = 300
_MAX_GROWTH = 256 << 20


def run(count: int, seed: int, tally: Tally) -> None:
    """Read and export `count` mutated files."""
    with tempfile.TemporaryDirectory(prefix="wcl-fuzz-") as name:
        folder = Path(name)
        valid = _valid(folder)
        with tally.memory_within(_MAX_GROWTH, seed):
            for each in range(seed, seed + count):
                generator = random.Random(each)
                path = folder / "mutated.safetensors"
                path.write_bytes(_mutated(generator, valid))
                _read(path, each, tally)
                _export(path, folder / "backbone.safetensors", each, tally)


def _valid(folder: Path) -> bytes:
    generator = torch.Generator().manual_seed(1)
    names = {"model/backbone.conv1.weight": (4, 3, 3, 3), "model/backbone.bn1.bias": (4,), "model/head.weight": (2, 4)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    tensors |= {"optimizer/backbone.conv1.weight/step": torch.tensor(3), "rng/0/cpu": torch.zeros(5, dtype=torch.uint8)}
    spec = resolve_spec(parse_spec("pretrain", SHORT))
    metadata = {"spec": spec, "step": 3, "epoch": 1, "dataset_digest": "d", "environment": {}, "metrics": {}}
    return checkpoint.write(folder / "valid.safetensors", tensors, metadata).path.read_bytes()


def _mutated(generator: random.Random, valid: bytes) -> bytes:
    """Return the file with other bytes, or with other values in its header or in the metadata of the run."""
    choice = generator.random()
    if choice < 0.4:
        return mutations.of_bytes(generator, valid)
    length = int.from_bytes(valid[:8], "little")
    header: dict[str, Any] = json.loads(valid[8 : 8 + length])
    if choice < 0.75:
        changed = mutations.of_json(generator, header)
    else:
        metadata = mutations.of_json(generator, json.loads(header["__metadata__"]["wcl"]))
        changed = header | {"__metadata__": {"wcl": json.dumps(metadata)}}
    text = json.dumps(changed).encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    claimed = len(text) if generator.random() < 0.9 else generator.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return claimed.to_bytes(8, "little") + text + valid[8 + length :]


def _read(path: Path, seed: int, tally: Tally) -> None:
    try:
        content = checkpoint.read(path)
        _ = content.spec
        tally.add("read")
    except checkpoint.CheckpointError:
        tally.add("refused")
    except Exception as error:
        tally.fail(f"read: {type(error).__name__}", seed, str(error))


def _export(path: Path, out: Path, seed: int, tally: Tally) -> None:
    out.unlink(missing_ok=True)
    try:
        export.backbone_file(path, out)
    except export.ExportError:
        if out.exists():
            tally.fail("export: a refused file was written", seed, path.name)
        return
    except Exception as error:
        tally.fail(f"export: {type(error).__name__}", seed, str(error))
        return
    try:
        with safe_open(out, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                file.get_tensor(name)
        tally.add("exported")
    except Exception as error:
        tally.fail(f"export: its file cannot be read: {type(error).__name__}", seed, str(error))
