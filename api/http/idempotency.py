"""The `Idempotency-Key` header, and its counterpart in the forms of the pages: a repeated request creates nothing new.

`Submission.create` and `create_batch` are the only ways by which a request creates a job, a sweep, a key or a webhook
of a form.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Form, Header, Response
from sqlalchemy.orm import Session

from api.http.auth import Admin, Submitter
from api.http.dependencies import TheDatabase
from jobs import idempotency, limits
from jobs.database import Database
from jobs.errors import FieldError, Invalid
from jobs.idempotency import Created
from jobs.models import Job
from wcl_core.digests import digest_of

REPLAYED: dict[int | str, dict[str, Any]] = {200: {"description": "A replay: the job that the first request created."}}
_MAX_FORM_KEY = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Submission:
    """One request that may create a job, a sweep or a key.

    Attributes:
        owner: id of the API key that sends the request.
        key: the idempotency key; None creates something with every request.
        response: where a replay is marked.
        is_form: whether a form of a page sent the request; its hidden field `key` is a one-time key.  The same form
            with other values is another request: a user may go back, change a value, and send the form again.
    """

    database: Database
    owner: str
    key: str | None
    response: Response
    is_form: bool = False

    def create(
        self, request: Any, model: type[Created], create: Callable[[Session], Created], count: int = 1
    ) -> Created:
        """Create a row, or return the row that an earlier request with the same key created.

        A replay gets status 200 and `Idempotency-Replayed: true`.

        Args:
            request: JSON values that are equal for two equal requests.
            model: the class of the row.
            create: adds the row; runs within the transaction.
            count: number of jobs that it stands for; of a sweep, that of its trainings; of a key, 0.

        Raises:
            Invalid: the key is malformed, or was used with another request; or as `create`.
            Forbidden, OverLimit: as `limits.check_submission`.
        """
        limited = self._limited(create, count)
        key = self._key(request)
        if key is None:
            return self.database.write(limited)
        return self._replayed(*idempotency.create_once(self.database, self.owner, key, request, model, limited))

    def answered(
        self,
        request: Any,
        model: type[Created],
        create: Callable[[Session], Created],
        answer: Callable[[Session, Created], T],
        count: int = 1,
    ) -> T:
        """Create a row as `create`, and return what `answer` reads of it.

        The answer about a new row is read within its transaction, which has the rows that decided about it.

        Raises:
            Invalid, Forbidden, OverLimit: as `create`.
        """
        answers: list[T] = []

        def create_and_answer(session: Session) -> Created:
            row = create(session)
            answers[:] = [answer(session, row)]  # the transaction may run again
            return row

        row = self.create(request, model, create_and_answer, count)
        if not self.is_replay:
            return answers[0]
        with self.database.read() as session:
            return answer(session, row)

    def create_batch(self, request: Any, create: Callable[[Session], list[Job]], count: int) -> list[Job]:
        """Create the jobs of a batch, or return those that an earlier request with the same key created; as `create`.

        Raises:
            Invalid, Forbidden, OverLimit: as `create`.
        """
        limited = self._limited(create, count)
        key = self._key(request)
        if key is None:
            return self.database.write(limited)
        return self._replayed(*idempotency.create_batch_once(self.database, self.owner, key, request, limited))

    def _limited(self, create: Callable[[Session], T], count: int) -> Callable[[Session], T]:
        def limited(session: Session) -> T:
            result = create(session)
            if count:
                limits.check_submission(session, self.owner, _by_project(result, count))
            return result

        return limited

    def _replayed(self, result: T, is_replay: bool) -> T:
        if is_replay:
            self.response.status_code = 200
            self.response.headers["Idempotency-Replayed"] = "true"
        return result

    @property
    def is_replay(self) -> bool:
        """Return whether `create` has returned the row of an earlier request."""
        return "Idempotency-Replayed" in self.response.headers

    def _key(self, request: Any) -> str | None:
        key = self.key
        if self.is_form:
            if not key or len(key) > _MAX_FORM_KEY:
                raise Invalid([FieldError("key", "the form has no one-time key; reload the page and send it again")])
            return f"form {key} {digest_of(request)}"
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise Invalid([FieldError("Idempotency-Key", "expected 1 to 200 printable ASCII characters")])
        return key


def _by_project(result: Any, count: int) -> Mapping[str, int]:
    """Return the number of new jobs by their project: of a list of jobs, or `count` of a job or a sweep."""
    return Counter(job.project_id for job in result) if isinstance(result, list) else {result.project_id: count}


def one_time_key() -> str:
    """Return a new key for the hidden field `key` of a form."""
    return secrets.token_hex(16)


def _header(what: str) -> Any:
    return Header(
        description=f"A key that the client chooses.  A request that repeats it gets the first request's {what}.",
        max_length=200,
    )


async def _submission(
    principal: Submitter,
    database: TheDatabase,
    response: Response,
    idempotency_key: Annotated[str | None, _header("job")] = None,
) -> Submission:
    return Submission(database, principal.key_id, idempotency_key, response)


async def _key_creation(
    principal: Admin,
    database: TheDatabase,
    response: Response,
    idempotency_key: Annotated[str | None, _header("key, without its secret")] = None,
) -> Submission:
    return Submission(database, principal.key_id, idempotency_key, response)


async def _bulk_request(
    principal: Submitter,
    database: TheDatabase,
    response: Response,
    idempotency_key: Annotated[str | None, _header("jobs")] = None,
) -> Submission:
    return Submission(database, principal.key_id, idempotency_key, response)


async def _form_submission(
    principal: Submitter, database: TheDatabase, response: Response, key: Annotated[str, Form()] = ""
) -> Submission:
    return Submission(database, principal.key_id, key, response, is_form=True)


TheKeyCreation = Annotated[Submission, Depends(_key_creation)]
TheBulkRequest = Annotated[Submission, Depends(_bulk_request)]
TheSubmission = Annotated[Submission, Depends(_submission)]
TheFormSubmission = Annotated[Submission, Depends(_form_submission)]
