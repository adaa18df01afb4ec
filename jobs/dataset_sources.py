"""Datasets that administrators add while the service runs: a name and a path, which every worker that has it reads.

Only workers read the path.  No response of the server holds it, since users must not learn where files lie, except for
the page of datasets of an administrator, who corrects the path of a refused one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from sqlalchemy import CompoundSelect, delete, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs import activity, workers
from jobs.database import new_id
from jobs.datasets import unsettled
from jobs.errors import Conflict, FieldError, Invalid, NotFound
from jobs.models import Dataset, DatasetSamples, DatasetSource, Job, Sweep, Worker
from jobs.status import TERMINAL, Status
from wcl_core.config import DATASET_NAME, proposed_name
from wcl_core.data.kinds import LISTS
from wcl_core.text import counted

MAX_PATH = 4096


@dataclass(frozen=True)
class Added:
    """A dataset that an administrator added.

    Attributes:
        id: stays when the dataset gets another name.
        path: of a folder, list, archive or packed file, on the workers that have it.
        has_labels: whether folders, or the list, may name classes.
    """

    id: str
    name: str
    path: str
    has_labels: bool


def added(session: Session) -> dict[str, Added]:
    """Return the datasets that administrators have added, by name."""
    rows = session.execute(select(DatasetSource).order_by(DatasetSource.name)).scalars()
    return {row.name: _added(row) for row in rows}


def requests(session: Session) -> tuple[dict[str, Added], dict[str, int]]:
    """Return what `added` returns, and how often users have requested that a folder is read again, by its name.

    It is one statement, since each worker reads it every few seconds.
    """
    rows = sorted(session.execute(_added_and_requested()).all(), key=lambda row: row.name)
    sources_by_name = {row.name: Added(*row[:4]) for row in rows if not row.reads}
    return sources_by_name, {row.name: row.reads for row in rows if row.reads}


@cache
def _added_and_requested() -> CompoundSelect[str, str, str, bool, int]:
    """Make the statement of each poll once, since its making takes longer than its execution."""
    sources = select(
        DatasetSource.id, DatasetSource.name, DatasetSource.path, DatasetSource.has_labels, literal(0).label("reads")
    )
    again = select(Dataset.id, Dataset.name, literal(""), literal(True), Dataset.reads_requested)
    return sources.union_all(again.where(Dataset.reads_requested > 0))


def is_current(session: Session, source: Added) -> bool:
    """Return whether a dataset is still the added one; until the transaction ends, none removes it."""
    statement = select(DatasetSource).where(DatasetSource.name == source.name).with_for_update()
    row = session.execute(statement).scalar_one_or_none()
    return row is not None and _added(row) == source


def add(session: Session, name: str, path: str, has_labels: bool, created_by: str | None) -> Added:
    """Add a dataset; workers read it within seconds.  It replaces an added one that the workers refuse.

    Raises:
        Invalid: no spec can hold the name, or the path is not absolute.
        Conflict: there is another dataset of this name.
    """
    errors = [FieldError("/name", problem) for problem in _problems_of_name(name)]
    if not PurePath(path).is_absolute() or "\0" in path:
        errors.append(FieldError("/path", "expected an absolute path on the machines of the workers"))
    if errors:
        raise Invalid(errors)
    values = {"id": new_id(), "path": path, "has_labels": has_labels, "created_by": created_by}
    row = session.get(DatasetSource, name, with_for_update=True)
    if row is None or not _is_refused(session, name):
        _check_free(session, name)
        row = DatasetSource(name=name, **values)
        session.add(row)
    else:
        session.execute(update(DatasetSource).where(DatasetSource.name == name).values(values))
        session.refresh(row)
        _drop_from_workers(session, name)
    _flush(session, name)
    activity.note(session, "dataset.add", name)
    return _added(row)


def is_below(path: Path, roots: Iterable[Path]) -> bool:
    """Return whether a path, and the folder of a list of images, lie below one of some folders; links are followed."""
    places = [path.resolve(), *([path.parent.resolve()] if path.suffix.lower() in LISTS else [])]
    return all(any(place.is_relative_to(root.resolve()) for root in roots) for place in places)


def rename(session: Session, name: str, new_name: str) -> Added:
    """Give an added dataset another name; jobs that have ended keep the old one.

    Raises:
        Invalid: no spec can hold the new name.
        NotFound: there is no such dataset.
        Conflict: it is one of a worker's settings, a job on it has not ended, or there is one of the new name.
    """
    if errors := [FieldError("/name", problem) for problem in _problems_of_name(new_name)]:
        raise Invalid(errors)
    row = _changeable(session, name)
    if new_name != name:
        _check_free(session, new_name)
        session.execute(delete(DatasetSamples).where(DatasetSamples.dataset_name.in_((name, new_name))))
        session.execute(delete(Dataset).where(Dataset.name == new_name))  # of settings that no worker has any more
        if not _leave_to_settings(session, name):
            session.execute(update(Dataset).where(Dataset.name == name).values(name=new_name))
        row.name = new_name
        _flush(session, new_name)
        _drop_from_workers(session, name)
        activity.note(session, "dataset.rename", new_name, before=name)
    return _added(row)


def remove(session: Session, name: str) -> None:
    """Remove a dataset from the service; its files stay.

    One that only the settings of a worker named is removed once no worker that runs has it.

    Raises:
        NotFound: there is no such dataset.
        Conflict: it is one of a worker's settings, or a job on it has not ended.
    """
    is_added = session.get(DatasetSource, name) is not None
    if not is_added and _is_registered(session, name) and not _is_of_a_worker(session, name):
        _check_unused(session, name)
    else:
        session.delete(_changeable(session, name))
        _drop_from_workers(session, name)
    if not _leave_to_settings(session, name):
        session.execute(delete(DatasetSamples).where(DatasetSamples.dataset_name == name))
        session.execute(delete(Dataset).where(Dataset.name == name))
    activity.note(session, "dataset.remove", name)


def _added(row: DatasetSource) -> Added:
    return Added(row.id, row.name, row.path, row.has_labels)


def _flush(session: Session, name: str) -> None:
    """Write a new name.

    Raises:
        Conflict: another transaction has given it meanwhile.
    """
    try:
        session.flush()
    except IntegrityError as error:
        raise _taken(name) from error


def _taken(name: str) -> Conflict:
    return Conflict(f"there is a dataset {name}; choose another name, or remove that one first")


def _drop_from_workers(session: Session, name: str) -> None:
    """Take a dataset from the rows of the workers, which notice the change a little later.

    A worker whose own settings have a dataset of this name keeps it.
    """
    for worker in session.execute(select(Worker).where(Worker.is_live).order_by(Worker.id)).scalars().all():
        if name not in (worker.own_datasets or ()):
            workers.drop_dataset(session, worker.id, name)


def _leave_to_settings(session: Session, name: str) -> bool:
    """Return whether a worker's own settings have a dataset of this name, too; if so, it is announced again."""
    live = session.execute(select(Worker.own_datasets).where(Worker.is_live)).scalars()
    if not any(name in (own or ()) for own in live):
        return False
    again = {"reads_requested": Dataset.reads_requested + 1}
    session.execute(update(Dataset).where(Dataset.name == name).values(again))
    return True


def _problems_of_name(name: str) -> list[str]:
    if re.search(DATASET_NAME, name):
        return []
    return [f"expected lower-case letters, digits, '.', '_' and '-', such as {proposed_name(name)}"]


def _is_registered(session: Session, name: str) -> bool:
    return session.execute(select(Dataset.id).where(Dataset.name == name)).first() is not None


def _is_of_a_worker(session: Session, name: str) -> bool:
    """Return whether a worker that runs has a dataset, reads it or refuses it."""
    rows = session.execute(select(Worker).where(Worker.is_live)).scalars()
    named = {each for worker in rows for each in worker.datasets}
    state = unsettled(session)
    return name in named | set(state.pending) | {each.name for each in state.refused}


def _is_refused(session: Session, name: str) -> bool:
    """Return whether a worker that runs refuses a dataset, and none has it or reads it."""
    rows = session.execute(select(Worker).where(Worker.is_live)).scalars().all()
    if any(name in {*each.datasets, *(each.pending_datasets or ()), *(each.own_datasets or ())} for each in rows):
        return False
    return any(name in (each.refused_datasets or {}) for each in rows)


def _check_free(session: Session, name: str) -> None:
    if session.get(DatasetSource, name) is not None or _is_of_a_worker(session, name):
        raise _taken(name)


def _changeable(session: Session, name: str) -> DatasetSource:
    """Return an added dataset that no job needs."""
    row = session.get(DatasetSource, name, with_for_update=True)
    if row is None and (_is_registered(session, name) or _is_of_a_worker(session, name)):
        raise Conflict(
            f"{name} is in the settings of a worker (wcl up --dataset, WCL_DATASETS, WCL_BUILTIN_DATASETS), and only "
            "these change it"
        )
    if row is None:
        raise NotFound(f"there is no dataset {name!r}")
    _check_unused(session, name)
    return row


def _check_unused(session: Session, name: str) -> None:
    """Raise if a job or sweep needs a dataset; until the transaction ends, none that needs it is submitted.

    Raises:
        Conflict: one trains on it, measures it, or has a planned evaluation on it.
    """
    # A submission holds the row, too (`jobs.datasets.hold`): it waits, or is seen here.
    session.execute(select(Dataset.id).where(Dataset.name == name).with_for_update())
    planned = select(Job.id, Job.dataset_name, Job.spec["evaluations"]).where(Job.status.not_in(TERMINAL))
    count = sum(name in (own, *_measured(plans)) for _, own, plans in session.execute(planned))
    if count:
        raise Conflict(f"{counted(count, 'job has', 'jobs have')} not ended on {name}; cancel, or wait")
    sweeps = select(Sweep.dataset_name, Sweep.base, Sweep.metric).where(Sweep.status == Status.RUNNING)
    rows = session.execute(sweeps).all()
    if any(name in (own, *_measured([*(base.get("evaluations") or ()), metric])) for own, base, metric in rows):
        raise Conflict(f"a sweep on {name} has not ended; cancel it, or wait")


def _measured(plans: object) -> set[str]:
    """Return the datasets that planned evaluations, or the metric of a sweep, name."""
    data = [plan.get("data") for plan in plans if isinstance(plan, dict)] if isinstance(plans, list) else []
    return {str(each.get("name")) for each in data if isinstance(each, dict)}
