"""The registration of datasets as the command line shows it: waiting for it, its report, and refusals."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import workers
from jobs.database import new_id
from jobs.datasets import DatasetFacts
from tests.api.rest.test_datasets import FLOWERS
from tests.api.served import Served
from tests.jobs import rows
from tests.waiting import patch_clock
from tests.wcl_client.test_operations import wcl
from wcl_client import registration
from wcl_client.api import WclClient
from wcl_client.registration import Announcer

SPEC = "data: {name: flowers, image_size: 8, max_corrupt_share: 0.5}\nbatch_size: 4\nbackbone: {name: tiny}\n"


def register(server: Served, *pending: str) -> str:
    worker = rows.worker(id=new_id(), name="florist", datasets={})
    server.database.write(lambda session: workers.register(session, worker, 1, [], pending=pending))
    return worker.id


def settle(server: Served, worker_id: str, name: str, result: DatasetFacts | str) -> None:
    server.database.write(lambda session: workers.settle_dataset(session, worker_id, name, result))


def test_submit_waits_while_a_worker_reads_the_dataset(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    worker_id = register(server, "flowers")
    patch_clock(monkeypatch, registration, sleep=lambda _: settle(server, worker_id, "flowers", FLOWERS))
    done = wcl("submit", str(tmp_path / "spec.yaml"))
    assert done.exit_code == 0, done.output
    assert "waiting for the registration of datasets (flowers)" in done.stderr


def test_submit_waits_for_the_first_worker_of_a_service_that_has_just_started(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    patch_clock(
        monkeypatch,
        registration,
        sleep=lambda _: settle(server, register(server, "flowers"), "flowers", FLOWERS),
    )
    done = wcl("submit", str(tmp_path / "spec.yaml"))
    assert done.exit_code == 0, done.output
    assert "no worker is running yet" in done.stderr


def test_submit_gives_up_at_once_where_nothing_is_read(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    settle(server, register(server, "flowers"), "flowers", "it has 5 images and no class folders")
    patch_clock(monkeypatch, registration, sleep=lambda _: pytest.fail("it waits"))
    done = wcl("submit", str(tmp_path / "spec.yaml"))
    assert "worker florist refuses it: it has 5 images and no class folders" in str(done.exception)


def test_datasets_and_doctor_show_the_report_and_the_refusals(server: Served) -> None:
    worker_id = register(server, "flowers", "flat", "slow")
    settle(server, worker_id, "flowers", FLOWERS)
    settle(server, worker_id, "flat", "it has 5 images and no class folders")
    shown = wcl("datasets").output
    assert "flowers  4 train, 1 test, 2 classes" in shown
    assert "images: 5 JPEG; 5 RGB; 4x5 to 8x9 pixels, median 6x7" in shown
    assert "left out: 1, images that cannot be read: a/caf\\xe9.jpg" in shown
    assert "slow  a worker is still reading it" in shown
    assert "dataset flat is refused by florist: it has 5 images" in shown
    done = wcl("doctor")
    assert done.exit_code == 1
    text = " ".join(done.output.split())
    assert "dataset flat is refused by florist: it has 5 images and no class folders" in text
    assert "a worker is still reading slow" in text


def test_up_says_once_what_becomes_of_each_dataset_of_its_workers(server: Served) -> None:
    register(server, "of an earlier worker")
    messages: list[str] = []
    with WclClient(server.url, server.key("read")) as client:
        announcer = Announcer(client, 1, messages.append)
        announcer.ignore_present()
        worker_id = register(server, "flowers", "flat")
        thread = threading.Thread(target=announcer.run, args=(lambda: False,))
        thread.start()
        settle(server, worker_id, "flowers", replace(FLOWERS, report=None))
        settle(server, worker_id, "flat", "it has 5 images and no class folders")
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(messages) == [
        "dataset flat is refused by florist: it has 5 images and no class folders",
        "dataset flowers: 4 train, 1 test, 2 classes",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("My Flowers=.", "no spec can name 'My Flowers'"),
        ("My Flowers=.", "--dataset my-flowers=."),
        ("flowers=/nowhere/at/all", "there is no folder or file /nowhere/at/all"),
        ("flowers", "expected NAME=PATH"),
        ("=x", "expected NAME=PATH"),
    ],
)
def test_up_refuses_a_dataset_before_it_starts_anything(argument: str, message: str) -> None:
    done = wcl("up", "--dataset", argument)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
