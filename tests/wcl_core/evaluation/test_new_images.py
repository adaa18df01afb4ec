"""New images: neighbours of one, a classifier that is taken along, and tables in each format."""

from __future__ import annotations

import csv
import re
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wcl_core import checkpoint
from wcl_core.__main__ import main
from wcl_core.config import EvaluateSpec, PretrainSpec, parse_spec, resolve_spec
from wcl_core.data import load
from wcl_core.evaluation import feature_table
from wcl_core.evaluation.new_images import Features
from wcl_core.evaluation.run import evaluate
from wcl_core.intervals import wilson
from wcl_core.networks.backbones import build_backbone
from wcl_core.networks.weights import load_backbone, trained_size
from wcl_core.protocol import EMBEDDINGS_FILE
from wcl_core.reporter import MemoryReporter

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue # 3": (30, 30, 200)}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = parse_spec("pretrain", {"data": {"name": "x", "image_size": 16}, "backbone": {"name": "tiny", "width": 8}})
    assert isinstance(spec, PretrainSpec)
    torch.manual_seed(0)
    tensors = {f"model/backbone.{name}": each for name, each in build_backbone(spec.backbone, 16).state_dict().items()}
    facts = {"spec": resolve_spec(spec), "step": 1, "epoch": 1}
    return checkpoint.write(tmp_path_factory.mktemp("network") / "native.safetensors", tensors, facts).path


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (16, 16, 3))
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place, (name, colour) in enumerate(COLOURS.items()):
        for number in range(6):
            paint(tmp_path / "photos" / name / f"{number}, of six.png", colour, 10 * place + number)
    return tmp_path / "photos"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_neighbours_are_the_most_similar_images_without_the_image_itself(
    network: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = photos / "green" / "2, of six.png"
    assert main(["neighbours", str(network), str(image), str(photos), "--count", "5"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert {path for _, path in lines} == {f"green/{number}, of six.png" for number in (0, 1, 3, 4, 5)}
    assert [float(value) for value, _ in lines] == sorted((float(value) for value, _ in lines), reverse=True)

    shutil.copy(image, tmp_path / "elsewhere.png")
    arguments = ["neighbours", str(network), str(tmp_path / "elsewhere.png"), str(photos), "--count", "99"]
    assert main([*arguments, "--output", str(tmp_path / "near.csv")]) == 0
    rows = table(tmp_path / "near.csv")
    assert (len(rows), rows[0]) == (18, {"path": "green/2, of six.png", "similarity": "1.000000"})
    computed = Features(network, None, pytest.fail)
    _, (one, other) = computed.of(photos, ["green/2, of six.png", rows[-1]["path"]])
    assert float(rows[-1]["similarity"]) == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-5)


def test_what_has_no_neighbours_is_named(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "alone" / "a.png", (9, 9, 9), 0)
    (tmp_path / "alone" / "notes.png").write_text("none")
    for image, text in (
        ("a.png", "no image can be read"),
        ("gone.png", "is no file"),
        ("notes.png", "none of the formats"),
    ):
        assert main(["neighbours", str(network), str(tmp_path / "alone" / image), str(tmp_path / "alone")]) == 1
        assert text in capsys.readouterr().err
    for command in (["features", "gone", "x.csv"], ["classify-fit", "gone", "x.safetensors"]):
        assert main([command[0], str(network), *(str(tmp_path / each) for each in command[1:])]) == 1
        assert capsys.readouterr().err == f"error: folder {tmp_path / 'gone'} does not exist\n"


def test_a_folder_whose_list_has_the_classes_names_the_list(
    network: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(photos.rglob("*.png"))
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(path, folder / f"{number}.png")
    rows = [f"{number}.png;{path.parent.name}" for number, path in enumerate(paths)]
    (folder / "labels.csv").write_text("\n".join(["file;label", *rows]))
    out = tmp_path / "classifier.safetensors"
    assert main(["classify-fit", str(network), str(folder), str(out)]) == 1
    assert "or a list with classes, such as labels.csv in it" in capsys.readouterr().err
    assert main(["classify-fit", str(network), str(folder / "labels.csv"), str(out)]) == 0
    assert "classes: blue # 3 6, green 6, red 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("is_split", [False, True])
def test_a_classifier_is_taken_along_in_one_file(
    network: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_split: bool
) -> None:
    folder = photos
    if is_split:
        shutil.copytree(photos, tmp_path / "split" / "train")
        shutil.copytree(photos, tmp_path / "split" / "test")
        folder = tmp_path / "split"
        for number in range(6):  # the largest class of those that it is fitted on is the smallest of the others
            shutil.copy(next((folder / "train" / "red").iterdir()), folder / "train" / "red" / f"more-{number}.png")
            if number:
                next((folder / "test" / "red").iterdir()).unlink()
    out = tmp_path / "classifier.safetensors"
    assert main(["classify-fit", str(network), str(folder), str(out)]) == 0
    printed = capsys.readouterr().out
    count, more, largest = (13, 12, "46.2%") if is_split else (3, 6, "33.3%")
    low, high = wilson(1, count)
    assert f"held-out accuracy: 100.0% (95 % interval {low:.1%} to {high:.1%}) on {count} images" in printed
    assert re.search(
        rf"the untrained network: \d+\.\d%; (better by|no difference shown:) \+?\d+\.\d points "
        rf"\(95 % interval [-+]\d+\.\d to \+\d+\.\d, paired over {count} images\)\nalways the largest class: {largest}",
        printed,
    )
    by_class = "blue # 3 6 of 6, green 6 of 6, red 1 of 1" if is_split else "blue # 3 1 of 1, green 1 of 1, red 1 of 1"
    assert f"right, by class: {by_class}" in printed
    assert f"classes: blue # 3 6, green 6, red {more}" in printed, "the classifier of the file is fitted on all images"
    assert trained_size(out) == 16
    assert torch.equal(load_backbone(out)(torch.ones(1, 3, 16, 16)), load_backbone(network)(torch.ones(1, 3, 16, 16)))

    single = [str(next((photos / name).iterdir())) for name in ("red", "green")]
    assert main(["classify-predict", str(out), *single, str(tmp_path / "two.csv")]) == 0
    assert [row["path"].split("/")[0] for row in table(tmp_path / "two.csv")] == ["red", "green"]
    output = capsys.readouterr().out
    assert "classes of 2 images" in output
    assert f"of {count} images held out, this classifier had 100.0% right" in output
    assert ("was not shown to differ" in output) == ("no difference shown" in printed)
    assert main(["classify-predict", str(out), single[0], str(photos), str(tmp_path / "two.csv")]) == 1
    assert f"{photos} is no file; expected image files, or one folder or list" in capsys.readouterr().err
    assert main(["features", str(network), single[0], str(tmp_path / "one.csv")]) == 0
    assert [row["path"] for row in table(tmp_path / "one.csv")] == [Path(single[0]).name]
    capsys.readouterr()

    (photos / "cut.png").write_bytes(b"none")
    (photos / "phone.HEIC").write_bytes(b"none")
    (photos / ".hidden").write_bytes(b"none")
    assert main(["classify-predict", str(out), str(photos), str(tmp_path / "classes.csv")]) == 0
    output = capsys.readouterr()
    errors = output.err.splitlines()
    reason = "its content is none of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
    assert f"classes of 18 of 19 images; 1 left out: 1, {reason}\n" in output.out
    assert [line.split(": ")[-1] for line in errors if "convert them to JPEG" in line] == ["phone.HEIC"]
    assert (len(errors), "cut.png" in errors[1]) == (2, True), errors
    rows = table(tmp_path / "classes.csv")
    assert all(row["path"].startswith(f"{row['class']}/") for row in rows)
    assert [*rows[0]] == ["path", "class", "probability", "p(blue # 3)", "p(green)", "p(red)"]
    for row in rows:
        values = [float(row[f"p({name})"]) for name in COLOURS]
        assert (sum(values), max(values)) == (pytest.approx(1, abs=2e-4), float(row["probability"]))


def test_one_image_a_class_is_enough_to_fit_and_too_little_to_measure(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, colour in COLOURS.items():
        paint(tmp_path / "few" / name / "a.png", colour, 1)
    arguments = ["classify-fit", str(network), str(tmp_path / "few"), str(tmp_path / "c.safetensors")]
    assert main(arguments) == 0
    assert "held-out accuracy: not measured, because no class has two images" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "few" / "red")
    shutil.rmtree(tmp_path / "few" / "green")
    assert main(arguments) == 1
    assert "expected a folder for each class, CLASS/FILE" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["backbone", "cut", "absent"])
def test_another_file_is_no_classifier(
    network: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    file = network
    if spoil != "backbone":
        file = tmp_path / "cut.safetensors"
    if spoil == "cut":
        file.write_bytes(network.read_bytes()[:100])
    assert main(["classify-predict", str(file), str(photos), str(tmp_path / "x.csv")]) == 1
    assert ("is no file" if spoil == "absent" else "is no classifier") in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.slow
def test_features_as_parquet_are_those_of_the_csv(
    network: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    for name in ("f.csv", "f.parquet"):
        assert main(["features", str(network), str(photos), str(tmp_path / name)]) == 0
    stored = parquet.read_table(tmp_path / "f.parquet")
    rows = table(tmp_path / "f.csv")
    assert stored.column_names == [*rows[0]]
    assert stored["path"].to_pylist() == [row["path"] for row in rows]
    np.testing.assert_array_equal(stored["f3"].to_numpy(), np.array([row["f3"] for row in rows], np.float32))

    monkeypatch.setattr(feature_table, "find_spec", lambda _: None)
    assert main(["features", str(network), str(photos), str(tmp_path / "g.parquet")]) == 1
    assert "pip install 'wcl-service[parquet]', or write a .csv file" in capsys.readouterr().err


@pytest.fixture
def stored(network: Path, photos: Path, tmp_path: Path) -> Path:
    """Return the file of `embed` for the photos as a dataset: two classes to train, one image of each to test."""
    for name in ("red", "green"):
        (photos / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).rename(photos / "train" / name)
        (photos / "test" / name).mkdir(parents=True)
        (photos / "train" / name / "5, of six.png").rename(photos / "test" / name / "5, of six.png")
    (photos / "blue # 3").rename(photos / "unlabelled")
    data = load("photos", "folder", photos, 16, 0.01, MemoryReporter())
    kind = {"kind": "checkpoint", "checkpoint_id": str(uuid.UUID(int=7))}
    raw = {"data": {"name": "photos", "image_size": 16}, "features": kind, "protocols": ["embed"]}
    spec = parse_spec("evaluate", raw)
    assert isinstance(spec, EvaluateSpec)
    out = tmp_path / "run"
    assert evaluate(spec, MemoryReporter(), data=data, checkpoint_path=network, output_dir=out) == "succeeded"
    return out / EMBEDDINGS_FILE


def test_features_of_a_dataset_name_path_split_and_label_of_every_image(
    network: Path, photos: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset-features", str(stored), str(tmp_path / "f.csv")]) == 0
    rows = table(tmp_path / "f.csv")
    assert [*rows[0]][:4] == ["path", "split", "label", "f0"]
    expected = {(str(each.relative_to(photos)), each.relative_to(photos).parts[0]) for each in photos.rglob("*.png")}
    assert {(row["path"], row["split"]) for row in rows} == expected
    assert {(row["split"], row["label"]) for row in rows if "red" in row["path"]} == {("train", "red"), ("test", "red")}
    assert {row["label"] for row in rows if row["split"] == "unlabelled"} == {""}
    _, features = Features(network, None, pytest.fail).of(photos, [row["path"] for row in rows])
    np.testing.assert_allclose([float(row["f0"]) for row in rows], features[:, 0], rtol=1e-3, atol=1e-3)

    assert main(["dataset-features", str(stored), str(tmp_path / "f.npy"), "--split", "test"]) == 0
    assert np.load(tmp_path / "f.npy").shape[0] == 2
    assert (tmp_path / "f.txt").read_text().splitlines()[0].split("\t")[1:] in (["test", "red"], ["test", "green"])

    stored.write_bytes(stored.read_bytes()[:-9])
    capsys.readouterr()
    assert main(["dataset-features", str(stored), str(tmp_path / "other.csv")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()


def test_neighbours_in_a_dataset_need_its_features_only(
    network: Path, photos: Path, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "train" / "green" / "2, of six.png", tmp_path / "mine.png")
    shutil.rmtree(photos)
    assert main(["neighbours", str(network), str(tmp_path / "mine.png"), str(stored), "--count", "6"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][1] == "train/green/2, of six.png"
    assert {path.split("/")[1] for _, path in lines} == {"green"}
    assert len(lines) == 6
    assert main(["neighbours", str(network), str(tmp_path / "mine.png"), str(network)]) == 1
    assert "expected a file of the protocol embed" in capsys.readouterr().err
