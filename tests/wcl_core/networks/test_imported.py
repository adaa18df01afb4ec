"""Weights of other programs: each layout is recognised, and hostile or damaged files are refused."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from wcl_core.__main__ import main
from wcl_core.checkpoint import CheckpointError
from wcl_core.networks import imported
from wcl_core.networks.imported import import_weights
from wcl_core.networks.weights import load_backbone

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(torchvision.models.resnet18().state_dict())


@pytest.fixture(scope="module")
def thin(resnet: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes in a file of 100 KB: each tensor repeats one number, by strides of 0."""
    return {name: each.flatten()[:1].view([1] * each.ndim).expand(each.shape) for name, each in resnet.items()}


def prefixed(prefix: str, state: dict[str, Tensor], *left_out: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": each for name, each in state.items() if not name.startswith(left_out)}


HEAD = {"head1.0.weight": torch.zeros(2, 2)}
LAYOUTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str, set[str]]] = {
    "torchvision": (lambda state: state, "", {"fc.weight", "fc.bias"}),
    "the authors' WCL": (
        lambda state: {"model": prefixed("module.net.", state, "fc") | prefixed("module.", HEAD), "epoch": 100},
        "module.net.",
        {"module.head1.0.weight"},
    ),
    "MoCo": (
        lambda state: {
            "epoch": 200,
            "arch": "resnet18",
            "state_dict": prefixed("module.encoder_q.", state, "fc")
            | prefixed("module.encoder_k.", {name: each + 1 for name, each in state.items()}, "fc")
            | {"module.queue": torch.zeros(4, 8)},
        },
        "module.encoder_q.",
        {"module.encoder_k.conv1.weight", "module.queue"},
    ),
    "MoCo v3": (
        lambda state: {
            "state_dict": prefixed("module.base_encoder.", state, "fc")
            | prefixed("module.momentum_encoder.", {name: each + 1 for name, each in state.items()}, "fc")
        },
        "module.base_encoder.",
        {"module.momentum_encoder.conv1.weight"},
    ),
    "SimCLR": (lambda state: {"state_dict": prefixed("backbone.", state, "fc")}, "backbone.", set()),
    "a sequence of layers": (
        lambda state: {
            "state_dict": {
                name.replace("conv1.", "backbone.0.", 1)
                if name.startswith("conv1.")
                else name.replace("bn1.", "backbone.1.", 1)
                if name.startswith("bn1.")
                else f"backbone.{int(name[5]) + 3}{name[6:]}": each
                for name, each in state.items()
                if not name.startswith("fc")
            }
        },
        "backbone.",
        set(),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoder_of_each_layout_is_taken(tmp_path: Path, resnet: dict[str, Tensor], layout: str) -> None:
    wrap, prefix, unused = LAYOUTS[layout]
    torch.save(wrap(resnet), tmp_path / "file.pth")

    found = import_weights(tmp_path / "file.pth", tmp_path / "out.safetensors")

    assert (found.backbone.name, found.backbone.stem, found.prefix) == ("resnet18", "imagenet", prefix)
    assert unused <= set(found.unused)
    assert found.num_matched == 120
    taken = load_backbone(tmp_path / "out.safetensors").state_dict()
    assert all(torch.equal(taken[name], each) for name, each in resnet.items() if not name.startswith("fc."))


@pytest.mark.slow
def test_equal_weights_give_equal_bytes_and_a_report(tmp_path: Path, resnet: dict[str, Tensor]) -> None:
    torch.save({"state_dict": prefixed("module.", resnet)}, tmp_path / "a.pth")
    safetensors.torch.save_file(prefixed("module.", resnet), tmp_path / "b.safetensors")
    older = {name: each for name, each in resnet.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "c.pth", _use_new_zipfile_serialization=False)

    for name in ("a.pth", "b.safetensors"):
        import_weights(tmp_path / name, tmp_path / f"{name}.out")
    filled = import_weights(tmp_path / "c.pth", tmp_path / "c.out")

    assert (tmp_path / "a.pth.out").read_bytes() == (tmp_path / "b.safetensors.out").read_bytes()
    assert len(filled.filled) == 20
    with safe_open(tmp_path / "a.pth.out", framework="pt") as file:
        facts = json.loads(file.metadata()["wcl"])
    assert facts["import"] == {
        "prefix": "module.",
        "matched": 120,
        "filled": 0,
        "unused": 2,
        "unused_names": ["module.fc.bias", "module.fc.weight"],
    }
    assert facts["data"] == {"image_size": 224}
    assert "torchvision.models.resnet18()" in facts["load"][1]


@pytest.mark.slow
def test_a_vision_transformer_of_either_library_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 12, 6, 384, 4 * 384)
    state = dict(model.state_dict())
    timm = {}
    for name, each in state.items():
        for ours, theirs in {
            "conv_proj.": "patch_embed.proj.",
            "class_token": "cls_token",
            "encoder.pos_embedding": "pos_embed",
            "encoder.layers.encoder_layer_": "blocks.",
            "self_attention.in_proj_": "attn.qkv.",
            "self_attention.out_proj": "attn.proj",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.0": "mlp.fc1",
            "mlp.3": "mlp.fc2",
            "encoder.ln.": "norm.",
        }.items():
            name = name.replace(ours, theirs)
        timm[name] = each
    torch.save(state, tmp_path / "torchvision.pth")
    torch.save({"model": prefixed("module.", timm)}, tmp_path / "timm.pth")

    ours = import_weights(tmp_path / "torchvision.pth", tmp_path / "a")
    theirs = import_weights(tmp_path / "timm.pth", tmp_path / "b")

    assert (ours.backbone, ours.backbone.name, ours.backbone.patch_size) == (theirs.backbone, "vit_small", 8)
    assert safetensors.torch.load_file(tmp_path / "a").keys() == safetensors.torch.load_file(tmp_path / "b").keys()
    image = torch.randn(1, 3, 32, 32)
    model.heads = nn.Sequential()
    with torch.no_grad():
        assert torch.equal(load_backbone(tmp_path / "b")(image), model.eval()(image))


class _Code:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, thin: dict[str, Tensor]) -> None:
    torch.save({"state_dict": thin, "args": _Code(tmp_path / "was-run")}, tmp_path / "hostile.pth")

    with pytest.raises(CheckpointError, match="reading them could run code, so nothing was read"):
        import_weights(tmp_path / "hostile.pth", tmp_path / "out")

    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer2.0.conv1.weight", torch.zeros(128, 64, 1, 1), r"layer2.0.conv1.weight is 128x64x1x1, expected 128x64x"),
        ("bn1.weight", torch.full((64,), torch.nan), "bn1.weight of file.pth holds NaN or infinity"),
        ("bn1.weight", torch.full((64,), 1e300, dtype=torch.float64), "bn1.weight of file.pth holds NaN or infinity"),
        ("bn1.weight", torch.zeros(64, dtype=torch.complex64), "bn1.weight of file.pth is no plain tensor"),
        ("bn1.weight", torch.zeros(64).to_sparse(), "bn1.weight of file.pth is no plain tensor"),
        # A stride of 0: four bytes in the file, a terabyte in memory.
        ("bn1.weight", torch.zeros(1).expand(2**38), f"bn1.weight is {2**38}, expected 64"),
        ("conv1.weight", torch.zeros(1).expand(64, 2**20, 2**20, 7), "conv1.weight is 64x1048576x1048576x7, expected"),
        ("conv1.weight", torch.zeros(64, 3, 5, 5), "the first convolution is 5x5"),
        ("conv1.weight", torch.zeros(()), "the first convolution .* is missing or has another shape"),
        ("layer1.2.conv1.weight", torch.zeros(64, 64, 3, 3), "no residual network of 3-2-2-2 basic blocks"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, thin: dict[str, Tensor], name: str, value: Tensor, message: str
) -> None:
    torch.save(thin | {name: value}, tmp_path / "file.pth")

    with pytest.raises(CheckpointError, match=message):
        import_weights(tmp_path / "file.pth", tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, resnet: dict[str, Tensor], thin: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(resnet, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    safetensors.torch.save_file(resnet, tmp_path / "whole.safetensors")
    contents = {
        "truncated": whole[: len(whole) // 2],
        "truncated safetensors": (tmp_path / "whole.safetensors").read_bytes()[:-1000],
        "empty": b"",
        "text": b"not weights at all",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([torch.zeros(2)], tmp_path / "list")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other names")
    torch.save({"a." + name: each for name, each in thin.items()} | prefixed("b.", thin), tmp_path / "two encoders")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2_000_000))
    monkeypatch.setattr(imported, "MAX_BYTES", 1_000_000)
    with pytest.raises(CheckpointError, match="unpacks to 2,000,000 bytes"):
        import_weights(tmp_path / "bomb", tmp_path / "out")
    with pytest.raises(CheckpointError, match="expected at most 1,000,000"):
        import_weights(tmp_path / "whole.pth", tmp_path / "out")
    monkeypatch.undo()

    os.mkfifo(tmp_path / "pipe")
    for name in (*contents, "list", "other names", "two encoders", "absent", "pipe", "/dev/zero", ""):
        with pytest.raises(CheckpointError) as refused:
            import_weights(tmp_path / name, tmp_path / "out")
        assert len(str(refused.value)) < 600
    with pytest.raises(CheckpointError, match=r"several encoders; choose one: --prefix a\., --prefix b\."):
        import_weights(tmp_path / "two encoders", tmp_path / "out")

    assert import_weights(tmp_path / "two encoders", tmp_path / "out", prefix="b.").prefix == "b."


@pytest.mark.slow
def test_a_small_first_convolution_takes_the_stem_that_is_named(
    tmp_path: Path, thin: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(thin | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "file.pth")

    assert import_weights(tmp_path / "file.pth", tmp_path / "out").backbone.stem == "small"
    arguments = ["import-weights", str(tmp_path / "file.pth"), str(tmp_path / "out"), "--stem", "stride2"]
    assert main(arguments) == 0

    assert "resnet18, stem stride2: 120 tensors matched\nnot used: fc.bias, fc.weight" in capsys.readouterr().out
