"""Faults of the database: one table from the codes of PostgreSQL and SQLite to the kind of fault and its remedy.

A fault lies outside this program: waiting or an operator ends it.  It never decides about a job: a run goes on and its
records are delivered later.  Any other error of the database, such as a violated constraint, is an error of this
program or of a request.
"""

from __future__ import annotations

import re
import sqlite3
from enum import Enum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class Fault(Enum):
    """The kinds of fault, each with what it says to a reader, and whether waiting alone ends it."""

    BUSY = "the database is busy", True  # other transactions are in the way, and the same one may succeed at once
    TIMEOUT = "the database does not respond in time", True
    UNREACHABLE = "the database does not respond", True
    READ_ONLY = "the database is read-only", True
    FULL = "the disk of the database is full", True
    OVERLOADED = "the database has no free connection or memory", True
    IO = "the database cannot use its disk", True
    FORBIDDEN = "the account of the database lacks a right; grant it", False
    SCHEMA = (
        "the database lacks a table or column of this version; restart this process with the version that upgraded the "
        "database, or run `python -m jobs migrate` if none has",
        False,
    )
    DAMAGED = "the database is damaged; stop the service and restore a backup of the database", False

    def __init__(self, sentence: str, is_passing: bool) -> None:
        self.sentence = sentence
        self.is_passing = is_passing


# A code of five characters counts before its class, which is the first two.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_SQLSTATE = {
    "08": Fault.UNREACHABLE,
    "25006": Fault.READ_ONLY,
    "25P02": Fault.BUSY,  # an earlier statement of the transaction failed
    "25P03": Fault.UNREACHABLE,  # the transaction was idle for too long, and its connection is closed
    "25P04": Fault.UNREACHABLE,  # the transaction took too long, and its connection is closed
    "28": Fault.UNREACHABLE,  # wrong password
    "3D": Fault.UNREACHABLE,  # no such database
    "3F": Fault.SCHEMA,
    "40": Fault.BUSY,  # serialisation failure, deadlock
    "42501": Fault.FORBIDDEN,
    "42703": Fault.SCHEMA,
    "42P01": Fault.SCHEMA,
    "53": Fault.OVERLOADED,
    "53100": Fault.FULL,
    "55P03": Fault.TIMEOUT,  # lock_timeout
    "57014": Fault.TIMEOUT,  # statement_timeout
    "57P": Fault.UNREACHABLE,  # shutting down, starting, terminated by an administrator
    "58": Fault.IO,
    "F0": Fault.IO,
    "XX": Fault.IO,
    "XX001": Fault.DAMAGED,
    "XX002": Fault.DAMAGED,
}

# An extended result code counts before its primary code, which is the lowest byte.
# https://www.sqlite.org/rescode.html
_BY_RESULT_CODE = {
    sqlite3.SQLITE_PERM: Fault.FORBIDDEN,
    sqlite3.SQLITE_BUSY: Fault.BUSY,
    sqlite3.SQLITE_LOCKED: Fault.BUSY,
    sqlite3.SQLITE_NOMEM: Fault.OVERLOADED,
    sqlite3.SQLITE_READONLY: Fault.READ_ONLY,
    sqlite3.SQLITE_READONLY_DBMOVED: Fault.UNREACHABLE,
    sqlite3.SQLITE_INTERRUPT: Fault.TIMEOUT,
    sqlite3.SQLITE_IOERR: Fault.IO,
    sqlite3.SQLITE_CORRUPT: Fault.DAMAGED,
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_CANTOPEN: Fault.UNREACHABLE,
    sqlite3.SQLITE_PROTOCOL: Fault.BUSY,
    sqlite3.SQLITE_SCHEMA: Fault.BUSY,
    sqlite3.SQLITE_AUTH: Fault.FORBIDDEN,
    sqlite3.SQLITE_NOTADB: Fault.DAMAGED,
}
_VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE")
# SQLite has no code of its own for these.
_MISSING_IN_SQLITE = re.compile(r"no such (table|column)|has no column named")
# A refused connection has no SQLSTATE.  PostgreSQL and PgBouncer write these; a server that writes another language
# counts as unreachable.
_REFUSED = re.compile(r"password authentication failed|role \".*\" (does not exist|is not permitted to log in)")
_TOO_MANY = re.compile(r"too many (clients|connections)|remaining connection slots|no more connections allowed")


def fault_of(error: BaseException) -> Fault | None:
    """Return the fault of the database that an error reports; None for any other error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, PoolTimeout):
        return Fault.OVERLOADED
    if not isinstance(error, DBAPIError):
        return None
    if isinstance(cause, sqlite3.Error):
        return _of_sqlite(cause)
    if (sqlstate := getattr(cause, "sqlstate", None)) is not None:
        return next((_BY_SQLSTATE[code] for code in _widening(sqlstate) if code in _BY_SQLSTATE), None)
    if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
        return Fault.OVERLOADED if _TOO_MANY.search(str(cause)) else Fault.UNREACHABLE
    return None


def refused_login(error: BaseException) -> str | None:
    """Return what PostgreSQL says of a wrong user or password, which only a user can mend; None for other errors."""
    reported = _reported(error) if isinstance(error, OperationalError) else ""
    return reported if _REFUSED.search(reported) else None


def is_outage(error: BaseException) -> bool:
    """Return whether the database could not do its work, so that the caller waits and tries again."""
    return fault_of(error) is not None


def describe(error: BaseException) -> str:
    """Return one line for a log: the kind of fault, and what the database reports; never a statement's values."""
    fault = fault_of(error)
    reported = _reported(error)
    return reported if fault is None else f"{fault.sentence} ({reported})"


def detail_of(error: BaseException, fault: Fault) -> str:
    """Return a sentence for a reader, without the statement: the fault, and what to do."""
    if fault is Fault.FORBIDDEN:
        return f"{fault.sentence}: {_reported(error)}"
    return f"{fault.sentence}; try again" if fault.is_passing else fault.sentence


def _widening(sqlstate: str) -> tuple[str, str, str]:
    return sqlstate, sqlstate[:3], sqlstate[:2]


def _of_sqlite(cause: sqlite3.Error) -> Fault | None:
    code = getattr(cause, "sqlite_errorcode", None)
    if code is None:
        return None
    if code == sqlite3.SQLITE_ERROR and _MISSING_IN_SQLITE.search(str(cause)):
        return Fault.SCHEMA
    return _BY_RESULT_CODE.get(code) or _BY_RESULT_CODE.get(code & 0xFF)


def _reported(error: BaseException) -> str:
    """Return the first line of the database's own message; for a missing right, with the kind of statement."""
    if not isinstance(error, DBAPIError):
        return str(error).partition("\n")[0]
    line = str(error.orig).strip().partition("\n")[0]
    if fault_of(error) is Fault.FORBIDDEN and error.statement:
        return f"{line}, for {_right(error.statement)}"
    return line


def _right(statement: str) -> str:
    """Return the right that a statement needs first."""
    words = statement.upper().split()
    verb = words[0]
    if verb == "WITH":  # its first part may write
        verb = next((word.lstrip("(") for word in words if word.lstrip("(") in _VERBS), verb)
    return "UPDATE" if verb == "SELECT" and "FOR" in words else verb
