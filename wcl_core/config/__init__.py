"""One definition of every spec a job can carry.

Specs are frozen pydantic models that refuse unknown fields. Nothing here imports torch, so the server, the workers and
the client validate by the same rules as the training run. A spec is data: enumerated choices, numbers with bounds and
datasets by registered name, never a path, a URL or an expression.

    Spec ── PretrainSpec    a training run: method, backbone, heads, loss, optimiser, schedule, augmentation
         └─ EvaluateSpec    one set of features (a checkpoint, an untrained network, raw pixels) under some protocols

    fields ── methods, network, images, training, protocols ── pretrain, evaluate ── versions
    overlay    pure functions over nested spec dicts

Import from this package, not from its modules; `overlay` is the exception.
"""

from wcl_core.config.evaluate import CheckpointFeatures, EvaluateSpec, PixelFeatures
from wcl_core.config.fields import DATASET_NAME, Seed, proposed_name
from wcl_core.config.images import (
    AugmentConfig,
    DataConfig,
    MultiCropConfig,
    held_out_count,
    proposed_image_size,
    weak_augmentation,
)
from wcl_core.config.methods import MethodOptions, method_title, options_of, twin_of, why_no_weak_labels
from wcl_core.config.network import BackboneConfig, HeadConfig, is_transformer
from wcl_core.config.pretrain import PretrainSpec
from wcl_core.config.protocols import (
    PROTOCOLS,
    WIDE_K,
    WIDE_TEMPERATURE,
    WITHOUT_LABELS,
    EvaluationPlan,
    FewLabelsClassifier,
    LinearSgdConfig,
    Protocol,
    ProtocolSettings,
    SemiSupervisedConfig,
    labels_per_class,
    largest_k,
    measure_title,
    protocol_facts,
    protocol_place,
    result_title,
)
from wcl_core.config.training import CheckpointConfig, LossConfig, OptimizerConfig
from wcl_core.config.versions import (
    SPEC_VERSION,
    SPEC_VERSIONS,
    UPCASTERS,
    Kind,
    Spec,
    completed_spec,
    parse_spec,
    resolve_spec,
    stored_spec,
    version_of,
)

__all__ = [
    "DATASET_NAME",
    "PROTOCOLS",
    "SPEC_VERSION",
    "SPEC_VERSIONS",
    "UPCASTERS",
    "WIDE_K",
    "WIDE_TEMPERATURE",
    "WITHOUT_LABELS",
    "AugmentConfig",
    "BackboneConfig",
    "CheckpointConfig",
    "CheckpointFeatures",
    "DataConfig",
    "EvaluateSpec",
    "EvaluationPlan",
    "FewLabelsClassifier",
    "HeadConfig",
    "Kind",
    "LinearSgdConfig",
    "LossConfig",
    "MethodOptions",
    "MultiCropConfig",
    "OptimizerConfig",
    "PixelFeatures",
    "PretrainSpec",
    "Protocol",
    "ProtocolSettings",
    "Seed",
    "SemiSupervisedConfig",
    "Spec",
    "completed_spec",
    "held_out_count",
    "is_transformer",
    "labels_per_class",
    "largest_k",
    "measure_title",
    "method_title",
    "options_of",
    "parse_spec",
    "proposed_image_size",
    "proposed_name",
    "protocol_facts",
    "protocol_place",
    "resolve_spec",
    "result_title",
    "stored_spec",
    "twin_of",
    "version_of",
    "weak_augmentation",
    "why_no_weak_labels",
]
