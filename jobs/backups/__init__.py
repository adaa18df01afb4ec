"""Backups: the dump of a database and the files that it names, and their restore.

    backup_folder   what lies where, the manifest, and what of it is whole
    dumps           a SQLite file or an archive of pg_dump
    making          database first, then files; meanwhile the storage removes none
    restoring       a copy with an identity of its own, or the service in the place of the original

Import from this package, not from its modules.
"""

from jobs.backups.backup_folder import BackupError, BackupFolder, Manifest
from jobs.backups.dumps import copy_sqlite
from jobs.backups.making import make_backup
from jobs.backups.restoring import restore, restore_files

__all__ = [
    "BackupError",
    "BackupFolder",
    "Manifest",
    "copy_sqlite",
    "make_backup",
    "restore",
    "restore_files",
]
