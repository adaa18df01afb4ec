"""Checkpoints, the newest one of each job with its older ones folded; features of images, and imported weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.web.render import page
from jobs import weights
from jobs.checkpoints import LastAccuracy, last_accuracies
from jobs.database import database_time
from jobs.models import TRAINING, Checkpoint, Job, Weights
from wcl_core.config import method_title

router = APIRouter(include_in_schema=False)

PAGE_SIZE = 50
MAX_OPEN, MAX_OLDER = 20, 100


@dataclass(frozen=True)
class View:
    """What a request shows; `opened` are ids of the jobs whose older checkpoints are shown.

    Features stand apart from checkpoints, but for those that are pinned.
    """

    is_pinned_only: bool = False
    are_features: bool = False
    opened: tuple[str, ...] = ()
    cursor: str = ""

    def address(self, *, opened: tuple[str, ...], cursor: str) -> str:
        pairs = [("pinned", "yes" if self.is_pinned_only else ""), ("kind", "features" if self.are_features else "")]
        pairs += [("open", each) for each in opened] + [("cursor", cursor)]
        query = urlencode([pair for pair in pairs if pair[1]])
        return f"/checkpoints?{query}" if query else "/checkpoints"

    def toggled(self, job_id: str) -> str:
        others = tuple(each for each in self.opened if each != job_id)
        opened = others if job_id in self.opened else (*self.opened, job_id)[-MAX_OPEN:]
        return self.address(opened=opened, cursor=self.cursor)


@dataclass(frozen=True)
class Kept:
    """The newest checkpoint of a job, the number of older ones, and those if they are shown.

    `method` is None for features; `source` are id and name of the training whose network has computed these.
    """

    checkpoint: Checkpoint
    job_name: str
    is_namesake: bool  # of another job on the page
    owner: str | None
    dataset: str
    method: str | None
    source: tuple[str, str] | None
    num_older: int
    older: list[Checkpoint]


@dataclass(frozen=True)
class CheckpointList:
    """Checkpoints by job, newest first, and all imported weights by name."""

    rows: list[Kept]
    accuracies: dict[str, LastAccuracy]  # that were measured last, by checkpoint
    imported: list[Weights]
    next_cursor: str | None
    view: View
    now: int


def checkpoint_list(session: Session, view: View) -> CheckpointList:
    """Return the newest checkpoint of each job, after a cursor: the id of the last one shown."""
    newer, source = aliased(Checkpoint), aliased(Job)
    if view.is_pinned_only:
        is_kept = [Checkpoint.deleted_at.is_(None), Checkpoint.pinned]
    else:
        of_kind = Checkpoint.kind != TRAINING if view.are_features else Checkpoint.kind == TRAINING
        is_kept = [Checkpoint.deleted_at.is_(None), of_kind]
    is_superseded = exists().where(
        newer.job_id == Checkpoint.job_id, newer.deleted_at.is_(None), newer.id > Checkpoint.id
    )
    if view.is_pinned_only:
        is_superseded = is_superseded.where(newer.pinned)
    facts = (Job.name, Job.created_by, Job.dataset_name, Job.spec["method"].as_string(), source.id, source.name)
    statement = select(Checkpoint, *facts).join(Job, Job.id == Checkpoint.job_id)
    statement = statement.outerjoin(source, source.id == Job.parent_id).where(*is_kept, ~is_superseded)
    if view.cursor:
        statement = statement.where(Checkpoint.id < view.cursor[:36])
    newest = session.execute(statement.order_by(Checkpoint.id.desc()).limit(PAGE_SIZE + 1)).all()
    ids = [checkpoint.job_id for checkpoint, *_ in newest]
    counting = select(Checkpoint.job_id, func.count()).where(Checkpoint.job_id.in_(ids), *is_kept)
    counts: dict[str, int] = dict(session.execute(counting.group_by(Checkpoint.job_id)).all())
    older = select(Checkpoint).where(Checkpoint.job_id.in_(view.opened), *is_kept).order_by(Checkpoint.id.desc())
    opened: Sequence[Checkpoint] = session.execute(older.limit(MAX_OPEN * MAX_OLDER)).scalars().all()
    names = Counter(name for _, name, *_ in newest)
    rows = [
        Kept(
            checkpoint,
            name,
            names[name] > 1,
            owner,
            dataset,
            method and method_title(method),
            (parent_id, parent) if checkpoint.kind != TRAINING and parent_id else None,
            counts[checkpoint.job_id] - 1,
            [each for each in opened if each.job_id == checkpoint.job_id and each.id != checkpoint.id][:MAX_OLDER],
        )
        for checkpoint, name, owner, dataset, method, parent_id, parent in newest[:PAGE_SIZE]
    ]
    more = rows[-1].checkpoint.id if len(newest) > PAGE_SIZE else None
    shown = [each.id for kept in rows for each in (kept.checkpoint, *kept.older)]
    measured = last_accuracies(session, shown)
    return CheckpointList(rows, measured, weights.every(session), more, view, database_time(session))


@router.get("/checkpoints")
def checkpoints_page(
    request: Request,
    reader: Reader,
    database: TheDatabase,
    pinned: str = "",
    kind: Annotated[str, Query(max_length=20)] = "",
    opened: Annotated[list[str], Query(alias="open", max_length=100)] = [],  # noqa: B006 (FastAPI copies it)
    cursor: str = "",
) -> Response:
    """Return the page of all checkpoints, of the pinned ones or of features, and of imported weights."""
    view = View(bool(pinned), kind == "features", tuple(dict.fromkeys(each[:36] for each in opened))[:MAX_OPEN], cursor)
    with database.read() as session:
        shown = checkpoint_list(session, view)
    words: dict[str, Any] = {"now": shown.now, "network": weights.network_title}
    return page(request, "checkpoints.html", list=shown, may_submit="submit" in reader.scopes, **words)
