"""Exported backbones in torchvision's own networks."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.config import PretrainSpec, resolve_spec
from wcl_core.evaluation.run import load_backbone
from wcl_core.export import ExportError, backbone_file

torch.set_num_threads(1)


def native(folder: Path, spec: PretrainSpec) -> Path:
    """Return a checkpoint of an untrained model with momentum and a generator's state, as a run writes it."""
    model = small.model(spec)
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer/{name}/momentum": torch.ones_like(p) for name, p in model.named_parameters()}
    tensors["other/bytes"] = torch.arange(200, dtype=torch.uint8)
    facts = {"spec": resolve_spec(spec), "step": 8, "epoch": 2}
    return checkpoint.write(folder / "native.safetensors", tensors, facts).path


@pytest.mark.slow
def test_resnet18_loads_into_torchvisions_own(tmp_path: Path) -> None:
    spec = small.spec(backbone={"name": "resnet18", "stem": "imagenet"})
    path = native(tmp_path, spec)
    backbone_file(path, tmp_path / "out" / "backbone.safetensors")
    state = load_file(tmp_path / "out" / "backbone.safetensors")

    network = torchvision.models.resnet18(weights=None)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])

    network.fc = torch.nn.Identity()
    network.load_state_dict(state)  # as the module's docstring shows
    ours, _ = load_backbone(path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("width", [4, 5, 7])
def test_tensors_are_the_natives_byte_for_byte(tmp_path: Path, width: int) -> None:
    """Odd widths: a tensor of five floats must not push the next one of int64 off its alignment."""
    path = native(tmp_path, small.spec(backbone={"width": width}))
    out = tmp_path / "backbone.safetensors"
    backbone_file(path, out)
    expected = checkpoint.read(path).part("model/backbone.")
    state = load_file(out)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype == tensor.dtype
    content = out.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    sizes = {"F32": 4, "I64": 8}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


def test_facts_travel_with_the_weights_and_equal_checkpoints_give_equal_bytes(tmp_path: Path) -> None:
    spec = small.spec()
    path = native(tmp_path, spec)
    for name in ("a", "b"):
        backbone_file(path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="pt") as file:
        facts = json.loads(file.metadata()["wcl"])
        assert file.metadata()["format"] == "pt"
    assert facts["backbone"].items() >= {"name": "tiny", "stem": "small", "width": 4}.items()
    assert facts == {
        "backbone": resolve_spec(spec)["backbone"],
        "step": 8,
        "epoch": 2,
        "data": {"image_size": 8},
        "load": ["import wcl_core; network = wcl_core.load_backbone('backbone.safetensors')"],
    }


@pytest.mark.slow
def test_many_threads_may_export_one_checkpoint(tmp_path: Path) -> None:
    path = native(tmp_path, small.spec(backbone={"name": "resnet18"}))
    out = tmp_path / "out" / "backbone.safetensors"
    backbone_file(path, out)
    expected = out.read_bytes()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: backbone_file(path, out), range(8)))
    assert out.read_bytes() == expected
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_a_file_that_is_no_checkpoint_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    path = native(tmp_path, small.spec())
    content = path.read_bytes()
    backbone_file(path, tmp_path / "exported")
    save_file({"a": torch.ones(2)}, tmp_path / "plain")
    save_file({"model/backbone.a": torch.ones(2)}, tmp_path / "foreign", metadata={"wcl": "{}"})
    (tmp_path / "short").write_bytes(content[: len(content) // 4])
    (tmp_path / "text").write_text("what is this")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "list").write_bytes(struct.pack("<Q", 2) + b"[]")
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    before = {file.name for file in tmp_path.iterdir()}
    for name in ("exported", "plain", "foreign", "short", "text", "empty", "list", "huge"):
        with pytest.raises(ExportError, match=r"\w"):
            backbone_file(tmp_path / name, tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "offsets",
    [(48, 0), (0, 48, 96), ("0", "48"), (0.0, 48.0), (0, 2**70), (-96, -48), (-48, 0), (0, 12), (48, 96), ()],
)
def test_tensors_with_odd_offsets_are_refused(tmp_path: Path, offsets: tuple[object, ...]) -> None:
    """Negative ones read the header as weights; overlapping ones, and gaps, read another tensor's bytes."""
    path = native(tmp_path, small.spec())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name.startswith("model/backbone."))
    header[name]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    with pytest.raises(ExportError, match="foreign"):
        backbone_file(path, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_tensor_over_the_bytes_of_another_one_is_refused(tmp_path: Path) -> None:
    """Its bytes fit its type and shape, so only the order of all tensors shows it."""
    path = native(tmp_path, small.spec())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name.startswith("model/backbone.") and "weight" in name]
    sizes = {name: header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in names}
    first, second = next((a, b) for a in names for b in names if a != b and sizes[a] == sizes[b])
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    with pytest.raises(ExportError, match="foreign"):
        backbone_file(path, tmp_path / "out")


@pytest.mark.process
def test_exporting_needs_no_torch() -> None:
    """The API exports too, and never imports torch."""
    code = "import sys; import wcl_core.export; sys.exit('torch' in sys.modules)"
    root = Path(checkpoint.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_header_loses_fields_that_are_none_of_the_format(tmp_path: Path) -> None:
    path = native(tmp_path, small.spec())
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for name in header.keys() - {"__metadata__"}:
        header[name]["further"] = 10**400  # no other reader of the format takes this number
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    backbone_file(path, tmp_path / "backbone.safetensors")

    assert load_file(tmp_path / "backbone.safetensors")
