"""Small files that a run makes to be looked at; each lies whole on the disk before it is reported."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wcl_core import files
from wcl_core.reporter import MediaType, Reporter


def keep(reporter: Reporter, output_dir: Path, name: str, content: bytes, media_type: MediaType) -> None:
    """Write beside, fsync, rename, report; a name that is kept again replaces the one before.

    The file's own name has its digest, so that what is replaced stays whole until it has been fetched.  A disk that
    does not take it is a warning: no run ends for want of a picture.

    Args:
        reporter: told where the file is.
        output_dir: of the run; the file goes to its folder `artifacts`.
        name: lower-case letters, digits, - and _, ending in `.png` or `.json`; at most 64 characters.
        content: the whole file.
        media_type: of the content.
    """
    digest = hashlib.sha256(content).hexdigest()
    path = f"artifacts/{digest[:16]}-{name}"
    try:
        files.write_bytes(output_dir / path, content)
    except OSError as error:
        reporter.warning("artifact_not_kept", f"{name} was not written: {error.strerror or error}")
        return
    reporter.artifact(name=name, path=path, sha256=digest, size=len(content), media_type=media_type)
