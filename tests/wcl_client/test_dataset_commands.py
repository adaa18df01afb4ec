"""`wcl dataset`: check folders without a service; add, rename and remove datasets of a running one."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jobs import estimates, workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from jobs.models import Worker
from tests.api.served import Served
from tests.jobs import rows
from tests.wcl_client.test_operations import wcl
from tests.wcl_core.data.test_data import write_image, write_tree
from wcl_client.commands import datasets


@pytest.mark.process
def test_check_says_what_a_dataset_would_be(tmp_path: Path) -> None:
    write_tree(tmp_path / "photos", {"cat": 10, "dog": 5, ".hidden": 2, "one": 1})
    write_image(tmp_path / "photos" / "cat" / "large.JPG", size=(200, 120))
    (tmp_path / "photos" / "cat" / "notes.jpg").write_text("none")
    done = wcl("dataset", "check", str(tmp_path / "photos"))
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    for part in (
        "14 train, 3 test, 3 classes",
        "read as: a fixed fifth of each class is the test split",
        "images: 16 PNG, 1 JPEG; 17 RGB; 12x9 to 200x120 pixels, median 12x9",
        "left out: 1, images that cannot be read",
        "left out: 1, hidden files and folders",
        "note: 1, classes with a single train image: one",
        "classes (train + test): cat 9 + 2, dog 4 + 1, one 1 + 0",
        "train at: up to 8 pixels",
        "if these folders are no classes, such as years or places: --without-labels",
    ):
        assert part in text, (part, text)
    row = json.loads(wcl("dataset", "check", str(tmp_path / "photos"), "--without-labels", "--json").stdout)
    assert row["counts"] == {"train": 0, "test": 0, "unlabelled": 17}


@pytest.mark.process
def test_check_says_why_a_folder_is_refused(tmp_path: Path) -> None:
    done = wcl("dataset", "check", str(tmp_path))
    assert (done.exit_code, "it has no image files" in done.stderr) == (1, True), done.output
    assert wcl("dataset", "check", str(tmp_path / "gone")).exit_code == 1


def test_add_waits_for_a_worker_and_says_what_it_has_read(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = rows.worker(id=new_id(), name="florist", datasets={})
    server.database.write(lambda session: workers.register(session, worker, 1, []))
    facts = DatasetFacts("photos", "folder", "f" * 64, {"train": 0, "test": 0, "unlabelled": 400}, [])

    # The module gets a clock of its own, since other threads of this process sleep, too.
    def settle(result: DatasetFacts | str, name: str) -> None:
        server.database.write(lambda session: workers.settle_dataset(session, worker.id, name, result))

    monkeypatch.setattr(
        datasets, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: settle(facts, "photos"))
    )
    done = wcl("dataset", "add", "photos", str(tmp_path))
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "400 unlabelled, no labels" in text
    assert "photos has no labels, so nothing that compares with them is measured" in text
    assert "a worker reads it" in done.stderr

    monkeypatch.setattr(
        datasets,
        "time",
        SimpleNamespace(
            monotonic=time.monotonic, sleep=lambda _: settle("this machine has nothing at its path", "gone")
        ),
    )
    done = wcl("dataset", "add", "gone", str(tmp_path / "gone"))
    assert (done.exit_code, f"florist refuses {tmp_path}/gone: this machine has nothing" in done.stderr) == (1, True)
    assert "gone is not added" in done.stderr, done.output
    assert wcl("dataset", "remove", "gone").exception is not None, "nothing of it is kept"

    assert "`wcl dataset show gone` has its state" in wcl("dataset", "add", "gone", "/gone", "--no-wait").stdout
    shown = wcl("dataset", "show", "gone")
    assert (shown.exit_code, shown.stderr) == (1, "a worker is still reading gone\n")
    settle("this machine has nothing at its path", "gone")
    shown = wcl("dataset", "show", "gone")
    assert (shown.exit_code, "florist refuses gone: this machine has nothing" in shown.stderr) == (1, True)
    assert "or remove it: wcl dataset remove gone" in shown.stderr
    assert wcl("dataset", "remove", "gone").exit_code == 0
    assert "there is no dataset" in str(wcl("dataset", "show", "gone").exception)

    second = rows.worker(id=new_id(), name="late", datasets={"digits": "d", "photos": facts.digest})
    server.database.write(lambda session: workers.register(session, second, 2, []))

    def look(_: float) -> None:
        """Let the first worker refuse it, and the second one take it a little later."""
        if "one" not in server.database.write(
            lambda session: session.get_one(Worker, worker.id).refused_datasets or {}
        ):
            settle("its path is not allowed", "one")
        else:
            taken = replace(facts, name="one")
            server.database.write(lambda session: workers.settle_dataset(session, second.id, "one", taken))

    monkeypatch.setattr(datasets, "time", SimpleNamespace(monotonic=time.monotonic, sleep=look))
    done = wcl("dataset", "add", "one", str(tmp_path))
    assert (done.exit_code, "400 unlabelled" in done.stdout, "refuses" in done.stderr) == (0, True, False), done.output
    server.database.write(lambda session: workers.stop(session, second.id))
    wcl("dataset", "remove", "one")

    assert "400 unlabelled" in wcl("dataset", "list").stdout
    assert "is now flowers" in wcl("dataset", "rename", "photos", "flowers").stdout
    assert "400 unlabelled" in wcl("dataset", "show", "flowers").stdout
    server.database.write(lambda session: workers.begin_dataset(session, worker.id, "flowers"))
    settle("it has no image files", "flowers")
    shown = wcl("dataset", "show", "flowers")
    assert (shown.exit_code, "400 unlabelled" in shown.stdout) == (0, True)
    assert shown.stderr == "flowers: worker florist refuses it: it has no image files\n"
    assert "its files stay" in wcl("dataset", "remove", "flowers").stdout


def test_recommend_writes_a_spec_that_can_be_submitted(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates.os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # a busy machine gets another recipe
    report = {"layout": "images", "formats": {"JPEG": 490}, "modes": {"RGB": 490}, "left_out": [], "odd": []}
    report |= {name: [120, 104] for name in ("smallest", "median", "largest")} | {"unreadable": 0}
    counts = {"train": 490, "test": 107}
    facts = DatasetFacts("clothes", "folder", "f" * 64, counts, ["hat", "shoe"], report=report)
    worker = rows.worker(id=new_id(), name="tailor", datasets={})
    server.database.write(lambda session: workers.register(session, worker, 1, [facts]))
    done = wcl("recommend", "clothes", "--minutes", "20", "-o", str(tmp_path / "clothes.yaml"))
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    for part in (
        "data.image_size: 64 the median image has 120x104 pixels; more than 64 would make a step slow on a CPU",
        "backbone.name: resnet18 490 images are too few for a larger network",
        "batch_size: 64",
        "steps in all, 7 an epoch",
        "to expect: some points of kNN accuracy above the untrained network, or no difference that few test images can",
        "to train: wcl submit",
    ):
        assert part in text, (part, text)
    plan = json.loads(wcl("submit", str(tmp_path / "clothes.yaml"), "--dry-run", "--json").stdout)
    assert (plan["spec"]["data"], plan["total_steps"] >= 1_000) == (
        {"name": "clothes", "image_size": 64, "max_corrupt_share": 0.01, "held_out_share": 0.0},
        True,
    )
    assert not any("steps in all" in warning for warning in plan["warnings"])
    hurried = wcl("recommend", "clothes", "--minutes", "1", "--force", "-o", str(tmp_path / "clothes.yaml")).stdout
    further = re.search(r"then: wcl continue JOB --epochs (\d+)", hurried)
    assert further, hurried
    trial = yaml.safe_load((tmp_path / "clothes.yaml").read_text())
    enough = trial["epochs"] + int(further[1])
    per_epoch = 490 // trial["batch_size"]
    assert (enough - 1) * per_epoch < 1_000 <= enough * per_epoch, "together they are the fewest that teach much"
    drawn = json.loads(wcl("recommend", "clothes", "--content", "drawings", "--json").stdout)
    assert drawn["spec"]["augmentation"]["flip_probability"] == 0
    assert wcl("recommend", "clothes", "--content", "films").exit_code == 2
    assert "there is no dataset 'nothing'; registered are: clothes, digits" in str(
        wcl("recommend", "nothing").exception
    )
    assert "photos-quick" in wcl("presets").stdout
