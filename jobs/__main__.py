"""Commands for operators that work on the database directly.

python -m jobs migrate | create-key NAME | audit | adopt-storage
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import keys, storage_id
from jobs.audit import audit
from jobs.database import Database
from jobs.errors import JobsError
from jobs.settings import InvalidSettings, read_settings
from jobs.storage import LocalStorage, StorageUnavailable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 on success, or 1 with a line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        database = Database(settings.resolved_database_url)
        if options.command != "adopt-storage":
            storage_id.refuse_new_database(settings)
        database.migrate()
        if options.command == "create-key":
            scopes = options.scopes.split(",")
            secret = database.write(lambda session: keys.create(session, options.name, scopes)[1])
            print(secret)
        if options.command == "audit":
            return _audit(database)
        if options.command == "adopt-storage":
            print(storage_id.adopt(database, LocalStorage(settings.checkpoints_dir)))
    except (JobsError, InvalidSettings, StorageUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _audit(database: Database) -> int:
    """Print the findings of the audit; return 1 if there are any."""
    report = audit(database)
    for finding in report.findings:
        print(f"{finding.job_id} {finding.rule}: {finding.message}")
    counts = f"{report.jobs} jobs, {report.attempts} attempts, {report.events} events"
    print(f"{counts}: {len(report.findings)} findings", file=sys.stderr)
    return 1 if report.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="upgrade the database to the newest version")
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
        "backup; restart the service afterwards",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
