"""Names of metrics for people: one table for pages, charts and command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from wcl_core.protocol import (
    ADJUSTED_MUTUAL_INFORMATION,
    COMPONENT_SHARE,
    COMPONENTS,
    CPU_PERCENT,
    EMBEDDING_DEVIATION,
    EMBEDDING_RANKME,
    GAINED,
    GPU_MEMORY_MIB,
    GPU_PERCENT,
    HARDWARE_PREFIX,
    IMAGES_PER_SECOND,
    KNN_TOP1,
    LARGEST_SHARE,
    LEARNING_RATE,
    LOST,
    PAIR_PRECISION,
    PAIR_PRECISION_CHANCE,
    PROCESS_MEMORY_MIB,
    TRAIN_LOSS,
    TRAIN_PREFIX,
    VIEW_AGREEMENT,
    VIEW_TOP1,
    VIEW_TOP1_CHANCE,
    VIEW_TOP1_PIXELS,
)


class MetricFacts(NamedTuple):
    """A metric for people.

    Attributes:
        title: short and in plain words.
        about: one sentence that explains it, without a full stop; "" where the title says it all.
        is_share: whether it is in 0..1 and shown as a percentage.
    """

    title: str
    about: str = ""
    is_share: bool = False


METRICS: Final[dict[str, MetricFacts]] = {
    KNN_TOP1: MetricFacts(
        "kNN accuracy", "Share of test images with the class of their most similar train images", True
    ),
    VIEW_TOP1: MetricFacts(
        "View accuracy", "Share of images whose random view is nearest to another view of the same image", True
    ),
    VIEW_TOP1_CHANCE: MetricFacts("View accuracy by chance", "One divided by the number of images", True),
    VIEW_TOP1_PIXELS: MetricFacts("View accuracy of raw pixels", "The same with pixels as features", True),
    PAIR_PRECISION: MetricFacts(
        "Pair precision",
        "Share of the image pairs in one weak label that are of one class",
        True,
    ),
    PAIR_PRECISION_CHANCE: MetricFacts("Pair precision by chance", "The same for random pairs", True),
    VIEW_AGREEMENT: MetricFacts(
        "View agreement", "How much the weak labels by two views of the images agree; 1 if they are equal", True
    ),
    COMPONENTS: MetricFacts("Components", "Groups of alike images in a batch, one weak label each"),
    LARGEST_SHARE: MetricFacts(
        "Largest component",
        "Share of a batch in its largest group of alike images",
        True,
    ),
    TRAIN_LOSS: MetricFacts("Loss", "The sum of all terms; losses of two methods do not compare"),
    f"{TRAIN_PREFIX}loss_instance": MetricFacts("Instance loss", "Each image against all others"),
    f"{TRAIN_PREFIX}loss_weak": MetricFacts("Weak-label loss", "Before its weight beta"),
    LEARNING_RATE: MetricFacts("Learning rate"),
    IMAGES_PER_SECOND: MetricFacts("Images per second", "Of the last steps"),
    GPU_PERCENT: MetricFacts("GPU utilisation, %", "Share of time with GPU activity, from NVML"),
    GPU_MEMORY_MIB: MetricFacts("GPU memory, MiB", "Used by the training process"),
    CPU_PERCENT: MetricFacts("CPU, % of a core", "CPU time of the training process; 200 is two full cores"),
    PROCESS_MEMORY_MIB: MetricFacts("Process memory, MiB", "Resident memory of the training process"),
    COMPONENT_SHARE: MetricFacts("Components per image", "About 1/4 in healthy runs; near 0 in a collapse"),
    KNN_TOP1 + GAINED: MetricFacts(
        "kNN: newly right", "Share of test images that the untrained network had wrong and this one has right", True
    ),
    KNN_TOP1 + LOST: MetricFacts(
        "kNN: newly wrong", "Share of test images that the untrained network had right and this one has wrong", True
    ),
    VIEW_TOP1 + GAINED: MetricFacts(
        "Views: newly right", "Share of images that only the trained network recognises", True
    ),
    VIEW_TOP1 + LOST: MetricFacts(
        "Views: newly wrong", "Share of images that only the untrained network recognises", True
    ),
    ADJUSTED_MUTUAL_INFORMATION: MetricFacts(
        "Weak labels against classes", "Adjusted mutual information: 1 for equal groups, 0 for random ones"
    ),
    EMBEDDING_DEVIATION: MetricFacts("Spread of embeddings", "1 if spread evenly over the sphere; 0 in a collapse"),
    EMBEDDING_RANKME: MetricFacts(
        "Effective rank of embeddings",
        "In how many directions they differ (RankMe); 1 in a collapse",
    ),
    "embedding/alignment": MetricFacts(
        "Alignment of embeddings", "Mean squared distance of an image's two views; lower is closer"
    ),
    "embedding/uniformity": MetricFacts("Uniformity of embeddings", "Lower is spread more evenly; 0 in a collapse"),
    "repr/std": MetricFacts("Spread of features", "1 if spread evenly over the sphere; 0 in a collapse"),
    "repr/rankme": MetricFacts(
        "Effective rank of features",
        "In how many directions they differ (RankMe)",
    ),
    "repr/alignment": MetricFacts(
        "Alignment of features", "Mean squared distance of an image's two views; lower is closer"
    ),
    "repr/uniformity": MetricFacts("Uniformity of features", "Lower is spread more evenly; 0 in a collapse"),
}


def metric_facts(name: str) -> MetricFacts:
    """Return the facts of a metric; one that is not in the table, for example of a plugin, has its name as title."""
    return METRICS.get(name) or MetricFacts(name, is_share=name.endswith("top1"))


def in_order(latest: Mapping[str, float | None]) -> list[tuple[str, float | None]]:
    """Return names and values in the order of the table, the answer first; metrics that it lacks follow by name."""
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(latest.items(), key=lambda entry: (places.get(entry[0], len(places)), entry[0]))


def is_hardware(name: str) -> bool:
    """Return whether a metric is about the machine and not about the training."""
    return name == IMAGES_PER_SECOND or name.startswith(HARDWARE_PREFIX)
