"""`Idempotency-Key`: a request that is sent again answers with the job that the first one made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Response
from sqlalchemy.orm import Session

from api.http.auth import Submitter
from api.http.dependencies import TheDatabase
from jobs import idempotency, submission
from jobs.database import Database
from jobs.errors import FieldError, Invalid
from jobs.models import Job
from jobs.new_job import NewJob

REPLAYED: dict[int | str, dict[str, Any]] = {200: {"description": "The first job, at a replay."}}


@dataclass(frozen=True)
class Submission:
    """Who submits, under which key, and the answer that says whether it is a replay."""

    database: Database
    owner: str
    key: str | None
    response: Response

    def make(self, said: Any, new: Callable[[Session], NewJob | Sequence[NewJob]]) -> Job:
        """Submit what `new` makes, once for each key; the job, or the first of a group.

        A replay answers 200 with `Idempotency-Replayed: true`.

        Args:
            said: JSON values; the same for two requests that ask for the same.
            new: runs within the transaction that submits.

        Raises:
            Invalid: a strange key, or one that came before with another request; or as `service.submit`.
        """
        job_id = self.once(said, lambda session: submission.submit_any(session, new(session)).id)
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def once(self, said: Any, make: Callable[[Session], str]) -> str:
        """As `make`, of anything: the id of what `make` made, now or at the first request.

        Raises:
            Invalid: a strange key, or one that came before with another request; or as `make`.
        """
        if self.key is None:
            return self.database.write(make)
        if not self.key.isascii() or not self.key.isprintable() or not self.key.strip():
            raise Invalid([FieldError("Idempotency-Key", "expected 1 to 200 printable ASCII characters")])
        made, is_replay = idempotency.once(self.database, self.key, self.owner, _digest(said), make)
        if is_replay:
            self.response.status_code = 200
            self.response.headers["Idempotency-Replayed"] = "true"
        return made


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def _submission(
    principal: Submitter,
    database: TheDatabase,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Chosen by the client; repeating the request with it answers with the first job.",
            max_length=200,
        ),
    ] = None,
) -> Submission:
    return Submission(database, principal.key_id, idempotency_key, response)


TheSubmission = Annotated[Submission, Depends(_submission)]
