"""Trained weights in the forms of other programs: ONNX, and a folder as timm and the Hugging Face Hub have it.

    file ── network (`load_backbone`) ┬─ ONNX: one graph for any number of images
                                      └─ timm's network with the same weights ── folder: model.safetensors, config.json

Each form is compared with the network that it was made from.  All take what `load_backbone` takes: pixels from 0 to 1,
minus ImageNet's means, divided by its deviations.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor, nn

from wcl_core.config import BackboneConfig, is_transformer
from wcl_core.export import TORCHVISION_RESNETS, ExportError
from wcl_core.files import write_whole
from wcl_core.images.augment import MEAN, STD
from wcl_core.networks.backbones import FeatureNetwork
from wcl_core.networks.timm import TimmBackbone, timm_name
from wcl_core.networks.weights import read_backbone

_TOLERANCE: Final = 1e-4  # of the largest feature, between a network and its other form
# Facts of a network and its images in timm's configuration.
_KEPT: Final = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "pool_size", "first_conv", "classifier", "custom_load"),
)
_MOST_IMAGES: Final = 65_536  # of one call; the exporter wants a bound


def write_onnx(file: Path, out: Path) -> None:
    """Write a backbone as an ONNX graph: `images` (N, 3, side, side) to `features` (N, feature_dim), in float32.

    N is free, and the side of the images is that of the training.

    Args:
        file: an exported backbone, or a native checkpoint.
        out: the file to write.

    Raises:
        CheckpointError: the file holds no backbone of this project.
        ExportError: the package `onnx` is absent, or the network has an operation that ONNX lacks.
    """
    network, config, side = read_backbone(file)
    try:
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it and would say so less plainly
    except ImportError as error:
        raise ExportError("ONNX needs a package: pip install 'wcl-service[onnx]'") from error
    try:
        with _silent():
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, side, side),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)},),
                dynamo=True,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, ValueError, RuntimeError) as error:
        raise ExportError(f"{config.name} cannot be written as ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    program.model.metadata_props.update(
        {"backbone": config.variant or config.name, "image_size": str(side), "mean": str(MEAN), "std": str(STD)}
    )

    def write(target: BinaryIO) -> None:
        target.write(program.model_proto.SerializeToString())

    write_whole(out, write)


def write_timm(file: Path, folder: Path, about: str = "") -> None:
    """Write a backbone as a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        file: an exported backbone, or a native checkpoint.
        folder: is made; the Hugging Face Hub takes it as it is.
        about: Markdown for the model card, after the lines that load the weights.

    Raises:
        CheckpointError: the file holds no backbone of this project.
        ExportError: timm is absent or has no such network, or the folder exists.
    """
    if folder.exists():
        raise ExportError(f"{folder} exists; name a folder that does not")
    network, config, side = read_backbone(file)
    twin = _timm_network(network, config, side)
    _compare(network, twin, side)
    from timm.models import save_for_hf

    shape = {"input_size": (3, side, side), "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 1.0}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        part = Path(beside) / folder.name
        save_for_hf(twin, str(part), model_config={"pretrained_cfg": shape}, safe_serialization=True)
        card, config_file = part / "README.md", part / "config.json"
        card.write_text(_card(folder.name, about))
        written = json.loads(config_file.read_text())
        # timm copies the origin, the licence and the paper of weights of its own.
        written["pretrained_cfg"] = {name: written["pretrained_cfg"].get(name) for name in _KEPT}
        config_file.write_text(json.dumps(written, indent=2))
        (part / "model.safetensors").chmod(card.stat().st_mode & 0o777)
        shutil.move(part, folder)


def _timm_network(network: FeatureNetwork, config: BackboneConfig, side: int) -> nn.Module:
    """Return timm's network with the weights of a network.

    Raises:
        ExportError: timm is absent, or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise ExportError("this form needs a package: pip install 'wcl-service[timm]'") from error
    if isinstance(network, TimmBackbone):
        return network.network
    weights: dict[str, Tensor] = network.state_dict()
    if is_transformer(config.name):
        twin = timm.create_model(
            f"{config.name}_patch16_224", num_classes=0, img_size=side, patch_size=config.patch_size
        )
        weights = {timm_name(name): each for name, each in weights.items()}
    elif config.name in TORCHVISION_RESNETS and config.stem == "imagenet":
        twin = timm.create_model(config.name, num_classes=0)
    else:
        stem = f" with the stem {config.stem}" if config.name in TORCHVISION_RESNETS else ""
        raise ExportError(f"timm has no {config.name}{stem}; write it as ONNX, or load it by wcl_core.load_backbone")
    twin.load_state_dict(weights)
    built: nn.Module = twin.eval()
    return built


def _compare(network: nn.Module, twin: nn.Module, side: int) -> None:
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, features = network(images), twin(images)
    if not bool((features - expected).abs().max() <= _TOLERANCE * expected.abs().max()):
        raise ExportError("timm's network computes other features from the same weights; use another version of timm")


def _card(name: str, about: str) -> str:
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- self-supervised
---
# {name}

A backbone that was trained without labels. It maps images to features.

```python
import timm

network = timm.create_model("local-dir:{name}", pretrained=True)  # the path of this folder
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
```

{about}"""


@contextlib.contextmanager
def _silent() -> Any:
    """Keep the exporter's progress and its warnings about PyTorch's own code off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
