"""Datasets as workers announce them, and their sample sheets: pictures of some images of each class.

A sheet has a table of its own, so that lists of datasets never read a picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import case, delete, select, update
from sqlalchemy.orm import Session

from jobs import activity
from jobs.database import insert, new_id, now_ms
from jobs.errors import Conflict, NotFound, existing
from jobs.models import Dataset, DatasetSamples, DatasetSource, DatasetVersion, Job, Sweep
from jobs.shared_reads import WorkerRow, hold_datasets, live_workers, once
from wcl_core.config import WITHOUT_LABELS, PretrainSpec, Spec


@dataclass(frozen=True)
class SampleSheet:
    """One row a class, in label order; a class with fewer images leaves its last cells empty.

    Attributes:
        png: the picture, of `rows` times `columns` squares of `side` pixels.
        rows: number of classes shown.
        columns: images of each class, at most.
        side: of one image, in pixels.
    """

    png: bytes
    rows: int
    columns: int
    side: int


@dataclass(frozen=True)
class SheetLayout:
    """A sample sheet without its picture; `sha256` is the picture's digest."""

    rows: int
    columns: int
    side: int
    sha256: str


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset as a worker announces it.

    Attributes:
        name: the registered name.
        kind: builtin, folder or packed.
        digest: of the content, 64 hex digits.
        counts: images by split.
        classes: names in label order.
        class_counts: images of each class in label order, by split.
        label_lists: fixed lists of train images by name, each with its digest and its number of images.
        image_size: side of the stored images, which views cannot exceed; None where any size is possible.
        sheet: some images of each class as a picture.
        report: a `wcl_core.protocol.DatasetReport`; None for a dataset of no image folder.
    """

    name: str
    kind: str
    digest: str
    counts: dict[str, int]
    classes: list[str]
    class_counts: dict[str, list[int]] = field(default_factory=dict)
    label_lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    image_size: int | None = None
    sheet: SampleSheet | None = None
    report: dict[str, Any] | None = None


def list_names(session: Session, name: str, kind: str, listed: Mapping[str, Any]) -> None:
    """Store a dataset that a worker has listed and not read, so that jobs on it are accepted; a known one stays.

    Args:
        listed: `counts`, `classes` and `class_counts` by the names of the files.
    """
    values = {"id": new_id(), "name": name, "kind": kind, "digest": "", **listed}
    session.execute(insert(session, Dataset).values(**values).on_conflict_do_nothing(index_elements=["name"]))
    unread = (Dataset.name == name, Dataset.digest == "")
    session.execute(update(Dataset).where(*unread).values(**listed, updated_at=now_ms()))


def announce(session: Session, facts: DatasetFacts) -> None:
    """Store a dataset and its sheet; the newest announcement of a name is the version that new jobs pin.

    Jobs and sweeps that were submitted while the dataset was being read pin this version.
    """
    values = {name: value for name, value in vars(facts).items() if name not in ("name", "sheet")}
    statement = insert(session, Dataset).values(id=new_id(), name=facts.name, **values)
    # A worker announces its datasets at each start: the time of the registration is that of the version.
    registered = case((Dataset.digest == facts.digest, Dataset.updated_at), else_=now_ms())
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values | {"updated_at": registered}))
    version = insert(session, DatasetVersion).values(digest=facts.digest, class_counts=facts.class_counts)
    counts = {"class_counts": facts.class_counts}
    session.execute(version.on_conflict_do_update(index_elements=["digest"], set_=counts))
    _store_sheet(session, facts.name, facts.sheet)
    for table in (Job, Sweep):
        unread = (table.dataset_name == facts.name, table.dataset_digest == "")
        session.execute(update(table).where(*unread).values(dataset_digest=facts.digest))


def hold(session: Session, spec: Spec) -> None:
    """Lock the datasets of a new job or sweep: until the transaction ends, none is removed or renamed."""
    plans = spec.evaluations if isinstance(spec, PretrainSpec) else ()
    names = {spec.data.name, *(plan.data.name for plan in plans if plan.data)}
    hold_datasets(session, names)


def pinned_digest(session: Session, dataset: Dataset) -> str:
    """Return the version that a new job pins; empty while a worker reads the dataset and none has this version."""
    workers = live_workers(session)
    if any(worker.datasets.get(dataset.name) == dataset.digest for worker in workers):
        return dataset.digest
    return "" if _share_read(workers, dataset.name) is not None else dataset.digest


def is_being_read(session: Session, name: str) -> bool:
    """Return whether a live worker reads a dataset."""
    return _share_read(live_workers(session), name) is not None


def _share_read(workers: Sequence[WorkerRow], name: str) -> float | None:
    """Return the largest share of a dataset that a worker has read so far; None if no worker reads it."""
    reading = [worker for worker in workers if name in (worker.pending_datasets or ())]
    return max((float((worker.dataset_shares or {}).get(name, 0.0)) for worker in reading), default=None)


def note(dataset: Dataset) -> str | None:
    """Return what labels would add, as a sentence; None for a dataset that has them."""
    return None if len(dataset.classes) > 1 else f"{WITHOUT_LABELS.format(name=dataset.name)}."


class State(StrEnum):
    """The state of a dataset; clients treat it as an open string."""

    READY = "ready"  # a live worker has it
    BEING_READ = "being_read"
    REFUSED = "refused"
    ABSENT = "absent"  # no live worker has it


@dataclass(frozen=True)
class DatasetState:
    """The state of a dataset, with the share that is read, and a sentence without a full stop where there is more."""

    state: State
    share: float | None = None
    message: str | None = None


def states(session: Session) -> dict[str, DatasetState]:
    """Return the state of each registered dataset by its name."""
    workers = live_workers(session)
    rows = session.execute(select(Dataset.name, Dataset.digest)).all()
    return {name: _state(workers, name, digest) for name, digest in rows}


def _state(workers: Sequence[WorkerRow], name: str, digest: str) -> DatasetState:
    if (share := _share_read(workers, name)) is not None:
        change = "it is read again, because its folder has changed or the worker starts" if digest else "it is new"
        return DatasetState(State.BEING_READ, share, f"{share:.0%} of its files are read; {change}")
    if digest and any(worker.datasets.get(name) == digest for worker in workers):
        return DatasetState(State.READY)
    for worker in workers:
        if reason := (worker.refused_datasets or {}).get(name):
            return DatasetState(State.REFUSED, message=f"worker {worker.name} refuses it: {reason}")
    return DatasetState(State.ABSENT, message="no running worker has this version")


def read_again(session: Session, name: str) -> Dataset:
    """Request that the workers read a folder again; files that have not changed are not read.

    Raises:
        NotFound: no dataset of this name is registered.
        Conflict: it is no folder.
    """
    dataset = existing(
        session.execute(select(Dataset).where(Dataset.name == name)).scalar_one_or_none(), "dataset", name
    )
    if dataset.kind != "folder":
        raise Conflict(f"{name} is {dataset.kind}; only folders are read again")
    dataset.reads_requested += 1
    activity.note(session, "dataset.read", name)
    return dataset


class Refusal(NamedTuple):
    """A dataset that a live worker refuses, and why."""

    name: str
    worker: str
    reason: str


@dataclass(frozen=True)
class Unsettled:
    """The datasets that live workers still read, and those that they refuse, by name."""

    pending: list[str]
    refused: list[Refusal]


def unsettled(session: Session) -> Unsettled:
    """Return the datasets that live workers have named and not announced, and those added that none has named."""
    workers = live_workers(session)
    return Unsettled(
        sorted({name for worker in workers for name in worker.pending_datasets or ()} | _awaited(session, workers)),
        sorted(
            Refusal(name, worker.name, reason)
            for worker in workers
            for name, reason in (worker.refused_datasets or {}).items()
        ),
    )


def _awaited(session: Session, workers: Sequence[WorkerRow]) -> set[str]:
    """Return the datasets that administrators have added and no worker has named yet."""
    registered = select(Dataset.name).where(Dataset.name == DatasetSource.name).exists()
    names = set(session.execute(select(DatasetSource.name).where(~registered)).scalars())
    return names - {name for worker in workers for name in worker.refused_datasets or ()}


def why_absent(session: Session, name: str) -> str | None:
    """Return, as a clause, why no worker has a dataset: a live one still reads it, or refuses it; None if none does."""
    datasets = once(session, "unsettled datasets", lambda: unsettled(session))
    if name in datasets.pending:
        return "a worker is still reading it; try again in a moment"
    refusal = next((each for each in datasets.refused if each.name == name), None)
    return refusal and f"worker {refusal.worker} refuses it: {refusal.reason}"


def why_unknown(session: Session, name: str) -> str:
    """Return the sentence on a dataset that jobs cannot use: why no worker has it, else which are registered."""
    names = session.execute(select(Dataset.name).order_by(Dataset.name)).scalars().all()
    expected = f"registered are: {', '.join(names)}" if names else "no worker has registered one yet"
    return f"there is no dataset {name!r}; {why_absent(session, name) or expected}"


def _store_sheet(session: Session, name: str, sheet: SampleSheet | None) -> None:
    """Replace the dataset's sheet, or remove it when the newest announcement has none."""
    if sheet is None:
        session.execute(delete(DatasetSamples).where(DatasetSamples.dataset_name == name))
        return
    values = vars(sheet) | {"sha256": hashlib.sha256(sheet.png).hexdigest()}
    statement = insert(session, DatasetSamples).values(dataset_name=name, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["dataset_name"], set_=values))


def sheet_layouts(session: Session) -> dict[str, SheetLayout]:
    """Return the layout of every sample sheet by its dataset's name."""
    columns = (DatasetSamples.rows, DatasetSamples.columns, DatasetSamples.side, DatasetSamples.sha256)
    rows = session.execute(select(DatasetSamples.dataset_name, *columns))
    return {row[0]: SheetLayout(*row[1:]) for row in rows}


def sheet_png(session: Session, name: str) -> tuple[bytes, str]:
    """Return a dataset's sample sheet as PNG, and its sha256.

    Raises:
        NotFound: there is no such dataset, or no worker announced a sheet of it.
    """
    samples = session.get(DatasetSamples, name)
    if samples is None:
        raise NotFound(f"there are no samples of a dataset {name}")
    return samples.png, samples.sha256
