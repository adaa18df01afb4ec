"""The command line of the library, without the service: `python -m wcl_core <verb> --help`."""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, get_args

from wcl_core import orphans

if __name__ == "__main__":
    # Before the imports that take seconds.
    _watch: orphans.ImportWatch | None = orphans.ImportWatch(sys.argv)
else:
    _watch = None

import torch
from pydantic import ValidationError

from wcl_core import data
from wcl_core.config import EvaluateSpec, Kind, PretrainSpec, Spec, is_transformer, parse_spec
from wcl_core.device import DeviceError, check
from wcl_core.intervals import Difference
from wcl_core.limits import num_cores
from wcl_core.protocol import Outcome, Request
from wcl_core.registration import description_json
from wcl_core.reporter import ConsoleReporter
from wcl_core.spec_files import read_spec
from wcl_core.text import Arguments, counted, visible_json, write_error, write_line

_MOST_REASONS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 for success, 1 for a failure with a line on stderr, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))  # torch sees the cores of the machine
    try:
        code: int = options.run(options)
    except ValidationError as error:
        for item in error.errors():
            field = ".".join(map(str, item["loc"])) or "spec"
            write_error(f"{field}: {item['msg'].removeprefix('Value error, ')}")
        return 1
    except (ValueError, ArithmeticError, OSError, DeviceError) as error:
        write_error(str(error))
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="python -m wcl_core", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("pretrain", help="train a backbone by a spec file (.yaml or .json)")
    verb.add_argument("spec", type=Path)
    verb.add_argument("--output", type=Path, default=Path("wcl-run"), help="folder of the checkpoints")
    verb.add_argument("--resume", type=Path, help="checkpoint to continue from")
    verb.add_argument("--weights", type=Path, help="file of the weights that the spec starts from")
    _data_options(verb)
    verb.set_defaults(run=_pretrain)

    verb = verbs.add_parser("evaluate", help="measure features by a spec file")
    verb.add_argument("spec", type=Path)
    verb.add_argument("--checkpoint", type=Path, help="native checkpoint, for features of kind checkpoint")
    verb.add_argument("--output", type=Path, default=Path("wcl-run"), help="folder of embeddings")
    _data_options(verb)
    _list_option(verb)
    verb.set_defaults(run=_evaluate)

    verb = verbs.add_parser("export", help="write the backbone of a checkpoint for other programs")
    verb.add_argument("file", type=Path, help="a checkpoint; for the forms onnx and timm also an exported backbone")
    verb.add_argument("out", type=Path, help="a file, or for timm a folder that does not exist")
    verb.add_argument("--form", choices=["weights", "onnx", "timm"], default="weights")
    verb.add_argument("--about", type=Path, help="a Markdown file for the model card of the form timm")
    verb.set_defaults(run=_export)

    verb = verbs.add_parser("import-weights", help="convert weights of another program to a file to start from")
    verb.add_argument("file", type=Path, help="in safetensors format, or of torch.save")
    verb.add_argument("out", type=Path, help="a file that ends in .safetensors")
    verb.add_argument("--stem", choices=["small", "stride2"], help="of a network that begins with a 3x3 convolution")
    verb.add_argument("--prefix", help="of the encoder's names, if the file has several encoders")
    verb.set_defaults(run=_import_weights)

    verb = verbs.add_parser("pack", help="decode an image folder into one file that loads without decoding")
    verb.add_argument("name")
    verb.add_argument("folder", type=Path)
    verb.add_argument("out", type=Path, help="the packed file, usually NAME.wclpack")
    verb.add_argument(
        "--size", type=int, default=32, help="side of the stored images in pixels; data.image_size of its jobs"
    )
    verb.add_argument("--max-corrupt-share", type=float, default=0.01)
    verb.set_defaults(run=_pack)

    verb = verbs.add_parser("describe-dataset", help="print counts, classes and digest of a dataset as JSON")
    verb.add_argument("name")
    verb.add_argument("kind", choices=get_args(data.DatasetKind))
    verb.add_argument("path", type=Path, nargs="?")
    verb.add_argument("--cache", type=Path, help="file that caches the description until the folder changes")
    _list_option(verb)
    verb.set_defaults(run=_describe)

    verb = verbs.add_parser("features", help="write the features of the images of a folder as a table")
    verb.add_argument("file", type=Path, help="exported backbone or native checkpoint")
    verb.add_argument("folder", type=Path, nargs="+", help="image folder, list of images, or image files")
    verb.add_argument("out", type=Path, help="a file that ends in .csv, .parquet or .npy")
    _size_option(verb)
    verb.set_defaults(run=_features)

    verb = verbs.add_parser(
        "dataset-features", help="write the features of a dataset, as `embed` stored them, as a table"
    )
    verb.add_argument("embeddings", type=Path, help="file of the protocol embed")
    verb.add_argument("out", type=Path, help="a file that ends in .csv, .parquet or .npy")
    verb.add_argument("--split", choices=["train", "test", "unlabelled"], help="by default all")
    verb.set_defaults(run=_dataset_features)

    verb = verbs.add_parser("check-image", help="fail unless a file is an image that is read; needs no PyTorch")
    verb.add_argument("image", type=Path)
    verb.set_defaults(run=_check_image)

    verb = verbs.add_parser("neighbours", help="print the images of a folder that are most similar to an image")
    verb.add_argument("file", type=Path, help="exported backbone or native checkpoint")
    verb.add_argument("image", type=Path)
    verb.add_argument("folder", type=Path, help="image folder, list of images, or file of the protocol embed")
    verb.add_argument("--count", type=int, default=10)
    verb.add_argument("--output", type=Path, help="a .csv file, in place of the output")
    _size_option(verb)
    verb.set_defaults(run=_neighbours)

    verb = verbs.add_parser("classify-fit", help="fit a linear classifier on the features of a labelled folder")
    verb.add_argument("file", type=Path, help="exported backbone or native checkpoint")
    verb.add_argument("folder", type=Path, help="folder with a folder for each class, or list with classes")
    verb.add_argument("out", type=Path, help="a file that ends in .safetensors")
    verb.add_argument("--checkpoint", metavar="ID", help="id of the weights in a service, which the file names")
    _size_option(verb)
    verb.set_defaults(run=_classify_fit)

    verb = verbs.add_parser("classify-predict", help="write the classes of the images of a folder as a table")
    verb.add_argument("file", type=Path, help="a file of classify-fit")
    verb.add_argument(
        "folder", type=Path, nargs="+", help="image folder, list of images, image files, or file of the protocol embed"
    )
    verb.add_argument("out", type=Path, help="a file that ends in .csv")
    verb.set_defaults(run=_classify_predict)

    verb = verbs.add_parser("attempt", help="run one attempt of a job; a worker calls this")
    verb.add_argument("folder", type=Path)
    verb.add_argument("--control-fd", type=int)
    verb.set_defaults(run=_attempt)
    return parser


def _size_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, help="side of the images in pixels; by default that of the training")


def _list_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--list",
        type=_named_path,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="fixed list of labelled train images, one index or path a line; may be repeated",
    )


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE")
    return name, Path(path)


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", type=Path, help="image folder or packed file; required unless the dataset is builtin"
    )


def _pretrain(options: argparse.Namespace) -> int:
    from wcl_core.distributed import joined
    from wcl_core.training.pretrain import pretrain

    spec = _read_spec("pretrain", options.spec)
    assert isinstance(spec, PretrainSpec)
    with joined(choice=spec.device) as ranks:  # before the data are read: it checks the device
        dataset = _load(spec, options.data_path)
        with _paused_by_interrupt() as request:
            reporter = ConsoleReporter(request)
            if spec.num_ranks != ranks.size and ranks.is_first:
                reporter.warning(
                    "other_processes",
                    f"the spec has {spec.num_ranks} ranks, but {ranks.size} train; start so many with torchrun",
                )
            arguments = {"dataset": dataset, "output_dir": options.output, "resume": options.resume}
            outcome = pretrain(spec, reporter, ranks=ranks, weights=options.weights, **arguments)
        if outcome == "paused" and ranks.is_first:
            write_line("paused; --resume and the last checkpoint continue the run", sys.stderr)
    return _exit_code(outcome)


def _evaluate(options: argparse.Namespace) -> int:
    from wcl_core.distributed import SINGLE, device_of
    from wcl_core.evaluation.run import evaluate

    spec = _read_spec("evaluate", options.spec)
    assert isinstance(spec, EvaluateSpec)
    check(device_of(SINGLE, spec.device))  # before the data are read
    dataset = data.with_label_lists(_load(spec, options.data_path), dict(options.list))
    reporter = ConsoleReporter()
    return _exit_code(
        evaluate(spec, reporter, data=dataset, checkpoint_path=options.checkpoint, output_dir=options.output)
    )


def _export(options: argparse.Namespace) -> int:
    if options.form == "weights":
        from wcl_core.export import backbone_file

        backbone_file(options.file, options.out)
    elif options.form == "onnx":
        from wcl_core.networks.exported import write_onnx

        write_onnx(options.file, options.out)
    else:
        from wcl_core.networks.exported import write_timm

        write_timm(options.file, options.out, options.about.read_text() if options.about else "")
    return 0


def _import_weights(options: argparse.Namespace) -> int:
    from wcl_core.networks.imported import import_weights

    imported = import_weights(options.file, options.out, stem=options.stem, prefix=options.prefix)
    backbone = imported.backbone
    shape = f"patches of {backbone.patch_size}" if is_transformer(backbone.name) else f"stem {backbone.stem}"
    below = f" below {imported.prefix}" if imported.prefix else ""
    write_line(f"{backbone.name}, {shape}: {imported.num_matched:,} tensors matched{below}")
    if imported.filled:
        write_line(f"{len(imported.filled):,} counters of batch norm are missing, and are set to 0")
    if unused := _by_module(imported.unused):
        more = f" and {len(unused) - 20:,} more" if len(unused) > 20 else ""
        write_line(f"not used: {', '.join(unused[:20])}{more}")
    return 0


def _by_module(names: Sequence[str]) -> list[str]:
    """Return names of tensors, with one entry for a module of more than three, such as `encoder_k.* (120 tensors)`."""
    modules = Counter(".".join(name.split(".")[:-1][:2]) for name in names)
    entries: dict[str, None] = {}
    for name in names:
        module = ".".join(name.split(".")[:-1][:2])
        entry = f"{module}.* ({modules[module]:,} tensors)" if module and modules[module] > 3 else name
        entries[entry] = None
    return list(entries)


def _features(options: argparse.Namespace) -> int:
    from wcl_core.evaluation.new_images import write_features

    written = write_features(options.file, options.folder, options.out, _checked_size(options), _say_left_out)
    write_line(f"{options.out}: features of {_of_all(written.num_images, written.left_out)}")
    return 0


def _dataset_features(options: argparse.Namespace) -> int:
    from wcl_core.evaluation.new_images import write_dataset_features

    count = write_dataset_features(options.embeddings, options.out, options.split)
    write_line(f"{options.out}: features of {_images(count)}")
    return 0


def _check_image(options: argparse.Namespace) -> int:
    from wcl_core.data.decoding import check_image

    if problem := check_image(options.image):
        raise data.DataError(problem)
    return 0


def _neighbours(options: argparse.Namespace) -> int:
    from wcl_core.evaluation.feature_table import write_table
    from wcl_core.evaluation.new_images import neighbours

    size = _checked_size(options)
    rows = neighbours(options.file, options.image, options.folder, options.count, size, _say_left_out)
    if options.output is None:
        for row in rows:
            write_line(f"{row.similarity:.4f}  {row.path}")
    else:
        write_table(options.output, ["path", "similarity"], [(row.path, f"{row.similarity:.6f}") for row in rows])
        write_line(f"{options.output}: {_images(len(rows))}, the nearest first")
    return 0


def _classify_fit(options: argparse.Namespace) -> int:
    from wcl_core.evaluation.image_classifier import fit_classifier

    size = _checked_size(options)
    fitted = fit_classifier(options.file, options.folder, options.out, size, _say_left_out, options.checkpoint)
    counts = list(fitted.counts.items())
    more = f" and {len(counts) - 20:,} more" if len(counts) > 20 else ""
    write_line(f"read as: {fitted.layout}")
    write_line(f"classes: {', '.join(f'{name} {count:,}' for name, count in counts[:20])}{more}")
    if fitted.left_out:
        write_line(f"left out: {_reasons(fitted.left_out)}")
    if (held := fitted.held_out) is None:
        write_line("held-out accuracy: not measured, because no class has two images")
    else:
        interval = f"95 % interval {held.low:.1%} to {held.high:.1%}"
        write_line(f"held-out accuracy: {held.accuracy:.1%} ({interval}) on {_images(held.count)}")
        right = [f"{name} {right:,} of {count:,}" for name, (right, count) in held.by_class.items()]
        more = f" and {len(right) - 20:,} more" if len(right) > 20 else ""
        write_line(f"right, by class: {', '.join(right[:20])}{more}")
        if fitted.untrained is not None:
            beside = "" if fitted.gain is None else f"; {_against_untrained(fitted.gain)}"
            write_line(f"the untrained network: {fitted.untrained.accuracy:.1%}{beside}")
        write_line(f"always the largest class: {held.largest:.1%}")
    write_line(f"{options.out}: a classifier with its network; `wcl classify predict` uses it")
    return 0


def _against_untrained(gap: Difference) -> str:
    """Return whether a classifier is shown to be better than one on the untrained network, with the interval."""
    interval = f"95 % interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f}, {gap.method}"
    if gap.is_shown:
        return f"{'better' if gap.value > 0 else 'worse'} by {100 * abs(gap.value):.1f} points ({interval})"
    return f"no difference shown: {100 * gap.value:+.1f} points ({interval})"


def _classify_predict(options: argparse.Namespace) -> int:
    from wcl_core.evaluation.image_classifier import predict

    predicted = predict(options.file, options.folder, options.out, None, _say_left_out)
    write_line(f"{options.out}: classes of {_of_all(predicted.counts.total(), predicted.left_out)}")
    for name, count in predicted.counts.most_common(20):
        write_line(f"  {count:,} {name}")
    if (held := predicted.fitted) is not None:
        write_line(f"of {_images(held['count'])} held out, this classifier had {held['accuracy']:.1%} right")
        if held.get("is_shown") is False:
            write_line("and was not shown to differ from one on the untrained network: take its classes with caution")
    return 0


def _checked_size(options: argparse.Namespace) -> int | None:
    size: int | None = options.size
    if size is not None and not 8 <= size <= 512:
        raise ValueError(f"--size is {size}, expected 8 to 512, the range of data.image_size")
    return size


def _images(count: int) -> str:
    return counted(count, "image")


def _of_all(num_images: int, left_out: Counter[str]) -> str:
    """Return how many images a table has, of how many, and why others are left out."""
    if not left_out:
        return _images(num_images)
    total = num_images + left_out.total()
    return f"{num_images:,} of {_images(total)}; {left_out.total():,} left out: {_reasons(left_out)}"


def _reasons(left_out: Counter[str]) -> str:
    return "; ".join(f"{count:,}, {reason}" for reason, count in left_out.most_common(_MOST_REASONS)) + (
        "; …" if len(left_out) > _MOST_REASONS else ""
    )


def _say_left_out(message: str) -> None:
    write_line(f"left out: {message}", sys.stderr)


def _pack(options: argparse.Namespace) -> int:
    from wcl_core.data.packing import pack

    if not 8 <= options.size <= 512:
        raise ValueError(f"--size is {options.size}, expected 8 to 512, the range of data.image_size")
    share = options.max_corrupt_share
    _print_description(pack(options.name, options.folder, options.out, options.size, share, ConsoleReporter()))
    return 0


def _describe(options: argparse.Namespace) -> int:
    _print_description(data.describe(options.name, options.kind, options.path, options.cache, dict(options.list)))
    return 0


def _print_description(description: data.Description) -> None:
    write_line(visible_json(json.dumps(description_json(description))))


def _attempt(options: argparse.Namespace) -> NoReturn:
    orphans.adopt()  # a process that the run leaves behind stays below it, apart from those of other runs
    gc.disable()  # the imports make a million objects that stay; collecting meanwhile takes a quarter of the start
    from wcl_core.attempt import flush_output, run_attempt

    gc.enable()
    if _watch is not None:
        _watch.stop()
    code = run_attempt(options.folder, options.control_fd)
    # Everything is stored.  The interpreter would take a second to free its objects, and the worker waits for the end.
    atexit._run_exitfuncs()
    flush_output()
    os._exit(code)


def _load(spec: Spec, path: Path | None) -> data.ImageData:
    return data.load(
        spec.data.name, data.kind_of(path), path, spec.data.image_size, spec.data.max_corrupt_share, ConsoleReporter()
    )


@contextmanager
def _paused_by_interrupt() -> Iterator[Callable[[], Request | None]]:
    """Turn the first Ctrl-C into a pause, so that a checkpoint is saved; a second one stops the process at once."""
    requests: list[Request] = []

    def pause(*_: object) -> None:
        requests.append("pause")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, pause)
    try:
        yield lambda: requests[0] if requests else None
    finally:
        signal.signal(signal.SIGINT, before)


def _read_spec(kind: Kind, path: Path) -> Spec:
    return parse_spec(kind, read_spec(path))


def _exit_code(outcome: Outcome) -> int:
    return 0 if outcome == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
