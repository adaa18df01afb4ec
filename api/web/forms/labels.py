"""The fields of specs in plain words, and the sections that the forms show them in."""

from __future__ import annotations

from dataclasses import dataclass

from wcl_core.config import Kind


@dataclass(frozen=True)
class SectionText:
    """A section of a form.

    Attributes:
        id: for the address of the section.
        parts: names of fields, or of objects with all their fields, in the order of the form.
        summary: fields that the folded section shows, each with the words before and after its value.
    """

    id: str
    title: str
    description: str
    parts: tuple[str, ...]
    summary: tuple[tuple[str, str, str], ...] = ()


SECTIONS: dict[Kind, tuple[SectionText, ...]] = {
    "pretrain": (
        SectionText(
            "images",
            "Images",
            "The dataset, and the size that its images are trained at.",
            ("data",),
            (("", "data.name", ""), ("", "data.image_size", " px")),
        ),
        SectionText(
            "training",
            "Training",
            "The method and the length of the run.",
            (
                *("method", "epochs", "batch_size", "seed", "warmup_epochs", "weak_augmentation_epochs", "restarts"),
                *("on_collapse", "on_non_finite", "method_options"),
            ),
            (("", "method", ""), ("", "epochs", " epochs"), ("batch of ", "batch_size", "")),
        ),
        SectionText(
            "network",
            "Network",
            "The backbone, whose weights are the result, and the projection heads of the training.",
            ("backbone", "weights", "heads"),
            (("", "backbone.name", ""), ("stem ", "backbone.stem", "")),
        ),
        SectionText(
            "loss",
            "Loss",
            "The instance loss, and the loss of the weak labels that WCL adds.",
            ("loss", "momentum_decay", "queue_size"),
            (("temperature ", "loss.temperature", ""), ("weak labels ", "loss.weak_temperature", "")),
        ),
        SectionText(
            "optimizer",
            "Optimizer",
            "The learning rate follows a cosine after its warm-up.",
            ("optimizer",),
            (("", "optimizer.name", ""), ("rate ", "optimizer.learning_rate", "")),
        ),
        SectionText(
            "augmentation",
            "Augmentation",
            "How much two views of an image differ.",
            ("augmentation",),
            (("crops from ", "augmentation.scale_min", ""), ("flips ", "augmentation.flip_probability", "")),
        ),
        SectionText(
            "weak_augmentation",
            "Augmentation of the first epochs",
            "A weaker one, for as many epochs as the section Training says.",
            ("weak_augmentation",),
            (("crops from ", "weak_augmentation.scale_min", ""),),
        ),
        SectionText(
            "multi_crop",
            "Small crops",
            "Further views of each image, smaller and cheaper.",
            ("multi_crop",),
            (("", "multi_crop.crops", " crops"),),
        ),
        SectionText(
            "measurements",
            "Checkpoints and measurements",
            "The files that the run leaves, and the numbers that it reports.",
            ("checkpoints", "knn_every_epochs", "monitor_every_epochs", "log_every_steps", "evaluations"),
            (("checkpoint every ", "checkpoints.every_epochs", " epochs"), ("kNN every ", "knn_every_epochs", "")),
        ),
        SectionText(
            "machine",
            "Machine",
            "Device, precision and memory. The values of the form suit most machines.",
            ("device", "precision", "execution", "micro_batch_size", "threads", "processes", "nodes"),
            (("device ", "device", ""), ("precision ", "precision", "")),
        ),
    ),
    "evaluate": (
        SectionText(
            "evaluation",
            "Evaluation",
            "The features, and the protocols that measure them.",
            ("data", "features", "protocols", "seed"),
            (("", "data.name", ""), ("", "protocols", "")),
        ),
        SectionText(
            "protocols",
            "Settings of kNN, few labels and retrieval",
            "",
            (
                *("knn_k", "knn_temperature", "labels_per_class", "draws", "few_labels_classifiers"),
                "retrieval_examples",
            ),
            (("k ", "knn_k", ""),),
        ),
        SectionText("linear_sgd", "Settings of the linear classifier by SGD", "", ("linear_sgd",)),
        SectionText("semi_supervised", "Settings of semi-supervised fine-tuning", "", ("semi_supervised",)),
        SectionText("map", "Settings of the map", "", ("map",)),
        SectionText("machine", "Machine", "", ("device", "threads"), (("device ", "device", ""),)),
    ),
}

# The fields of a job or a sweep beside its spec.
OPTION_LABELS: dict[str, str] = {
    "name": "Name",
    "tags": "Tags",
    "seeds": "Seeds",
    "priority": "Priority",
    "pool": "Pool",
    "gpus": "GPUs",
    "max_seconds": "Time limit (s)",
    "preemptible": "May give way",
    "parameters": "Searched fields",
    "metric": "Metric",
    "max_parallel": "Trials at a time",
    "trials": "Trials",
    "seed": "Seed of the draws",
    "eta": "Halving factor (eta)",
    "min_epochs": "Shortest trial (epochs)",
    "rungs": "Rungs",
}
_VIEWS = {
    "scale_min": "Smallest crop (share of the area)",
    "flip_probability": "Mirrored (probability)",
    "jitter_probability": "Colours changed (probability)",
    "brightness": "Largest change of brightness",
    "contrast": "Largest change of contrast",
    "saturation": "Largest change of saturation",
    "hue": "Largest change of hue (turns)",
    "grayscale_probability": "Made grey (probability)",
    "blur_probability": "Blurred (probability)",
}
_FINE_TUNING = {
    "epochs": "Epochs",
    "batch_size": "Images per step",
    "crop_scale_min": "Smallest crop (share of the area)",
    "flip_probability": "Mirrored (probability)",
}
LABELS: dict[str, str] = {
    "data.name": "Dataset",
    "data.image_size": "Image size (px)",
    "data.max_corrupt_share": "Unreadable files allowed (share)",
    "data.held_out_share": "Held out for choosing settings (share)",
    "method": "Method",
    "method_options": "Options of the method",
    "epochs": "Passes over the images (epochs)",
    "batch_size": "Images per step (batch)",
    "seed": "Seed of the random numbers",
    "warmup_epochs": "Warm-up of the learning rate (epochs)",
    "weak_augmentation_epochs": "Weaker augmentation at first (epochs)",
    "on_collapse": "If all images look alike to the network",
    "on_non_finite": "If the loss is not a number",
    "restarts": "Restarts of the learning rate (epochs)",
    "weights": "Weights to start from (digest)",
    "backbone.name": "Backbone",
    "backbone.stem": "First layers",
    "backbone.width": "Channels of the first stage",
    "backbone.patch_size": "Side of a patch (px)",
    "backbone.variant": "Variant of a plugin's network",
    "heads.hidden_dim": "Width of the heads' hidden layers",
    "heads.output_dim": "Dimension of the embeddings",
    "loss.temperature": "Temperature",
    "loss.weak_temperature": "Temperature of the weak labels",
    "loss.weak_weight": "Weight of the weak labels",
    "loss.weak_ramp_fraction": "Rise of that weight (share of the run)",
    "loss.detach_keys": "Keys without gradient",
    "loss.batch_norm_views": "Batch norm of the two views",
    "loss.decoupled": "Decoupled loss",
    "loss.finch_level": "Level of the weak labels",
    "loss.exclude_mates": "Same-label images are no negatives",
    "momentum_decay": "Decay of a momentum encoder",
    "queue_size": "Images of past steps (queue)",
    "optimizer.name": "Optimizer",
    "optimizer.learning_rate": "Learning rate",
    "optimizer.scaling": "Rate grows with the batch",
    "optimizer.momentum": "Momentum",
    "optimizer.betas": "Betas of AdamW",
    "optimizer.weight_decay": "Weight decay",
    "optimizer.trust_coefficient": "Trust coefficient of LARS",
    "optimizer.lars_exclusion": "Parameters that LARS leaves alone",
    **{f"augmentation.{name}": label for name, label in _VIEWS.items()},
    **{f"weak_augmentation.{name}": label for name, label in _VIEWS.items()},
    "multi_crop.crops": "Small crops of each image",
    "multi_crop.image_size": "Size of a small crop (px)",
    "multi_crop.scale_min": "Smallest part shown (share of the area)",
    "multi_crop.scale_max": "Largest part shown (share of the area)",
    "multi_crop.neighbours": "Nearest neighbours (images)",
    "multi_crop.own_share": "Weight of the image itself (share)",
    "multi_crop.weight": "Weight of the small crops",
    "multi_crop.ramp_fraction": "Rise of the neighbours' weight (share of the run)",
    "multi_crop.restrict_to_component": "Neighbours with the same weak label only",
    "checkpoints.every_epochs": "Checkpoint every (epochs)",
    "checkpoints.first_epoch": "Checkpoint after the first epoch",
    "checkpoints.keep_last": "Newest checkpoints to keep",
    "checkpoints.keep_best": "Best checkpoints to keep",
    "knn_every_epochs": "kNN accuracy every (epochs)",
    "monitor_every_epochs": "Monitors every (epochs)",
    "log_every_steps": "Point of a curve every (steps)",
    "evaluations": "Planned evaluations",
    "device": "Device",
    "precision": "Precision",
    "execution": "Compilation",
    "micro_batch_size": "Images at a time (micro-batch)",
    "threads": "CPU threads",
    "processes": "Processes per machine",
    "nodes": "Machines",
    "features": "Features",
    "protocols": "Protocols",
    "knn_k": "Neighbours of kNN",
    "knn_temperature": "Temperature of kNN",
    "labels_per_class": "Labelled images of each class",
    "draws": "Random draws",
    "few_labels_classifiers": "Classifiers of few labels",
    "retrieval_examples": "Images shown with their neighbours",
    **{f"linear_sgd.{name}": label for name, label in _FINE_TUNING.items()},
    **{f"semi_supervised.{name}": label for name, label in _FINE_TUNING.items()},
    "semi_supervised.lists": "Lists of labelled images",
    "semi_supervised.shares": "Shares of the labels",
    "semi_supervised.splits": "Random splits",
    "semi_supervised.backbone_learning_rate": "Learning rate of the backbone",
    "semi_supervised.head_learning_rate": "Learning rate of the classifier",
    "map.split": "Split",
    "map.images": "Images at most",
    "map.perplexity": "Perplexity of t-SNE",
}


def label_of(pointer: str) -> str:
    """Return the label of a field of a form, by the JSON pointer of an error.

    >>> label_of("/max_seconds"), label_of("/parameters/loss.temperature"), label_of("/metric/k")
    ('Time limit (s)', 'Temperature', 'k')
    """
    name = pointer.strip("/")
    last = name.rpartition("/")[2]
    return OPTION_LABELS.get(name) or LABELS.get(last) or last.replace("_", " ")
