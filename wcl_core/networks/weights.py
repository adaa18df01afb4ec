"""Networks from weight files: the backbone of an exported file or of a native checkpoint, built as its file says.

A training also starts from such a file: `start_weights` and `load_start`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core.checkpoint import CheckpointError, is_finite
from wcl_core.config import BackboneConfig, is_transformer
from wcl_core.networks.backbones import FeatureNetwork, build_backbone
from wcl_core.networks.model import Model

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
    return read_backbone(file)[0]


def read_backbone(file: str | Path) -> tuple[FeatureNetwork, BackboneConfig, int]:
    """Return the network of `load_backbone`, its part of a spec, and the side of the images that it was trained on.

    Raises:
        CheckpointError: as `load_backbone`.
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
        image_size = _image_size(config, spec["data"], weights)
        network = _filled(config, image_size, weights)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file} holds no backbone that can be built: {type(error).__name__}: {text}") from error
    return network.eval(), config, image_size


def _filled(config: BackboneConfig, image_size: int, weights: dict[str, Tensor]) -> FeatureNetwork:
    """Return a network with these weights; random ones are drawn only for a plugin that has values beside them."""
    with torch.device("meta"):
        network = build_backbone(config, image_size)
    network.load_state_dict({name: _as_trained(tensor) for name, tensor in weights.items()}, assign=True)
    if not any(each.is_meta for each in (*network.parameters(), *network.buffers())):
        return network
    network = build_backbone(config, image_size)
    network.load_state_dict(weights)
    return network


def _as_trained(tensor: Tensor) -> Tensor:
    # A copy: memory of the file is aligned otherwise, for which a convolution may round otherwise.
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def start_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights in a file by their names in a `Model`: `backbone.…`, and of a checkpoint those of its heads.

    Raises:
        CheckpointError: the file is absent or damaged, or a weight is not finite.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            is_native = any(name.startswith(_NATIVE_PREFIX) for name in names)
            prefix, kept = ("backbone.", "") if not is_native else ("", "model/")
            tensors = {
                f"{prefix}{name.removeprefix(kept)}": opened.get_tensor(name) for name in names if name.startswith(kept)
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights to start from cannot be read: {error}") from error
    if not is_finite(tensors):
        raise CheckpointError("the weights to start from hold NaN or infinity; import a finite file")
    return tensors


def load_start(model: Model, weights: dict[str, Tensor]) -> list[str]:
    """Load the backbone, and each head that the file has in the same form; the other heads stay as they are.

    Returns:
        The names of the parts that were loaded, `backbone` first.

    Raises:
        CheckpointError: the backbone is another one; the message names the first differences.
    """
    loaded = []
    for part in ("backbone", *model.head_names):
        module = model.get_submodule(part)
        given = {name.removeprefix(f"{part}."): each for name, each in weights.items() if name.startswith(f"{part}.")}
        differences = shape_differences(module.state_dict(), given)
        if not differences:
            module.load_state_dict(given)
            loaded.append(part)
        elif part == "backbone":
            text = "; ".join(differences[:3]) + (f"; and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise CheckpointError(f"the weights to start from are of another backbone: {text}")
    return loaded


def shape_differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return how the names and shapes of tensors differ from the expected ones, each as a few words."""
    missing = [f"{name} is missing" for name in expected if name not in given]
    unknown = [f"{name[:100]} is unknown" for name in given if name not in expected]
    return (
        missing
        + unknown
        + [
            f"{name} is {_shape(given[name])}, expected {_shape(each)}"
            for name, each in expected.items()
            if name in given and given[name].shape != each.shape
        ]
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


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
