"""Fixed lists of labelled images: their lines, their descriptions, and fine-tuning on them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests import parallel
from tests.wcl_core import small
from tests.wcl_core.data.test_data import write_tree
from tests.wcl_core.test_attempt import DIGITS, of, write_run
from wcl_core import data
from wcl_core.attempt import run_attempt
from wcl_core.config import EvaluateSpec, parse_spec, resolve_spec
from wcl_core.data import DataError
from wcl_core.data.label_lists import index_digest
from wcl_core.data.packing import pack
from wcl_core.reporter import NullReporter

torch.set_num_threads(1)

EVALUATE: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8},
    "features": {"kind": "untrained", "backbone": {"name": "tiny", "width": 4}},
    "protocols": ["semi_supervised"],
}
QUICK: dict[str, Any] = {"splits": 2, "epochs": 2, "batch_size": 16, "head_learning_rate": 0.5}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train images 0..2 of class a and 3..6 of class b; two images share a file name."""
    write_tree(tmp_path / "photos", {"train/a": 2, "train/a/deep": 1, "train/b": 4, "test/a": 1, "test/b": 1})
    (tmp_path / "photos" / "train" / "b" / "03.png").rename(tmp_path / "photos" / "train" / "b" / "only.png")
    return tmp_path / "photos"


def listed(root: Path, text: str) -> data.ImageData:
    loaded = data.load("photos", "folder", root, 8, 0.0, NullReporter())
    path = root.parent / "some.txt"
    path.write_text(text)
    return data.with_label_lists(loaded, {"some": path})


@pytest.mark.parametrize(
    "text",
    ["1\n3\n6\n", "# of the paper\n\n train/a/01.png \nb/00.png\nonly.png", "6\nb/00.png\ntrain/a/01.png"],
    ids=["indices", "paths", "both"],
)
def test_lines_are_indices_paths_or_unique_file_names(root: Path, text: str) -> None:
    photos = listed(root, text)
    assert photos.label_lists["some"].tolist() == [1, 3, 6]
    assert [photos.train.files[index] for index in (1, 3, 6)] == [
        "train/a/01.png",
        "train/b/00.png",
        "train/b/only.png",
    ]
    facts = data.describe("photos", "folder", root, lists={"some": root.parent / "some.txt"}).label_lists["some"]
    assert facts.images == 3
    assert facts.digest == index_digest(photos.label_lists["some"])
    assert facts.digest == hashlib.sha256(np.array([1, 3, 6], dtype="<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n7\n", "line 2: '7' is none of the 7 train images"),
        ("0\n-1\n", "line 2: '-1' is none"),
        ("1\n00.png\n", "line 2: '00.png' is none"),  # two classes have one of that name
        ("1\ntest/a/00.png\n", "line 2: 'test/a/00.png' is none"),
        ("1\n3\n\na/01.png\n", "line 4 names the image of line 1 again"),
        ("# nothing\n", "names no image"),
        ("0\n1\n", "has no image of class b"),
    ],
)
def test_an_invalid_list_is_refused_with_its_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"list some: .*{message}"):
        listed(root, text)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read(root: Path, content: bytes | None) -> None:
    path = root.parent / "some.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"list some: .*some.txt cannot be read"):
        data.describe("photos", "folder", root, lists={"some": path})


def test_packed_and_builtin_images_are_named_by_index_only(root: Path, tmp_path: Path) -> None:
    packed, some = tmp_path / "photos.wclpack", tmp_path / "some.txt"
    pack("photos", root, packed, 8, 0.0, NullReporter())
    some.write_text("0\n5\n")
    facts = data.describe("photos", "packed", packed, lists={"some": some}).label_lists["some"]
    loaded = data.with_label_lists(data.load("photos", "packed", packed, 8, 0.0, NullReporter()), {"some": some})
    assert facts.digest == index_digest(loaded.label_lists["some"]) == index_digest(torch.tensor([0, 5]))
    some.write_text("a/00.png\nb/00.png\n")
    with pytest.raises(DataError, match="line 1"):
        data.describe("photos", "packed", packed, lists={"some": some})


def test_a_description_counts_the_images_of_each_class(root: Path, tmp_path: Path) -> None:
    packed, cache = tmp_path / "photos.wclpack", tmp_path / "cache.json"
    pack("photos", root, packed, 8, 0.0, NullReporter())
    expected = {"train": [3, 4], "test": [1, 1]}
    assert data.describe("photos", "packed", packed).class_counts == expected
    assert [data.describe("photos", "folder", root, cache).class_counts for _ in range(2)] == [expected] * 2
    digits = data.describe("digits", "builtin", None).class_counts
    assert digits["train"] == small.digits().train.labels.bincount().tolist()


@pytest.mark.process
def test_the_command_describes_lists(root: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("0\n5\n")
    command = [parallel.python(), "-m", "wcl_core", "describe-dataset", "photos", "folder", str(root)]
    done = subprocess.run([*command, "--list", f"some={tmp_path / 'some.txt'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label_lists"] == {
        "some": {"digest": index_digest(torch.tensor([0, 5])), "images": 2}
    }
    wrong = subprocess.run([*command, "--list", "some"], capture_output=True, text=True)
    assert (wrong.returncode, "'some' is not NAME=FILE" in wrong.stderr) == (2, True)


# --- in a spec and in a run ------------------------------------------------------------------------------------------


def semi_supervised(**changes: Any) -> Any:
    spec = parse_spec("evaluate", EVALUATE | {"semi_supervised": changes})
    assert isinstance(spec, EvaluateSpec)
    assert parse_spec("evaluate", resolve_spec(spec)) == spec
    return spec.semi_supervised


def test_with_lists_there_are_no_default_shares() -> None:
    assert semi_supervised().shares == (0.01, 0.1)
    assert semi_supervised(lists=["official-1"]).shares == ()
    assert semi_supervised(lists=["official-1"], shares=[0.5]).shares == (0.5,)
    for wrong, field in (({"shares": []}, "shares"), ({"lists": ["../x"]}, "lists"), ({"lists": ["a", "a"]}, "lists")):
        with pytest.raises(ValidationError) as caught:
            semi_supervised(**wrong)
        assert caught.value.errors()[0]["loc"][:2] == ("semi_supervised", field)


def test_fine_tuning_on_a_list_is_trained_several_times_and_names_its_digest(tmp_path: Path) -> None:
    labels = small.digits().train.labels
    index = torch.cat([(labels == label).nonzero().flatten()[: 2 + label % 2] for label in range(10)]).sort().values
    (tmp_path / "some.txt").write_text("\n".join(map(str, index.tolist())))
    spec = EVALUATE | {"semi_supervised": QUICK | {"lists": ["some"]}}
    source = DIGITS | {"lists": {"some": str(tmp_path / "some.txt")}}
    write_run(tmp_path / "run", kind="evaluate", spec=spec, dataset=source)

    assert run_attempt(tmp_path / "run", None) == 0

    (result,) = of(tmp_path / "run", "evaluation")
    assert (result["params"]["list"], result["params"]["labels"]) == ("some", 25)
    assert not {"share", "labels_per_class", "lists"} & result["params"].keys()
    assert result["details"]["splits"] == [index_digest(index)]
    assert len(result["details"]["accuracies"]) == 2
    assert result["value"] == pytest.approx(np.mean(result["details"]["accuracies"]))
    assert 0 < result["value"] < 1


@pytest.mark.parametrize("is_used", [True, False])
def test_a_list_that_changed_since_it_was_announced_fails_the_runs_that_use_it(tmp_path: Path, is_used: bool) -> None:
    labels = small.digits().train.labels
    index = torch.cat([(labels == label).nonzero().flatten()[:2] for label in range(10)]).sort().values
    (tmp_path / "some.txt").write_text("\n".join(map(str, index.tolist())))
    tuning = {"semi_supervised": QUICK | {"lists": ["some"]}} if is_used else {"protocols": ["knn"]}
    source = DIGITS | {"lists": {"some": str(tmp_path / "some.txt")}, "list_digests": {"some": "0" * 64}}
    write_run(tmp_path / "run", kind="evaluate", spec=EVALUATE | tuning, dataset=source)

    assert run_attempt(tmp_path / "run", None) == 0

    (end,) = of(tmp_path / "run", "end")
    assert (end["outcome"], end.get("reason")) == (("failed", "bad_data") if is_used else ("succeeded", None))
    assert not is_used or "other images than at the worker's start" in end["message"]


def test_a_list_that_a_worker_lacks_fails_the_run_with_bad_data(tmp_path: Path) -> None:
    spec = EVALUATE | {"semi_supervised": QUICK | {"lists": ["some"]}}
    write_run(tmp_path, kind="evaluate", spec=spec)
    assert run_attempt(tmp_path, None) == 0
    (end,) = of(tmp_path, "end")
    assert (end["outcome"], end["reason"]) == ("failed", "bad_data")
    assert "digits has no list some on this machine" in end["message"]
