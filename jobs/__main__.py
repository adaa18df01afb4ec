"""Commands for operators that work on the database directly.

python -m jobs migrate | create-key NAME | audit | check | adopt-storage | move-storage PLACE | settings | backup DIR |
               restore DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from jobs import activity, backups, keys, monitoring, moving, schema, search, storage_id, workers
from jobs.audit import audit
from jobs.database import Database, is_outage
from jobs.errors import JobsError
from jobs.faults import describe
from jobs.settings import InvalidSettings, Settings, read_settings
from jobs.settings_help import settings_in_use
from jobs.storage import Storage, StorageUnavailable, open_storage
from wcl_core.files import PRIVATE_UMASK
from wcl_core.text import Arguments, counted, file_size, write_error, write_line
from wcl_core.version import VERSION

_READERS = ("audit", "backup", "check", "move-storage")  # of a database that is there; the other commands may make one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 on success, or 1 with a line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        if options.command == "settings":
            return _print_settings(settings, options.json)
        if options.command == "restore":
            return _restore(settings, options)
        database = Database(settings.resolved_database_url)
        try:
            return _run(database, settings, options)
        finally:
            database.dispose()
    except InvalidSettings as error:
        for problem in error.problems:
            write_error(problem)
        return 1
    except (JobsError, StorageUnavailable) as error:
        write_error(str(error))
        return 1
    except DBAPIError as error:
        if not is_outage(error):
            raise
        write_error(describe(error))
        return 1
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        write_error(f"{error.filename or 'the machine'}: {error.strerror or error}")
        return 1


def _run(database: Database, settings: Settings, options: argparse.Namespace) -> int:
    """Run a command on the database; return 0 on success, or 1."""
    if options.command != "adopt-storage":
        storage_id.refuse_new_database(settings)
    if options.command in _READERS and (absence := schema.absence(settings)) is not None:
        raise schema.Unusable(absence)
    if options.command == "check":
        return _check(database, settings.worker_name if options.worker == "" else options.worker)
    if options.command == "backup":
        return _backup(database, open_storage(settings), options)
    if options.command == "move-storage":
        return _move(database, settings, options.place)
    if options.command == "audit":
        return _audit(database, open_storage(settings))
    if options.command == "migrate":
        database.migrate(write_line)
        search.build(database)
        if (problem := search.problem(database)) is not None:
            write_line(problem, sys.stderr)
        write_line(f"the schema is {schema.newest()}, of version {VERSION}")
        return 0
    database.migrate()
    if options.command == "create-key":
        scopes = options.scopes.split(",")
        key, secret = database.acting_for(activity.OPERATOR).write(
            lambda session: keys.create(session, options.name, scopes, options.expires, project=options.project)
        )
        write_line(secret)
        with database.read() as session:
            for notice in filter(None, (keys.namesakes(session, key), keys.notice(session))):
                write_line(notice, sys.stderr)
    if options.command == "adopt-storage":
        storage = open_storage(settings)
        write_line(storage_id.adopt(database, storage, without_files=options.without_files))
    return 0


def _print_settings(settings: Settings, as_json: bool) -> int:
    """Print every setting: its value with passwords as stars, where it comes from, and its meaning."""
    every = list(settings_in_use(settings))
    if as_json:
        for line in json.dumps([each._asdict() for each in every], indent=2).splitlines():
            write_line(line)
        return 0
    width = max(len(each.variable) for each in every)
    for each in every:
        value = each.value if each.is_set else each.default or each.value
        write_line(f"{each.variable:{width}}  {value or '-'}  ({'environment' if each.is_set else 'default'})")
        write_line(f"{'':{width}}  {each.meaning}")
    return 0


def _backup(database: Database, storage: Storage, options: argparse.Namespace) -> int:
    """Make a backup and print what it holds; return 1 if a file is damaged or missing that no row is marked for."""
    backup = backups.make_backup(database, storage, Path(options.folder), options.keep)
    manifest = backup.manifest
    size, copied = file_size(manifest.database.size), file_size(backup.copied_bytes)
    write_line(
        f"{Path(options.folder) / manifest.name}: {counted(manifest.counts['jobs'], 'job')}; database {size}; "
        f"{counted(len(manifest.files), 'file')}, {backup.num_copied:,} of them copied now ({copied})"
    )
    try:
        total = manifest.database.size + sum(manifest.files.values())
        monitoring.note_backup(database, str(Path(options.folder) / manifest.name), total)
    except DBAPIError as error:  # the backup is whole; a read-only database can be backed up, too
        write_line(f"the backup is not in the activity log: {describe(error)}", sys.stderr)
    if marked := len(manifest.flaws) - len(backup.new_flaws):
        write_line(f"not in it, as marked as damaged or missing: {counted(marked, 'file')}", sys.stderr)
    for flaw in backup.new_flaws:
        write_line(f"not in it: {flaw.storage_key}: {flaw.reason}", sys.stderr)
    return 1 if backup.new_flaws else 0


def _restore(settings: Settings, options: argparse.Namespace) -> int:
    """Check or restore a backup, and print what was done; return 1 if a file of a checked backup is bad."""
    folder = backups.BackupFolder(Path(options.folder))
    if options.files and (options.check or options.replace or options.backup):
        raise backups.BackupError("--files takes the files of all backups; leave out --check, --replace and --backup")
    manifest = folder.read(options.backup)
    if options.check:
        return _check_backup(folder, manifest)
    if options.files:
        restored = backups.restore_files(settings, folder)
    else:
        restored = backups.restore(settings, folder, manifest, replace=options.replace)
    if restored.aside is not None:
        write_line(f"the former database is kept as {restored.aside}")
    copied = file_size(restored.copied_bytes)
    write_line(f"{counted(restored.num_copied, 'file')} restored ({copied}), {restored.num_present:,} present before")
    for key in restored.missing:
        write_line(f"missing or damaged: {key}", sys.stderr)
    if not options.files:
        what = "it takes the place of the original" if options.replace else "it is a copy; its webhooks are disabled"
        write_line(f"{manifest.name} is restored into {settings.data_dir}: {what}")
    return 0


def _check_backup(folder: backups.BackupFolder, manifest: backups.Manifest) -> int:
    folder.dump_of(manifest)
    flaws = list(folder.flaws(manifest))
    for flaw in flaws:
        write_line(flaw, sys.stderr)
    counts = ", ".join(counted(number, name.removesuffix("s")) for name, number in manifest.counts.items())
    write_line(
        f"{manifest.name}: version {manifest.version}, schema {manifest.revision}, "
        f"{manifest.database.made_with}; {counts}; {counted(len(manifest.files), 'file')} read, "
        f"{len(flaws):,} of them damaged or missing"
    )
    if manifest.flaws:
        write_line(f"damaged or missing when it was made: {counted(len(manifest.flaws), 'file')}", sys.stderr)
    return 1 if flaws else 0


def _check(database: Database, worker_name: str | None) -> int:
    """Print whether the database is whole and of this version, and a worker takes jobs; return 1 if not."""
    schema.check(database)
    problem = schema.problem(database)
    if problem is None and worker_name is not None:
        with database.read() as session:
            problem = workers.problem(session, worker_name)
    write_line(problem or "ok")
    return 0 if problem is None else 1


def _move(database: Database, settings: Settings, place: str) -> int:
    """Move all registered files; return 1 if it has not ended, or a file is damaged or missing."""
    if (problem := schema.awaited(database)) is not None:
        raise schema.Unusable(problem)
    try:
        url = None if place == "folder" else Settings(storage_url=place).storage_url
    except ValidationError as error:
        raise JobsError(f"{place[:100]!r} is no place; expected s3://BUCKET/PREFIX, or folder") from error
    if url == settings.storage_url:
        raise JobsError("the files are there already, by these settings; name another place")
    moved = moving.move(
        database, open_storage(settings), open_storage(settings.model_copy(update={"storage_url": url}))
    )
    copied = file_size(moved.copied_bytes)
    write_line(f"{moved.num_copied:,} files copied ({copied}), {moved.num_present:,} were there")
    for key in moved.bad:
        write_line(f"missing or damaged: {key}", sys.stderr)
    if moved.workers:
        names = ", ".join(moved.workers)
        write_line(f"not moved yet: stop all servers and workers ({names}), and repeat the command", sys.stderr)
        return 1
    what = "leave out WCL_STORAGE_URL" if url is None else f"set WCL_STORAGE_URL={url}"
    write_line(
        f"moved: {what} for all servers and workers, and start them; the former files stay until you remove them"
    )
    return 1 if moved.bad else 0


def _audit(database: Database, storage: Storage) -> int:
    """Print the findings of the audit; return 1 if there are any."""
    if (problem := schema.awaited(database)) is not None:
        raise schema.Unusable(problem)
    report = audit(database, storage)
    for finding in report.findings:
        write_line(f"{finding.job_id} {finding.rule}: {finding.message}")
    numbers = (report.jobs, "job"), (report.attempts, "attempt"), (report.events, "event")
    counts = ", ".join(counted(*each) for each in (*numbers, (report.deletions, "deletion")))
    write_line(f"{counts}: {counted(len(report.findings), 'finding')}", sys.stderr)
    return 1 if report.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="python -m jobs", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="upgrade the database to the newest version")
    check = commands.add_parser("check", help="check that the database is whole and of this version")
    check.add_argument(
        "--worker",
        nargs="?",
        const="",
        metavar="NAME",
        help="check that this worker takes jobs, too; without a name, the worker of these settings",
    )
    key = commands.add_parser("create-key", help="create a key and print it once")
    key.add_argument("name")
    key.add_argument(
        "--scopes",
        default=",".join(keys.MEMBER),
        help=f"a comma-separated list of {', '.join(keys.SCOPES)}; default: {','.join(keys.MEMBER)}",
    )
    key.add_argument("--project", metavar="NAME", help="its project; by default all of them with admin, else `default`")
    key.add_argument("--expires", type=_days, metavar="TIME", help="when it expires, such as 90d; default: never")
    commands.add_parser(
        "audit", help="replay the events of all jobs and compare them with the rows; exits with 1 on a finding"
    )
    adopted = commands.add_parser(
        "adopt-storage",
        help="declare that the folder `checkpoints` in WCL_DATA_DIR holds this database's files, as after a restored "
        "backup",
    )
    adopted.add_argument("--without-files", action="store_true", help="also if it holds none of them: they are lost")
    moved = commands.add_parser("move-storage", help="move all registered files to another storage; can be repeated")
    moved.add_argument("place", metavar="PLACE", help="s3://BUCKET/PREFIX, or `folder`: the one in WCL_DATA_DIR")
    listed = commands.add_parser("settings", help="print every setting, its value, where it comes from and its meaning")
    listed.add_argument("--json", action="store_true", help="print JSON")
    backup = commands.add_parser("backup", help="write a backup of database and files while jobs run")
    backup.add_argument("folder", metavar="DIR", help="folder of backups; files of earlier ones are not copied again")
    backup.add_argument("--keep", type=_count, metavar="N", help="keep the newest N backups, and remove older ones")
    restored = commands.add_parser("restore", help="restore a backup as a copy, or in the original's place")
    restored.add_argument("folder", metavar="DIR", help="folder that `backup` has written")
    restored.add_argument("--backup", metavar="NAME", help="name of the backup; by default the newest complete one")
    restored.add_argument("--check", action="store_true", help="read and compare everything, and restore nothing")
    restored.add_argument(
        "--replace", action="store_true", help="the restored service takes the place of the original, which is gone"
    )
    restored.add_argument(
        "--files", action="store_true", help="restore only files that the present database names and its storage lacks"
    )
    return parser


def _days(text: str) -> int | None:
    """Return the days of a text such as `90d`; None for `never`."""
    if text == "never":
        return None
    if not text.endswith("d") or not text[:-1].isdecimal() or not 0 < int(text[:6].rstrip("d")) <= keys.MAX_DAYS:
        raise argparse.ArgumentTypeError(
            f"{text[:50]!r}; expected days such as 90d, at most {keys.MAX_DAYS}d, or never"
        )
    return int(text[:-1])


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text[:9]) < 1_000_000:
        raise argparse.ArgumentTypeError(f"{text[:50]!r}; expected a number from 1 to 999999")
    return int(text)


if __name__ == "__main__":
    os.umask(PRIVATE_UMASK)
    sys.exit(main())
