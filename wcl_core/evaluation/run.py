"""One evaluation run: features once, then every protocol the spec names, each result pinned to data and version.

`results` says what each protocol reports; this module says when.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from wcl_core import checkpoint
from wcl_core.config import BackboneConfig, CheckpointFeatures, EvaluateSpec, PixelFeatures, PretrainSpec
from wcl_core.data import ImageData, derived_seed, with_held_out
from wcl_core.evaluation.embedding import FILE_NAME, write_embeddings
from wcl_core.evaluation.embedding_map import keep_map
from wcl_core.evaluation.features import network_features, pixel_features
from wcl_core.evaluation.pace import Interrupted, Pace
from wcl_core.evaluation.results import Subject, results
from wcl_core.networks.backbones import build_backbone
from wcl_core.protocol import OUTCOME_OF, Outcome
from wcl_core.reporter import Reporter


def evaluate(
    spec: EvaluateSpec,
    reporter: Reporter,
    *,
    data: ImageData,
    checkpoint_path: Path | None = None,
    output_dir: Path | None = None,
) -> Outcome:
    """Measure one set of features under the spec's protocols.

    Args:
        spec: what to measure.
        reporter: told every result; asked at the start, between protocols and within long ones whether to stop.
        data: both splits at the spec's image size.
        checkpoint_path: the native checkpoint when the spec's features come from one.
        output_dir: where `embed` writes its file, which is reported like a checkpoint of its own kind, and `map` its
            artifacts.

    Raises:
        checkpoint.CheckpointError: missing or damaged checkpoint.
        knn.ProtocolError: a protocol that this data cannot carry.
    """
    pace = Pace(reporter, len(spec.protocols) + 1)
    try:
        pace.reach(0)
        data = with_held_out(data, spec.data.held_out_share)
        subject = _subject(spec, data, checkpoint_path)
        # Part of what identifies a number, so that it never stands beside one of the test split.
        held_out = {"held_out_share": share} if (share := spec.data.held_out_share) else {}
        for done, protocol in enumerate(spec.protocols, start=1):
            pace.reach(done)
            if protocol == "embed":
                _embed(spec, data, subject, reporter, _folder(protocol, output_dir))
                continue
            if protocol == "map":
                folder = _folder(protocol, output_dir)
                keep_map(reporter, folder, spec, data, subject.features, checkpoint_path)
                continue
            for result in results(protocol, spec, data, subject, pace):
                reporter.evaluation(
                    {
                        "dataset_digest": data.digest,
                        "split_digest": data.test.digest,
                        "seed": spec.seed,
                        "n": len(data.test),
                        "stderr": None,
                        **result,
                        "params": result["params"] | held_out,
                    }
                )
        pace.reach(len(spec.protocols) + 1)
    except Interrupted as interrupted:
        return OUTCOME_OF[interrupted.request]
    return "succeeded"


def _folder(protocol: str, output_dir: Path | None) -> Path:
    if output_dir is None:
        raise ValueError(f"protocols: {protocol} writes a file and needs a folder for it")
    return output_dir


def _embed(spec: EvaluateSpec, data: ImageData, subject: Subject, reporter: Reporter, output_dir: Path) -> None:
    written = write_embeddings(output_dir / FILE_NAME, subject.features, spec, data)
    reporter.checkpoint(
        step=0, epoch=0, file=FILE_NAME, sha256=written.sha256, size=written.size, metrics={}, kind="embeddings"
    )


def load_backbone(path: Path) -> tuple[nn.Module, PretrainSpec]:
    """The backbone of a native checkpoint and the spec it was trained under.

    Raises:
        checkpoint.CheckpointError: when the file is missing or damaged.
    """
    saved = checkpoint.read(path)
    backbone = build_backbone(saved.spec.backbone, saved.spec.data.image_size)
    backbone.load_state_dict(saved.part("model/backbone."))
    return backbone, saved.spec


def untrained_backbone(config: BackboneConfig, seed: int, image_size: int = 32) -> nn.Module:
    """A fresh backbone that equals the one `pretrain` starts from under the same seed; residual ones at any size."""
    torch.manual_seed(derived_seed(seed, "initialisation"))
    return build_backbone(config, image_size)


def _subject(spec: EvaluateSpec, data: ImageData, checkpoint_path: Path | None) -> Subject:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(spec.features, PixelFeatures):
        return Subject(nn.Flatten(), pixel_features(data), device)
    if isinstance(spec.features, CheckpointFeatures):
        if checkpoint_path is None:
            raise checkpoint.CheckpointError("no checkpoint file was given for features.kind = checkpoint")
        backbone, _ = load_backbone(checkpoint_path)
    else:
        backbone = untrained_backbone(spec.features.backbone, spec.seed, spec.data.image_size)
    backbone = backbone.to(device).eval()
    return Subject(backbone, network_features(backbone, data, device), device)
