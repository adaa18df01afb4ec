"""A linear classifier on the features of a backbone, in one file with the backbone: fitted on few labelled images.

    labelled folder ── features ── logistic regression ──► FILE: backbone, classes, weights
    FILE, folder ──► a table: path, class, probability, and the probability of each class

The file is a safetensors file that `load_backbone` reads, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wcl_core import checkpoint
from wcl_core.checkpoint import CheckpointError
from wcl_core.data.images import DataError
from wcl_core.data.layout import LIST, SPLIT_MADE, Files, shown
from wcl_core.evaluation.embedding import read_embeddings
from wcl_core.evaluation.feature_table import write_table
from wcl_core.evaluation.linear import chosen_strength, classes, fit, logits, standard
from wcl_core.evaluation.new_images import Features, Warn, images_of, listed
from wcl_core.intervals import Difference, paired, wilson
from wcl_core.networks.weights import exported_facts
from wcl_core.per_image import Pairs
from wcl_core.text import counted

_PREFIX = "model/backbone."
_WEIGHTS, _MEAN, _DEVIATION = "classifier/weights", "classifier/mean", "classifier/deviation"
_SEED = 0


@dataclass(frozen=True)
class HeldOut:
    """The accuracy on images that the measured classifier was not fitted on, with its 95 % interval (Wilson).

    `largest` is the accuracy of always naming the largest class of these images, as in evaluations; `by_class` has, for
    each class with such images, how many are classified right, and how many there are.
    """

    accuracy: float
    low: float
    high: float
    count: int
    largest: float
    by_class: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Fitted:
    """A classifier that was fitted.

    Attributes:
        counts: images by class, on which the classifier of the file was fitted.
        held_out: None if no class has two images.
        untrained: what the same network reaches before any training; None where it is not measured.
        gain: the accuracy minus that of the untrained network, compared image by image.
        layout: how the folder was read.
        left_out: number of images that cannot be read, by reason.
    """

    counts: dict[str, int]
    held_out: HeldOut | None
    untrained: HeldOut | None
    gain: Difference | None
    layout: str
    left_out: Counter[str]


@dataclass(frozen=True)
class Predicted:
    """Classes that were predicted.

    Attributes:
        counts: number of images by class.
        left_out: number of images that cannot be read, by reason.
        fitted: what the classifier's file tells of its accuracy on held-out images, as `fit_classifier` writes it; None
            where it was not measured.
    """

    counts: Counter[str]
    left_out: Counter[str]
    fitted: dict[str, Any] | None


def fit_classifier(
    file: Path, folder: Path, out: Path, size: int | None, warn: Warn, checkpoint_id: str | None = None
) -> Fitted:
    """Fit a classifier on the features of a labelled folder or list, and write it.

    If the folder has no test split, a fifth of each class measures the accuracy; then the classifier is fitted again on
    all images.

    Args:
        file, size, warn: as for `Features`.
        folder: with a folder for each class, or a list with classes; or the file of a dataset's features by the same
            network.
        out: a safetensors file; it becomes visible whole.
        checkpoint_id: of a service, that the weights are of; the file names it.

    Raises:
        ValueError: the ending of `out` is another one, or the file of features is that of another network.
        DataError: the folder names fewer than two classes, or a class has no image that can be read.
        CheckpointError: as `load_backbone`.
    """
    if out.suffix.lower() != ".safetensors":
        raise ValueError(f"{out}: expected a name that ends in .safetensors")
    computed = Features(file, size, warn)
    images = _of_dataset(folder) if folder.suffix == ".safetensors" else _of_folder(folder, computed, warn)
    rows, labels, is_held, names = images.features, images.labels, images.is_held, images.classes
    if rows.shape[1] != computed.network.feature_dim:
        raise ValueError(
            f"{folder}: its features have {rows.shape[1]} numbers, and those of {file} {computed.network.feature_dim}; "
            "expected features by the same network"
        )
    if absent := sorted(set(range(len(names))) - set(labels[~is_held].tolist())):
        raise DataError(f"{folder}: no image of class {names[absent[0]]} can be read; a classifier needs one of each")
    strength, measured, is_right = _measured(rows, labels, is_held, names)
    untrained = gain = None
    if measured is not None and images.untrained is not None:
        _, untrained, was_right = _measured(images.untrained(), labels, is_held, names)
        gain = _gain(is_right, was_right)
    kept = torch.ones_like(is_held) if SPLIT_MADE in images.layout else ~is_held
    mean, deviation = standard(rows[kept])
    weights = fit((rows[kept] - mean) / deviation, labels[kept], strength)
    tensors = {f"{_PREFIX}{name}": value for name, value in computed.network.state_dict().items()}
    classifier: dict[str, Any] = {"classes": list(names)}
    if checkpoint_id is not None:
        classifier["checkpoint_id"] = checkpoint_id
    if measured is not None:
        classifier["held_out"] = {"accuracy": measured.accuracy, "count": measured.count}
        classifier["held_out"] |= {} if gain is None else {"gain": gain.value, "is_shown": gain.is_shown}
    facts = {"spec": exported_facts(file, images.size), "classifier": classifier}
    checkpoint.write(out, tensors | {_WEIGHTS: weights, _MEAN: mean, _DEVIATION: deviation}, facts)
    counts = Counter(names[label] for label in labels[kept].tolist())
    by_class = {name: counts[name] for name in names}
    return Fitted(by_class, measured, untrained, gain, images.layout, computed.left_out)


@dataclass(frozen=True)
class _Images:
    """Labelled images.

    Attributes:
        features: (N, D) float32.
        labels: (N,) int64, places in `classes`.
        is_held: (N,) bool, whether an image measures the accuracy.
        layout: how the folder was read.
        size: side of the images in pixels.
        untrained: computes the features by the untrained network; None where the images are not here.
    """

    features: Tensor
    labels: Tensor
    is_held: Tensor
    classes: tuple[str, ...]
    layout: str
    size: int
    untrained: Callable[[], Tensor] | None


def _of_folder(folder: Path, computed: Features, warn: Warn) -> _Images:
    """Compute the features of the images of a folder or list; raise as `fit_classifier`."""
    entries, names, held, files = _labelled(folder, warn)
    places, rows = computed.of(files.root, [path for path, _ in entries])
    read = [entries[place][0] for place in places]
    return _Images(
        rows,
        torch.tensor([entries[place][1] for place in places]),
        torch.tensor([held[place] for place in places]),
        names,
        files.layout,
        computed.size,
        lambda: computed.untrained().of(files.root, read)[1],
    )


def _of_dataset(file: Path) -> _Images:
    """Return the labelled images of a dataset, whose test split measures the accuracy; raise as `fit_classifier`."""
    stored = read_embeddings(file)
    kept = [place for place, label in enumerate(stored.labels) if label and stored.splits[place] in ("train", "test")]
    names = tuple(sorted({stored.labels[place] for place in kept}))
    if len(names) < 2:
        raise DataError(f"dataset {stored.dataset} has no two classes with images; a classifier needs labels")
    labels = torch.tensor([names.index(stored.labels[place]) for place in kept])
    is_held = torch.tensor([stored.splits[place] == "test" for place in kept])
    layout = f"dataset {stored.dataset}, whose test split measures the accuracy"
    return _Images(stored.features[kept], labels, is_held, names, layout, stored.image_size, None)


def _labelled(folder: Path, warn: Warn) -> tuple[list[tuple[str, int]], tuple[str, ...], list[bool], Files]:
    """Return the images with their labels, the classes, and whether each image is in the test split.

    Raises:
        DataError: there are fewer than two classes.
    """
    files = listed(folder, warn, has_labels=True)
    if len(files.classes) > 1:
        entries = [*files.train, *files.test]
        return entries, files.classes, [False] * len(files.train) + [True] * len(files.test), files
    paths = [path for path, _ in files.unlabelled]
    names = sorted({path.split("/", 1)[0] for path in paths})
    if len(names) > 1 and len(names) == len(paths) and all("/" in path for path in paths):  # one image a class
        entries = [(path, names.index(path.split("/", 1)[0])) for path in paths]
        return entries, tuple(map(shown, names)), [False] * len(paths), files
    lists = [example for each in files.left_out.list() if each.text == LIST for example in each.examples]
    raise DataError(
        f"{folder} names no two classes ({files.layout}); expected a folder for each class, CLASS/FILE, or a list with "
        f"classes{f', such as {lists[0]} in it' if lists else ''}"
    )


def _gain(is_right: Tensor, was_right: Tensor) -> Difference:
    """Return the difference of two classifiers, from what each of them had right of the same images."""
    gaps = is_right.double() - was_right.double()
    pairs = Pairs(len(gaps), float(gaps.sum()), float(gaps.square().sum()))
    return Difference(float(gaps.mean()), *paired(pairs), f"paired over {counted(len(gaps), 'image')}")


def _measured(
    rows: Tensor, labels: Tensor, is_held: Tensor, names: Sequence[str]
) -> tuple[float, HeldOut | None, Tensor]:
    """Return the strength of the regularisation, and the accuracy on the images that are held out.

    The last of the three says of each such image whether it is classified right.
    """
    mean, deviation = standard(rows[~is_held])
    train = (rows[~is_held] - mean) / deviation
    strength = chosen_strength(train, labels[~is_held], _SEED)
    if not is_held.any():
        return strength, None, torch.zeros(0, dtype=torch.bool)
    predicted = classes((rows[is_held] - mean) / deviation, fit(train, labels[~is_held], strength))
    count = int(is_held.sum())
    is_right = predicted == labels[is_held]
    accuracy = float(is_right.double().mean())
    largest = float(labels[is_held].bincount().max()) / count
    held = labels[is_held]
    places = sorted(set(held.tolist()))
    by_class = {names[each]: (int(is_right[held == each].sum()), int((held == each).sum())) for each in places}
    return strength, HeldOut(accuracy, *wilson(accuracy, count), count, largest, by_class), is_right


def predict(file: Path, places: Sequence[Path], out: Path, size: int | None, warn: Warn) -> Predicted:
    """Write the classes of the images of a folder, a list or a dataset, or of single images, as CSV.

    Args:
        file: as `fit_classifier` writes it.
        places: as for `write_features`; or the file of a dataset's features by the same network.
        size, warn: as for `write_features`.
        out: a `.csv` file; it becomes visible whole.

    Raises:
        ValueError: the ending of `out` is another one, or the file of features is that of another network.
        DataError: there is no image that can be read.
        CheckpointError: the file is no classifier.
    """
    if out.suffix.lower() != ".csv":
        raise ValueError(f"{out}: expected a name that ends in .csv")
    facts, (weights, mean, deviation) = _read(file)
    names = [str(each) for each in facts["classes"]]
    left_out = Counter[str]()
    if [each.suffix for each in places] == [".safetensors"]:
        stored = read_embeddings(places[0])
        paths, rows = stored.paths, stored.features
        if rows.shape[1] != len(mean):
            raise ValueError(
                f"{places[0]}: its features have {rows.shape[1]} numbers, and those of {file} {len(mean)}; expected "
                "features by the same network"
            )
    else:
        computed = Features(file, size, warn)
        files = images_of(places, warn)
        listed = [path for path, _ in files.unlabelled]
        read, rows = computed.of(files.root, listed)
        paths, left_out = [shown(listed[place]) for place in read], computed.left_out
    probabilities = logits((rows - mean) / deviation, weights).softmax(dim=1)
    chosen = probabilities.argmax(dim=1).tolist()
    table = [
        [path, names[best], *(f"{value:.4f}" for value in (row[best], *row))]
        for path, best, row in zip(paths, chosen, probabilities.tolist(), strict=True)
    ]
    write_table(out, ["path", "class", "probability", *(f"p({name})" for name in names)], table)
    return Predicted(Counter(names[best] for best in chosen), left_out, facts.get("held_out"))


def _read(file: Path) -> tuple[dict[str, Any], tuple[Tensor, Tensor, Tensor]]:
    """Return the facts of a classifier, and its weights, mean and deviation.

    Raises:
        CheckpointError: the file is absent, damaged or no classifier.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts: dict[str, Any] = json.loads((opened.metadata() or {})["wcl"])["classifier"]
            num_classes = len(facts["classes"])
            tensors = [opened.get_tensor(name) for name in (_WEIGHTS, _MEAN, _DEVIATION)]
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is no file; expected a file of `wcl classify fit`") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is no classifier; expected a file of `wcl classify fit`") from error
    weights, mean, deviation = tensors
    if weights.shape != (len(mean) + 1, num_classes) or deviation.shape != mean.shape:
        raise CheckpointError(f"{file} is damaged: its weights fit neither its classes nor its features")
    return facts, (weights, mean, deviation)
