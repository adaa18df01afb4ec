"""Files of imported weights for tests, made without PyTorch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from wcl_core.config import BackboneConfig
from wcl_core.config.tensors import backbone_tensors

TINY = {"name": "tiny", "width": 4}


def weight_file(seed: int = 0, **backbone: Any) -> tuple[bytes, str]:
    """Return the bytes of a file of imported weights, by default of the smallest backbone, and their digest."""
    config = BackboneConfig(**(backbone or TINY))
    generator = np.random.default_rng(seed)
    tensors = {
        name: np.zeros(shape, np.int64) if dtype == "I64" else generator.random(shape, np.float32)
        for name, (dtype, shape) in backbone_tensors(config, 32).items()
    }
    report = {"prefix": "module.", "matched": len(tensors), "filled": 0, "unused": 1, "unused_names": ["fc.weight"]}
    facts = {"backbone": config.model_dump(mode="json"), "data": {"image_size": 32}, "import": report}
    content = save(tensors, {"wcl": json.dumps(facts)})  # one entry: their order would be random
    return content, hashlib.sha256(content).hexdigest()
