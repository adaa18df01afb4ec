"""Rules that servers and workers share: a server stores them from its settings at its start, and workers read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs.database import insert
from jobs.models import Policy
from jobs.settings import Settings


@dataclass(frozen=True)
class Policies:
    """The rules, each named as its setting; the defaults hold until a server has stored its own.

    Attributes:
        key_waiting: most waiting jobs of a key; None for no limit.
        key_devices: most devices that its jobs use at once.
        key_submissions: most jobs that it submits within a minute.
        fair_share_days: half-life of the use of devices that decides between keys; 0 for none.
        keep_checkpoints: newest checkpoints that a training keeps whose spec says nothing; None for all.
        most_checkpoints: most newest, and most best checkpoints that a training keeps, whatever its spec says.
    """

    key_waiting: int | None = None
    key_devices: int | None = None
    key_submissions: int | None = None
    fair_share_days: int = 7
    keep_checkpoints: int | None = None
    most_checkpoints: int | None = None


NAMES = tuple(each.name for each in fields(Policies))


def store(session: Session, settings: Settings) -> None:
    """Store the rules of a server's settings; those of a server that starts later, or meanwhile, replace them."""
    policies = asdict(Policies(**{name: getattr(settings, name) for name in NAMES}))
    for name, value in policies.items():
        if value is None:
            session.execute(delete(Policy).where(Policy.name == name))
        else:
            statement = insert(session, Policy).values(name=name, value=value)
            session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


def stored(session: Session) -> Policies:
    """Return the rules that the server has stored last."""
    return of_rows({row.name: row.value for row in session.execute(select(Policy)).scalars()})


def of_rows(values: dict[str, float]) -> Policies:
    """Return the rules of rows; a newer server may have stored further ones."""
    return Policies(**{name: int(value) for name, value in values.items() if name in NAMES})
