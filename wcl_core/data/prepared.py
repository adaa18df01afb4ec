"""A folder that is decoded once: its images are mapped from the cache, which is filled when they are not there yet.

The data are those of a folder decoded into memory: pixels, order, digests, paths and warnings.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from wcl_core.data.cache import Cache, NoRoomError
from wcl_core.data.folder import Corrupt, Reading, report_preparation, warn_of_scaled
from wcl_core.data.images import DataError, ImageData, content_changed, fits_memory
from wcl_core.data.layout import Files, list_files
from wcl_core.data.packed import load_cached
from wcl_core.data.packing import packed_bytes, write_packed
from wcl_core.files import write_whole
from wcl_core.reporter import Reporter
from wcl_core.stop import check

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ENOLCK, errno.EOPNOTSUPP})  # or none that has locks
_REPORT_SECONDS = 1.0


def load_prepared(
    name: str,
    root: Path,
    image_size: int,
    max_corrupt_share: float,
    reporter: Reporter,
    cache: Cache,
    digest: str,
    *,
    has_labels: bool = True,
) -> ImageData | None:
    """Map a folder from the cache; one process decodes it, others wait.

    Args:
        digest: of the folder's content.
        has_labels: whether the folder or list may name classes.

    Returns:
        The data; None if the cache has no room.

    Raises:
        DataError: as `wcl_core.data.load`, or the folder has another content.
        OSError: the disk is full, and the images do not fit into memory.
    """
    return _Preparation(name, root, image_size, max_corrupt_share, reporter, cache, digest, has_labels).data()


class _Preparation:
    def __init__(
        self,
        name: str,
        root: Path,
        size: int,
        max_corrupt_share: float,
        reporter: Reporter,
        cache: Cache,
        digest: str,
        has_labels: bool = True,
    ) -> None:
        self._name, self._root, self._size, self._max_corrupt_share = name, root, size, max_corrupt_share
        self._reporter, self._cache, self._digest = reporter, cache, digest
        self._path, self._has_labels = cache.path(digest, size), has_labels

    def data(self) -> ImageData | None:
        try:
            if (data := self._mapped()) is None:
                with self._cache.writing(self._path, _waiting(self._reporter)):
                    data = self._mapped() or self._written()
        except NoRoomError as error:
            self._warn(str(error))
            return None
        except OSError as error:
            if error.errno not in _NO_ROOM | _NO_FOLDER:
                raise
            self._warn(os.strerror(error.errno))
            if error.errno == errno.ENOSPC and not fits_memory(self._listed().count * 3 * self._size**2):
                raise
            return None
        return data

    def _mapped(self) -> ImageData | None:
        """Map the file; a damaged one is removed."""
        if (file := self._cache.opened(self._path)) is None:
            return None
        status, mark = os.fstat(file.fileno()), self._cache.mark(self._path.stem)
        is_checked = mark.holds(status)
        try:
            data, fields = load_cached(self._name, self._path, file, is_checked=is_checked)
        except DataError:
            self._path.unlink(missing_ok=True)
            file.close()
            message = f"the decoded images of {self._name} are damaged; the folder is decoded again"
            self._reporter.warning("cache_damaged", message)
            return None
        if not is_checked:
            mark.set(status)
        facts = fields["corrupt"]
        Corrupt(self._name, facts["total"], self._max_corrupt_share, self._reporter, facts).check()
        warn_of_scaled(fields["num_scaled"], self._reporter)
        return data

    def _written(self) -> ImageData:
        """Decode the folder into the file, and map it."""
        files = self._listed()
        self._cache.make_room(packed_bytes(files, self._size))
        reading = Reading(self._name, files)
        corrupt = Corrupt(self._name, files.count, self._max_corrupt_share, self._reporter)
        write_whole(self._path, lambda file: self._write(file, files, corrupt, reading))
        reading.warn(self._reporter)
        opened = self._cache.opened(self._path)
        assert opened is not None, "the right to write it is held, so no other process removes it"
        data = load_cached(self._name, self._path, opened, is_checked=True)[0]
        self._cache.mark(self._path.stem).set(os.fstat(opened.fileno()))
        return data

    def _write(self, file: BinaryIO, files: Files, corrupt: Corrupt, reading: Reading) -> None:
        write_packed(file, files, self._size, corrupt, reading, self._reporter, is_cached=True)
        if reading.digest != self._digest:
            raise content_changed(self._name)

    def _listed(self) -> Files:
        return list_files(self._name, self._root, has_labels=self._has_labels)

    def _warn(self, reason: str) -> None:
        message = f"the images of {self._name} are decoded into memory, since the cache cannot hold them: {reason}"
        self._reporter.warning("cache_full", message)


def _waiting(reporter: Reporter) -> Callable[[], None]:
    """Return what to do again and again while another process prepares the dataset."""
    reported_at = -_REPORT_SECONDS

    def wait() -> None:
        nonlocal reported_at
        check()
        if (now := time.monotonic()) - reported_at >= _REPORT_SECONDS:
            reported_at = now
            report_preparation(reporter)

    return wait
