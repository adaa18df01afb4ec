"""Train on a folder of class folders and evaluate the result, with the library alone: no server, no database.

    python examples/train_on_a_folder.py /data/flowers --epochs 200 --output runs/flowers

The folder contains train/CLASS/* and test/CLASS/*, or CLASS/*.  Only the evaluation looks at the classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wcl_core import data, evaluate, pretrain
from wcl_core.config import parse_spec
from wcl_core.reporter import ConsoleReporter, MemoryReporter


def main() -> None:
    """Train, then compare the features with those of an untrained network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("runs/folder"))
    options = parser.parse_args()

    console = ConsoleReporter()
    images = data.load("mine", "folder", options.folder, options.image_size, 0.01, console)
    backbone = {"name": "resnet18", "stem": "imagenet"}
    spec = parse_spec(
        "pretrain",
        {
            "data": {"name": "mine", "image_size": options.image_size},
            "epochs": options.epochs,
            "batch_size": min(options.batch_size, len(images.pretraining)),
            "backbone": backbone,
            "heads": {"hidden_dim": 512, "output_dim": 128},
            "loss": {"temperature": 0.2, "weak_temperature": 0.2},
            "optimizer": {"name": "sgd", "learning_rate": 0.06, "scaling": "linear", "weight_decay": 5e-4},
            "checkpoints": {"every_epochs": options.epochs},
        },
    )
    pretrain(spec, console, dataset=images, output_dir=options.output)
    last = max((options.output / "checkpoints").glob("step-*.safetensors"))
    print(f"checkpoint: {last}")
    for name, features in (
        ("untrained", {"kind": "untrained", "backbone": backbone}),
        # The library reads the checkpoint from a path; the id only matters to the service.
        ("trained", {"kind": "checkpoint", "checkpoint_id": "00000000-0000-0000-0000-000000000000"}),
    ):
        fields = {"data": spec.data.model_dump(), "features": features, "protocols": ["knn", "few_labels"]}
        report = MemoryReporter()
        evaluate(parse_spec("evaluate", fields), report, data=images, checkpoint_path=last)
        for number in report.of("evaluation"):
            labels = number["params"].get("labels_per_class", "all")
            print(f"{name:<10} {number['protocol']:<10} labels per class: {labels!s:<4} {number['value']:.1%}")


if __name__ == "__main__":
    main()
