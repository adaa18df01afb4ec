"""One evaluation: compute the features once, then measure under each protocol of the spec.

Each result carries the digests of the data and the version of the protocol. `results` measures under each protocol;
this module runs the protocols in order.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from wcl_core import checkpoint
from wcl_core.config import (
    PROTOCOLS,
    WITHOUT_LABELS,
    BackboneConfig,
    CheckpointFeatures,
    EvaluateSpec,
    PixelFeatures,
    PretrainSpec,
)
from wcl_core.data import ImageData, derived_seed, with_held_out
from wcl_core.distributed import SINGLE, Ranks, device_of
from wcl_core.evaluation.embedding import write_embeddings
from wcl_core.evaluation.embedding_map import keep_map
from wcl_core.evaluation.features import network_features, pixel_features
from wcl_core.evaluation.knn import ProtocolError
from wcl_core.evaluation.progress import Progress
from wcl_core.evaluation.results import Subject, results
from wcl_core.networks.backbones import FeatureNetwork, build_backbone
from wcl_core.protocol import EMBEDDINGS_FILE, OUTCOME_OF, Outcome
from wcl_core.reporter import Reporter
from wcl_core.stop import Interrupted, interruptible

_SUBJECTS = {"checkpoint": "the trained network", "untrained": "the untrained network", "pixels": "raw pixels"}


def evaluate(
    spec: EvaluateSpec,
    reporter: Reporter,
    *,
    data: ImageData,
    checkpoint_path: Path | None = None,
    output_dir: Path | None = None,
    ranks: Ranks = SINGLE,
) -> Outcome:
    """Measure one set of features under the spec's protocols.

    Args:
        spec: features, protocols and their settings; settings that are not set fit the smallest class.
        reporter: receives each result; its request ends the evaluation at the next `stop.check`.
        data: both splits at the spec's image size.
        checkpoint_path: the native checkpoint, if the spec's features come from one.
        output_dir: the folder for the file of `embed`, which is reported as a checkpoint of kind `embeddings`, and for
            the artifacts of `map`.
        ranks: this process as the only rank, with its device.

    Returns:
        `succeeded`, or the outcome of the request that stopped the evaluation.

    Raises:
        checkpoint.CheckpointError: the checkpoint is missing or damaged.
        ProtocolError: a protocol cannot measure this data.
        DeviceError: the evaluation has to use a GPU and cannot.
    """
    try:
        with interruptible(reporter.request):
            _measure(spec, reporter, data, checkpoint_path, output_dir, device_of(ranks, spec.device))
    except Interrupted as interrupted:
        return OUTCOME_OF[interrupted.request]
    return "succeeded"


def _measure(
    spec: EvaluateSpec,
    reporter: Reporter,
    data: ImageData,
    checkpoint_path: Path | None,
    output_dir: Path | None,
    device: torch.device,
) -> None:
    subject_name = _SUBJECTS[spec.features.kind]
    works = ["features", *(PROTOCOLS[each].title for each in spec.protocols)]
    progress = Progress(reporter, [f"{work} of {subject_name}" for work in works])
    progress.reach(0)
    _check_labels(spec, data)
    if data.has_labels:
        data = with_held_out(data, spec.data.held_out_share)
        counts = data.train.labels.bincount(minlength=len(data.classes))
        spec = spec.fitted(int(counts.min()), len(data.train), len(data.classes))
    subject = _subject(spec, data, checkpoint_path, device, progress)
    # The share identifies a result, so that it is never compared with a result on the test split.
    held_out = {"held_out_share": share} if (share := spec.data.held_out_share) else {}
    for done, protocol in enumerate(spec.protocols, start=1):
        progress.reach(done)
        if protocol == "embed":
            _embed(spec, data, subject, reporter, _folder(protocol, output_dir))
            continue
        if protocol == "map":
            folder = _folder(protocol, output_dir)
            keep_map(reporter, folder, spec, data, subject.features, checkpoint_path)
            continue
        for result in results(protocol, spec, data, subject, progress):
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
    progress.reach(len(spec.protocols) + 1)


def _check_labels(spec: EvaluateSpec, data: ImageData) -> None:
    """Raise if a protocol needs labels that the data does not have.

    Raises:
        ProtocolError: there is such a protocol.
    """
    if not data.has_labels and (measuring := [each for each in spec.protocols if PROTOCOLS[each].measures]):
        raise ProtocolError(f"protocols: {measuring[0]} needs labels; {WITHOUT_LABELS.format(name=data.name)}")


def _folder(protocol: str, output_dir: Path | None) -> Path:
    if output_dir is None:
        raise ValueError(f"protocols: {protocol} writes a file and needs a folder; pass output_dir")
    return output_dir


def _embed(spec: EvaluateSpec, data: ImageData, subject: Subject, reporter: Reporter, output_dir: Path) -> None:
    written = write_embeddings(output_dir / EMBEDDINGS_FILE, subject.features, spec, data)
    reporter.checkpoint(
        step=0, epoch=0, file=EMBEDDINGS_FILE, sha256=written.sha256, size=written.size, metrics={}, kind="embeddings"
    )


def load_backbone(path: Path) -> tuple[nn.Module, PretrainSpec]:
    """Load the backbone of a native checkpoint, and the spec of its training.

    Raises:
        checkpoint.CheckpointError: the file is missing or damaged.
    """
    saved = checkpoint.read(path)
    backbone = build_backbone(saved.spec.backbone, saved.spec.data.image_size)
    backbone.load_state_dict(saved.part("model/backbone."))
    return backbone, saved.spec


def untrained_backbone(config: BackboneConfig, seed: int, image_size: int = 32) -> FeatureNetwork:
    """Return the backbone that `pretrain` starts from with the same seed; the size matters to transformers only."""
    torch.manual_seed(derived_seed(seed, "initialisation"))
    return build_backbone(config, image_size)


def _subject(
    spec: EvaluateSpec, data: ImageData, checkpoint_path: Path | None, device: torch.device, progress: Progress
) -> Subject:
    has_unlabelled = "embed" in spec.protocols
    if isinstance(spec.features, PixelFeatures):
        return Subject(nn.Flatten(), pixel_features(data, has_unlabelled=has_unlabelled), device)
    if isinstance(spec.features, CheckpointFeatures):
        if checkpoint_path is None:
            raise checkpoint.CheckpointError("features.kind is checkpoint, but no checkpoint file was given; pass one")
        backbone, _ = load_backbone(checkpoint_path)
    else:
        backbone = untrained_backbone(spec.features.backbone, spec.seed, spec.data.image_size)
    backbone = backbone.to(device).eval()
    features = network_features(backbone, data, device, has_unlabelled=has_unlabelled, tick=progress.tick)
    return Subject(backbone, features, device)
