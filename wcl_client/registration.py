"""The registration of datasets, as workers report it: which they still read, which they refuse, and what is in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from wcl_client.api import WclClient
from wcl_client.errors import InvalidError, NotFoundError, WclError
from wcl_client.responses import Dataset, Job, Json, Worker
from wcl_client.terminal import Styled, bold, err, out, print_json
from wcl_core.text import counted

START_SECONDS = 15.0  # until a worker of a service that has just started is registered
_POLL_SECONDS = 0.5

_Result = TypeVar("_Result")


def summary(dataset: Dataset) -> str:
    """Return the numbers of images and classes of a dataset."""
    counts = _counted({split: count for split, count in dataset["counts"].items() if count})
    if not dataset["classes"]:
        return f"{counts}, no labels"
    return f"{counts}, {counted(len(dataset['classes']), 'class', 'classes')}"


def dataset_note(client: WclClient, job: Job) -> str:
    """Return what labels would add to a job's dataset; empty if it has labels, or is registered no more."""
    try:
        return client.dataset(job["dataset"]["name"]).get("note") or ""
    except NotFoundError:
        return ""


def list_datasets(client: WclClient, as_json: bool) -> None:
    """Print the datasets, their state, what was read of each, and those that workers refuse."""
    rows = client.datasets()
    if as_json:
        print_json(rows)
        return
    workers = client.workers()
    awaited = {*pending(workers), *client.unsettled_datasets()["pending"]}
    for dataset in rows:
        out.say(bold(dataset["name"]), f"  {summary(dataset)}", state_of(dataset))
        for line in report_lines(dataset):
            out.say(f"  {line}")
    for name in sorted(awaited - {dataset["name"] for dataset in rows}):
        out.say(bold(name), "  a worker is still reading it" if any(map(_is_live, workers)) else "  no worker runs")
    for refusal in refusals(workers):
        err.say(Styled(refusal, "red"))


def state_of(dataset: Dataset) -> str:
    """Return the state of a dataset that cannot be used now, as a clause; empty for others."""
    if dataset.get("state", "ready") in ("ready", "refused"):  # refusals are listed with their reasons
        return ""
    share = dataset.get("read_share")
    return f", {str(dataset['state']).replace('_', ' ')}" + ("" if share is None else f", {share:.0%}")


def report_lines(dataset: Dataset) -> list[str]:
    """Return the report on a dataset's image folder: what is in it, what was left out, what is unusual."""
    if not (report := dataset.get("report")):
        return []
    formats, modes = (_counted(report[name]) for name in ("formats", "modes"))
    smallest, median, largest = (f"{report[name][0]}x{report[name][1]}" for name in ("smallest", "median", "largest"))
    sizes = smallest if smallest == largest else f"{smallest} to {largest} pixels, median {median}"
    lines = [f"read as: {report['layout']}", f"images: {formats}; {modes}; {sizes}"]
    lines += [f"left out: {_remark(remark)}" for remark in report["left_out"]]
    return lines + [f"note: {_remark(remark)}" for remark in report["odd"]]


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _remark(remark: Json) -> str:
    return f"{remark['count']:,}, {remark['text']}: {', '.join(remark['examples'][:3])}"


def refusals(workers: Iterable[Worker]) -> list[str]:
    """Return a sentence for each dataset that live workers refuse."""
    worker_of = {
        (name, reason): worker["name"]
        for worker in workers
        if worker["is_live"]
        for name, reason in worker.get("refused_datasets", {}).items()
    }
    return [f"dataset {name} is refused by {worker}: {reason}" for (name, reason), worker in sorted(worker_of.items())]


def pending(workers: Iterable[Worker]) -> list[str]:
    """Return the names of the datasets that live workers still read."""
    return sorted({name for worker in workers if worker["is_live"] for name in worker.get("pending_datasets", ())})


def when_registered(client: WclClient, act: Callable[[], _Result], report: Callable[[str], None]) -> _Result:
    """Submit something; while workers still register the datasets that it may name, wait and submit it again.

    Raises:
        WclError: as `act`.
    """
    deadline = time.monotonic() + START_SECONDS
    is_announced = False
    while True:
        try:
            return act()
        except InvalidError as error:
            if not any(problem.pointer.endswith("/data/name") for problem in error.errors):
                raise
            workers = client.workers()
            names = ", ".join(pending(workers))
            if not names and (any(map(_is_live, workers)) or time.monotonic() > deadline):
                raise
        if not is_announced:
            report(f"waiting for the registration of datasets ({names or 'no worker is running yet'})")
            is_announced = True
        time.sleep(_POLL_SECONDS)


def _is_live(worker: Worker) -> bool:
    return worker["is_live"]


class Announcer:
    """Says what becomes of the datasets of workers that start: each one that is registered or refused, once.

    Args:
        num_workers: that are started.
        report: prints one message.
    """

    def __init__(self, client: WclClient, num_workers: int, report: Callable[[str], None]) -> None:
        self._client, self._num_workers, self._report = client, num_workers, report
        self._earlier: set[str] = set()
        self._said: set[str] = set()

    def ignore_present(self) -> None:
        """Leave out the workers that are there already."""
        self._earlier = {worker["id"] for worker in self._client.workers()}

    def run(self, is_over: Callable[[], bool]) -> None:
        """Say each result until all workers have settled their datasets, or the service ends."""
        while not is_over():
            try:
                if self._look():
                    return
            except WclError:  # the server restarts
                pass
            time.sleep(2 * _POLL_SECONDS)

    def _look(self) -> bool:
        workers = [worker for worker in self._client.workers() if worker["id"] not in self._earlier]
        names = {name for worker in workers if worker["is_live"] for name in worker["datasets"]}
        for dataset in self._client.datasets() if names else ():
            if dataset["name"] in names:
                lines = [f"dataset {dataset['name']}: {summary(dataset)}", *report_lines(dataset)]
                self._say("\n  ".join(lines))
        for refusal in refusals(workers):
            self._say(refusal)
        return sum(map(_is_live, workers)) >= self._num_workers and not pending(workers)

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._report(message)
