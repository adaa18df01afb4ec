"""Artifacts: small files of a run for display, each complete on the disk before it is reported."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wcl_core import files
from wcl_core.protocol import ARTIFACTS_FOLDER, MEDIA_TYPES
from wcl_core.reporter import Reporter


def keep(reporter: Reporter, output_dir: Path, name: str, content: bytes) -> None:
    """Write an artifact durably and report it; a later artifact of the same name replaces it.

    The name of the file holds the digest, so the earlier file stays complete until the worker has fetched it.  An error
    of the disk becomes a warning, since a run does not end for a missing picture.

    Args:
        reporter: gets the record.
        output_dir: the run's folder; the file goes to its folder `artifacts`.
        name: matches `protocol.ARTIFACT_NAME`; its suffix gives the media type.
        content: the whole file.
    """
    digest = hashlib.sha256(content).hexdigest()
    file = f"{ARTIFACTS_FOLDER}/{digest[:16]}-{name}"
    try:
        files.write_bytes(output_dir / file, content)
    except OSError as error:
        reporter.warning("artifact_not_kept", f"{name} was not written: {error.strerror or error}")
        return
    media_type = MEDIA_TYPES[Path(name).suffix]
    reporter.artifact(name=name, file=file, sha256=digest, size=len(content), media_type=media_type)
