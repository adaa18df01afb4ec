"""Commands for operators that work on the database directly.

python -m jobs migrate | create-key NAME | audit | check | adopt-storage
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sqlalchemy.exc import DBAPIError

from jobs import keys, schema, storage_id
from jobs.audit import audit
from jobs.database import Database, is_outage
from jobs.errors import JobsError
from jobs.faults import describe
from jobs.settings import InvalidSettings, read_settings
from jobs.storage import LocalStorage, StorageUnavailable
from wcl_core.files import PRIVATE_UMASK
from wcl_core.text import Arguments, write_error, write_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 on success, or 1 with a line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        database = Database(settings.resolved_database_url)
        if options.command != "adopt-storage":
            storage_id.refuse_new_database(settings)
        if options.command == "check":
            return _check(database)
        database.migrate()
        if options.command == "create-key":
            scopes = options.scopes.split(",")
            secret = database.write(lambda session: keys.create(session, options.name, scopes)[1])
            write_line(secret)
        if options.command == "audit":
            return _audit(database, LocalStorage(settings.checkpoints_dir))
        if options.command == "adopt-storage":
            write_line(storage_id.adopt(database, LocalStorage(settings.checkpoints_dir)))
    except (JobsError, InvalidSettings, StorageUnavailable) as error:
        write_error(str(error))
        return 1
    except DBAPIError as error:
        if not is_outage(error):
            raise
        write_error(describe(error))
        return 1
    return 0


def _check(database: Database) -> int:
    """Print whether the database is whole and of this version; return 1 if it is of an older one."""
    schema.check(database)
    problem = schema.problem(database)
    write_line(problem or "ok")
    return 0 if problem is None else 1


def _audit(database: Database, storage: LocalStorage) -> int:
    """Print the findings of the audit; return 1 if there are any."""
    report = audit(database, storage)
    for finding in report.findings:
        write_line(f"{finding.job_id} {finding.rule}: {finding.message}")
    counts = f"{report.jobs} jobs, {report.attempts} attempts, {report.events} events, {report.deletions} deletions"
    write_line(f"{counts}: {len(report.findings)} findings", sys.stderr)
    return 1 if report.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="python -m jobs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="upgrade the database to the newest version")
    commands.add_parser("check", help="check that the database is whole and of this version")
    key = commands.add_parser("create-key", help="create a key and print it once")
    key.add_argument("name")
    key.add_argument(
        "--scopes", default="read,submit,admin", help=f"a comma-separated list of {', '.join(keys.SCOPES)}"
    )
    commands.add_parser(
        "audit", help="replay the events of all jobs and compare them with the rows; exits with 1 on a finding"
    )
    commands.add_parser(
        "adopt-storage",
        help="declare that the folder `checkpoints` in WCL_DATA_DIR holds this database's files, as after a restored "
        "backup",
    )
    return parser


if __name__ == "__main__":
    os.umask(PRIVATE_UMASK)
    sys.exit(main())
