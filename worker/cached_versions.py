"""Earlier versions of folders that waiting and running jobs pin, and that are in the cache of this machine.

A folder changes, and a job keeps the version that it was submitted with.  The worker runs such a job if the cache has
its images, also while it refuses the folder, and holds the file meanwhile, so that no other dataset takes its room.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from jobs import workers
from jobs.database import Database
from jobs.eligibility import WorkerFacts, is_held
from jobs.models import Job
from jobs.settings import Settings
from jobs.status import Status

if TYPE_CHECKING:  # it loads Pillow, and most workers never have such a job
    from wcl_core.data.cache import Cache, HeldFile

_MOST_JOBS = 1000


class CachedVersions:
    """The files of the cache that jobs of this worker's pool need, and that no folder of it has any more.

    Args:
        facts: of the worker; the ids of the jobs are kept there.
        folders: returns the names of the datasets whose images may come from the cache.
    """

    def __init__(
        self, database: Database, settings: Settings, facts: WorkerFacts, folders: Callable[[], list[str]]
    ) -> None:
        self._database, self._facts, self._folders = database, facts, folders
        self._settings = settings
        self._held: dict[Path, HeldFile] = {}

    def refresh(self) -> None:
        """Look for the jobs and their files, hold the files, and announce the jobs if they have changed.

        Raises:
            DBAPIError: the database does not respond.
        """
        with self._database.read() as session:
            paths = {job_id: path for job_id, path in self._needed(session).items() if self._holds(path)}
        self._held = {path: self._held[path] for path in paths.values()}
        ids = set(paths)
        if ids != self._facts.cached_jobs:
            self._facts.cached_jobs.clear()
            self._facts.cached_jobs.update(ids)
            self._database.write(lambda session: workers.note_cached_jobs(session, self._facts.id, sorted(ids)))

    def _needed(self, session: Session) -> dict[str, Path]:
        """Return the files of the jobs whose version is not that of the folder now."""
        is_open = or_(Job.status.in_((Status.QUEUED, Status.RUNNING)), is_held())
        names = self._folders()
        statement = select(Job.id, Job.dataset_digest, Job.spec["data"]["image_size"].as_integer())
        statement = statement.where(is_open, Job.pool == self._facts.pool, Job.nodes == 1, Job.dataset_name.in_(names))
        current = list(self._facts.datasets.values())
        others = statement.where(Job.dataset_digest.not_in(["", *current])).order_by(Job.id).limit(_MOST_JOBS)
        rows = session.execute(others).all() if names else ()
        return {job_id: self._cache.path(digest, size) for job_id, digest, size in rows}

    @cached_property
    def _cache(self) -> Cache:
        cache: Cache = import_module("wcl_core.data.cache").Cache(self._settings.resolved_cache_dir)
        return cache

    def _holds(self, path: Path) -> bool:
        if path not in self._held and (file := self._cache.opened(path)) is not None:
            self._held[path] = file
        return path in self._held
