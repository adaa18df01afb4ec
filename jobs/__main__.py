"""An operator's commands on the database itself: `python -m jobs migrate`, `python -m jobs create-key NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import keys
from jobs.database import Database
from jobs.errors import JobsError
from jobs.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 success, 1 failure with a line on stderr."""
    options = _parser().parse_args(arguments)
    database = Database(Settings().resolved_database_url)
    try:
        database.migrate()
        if options.command == "create-key":
            scopes = options.scopes.split(",")
            secret = database.write(lambda session: keys.create(session, options.name, scopes)[1])
            print(secret)
    except JobsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to the newest version")
    key = commands.add_parser("create-key", help="make a key and print it, once")
    key.add_argument("name")
    key.add_argument("--scopes", default="read,submit,admin", help=f"some of {','.join(keys.SCOPES)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
