"""A job in a notebook: its card, its data frames, and what is said when a package is absent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from tests.api.served import Served
from tests.jobs import rows
from wcl_client import WclClient
from wcl_client.errors import NotFoundError
from wcl_client.notebook import MissingPackage


@pytest.fixture
def wcl(server: Served) -> Iterator[WclClient]:
    with WclClient.connect() as client:
        yield client


class Card(HTMLParser):
    """The text, the elements and the addresses of a card."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.lines: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values["href"] or ""] if "href" in values else []
        self.lines += [values["points"] or ""] if "points" in values else []

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def test_a_card_shows_state_and_curves(server: Served, wcl: WclClient) -> None:
    run = rows.Run(server.database, rows.running(server.database, name="night"))
    names = {"train/loss": 2.0, "eval/knn_top1": 0.5}
    run.deliver(rows.started(), rows.metrics(1, **names), rows.metrics(2, **dict.fromkeys(names, 0.25)))
    run.deliver(rows.progress(2))

    job = wcl.run("night")
    card = Card(job._repr_html_())

    assert card.links == [job.url] == [f"{wcl.url}/jobs/{run.job_id}"]
    assert "night" in card.text
    assert "running" in card.text
    assert "2%" in card.text
    assert "Loss: 0.25" in card.text
    assert "kNN accuracy: 25.00%" in card.text
    assert [line.split() for line in card.lines] == [["2.0,2.0", "258.0,78.0"]] * 2
    assert repr(job) == "<night: running 2%>"


def test_a_card_of_a_failed_job_says_what_to_do_and_shows_names_as_text(server: Served, wcl: WclClient) -> None:
    run = rows.Run(server.database, rows.running(server.database, name="<img src=x onerror=alert(1)>"))
    run.deliver(rows.started(), rows.metrics(1, **{"train/loss": None}))
    run.end("failed", "non_finite_loss", "<b>the loss</b>")

    card = Card(wcl.run("last")._repr_html_())

    assert not {"img", "script", "polyline"} & set(card.tags)
    assert card.tags.count("b") == 1
    assert "<img src=x" in card.text
    assert "A lower learning rate" in card.text


def test_a_card_stays_when_the_server_is_gone(server: Served, wcl: WclClient) -> None:
    rows.submit(server.database, name="kept")
    run = wcl.run("kept")
    server.stop()

    assert "kept" in Card(run._repr_html_()).text


def test_metrics_are_a_data_frame_where_a_newer_attempt_replaces_points(server: Served, wcl: WclClient) -> None:
    run = rows.Run(server.database, rows.running(server.database))
    run.deliver(
        rows.started(), *(rows.metrics(step, loss=step / 8, rate=0.5) for step in (1, 2, 3)), rows.checkpoint(2)
    )
    run.end("drained")
    again = rows.Run(server.database, rows.claim(server.database))
    again.deliver(rows.started(2), rows.metrics(3, loss=None))

    job = wcl.run(run.job_id)
    for frame in (job.metrics(), job.metrics(every_point=True)):
        assert frame.index.name == "step"
        assert list(frame.columns) == ["loss", "rate"]
        assert frame["loss"].dropna().to_dict() == {1: 0.125, 2: 0.25}
    assert list(job.metrics("rate", "loss").columns) == ["rate", "loss"]
    assert job.metrics("rate", every_point=True)["rate"].to_dict() == {1: 0.5, 2: 0.5}


def test_evaluations_are_a_data_frame(server: Served, wcl: WclClient) -> None:
    run = rows.Run(server.database, rows.running(server.database, kind="evaluate"))
    run.deliver(rows.started(), rows.evaluation(0.75, metric="top1", n=400))

    frame = wcl.run(run.job_id).evaluations()

    assert frame[["protocol", "value", "n"]].to_dict("records") == [{"protocol": "linear", "value": 0.75, "n": 400}]


def test_a_metric_and_a_checkpoint_that_are_absent_are_named(server: Served, wcl: WclClient) -> None:
    rows.submit(server.database, name="new")
    run = wcl.run("new")

    with pytest.raises(NotFoundError, match="new has no checkpoint"):
        run.evaluate("knn")
    with pytest.raises(NotFoundError, match="new has no checkpoint"):
        run.download()
    with pytest.raises(NotFoundError, match="new has no metric train/lose"):
        run.metrics("train/lose")
    assert run.metrics().empty


def test_an_absent_package_is_named_with_the_command(
    server: Served, wcl: WclClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = wcl.train(preset="digits-cpu")
    for name in ("pandas", "IPython.display"):
        monkeypatch.setitem(sys.modules, name, None)

    for act in (run.metrics, run.evaluations, run.watch):
        with pytest.raises(MissingPackage, match=r"pip install 'wcl-service\[notebook\]'"):
            act()
