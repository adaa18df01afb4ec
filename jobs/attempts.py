"""The identity of an attempt: its job, its number and a random token.

The number alone identifies no attempt: after a backup is restored, another attempt gets the same number.  Every write,
folder, stored file and process of an attempt names its token.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_

from jobs.models import Attempt

_TOKEN_BYTES = 8
_FOLDER = re.compile(r"[0-9]+(-[0-9a-f]+)?(\.[0-9]+)?")  # of a further node with its number


@dataclass(frozen=True)
class AttemptRef:
    """One attempt.

    Attributes:
        token: random; None for an attempt that a worker of a version without tokens has claimed.
    """

    job_id: str
    number: int
    token: str | None

    @classmethod
    def new(cls, job_id: str, number: int) -> AttemptRef:
        """Return the identity of an attempt that is being claimed."""
        return cls(job_id, number, secrets.token_hex(_TOKEN_BYTES))

    @property
    def folder(self) -> str:
        """`JOB/NUMBER-TOKEN`, the place of its files on its worker and in the storage."""
        return f"{self.job_id}/{self.number}" + (f"-{self.token}" if self.token else "")

    def folder_of(self, node: int) -> str:
        """Return the place of the files of a node on its worker: workers of one machine may share a data folder."""
        return f"{self.folder}.{node}" if node else self.folder

    def is_row(self) -> ColumnElement[bool]:
        """Return the condition for the attempt's row."""
        return and_(Attempt.job_id == self.job_id, Attempt.number == self.number, Attempt.token == self.token)

    @staticmethod
    def is_folder(name: str) -> bool:
        """Return whether this may be the last part of an attempt's folder."""
        return _FOLDER.fullmatch(name) is not None

    def __str__(self) -> str:
        return f"attempt {self.number} of job {self.job_id}"
