"""Networks from weight files: the backbone of an exported file or of a native checkpoint, built as its file says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core.checkpoint import CheckpointError
from wcl_core.config import BackboneConfig, is_transformer
from wcl_core.networks.backbones import FeatureNetwork, build_backbone

_NATIVE_PREFIX = "model/backbone."
_SIZE = 32  # of images, for files that do not say it; only transformers depend on it


def load_backbone(file: str | Path) -> FeatureNetwork:
    """Return the network whose weights a file holds, in eval mode and with these weights.

    It maps (N, 3, H, W) floats to (N, feature_dim) features.  The floats are pixels from 0 to 1, minus the means
    (0.485, 0.456, 0.406) and divided by the deviations (0.229, 0.224, 0.225) of red, green and blue.

    Args:
        file: an exported backbone, or a native checkpoint.

    Raises:
        CheckpointError: the file is absent, damaged, or holds no backbone of this project.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["wcl"])
            names = list(opened.keys())
            is_native = any(name.startswith(_NATIVE_PREFIX) for name in names)
            prefix = _NATIVE_PREFIX if is_native else ""
            weights = {name.removeprefix(prefix): opened.get_tensor(name) for name in names if name.startswith(prefix)}
        spec = facts["spec"] if is_native else {"backbone": facts["backbone"], "data": facts.get("data", {})}
        config = BackboneConfig.model_validate(spec["backbone"])
        network = build_backbone(config, _image_size(config, spec["data"], weights))
        network.load_state_dict(weights)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file} holds no backbone that can be built: {type(error).__name__}: {text}") from error
    return network.eval()


def trained_size(file: str | Path) -> int:
    """Return the side in pixels of the images that a backbone was trained on; 224 if the file does not say it.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get("wcl", "{}"))
        return int((facts.get("spec") or facts).get("data", {}).get("image_size", 224))
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def exported_facts(file: str | Path, image_size: int) -> dict[str, Any]:
    """Return the part of a spec that builds the backbone of a file again, for images of another size, too.

    Raises:
        CheckpointError: the file cannot be read, or is of another kind.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})["wcl"])
        spec = facts.get("spec") or facts
        return {"backbone": spec["backbone"], "data": {"image_size": image_size}}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _image_size(config: BackboneConfig, data: dict[str, Any], weights: dict[str, Tensor]) -> int:
    """Return the side of the images that the network was trained on, by its position embeddings if it has any."""
    if is_transformer(config.name) and "encoder.pos_embedding" in weights:
        return math.isqrt(weights["encoder.pos_embedding"].shape[1] - 1) * config.patch_size
    return int(data.get("image_size", _SIZE))
