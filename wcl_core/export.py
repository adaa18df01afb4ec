"""Export of a plain backbone from a native checkpoint, for other programs; does not import torch.

The exported file is in safetensors format, with torchvision's parameter names and without a classifier.  Its metadata
have the lines of Python that load it (`loading_lines`).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from wcl_core.digests import canonical_json
from wcl_core.files import write_whole

_PREFIX = "model/backbone."
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_DIMENSIONS = 64
_CHUNK_BYTES = 1 << 20
TORCHVISION_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2")
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


class ExportError(ValueError):
    """The file is not a native checkpoint; the message gives the reason."""


def loading_lines(backbone: Mapping[str, Any], file: str = "backbone.safetensors") -> list[str]:
    """Return the lines of Python that load an exported backbone: one for every backbone, one for torchvision's own.

    Args:
        backbone: its part of a spec.
        file: the name of the file.
    """
    lines = [f"import wcl_core; network = wcl_core.load_backbone({file!r})"]
    if backbone.get("stem") == "imagenet" and backbone.get("name") in TORCHVISION_RESNETS:
        network = f"network = torchvision.models.{backbone['name']}(); network.fc = torch.nn.Identity()"
        load = f"network.load_state_dict(safetensors.torch.load_file({file!r}))"
        lines.append(f"import safetensors.torch, torch, torchvision; {network}; {load}")
    return lines


def backbone_file(native: Path, out: Path) -> None:
    """Copy the tensors of the backbone, byte for byte, under torchvision's names.

    Args:
        native: a checkpoint file of a run.
        out: the file to write; it becomes visible whole.

    Raises:
        ExportError: `native` is no native checkpoint.
        OSError: a file cannot be read or written.
    """
    with native.open("rb") as source:
        try:
            copy_backbone(source, out)
        except ExportError as error:
            raise ExportError(f"{native.name} is no checkpoint: {error}") from error


def copy_backbone(source: BinaryIO, out: Path, check: Callable[[], None] = lambda: None) -> None:
    """Copy the backbone's tensors from an open file; otherwise as `backbone_file`.

    Args:
        source: the native checkpoint.
        out: the file to write.
        check: is called for each MiB; an error that it raises ends the copy, and nothing is left of `out`.
    """
    header, base = read_header(source)
    try:
        metadata = json.loads(header.pop("__metadata__")["wcl"])
        spec = metadata["spec"]
        facts = {"backbone": spec["backbone"], "step": metadata["step"], "epoch": metadata["epoch"]}
        facts |= {"data": {"image_size": spec["data"]["image_size"]}, "load": loading_lines(spec["backbone"])}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ExportError("not a native checkpoint: it has no metadata of one") from error
    # In the source's order, which keeps every tensor aligned to its type.
    tensors = in_order(header, os.fstat(source.fileno()).st_size - base)
    entries = [(name, entry) for name, entry in tensors if name.startswith(_PREFIX)]
    if not entries:
        raise ExportError("not a native checkpoint: it has no backbone")

    def write(target: BinaryIO) -> None:
        target.write(_new_header(entries, facts))
        for _, entry in entries:
            start, end = entry["data_offsets"]
            _copy(source, target, base, start, end, check)

    write_whole(out, write)


def in_order(header: dict[str, Any], num_bytes: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the tensors in the order of their bytes, which follow one another without a gap or an overlap.

    Raises:
        ExportError: they do not, or a tensor's bytes do not fit its type and shape.
    """
    for name, entry in header.items():
        _check_tensor(name, entry)
    tensors = sorted(header.items(), key=lambda named: named[1]["data_offsets"])
    end = 0
    for name, entry in tensors:
        if entry["data_offsets"][0] != end:
            raise ExportError(
                f"damaged or foreign: tensor {name[:100]!r} begins at byte {entry['data_offsets'][0]}, expected {end}"
            )
        end = entry["data_offsets"][1]
    if end != num_bytes:
        raise ExportError(f"damaged or foreign: its tensors have {end} bytes, but the file holds {num_bytes}")
    return tensors


def _check_tensor(name: str, entry: Any) -> None:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]} if len(
            shape
        ) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 1 << 63 for n in (start, end, *shape)):
            if end - start == _ITEM_BYTES.get(dtype, 0) * math.prod(shape):
                return
    raise ExportError(f"damaged or foreign: the header's entry of tensor {name[:100]!r} is invalid")


def read_header(source: BinaryIO, max_bytes: int = _MAX_HEADER_BYTES) -> tuple[dict[str, Any], int]:
    """Return the JSON of the header, and the offset of the first tensor byte.

    Raises:
        ExportError: the file has none, or a longer one than `max_bytes`.
    """
    source.seek(0)
    prefix = source.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= max_bytes:
        raise ExportError("not a safetensors file")
    try:
        header = json.loads(source.read(length), object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise ExportError("not a safetensors file") from error
    if not isinstance(header, dict):
        raise ExportError("not a safetensors file")
    return header, 8 + length


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of a name that is there twice, other readers may take another value."""
    if len(members := dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return members


def _new_header(entries: list[tuple[str, dict[str, Any]]], facts: dict[str, Any]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "wcl": canonical_json(facts)}}
    offset = 0
    for name, entry in entries:
        start, end = entry["data_offsets"]
        known = {field: entry[field] for field in entry if field in ("dtype", "shape", "data_offsets")}
        header[name.removeprefix(_PREFIX)] = known | {"data_offsets": [offset, offset + end - start]}
        offset += end - start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to 8 bytes
    return struct.pack("<Q", len(text)) + text


def _copy(source: BinaryIO, target: BinaryIO, base: int, start: int, end: int, check: Callable[[], None]) -> None:
    source.seek(base + start)
    remaining = end - start
    while remaining:
        check()
        chunk = source.read(min(remaining, _CHUNK_BYTES))
        if not chunk:
            raise ExportError("the checkpoint is shorter than its header says")
        target.write(chunk)
        remaining -= len(chunk)
