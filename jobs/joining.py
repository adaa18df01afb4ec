"""What a machine gets that joins as a worker: the settings in a file of the operator, for a one-time token.

The operator writes the file on the server's machine: the addresses as workers see them, and an account of PostgreSQL
that cannot create keys.  The server keeps nothing of it, so a change of the file holds from the next machine on.  A
machine gets it once it has the server's version, so that no token is used up in vain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import Conflict
from jobs.models import Base
from jobs.settings import Settings
from wcl_core.text import assignments, counted
from wcl_core.version import VERSION, release_of

_MOST_BYTES: Final = 100_000
_WHERE: Final = "docs/operating.md, `Machines that join`, has an example"
_READ_ONLY: Final = frozenset({"keys", "projects"})  # tables; of a few columns of theirs an account may do more
_UNREAD: Final = frozenset({"sign_in_tokens", "shares", "share_jobs", "activities"})


def check_version(version: str) -> None:
    """Check that a machine has this server's version.

    Raises:
        Conflict: it has another one.
    """
    if release_of(version) != release_of(VERSION):  # a wheel may name no commit
        raise Conflict(
            f"the machine has version {version}, and the server {VERSION}; install the server's version there. "
            "The token still works"
        )


def rights_problem(session: Session) -> str | None:
    """Return which rights of PostgreSQL the account lacks that a worker needs; None if it has them, or with SQLite."""
    if session.get_bind().dialect.name != "postgresql":
        return None
    every = ("SELECT", "INSERT", "UPDATE", "DELETE")
    needed = [
        (right, table)
        for table in sorted(Base.metadata.tables.keys() - _UNREAD)
        for right in (every[:1] if table in _READ_ONLY else every)
    ]
    has = session.execute(select(*(func.has_table_privilege(table, right) for right, table in needed))).one()
    lacking = [f"{right} on {table}" for (right, table), is_granted in zip(needed, has, strict=True) if not is_granted]
    if not lacking:
        return None
    more = f" and {counted(len(lacking) - 1, 'further right')}" if lacking[1:] else ""
    return f"its account lacks {lacking[0]}{more}; docs/operating.md, `Machines that join`, has the lines for them"


def worker_settings(settings: Settings) -> dict[str, str]:
    """Return the settings for a new machine.

    Raises:
        Conflict: other machines cannot work for this server, or its operator has not written their settings.
    """
    if settings.is_sqlite:
        raise Conflict(
            "this server has its jobs in SQLite, a file that other machines cannot use; other machines need PostgreSQL "
            "(docs/operating.md, `Many machines`)"
        )
    if settings.worker_settings is None:
        raise Conflict(f"the server has no settings for other machines: WCL_WORKER_SETTINGS is not set; {_WHERE}")
    values = _read(settings.worker_settings)
    unknown = [name for name in values if name.removeprefix("WCL_").lower() not in Settings.model_fields]
    if unknown:
        raise Conflict(f"the file of WCL_WORKER_SETTINGS sets {unknown[0]}, which is no setting; {_WHERE}")
    if not values.get("WCL_DATABASE_URL", "").startswith("postgresql"):
        raise Conflict(f"the file of WCL_WORKER_SETTINGS lacks WCL_DATABASE_URL=postgresql://…; {_WHERE}")
    if not Path(values.get("WCL_DATA_DIR", "")).is_absolute():
        raise Conflict(f"the file of WCL_WORKER_SETTINGS lacks WCL_DATA_DIR=/…, the shared folder; {_WHERE}")
    return values


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            return assignments(file.read(_MOST_BYTES).decode())
    except OSError as error:
        raise Conflict(f"the server cannot read the file of WCL_WORKER_SETTINGS: {error.strerror}") from error
    except ValueError as error:  # its text holds no value of the file
        raise Conflict(f"the file of WCL_WORKER_SETTINGS: {error}; {_WHERE}") from None
