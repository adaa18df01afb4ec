"""Files of weights are checked without PyTorch: they have exactly the tensors of the network that they name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wcl_core.config import BackboneConfig
from wcl_core.config.network import RESIDUAL, TRANSFORMERS
from wcl_core.config.tensors import backbone_tensors
from wcl_core.networks.backbones import build_backbone
from wcl_core.networks.imported import import_weights
from wcl_core.weight_file import WeightFileError, check_weight_file

TYPES = {torch.float32: "F32", torch.int64: "I64"}
Json = dict[str, Any]


@pytest.mark.parametrize(
    "fields",
    [{"name": name} for name in (*RESIDUAL, *TRANSFORMERS)]
    + [
        {"name": "resnet50", "stem": "imagenet"},
        {"width": 16, "stem": "stride2"},
        {"name": "vit_base", "patch_size": 4},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_the_tensors_of_every_backbone_are_those_of_pytorch(fields: Json) -> None:
    config = BackboneConfig(**fields)
    with torch.device("meta"):
        state = build_backbone(config, 32).state_dict()

    assert backbone_tensors(config, 32) == {
        name: (TYPES[each.dtype], tuple(each.shape)) for name, each in state.items()
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return an imported file of the smallest backbone."""
    folder = tmp_path_factory.mktemp("weights")
    network = build_backbone(BackboneConfig(width=4), 32)
    torch.save(network.state_dict() | {"head\n.weight": torch.zeros(2)}, folder / "tiny.pth")
    import_weights(folder / "tiny.pth", folder / "tiny.safetensors")
    return (folder / "tiny.safetensors").read_bytes()


def checked(content: bytes, folder: Path) -> Any:
    (folder / "file").write_bytes(content)
    with (folder / "file").open("rb") as opened:
        return check_weight_file(opened)


def test_an_imported_file_says_what_it_holds(file: bytes, tmp_path: Path) -> None:
    facts = checked(file, tmp_path)

    assert (facts.backbone, facts.data.image_size) == (BackboneConfig(width=4), 32)
    assert (facts.report.unused, facts.report.unused_names) == (1, (r"head\n.weight",))


def changed(file: bytes, change: Callable[[Json, Json], None]) -> bytes:
    """Return a file with another header; `change` gets the tensors and the metadata."""
    length = struct.unpack("<Q", file[:8])[0]
    header = json.loads(file[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["wcl"])
    change(header, facts)
    if "__metadata__" in header:
        header["__metadata__"]["wcl"] = json.dumps(facts)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + file[8 + length :]


def _rename(header: Json, _: Json) -> None:
    header["conv2.weight"] = header.pop("conv1.weight")


def _reshape(header: Json, _: Json) -> None:
    header["conv1.weight"]["shape"] = [4, 27]


def _retype(header: Json, _: Json) -> None:
    header["conv1.weight"]["dtype"] = "I32"


def _overlap(header: Json, _: Json) -> None:
    header["bn1.bias"]["data_offsets"] = header["bn1.weight"]["data_offsets"]


def _leave_out_metadata(header: Json, _: Json) -> None:
    del header["__metadata__"]


HOSTILE: list[tuple[Callable[[Json, Json], Any], str]] = [
    (_rename, "tensor 'conv1.weight' of tiny is absent, expected F32 4x3x3x3"),
    (_reshape, "tensor 'conv1.weight' of tiny is F32 4x27, expected F32 4x3x3x3"),
    (_retype, "tensor 'conv1.weight' of tiny is I32 4x3x3x3, expected F32"),
    (_overlap, "damaged or foreign: tensor 'bn1"),
    (_leave_out_metadata, "no metadata of imported weights"),
    (lambda _, facts: facts.pop("backbone"), "its metadata are wrong: backbone: "),
    (lambda _, facts: facts["backbone"].update(name="resnet18", width=64), "of resnet18 is "),
    (lambda _, facts: facts["backbone"].update(width=10**9), "its metadata are wrong: backbone.width: "),
    (lambda _, facts: facts["backbone"].update(extra="x"), "its metadata are wrong: backbone.extra: "),
    (lambda _, facts: facts["data"].update(image_size=2**40), "its metadata are wrong: data.image_size: "),
    (lambda _, facts: facts["data"].update(image_size=True), "its metadata are wrong: data.image_size: "),
    (lambda _, facts: facts["import"].update(matched=float("nan")), "its metadata are wrong: import.matched: "),
    (lambda _, facts: facts["import"].update(prefix="a\0b"), "its metadata are wrong: import.prefix: "),
    (lambda _, facts: facts["import"].update(unused_names=["\ud800"]), "its metadata are wrong: import.unused_names"),
    (lambda _, facts: facts["import"].update(unused_names=["x"] * 51), "its metadata are wrong: import.unused_names"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message[-40:] for _, message in HOSTILE])
def test_a_file_that_differs_from_its_network_is_refused(
    file: bytes, tmp_path: Path, change: Callable[[Json, Json], None], message: str
) -> None:
    with pytest.raises(WeightFileError, match=message.replace(".", r"\.")):
        checked(changed(file, change), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2_000_000) + b'{"a":' + b" " * 1_999_994 + b"1}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 44) + b'{"__metadata__":{"wcl":"{}"},"a":1,"a":2}   ',
    ],
    ids=["empty", "a pickle", "a length beyond the file", "a long header", "deep", "a list", "a name twice"],
)
def test_other_kinds_of_files_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightFileError):
        checked(content, tmp_path)


def test_a_part_of_a_file_is_refused(file: bytes, tmp_path: Path) -> None:
    for content in (file[:-1], file + b"\0", file[: len(file) // 2]):
        with pytest.raises(WeightFileError, match="its tensors have"):
            checked(content, tmp_path)
