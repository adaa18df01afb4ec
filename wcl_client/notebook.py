"""A job in a notebook: it shows itself with its state, results and curves, and gives its numbers as data frames.

    from wcl_client import WclClient

    wcl = WclClient.connect()
    run = wcl.run("last")
    run                # the card of the job
    run.watch()        # the same card, live until the job has ended
    run.metrics()      # a pandas.DataFrame

`pandas` and `IPython` are optional packages (`pip install 'wcl-service[notebook]'`); a card needs neither.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wcl_client.api import WclClient
from wcl_client.download import Downloaded
from wcl_client.errors import NotFoundError, WclError
from wcl_client.output import answer_facts, progress_text, share
from wcl_client.responses import Job, Json

if TYPE_CHECKING:
    import pandas

_CURVES = ("train/loss", "eval/knn_top1")  # drawn on a card where the job has them
_POINTS = 200  # of a drawn curve
_WIDTH, _HEIGHT = 260, 80  # of a curve in pixels
_REFRESH_SECONDS = 1.0


class MissingPackage(WclError):  # noqa: N818 (named as what it says)
    """An optional package is absent; the message says how to install it."""


class Run:
    """A job, as it was when it was last read; `refresh` reads it again.

    Args:
        client: of the service.
        job: as REST returns it.

    Attributes:
        job: the JSON of the job.
    """

    def __init__(self, client: WclClient, job: Job) -> None:
        self._client = client
        self.job = job

    @property
    def id(self) -> str:
        return self.job["id"]

    @property
    def status(self) -> str:
        return self.job["status"]

    @property
    def url(self) -> str:
        """The address of the job's page."""
        return f"{self._client.url}/jobs/{self.id}"

    def refresh(self) -> Run:
        """Read the job again, and return it."""
        self.job = self._client.job(self.id)
        return self

    def wait(self, *, timeout_seconds: float | None = None) -> Run:
        """Wait until the job has ended, and return it.

        Raises:
            TimeoutError: it has not ended in that time.
        """
        self.job = self._client.wait(self.id, timeout_seconds=timeout_seconds)
        return self

    def watch(self) -> Run:
        """Show the card of the job below the cell, live until the job has ended, and return the job.

        An interrupt of the kernel ends the display; the job goes on.

        Raises:
            MissingPackage: IPython is absent.
        """
        try:
            from IPython.display import display
        except ImportError as error:
            raise MissingPackage(_advice("IPython")) from error
        handle: Any = display(self.refresh(), display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        shown_at = time.monotonic()
        for message in self._client.follow(self.id):
            if message.event in {"job", "end"} or time.monotonic() - shown_at > _REFRESH_SECONDS:
                shown_at = time.monotonic()
                handle.update(self.refresh())
        handle.update(self.refresh())
        return self

    def metrics(self, *names: str, every_point: bool = False) -> pandas.DataFrame:
        """Return the metrics of the job, one row for each step and one column for each metric.

        Args:
            names: of the metrics, for example `train/loss`; by default all.
            every_point: whether to return every reported step; otherwise a value of a long run stands for several.

        Raises:
            MissingPackage: pandas is absent.
            NotFoundError: the job has reported no metric of a name.
        """
        pandas = _pandas()
        if every_point:
            table = pandas.read_csv(io.BytesIO(self._client.metrics_csv([self.id])))
            points = table[table["metric"].isin(names)] if names else table
        else:
            series = self._client.metrics(self.id, names)
            rows = [(each["name"], point["step"], point["value"]) for each in series for point in each["points"]]
            points = pandas.DataFrame(rows, columns=["metric", "step", "value"])
        wide = points.pivot(index="step", columns="metric", values="value")
        wide.columns.name = None
        if absent := [name for name in names if name not in wide.columns]:
            raise NotFoundError(404, "Not found", f"{_title(self.job)} has no metric {', '.join(absent)}")
        return wide[list(names)] if names else wide

    def evaluations(self) -> pandas.DataFrame:
        """Return the numbers that this job measured, or that the evaluations of this training measured.

        Raises:
            MissingPackage: pandas is absent.
        """
        pandas = _pandas()
        columns = ["protocol", "title", "value", "stderr", "n", "params"]
        return pandas.DataFrame(self._client.evaluations(self.id), columns=columns)

    def evaluate(self, *protocols: str) -> Run:
        """Submit an evaluation of the newest checkpoint, by default by its usual protocols, and return it.

        Raises:
            NotFoundError: the job has no checkpoint.
        """
        spec = {"protocols": list(protocols)} if protocols else {}
        return Run(self._client, self._client.evaluate(self._newest_checkpoint(), spec))

    def download(self, target: str | Path = "backbone.safetensors") -> Downloaded:
        """Download the trained network of the newest checkpoint, under torchvision's names.

        Raises:
            NotFoundError: the job has no checkpoint.
        """
        return self._client.download(self._newest_checkpoint(), Path(target), kind="backbone")

    def _newest_checkpoint(self) -> str:
        checkpoints = self._client.checkpoints(self.id)
        if not checkpoints:
            raise NotFoundError(404, "Not found", f"{_title(self.job)} has no checkpoint")
        return checkpoints[-1]["id"]

    def __repr__(self) -> str:
        return f"<{_title(self.job)}: {self.status} {progress_text(self.job)}>".replace(" >", ">")

    def _repr_html_(self) -> str:
        """Return the card: name, state, what `wcl show` says first, and curves.  A notebook calls this."""
        try:
            series = self._client.metrics(self.id, _CURVES, _POINTS)
        except WclError:  # a card of a job that was read before does not fail
            series = []
        return _card(self.job, self.url, series)


def _card(job: Job, url: str, series: Sequence[Json]) -> str:
    rows = "".join(
        f'<tr><td style="text-align:left;opacity:.7">{escape(name)}</td>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in answer_facts(job, url.removesuffix(f"/jobs/{job['id']}"))
        if value
    )
    about = {each["name"]: each for each in job.get("metrics") or ()}
    curves = "".join(_curve(each["points"], about.get(each["name"], each)) for each in series)
    link = f'<a href="{escape(url)}" target="_blank" rel="noopener">{escape(_title(job))}</a>'
    return f'<div><b>{link}</b><table>{rows}</table><div style="display:flex;gap:16px">{curves}</div></div>'


def _curve(reported: Sequence[Json], about: Json) -> str:
    """Return a metric as a small figure of inline SVG; "" with fewer than two finite points.

    Args:
        reported: points of the metric.
        about: its name, and perhaps its title and whether it is a share.
    """
    points = [(point["step"], point["value"]) for point in reported if _is_finite(point["value"])]
    if len(points) < 2:
        return ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in _scaled(points))
    last = points[-1][1]
    title = about.get("title") or about["name"]
    value = share(last) if about.get("is_share") else f"{last:.4g}"
    return (
        f'<figure style="margin:0"><figcaption>{escape(title)}: {escape(value)}</figcaption>'
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg></figure>'
    )


def _scaled(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    steps, values = [x for x, _ in points], [y for _, y in points]
    width, height = max(steps) - min(steps) or 1, max(values) - min(values) or 1
    for x, y in points:
        yield 2 + (x - min(steps)) / width * (_WIDTH - 4), 2 + (max(values) - y) / height * (_HEIGHT - 4)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _title(job: Job) -> str:
    return job.get("name") or f"{job['kind']} {job['id'][-12:]}"


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingPackage(_advice("pandas")) from error
    return pandas


def _advice(package: str) -> str:
    return f"{package} is not installed; run: pip install 'wcl-service[notebook]'"
