"""Weights of other programs as a file that a training starts from: torchvision, timm, MoCo, SimCLR, the authors' WCL.

    file ── read without running code ── unwrapped ── the prefix of the encoder ── our names ── checked ── safetensors

A residual network is found by its names alone, whatever program has put which prefix before them.  So a new wrapper
of torchvision's ResNet needs no line here.  A transformer has torchvision's names or timm's.
"""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core.checkpoint import CheckpointError
from wcl_core.config import BackboneConfig
from wcl_core.digests import canonical_json
from wcl_core.export import loading_lines
from wcl_core.files import open_regular, write_whole
from wcl_core.networks.backbones import build_backbone
from wcl_core.networks.timm import torchvision_name
from wcl_core.networks.weights import shape_differences
from wcl_core.snapshot import Snapshot
from wcl_core.text import visible
from wcl_core.weight_file import MAX_BYTES, MAX_LISTED

_MAX_DEPTH = 4  # of dictionaries around the weights
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "student", "network", "net")
_SECONDARY = re.compile(r"(^|[._/])(encoder_k|momentum\w*|teacher|target\w*|ema|key_encoder|k)[./]")
_LAYERS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # of nn.Sequential
_DEPTHS = {
    (1, 1, 1): "tiny",
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet34",
    (3, 4, 6, 3, "conv3"): "resnet50",
    (3, 4, 23, 3, "conv3"): "resnet101",
}
_TRANSFORMERS = {384: "vit_small", 768: "vit_base"}


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        backbone: the network that the weights are of, as a part of a spec.
        prefix: what stood before the names of the encoder.
        num_matched: tensors that were taken.
        filled: names of counters that the file lacks; they are 0.
        unused: names of the file's other tensors, such as heads and classifiers.
    """

    backbone: BackboneConfig
    prefix: str
    num_matched: int
    filled: tuple[str, ...]
    unused: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Return the facts as JSON values, with at most `MAX_LISTED` of the unused names."""
        return {
            "prefix": visible(self.prefix[:200]),
            "matched": self.num_matched,
            "filled": len(self.filled),
            "unused": len(self.unused),
            "unused_names": [visible(name[:200]) for name in self.unused[:MAX_LISTED]],
        }


def import_weights(file: Path, out: Path, *, stem: str | None = None, prefix: str | None = None) -> Imported:
    """Write the backbone in a file of another program as a file that a training starts from.

    Args:
        file: in safetensors format, or of `torch.save`; no code in it is run.
        out: the file to write, in the format of an exported backbone; equal weights give equal bytes.
        stem: `small` or `stride2`, which the weights of a 3x3 first convolution do not tell apart; by default `small`.
        prefix: what stands before the encoder's names, if the file has several encoders.

    Raises:
        CheckpointError: the file is damaged, hostile, or holds no backbone that this project has.
    """
    named = _flat(_read(file))
    prefix = _prefix(named) if prefix is None else prefix
    given = {name.removeprefix(prefix): each for name, each in named.items() if name.startswith(prefix)}
    given = _our_names(given)
    backbone, size = _backbone(given, stem)
    with torch.device("meta"):
        expected = build_backbone(backbone, size).state_dict()
    filled = tuple(name for name in expected if name.endswith("num_batches_tracked") and name not in given)
    taken = {name: given[name] for name in expected if name in given}
    taken |= {name: torch.zeros((), dtype=torch.int64) for name in filled}
    if differences := shape_differences(expected, taken):
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CheckpointError(f"{file.name} looks like {backbone.name}, but {'; '.join(differences[:3])}{more}")
    tensors = {name: _plain(file, name, taken[name], expected[name]) for name in expected}
    others = tuple(sorted({*named} - {f"{prefix}{name}" for name in given}))
    unused = (*sorted(f"{prefix}{name}" for name in given if name not in expected), *others)
    imported = Imported(backbone, prefix, len(taken) - len(filled), filled, unused)
    fields = backbone.model_dump(mode="json")
    facts = {"backbone": fields, "data": {"image_size": size}, "load": loading_lines(fields)}
    facts |= {"import": imported.report()}
    snapshot = Snapshot()
    snapshot.take(tensors)
    parts = (snapshot.header({"format": "pt", "wcl": canonical_json(facts)}), snapshot.body())
    write_whole(out, lambda written: written.writelines(parts))
    return imported


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(file: Path) -> Any:
    """Return the content of a file as its program has saved it, without running code of it.

    Raises:
        CheckpointError: it cannot be read so.
    """
    try:
        with open_regular(file.resolve()) as opened:  # a device has no end
            if (size := os.fstat(opened.fileno()).st_size) > MAX_BYTES:
                raise CheckpointError(f"{file.name} has {size:,} bytes; expected at most {MAX_BYTES:,}")
            start = opened.read(9)
        if start[8:9] == b"{":
            with safe_open(file, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
        _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a sparse tensor, which is refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{file.name} holds other things than tensors, and reading them could run code, so nothing was read; save "
            f"the state dict alone: torch.save(model.state_dict(), ...) ({_first(error)})"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file.name} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{file.name} is damaged, or neither safetensors nor a file of torch.save: {_first(error)}"
        ) from error
    except (IndexError, AssertionError, MemoryError, RecursionError, ImportError) as error:  # of malformed pickles
        raise CheckpointError(f"{file.name} is damaged: {type(error).__name__}") from error


def _check_archive(file: Path) -> None:
    """Refuse an archive that needs more memory than its file has bytes; torch.save compresses nothing."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(each.file_size for each in archive.infolist())
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file.name} is damaged: {error}") from error
    if size > MAX_BYTES:
        raise CheckpointError(f"{file.name} unpacks to {size:,} bytes; expected at most {MAX_BYTES:,}")


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _flat(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict by name, from within the dictionaries that programs put around it.

    Raises:
        CheckpointError: there are none.
    """
    for _ in range(_MAX_DEPTH):
        if not isinstance(content, Mapping):
            break
        inner = [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if any(isinstance(each, Tensor) for each in content.values()) or not inner:
            break
        content = inner[0]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {name: each for name, each in named if isinstance(name, str) and isinstance(each, Tensor)}
    if not tensors:
        raise CheckpointError("the file holds no state dict: expected tensors by name, perhaps below `state_dict`")
    return tensors


def _plain(file: Path, name: str, tensor: Tensor, expected: Tensor) -> Tensor:
    """Return a tensor on the CPU with its own memory and the expected type.

    Raises:
        CheckpointError: it is of an unusable kind, too large, or not finite.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        raise CheckpointError(f"{name} of {file.name} is no plain tensor; save it dense, as real numbers, on the CPU")
    # Its shape was compared, so that a stride of 0 cannot make a small file fill the memory.
    tensor = tensor.detach().to(expected.dtype).contiguous().clone()
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} of {file.name} holds NaN or infinity")
    return tensor


# --- names -----------------------------------------------------------------------------------------------------------


def _prefix(named: Mapping[str, Tensor]) -> str:
    """Return what stands before the names of the one encoder of a file.

    Raises:
        CheckpointError: the file has none, or several.
    """
    ends = ("layer1.0.conv1.weight", "4.0.conv1.weight", "conv_proj.weight", "patch_embed.proj.weight")
    prefixes = sorted({name.removesuffix(end) for name in named for end in ends if _ends(name, end)})
    first = [each for each in prefixes if not _SECONDARY.search(each)] or prefixes
    if len(first) == 1:
        return first[0]
    if not first:
        shown = ", ".join(name[:60] for name in list(named)[:4])
        raise CheckpointError(
            f"no backbone was found among {len(named):,} tensors ({shown}, ...); expected a ResNet with the names of "
            "torchvision or timm, or a vision transformer of one of them, below any prefix"
        )
    raise CheckpointError(f"there are several encoders; choose one: {', '.join(f'--prefix {each}' for each in first)}")


def _ends(name: str, end: str) -> bool:
    return name.endswith(end) and name[: -len(end)][-1:] in ("", ".")


def _our_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names."""
    if "4.0.conv1.weight" in given:
        parts = ((name.partition("."), each) for name, each in given.items())
        return {f"{_LAYERS.get(head, head)}{dot}{rest}": each for (head, dot, rest), each in parts}
    if "patch_embed.proj.weight" not in given:
        return dict(given)
    return {torchvision_name(name): each for name, each in given.items()}


# --- the network -----------------------------------------------------------------------------------------------------


def _backbone(given: Mapping[str, Tensor], stem: str | None) -> tuple[BackboneConfig, int]:
    """Return the network that weights are of, and the side of the images that its position embeddings are for.

    Raises:
        CheckpointError: this project has no such network.
    """
    if "conv_proj.weight" in given:
        return _transformer(given)
    stages = [_depth(given, stage) for stage in range(1, 9)]
    depths = tuple(depth for depth in stages if depth)
    first, conv1 = given.get("layer1.0.conv1.weight"), given.get("conv1.weight")
    if conv1 is None or conv1.ndim != 4 or first is None or first.ndim != 4:
        raise CheckpointError("the first convolution (conv1.weight) is missing or has another shape than a ResNet's")
    is_bottleneck = "layer1.0.conv3.weight" in given
    name = _DEPTHS.get((*depths, "conv3") if is_bottleneck else depths)
    width = conv1.shape[0]
    if name in ("resnet50", "resnet101") and first.shape[0] == 128:
        name = f"wide_{name}_2"
    if name is None or (name != "tiny" and width != 64) or not 4 <= width <= 256:
        blocks = f"{'-'.join(map(str, depths))} {'bottleneck' if is_bottleneck else 'basic'} blocks"
        raise CheckpointError(f"this project has no residual network of {blocks} and {width} channels")
    kernel = conv1.shape[-1]
    if kernel not in (3, 7) or (kernel == 7 and stem not in (None, "imagenet")) or (kernel == 3 and stem == "imagenet"):
        raise CheckpointError(f"the first convolution is {kernel}x{kernel}, which stem {stem or 'imagenet'} has not")
    fields = {"name": name, "stem": "imagenet" if kernel == 7 else stem or "small", "width": width}
    return BackboneConfig.model_validate(fields), 224 if kernel == 7 else 32


def _depth(given: Mapping[str, Tensor], stage: int) -> int:
    """Return the number of blocks of a stage."""
    pattern = re.compile(rf"layer{stage}\.(\d{{1,3}})\.conv1\.weight")
    return len({match[1] for name in given if (match := pattern.fullmatch(name))})


def _transformer(given: Mapping[str, Tensor]) -> tuple[BackboneConfig, int]:
    patches, positions = given["conv_proj.weight"], given.get("encoder.pos_embedding")
    channels, patch = (patches.shape[0], patches.shape[-1]) if patches.ndim == 4 else (0, 0)
    side = math.isqrt(max(0, positions.shape[1] - 1)) if positions is not None and positions.ndim == 3 else 0
    name = _TRANSFORMERS.get(channels)
    if name is None or not 2 <= patch <= 64 or not 8 <= side * patch <= 512:
        raise CheckpointError(
            f"this project has no vision transformer of {channels} channels, patches of {patch} and {side}x{side} "
            f"positions; it has {' and '.join(_TRANSFORMERS.values())}"
        )
    return BackboneConfig(name=name, patch_size=patch), side * patch
