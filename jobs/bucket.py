"""A bucket of an S3-compatible service as the storage of registered files (`WCL_STORAGE_URL`).

    s3://BUCKET/PREFIX/storage-id              the id, as in a folder
    s3://BUCKET/PREFIX/JOB/ATTEMPT/NAME        a file; its metadata `sha256` has the digest of its bytes

A file is uploaded in parts whose digests the bucket compares.  Another process can continue an interrupted upload,
since the bucket knows the parts that it has.  Until its end an upload is no object, and garbage collection aborts it.

The library is loaded at the first request: it costs a third of a second of CPU.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar, cast

from jobs.checked_files import BadFile, Damaged, Missing, compare_size
from jobs.storage import (
    KEEPING,
    MARKER,
    OWNER,
    ForeignStorage,
    KeptFiles,
    OutsideStorage,
    StorageUnavailable,
    digest_of_open,
)

log = logging.getLogger(__name__)

_PART_BYTES = 8 << 20  # of an upload and of a download; a smaller file is one request
_MOST_PARTS = 9_000  # S3 takes 10,000
_AT_ONCE = 4  # parts of one file
_TRIES = 3
_PROBE = "storage-probe-"  # begins the names of the objects that try the permissions
CHECKED_SECONDS = 60.0  # a bucket with the right id stays it: no mount can bring another one to its place
_KEPT_SECONDS = 600.0  # a lock of a backup that was not renewed for so long is of one that died
_LINK_SECONDS = 900
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_TAKEN = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_REFUSED = frozenset(
    {
        "403",
        "401",
        "AccessDenied",
        "AuthFailure",
        "ExpiredToken",
        "Forbidden",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)

T = TypeVar("T")
R = TypeVar("R")


class _Stored(NamedTuple):
    """An object of the bucket; `sha256` is None for one that another tool has written."""

    size: int
    etag: str
    sha256: str | None


class BucketStorage:
    """A storage in a bucket.

    Args:
        url: `s3://BUCKET` or `s3://BUCKET/PREFIX`.
        endpoint: address of the service; None for AWS, or the one of the environment.
        clock: monotonic seconds.
    """

    kind, setting = "the bucket", "WCL_STORAGE_URL"
    is_folder = False

    def __init__(self, url: str, endpoint: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.url, self._endpoint, self._clock = url.rstrip("/"), endpoint, clock
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.id: str | None = None
        self._lock = threading.Lock()
        self._client: Any = None
        self._checked: tuple[str, float] | None = None  # the id, and when it was compared
        self._owner: tuple[str | None, float] | None = None
        self._has_permissions = False

    @property
    def where(self) -> str:
        return f"the bucket {self.url}"

    # --- which storage it is -------------------------------------------------------------------------------------

    def marker(self) -> str | None:
        return self._text(MARKER)

    def mark(self, storage_id: str) -> None:
        if self.marker() == storage_id:
            return
        try:
            self._put_text(MARKER, storage_id, IfNoneMatch="*")
        except FileExistsError as error:
            raise ForeignStorage(f"{self.where} is another service's storage; name another prefix") from error

    def unmark(self) -> None:
        self._checked = None
        self._request("delete_object", Key=self._key(MARKER))

    def check(self) -> None:
        """Compare the id, from time to time; try all permissions, once."""
        if self.id is None:
            return
        now = self._clock()
        if self._checked is None or self._checked[0] != self.id or now - self._checked[1] > CHECKED_SECONDS:
            self._checked = None
            if (marker := self.marker()) is None:
                raise ForeignStorage(f"{self.where} has no object {MARKER}, so it is not the storage; check its prefix")
            if marker != self.id:
                expected = self.id or "the one of the database"
                raise ForeignStorage(
                    f"{self.where} is another storage: its id is {marker}, expected {expected}; check {self.setting}"
                )
            self._checked = (self.id, now)
        if not self._has_permissions:
            self._try_permissions()
            self._has_permissions = True

    def _check_again(self) -> None:
        """Compare the id now: of a bucket that is gone, every object is absent."""
        self._checked = None
        self.check()

    def _try_permissions(self) -> None:
        """Do once all that jobs and garbage collection will do.

        Raises:
            StorageUnavailable: something is refused.
        """
        name, content = f"{_PROBE}{token_hex(8)}", b"written to try the permissions"
        key = self._key(name)
        missing = []
        for permission, act in (
            ("s3:PutObject", lambda: self._request("put_object", Key=key, Body=content)),
            ("s3:GetObject", lambda: self._request("get_object", Key=key)["Body"].read()),
            ("s3:ListBucket", lambda: next(self._names(_PROBE), None)),
            ("s3:ListBucketMultipartUploads", lambda: next(self._uploads(name), None)),
            ("s3:AbortMultipartUpload", lambda: self._try_upload(name)),
            ("s3:DeleteObject", lambda: self._request("delete_object", Key=key)),
        ):
            try:
                act()
            except _Refused as error:
                missing.append(f"{permission} ({error.code})")
        if missing:
            raise StorageUnavailable(
                f"{self.where} refuses these credentials {', '.join(missing)}; grant the permissions for its prefix"
            )

    def _try_upload(self, name: str) -> None:
        upload = self._request("create_multipart_upload", Key=self._key(name))["UploadId"]
        self._request("list_parts", Key=self._key(name), UploadId=upload)
        self._request("abort_multipart_upload", Key=self._key(name), UploadId=upload)

    def free_bytes(self) -> int | None:
        return None

    def owner(self) -> str | None:
        if self._owner is None or self._clock() - self._owner[1] > CHECKED_SECONDS:
            self._owner = (self._text(OWNER), self._clock())
        return self._owner[0]

    def set_owner(self, place: str) -> None:
        self._owner = None
        self._put_text(OWNER, place)

    # --- files -----------------------------------------------------------------------------------------------------

    def put(self, source: Path, key: str) -> None:
        self.check()
        try:
            file = source.open("rb")
        except FileNotFoundError:
            if self._stored(key) is None:
                raise
            return  # a call that was interrupted has moved it
        with file:
            self._upload(file, key)
        source.unlink()

    def bring(self, opens: Callable[[], BinaryIO], key: str, sha256: str, size: int) -> bool:
        """As in a folder; of a file that the bucket has, its size and its noted digest are compared."""
        self.check()
        try:
            if self._registered(key, sha256, size).sha256 is not None:
                return False
            flaw: BadFile = Damaged("its file is damaged: the bucket has noted no digest")
        except BadFile as error:
            flaw = error
        try:
            with opens() as source:
                compare_size(source.seek(0, os.SEEK_END), size)
                source.seek(0)
                self._upload(source, key, sha256)
        except (BadFile, FileNotFoundError):
            raise flaw from None
        return True

    def write(self, source: BinaryIO, key: str) -> None:
        self.check()
        self._upload(source, key)

    def require(self, key: str) -> None:
        self.check()
        if self._stored(key) is None:
            self._check_again()
            raise FileNotFoundError(f"the file of {key} is missing from the bucket")

    def confirm(self, key: str, sha256: str, size: int) -> None:
        """Compare what the bucket has computed and stored; the bytes are not read back."""
        self._registered(key, sha256, size)

    def verify(self, key: str, sha256: str, size: int, digest_of: Callable[[BinaryIO], str] | None = None) -> None:
        with self.read(key) as file:
            compare_size(file.seek(0, os.SEEK_END), size)
            file.seek(0)
            if (digest_of or digest_of_open)(file) != sha256:
                raise Damaged("its file is damaged: the digest differs")

    def read(self, key: str) -> BinaryIO:
        """Open a file as it is.

        Raises:
            Missing: it is absent.
        """
        self.check()
        if (stored := self._stored(key)) is None:
            self._check_again()
            raise Missing("its file is missing from the bucket")
        return self._opened(key, stored, None)

    def fetch(self, key: str, sha256: str, size: int, folder: Path) -> Path:
        self.check()
        stored = self._registered(key, sha256, size)
        target = folder / f"stored-{sha256}"
        partial = target.with_suffix(".part")
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for chunk in self._chunks(key, stored.etag, 0, size, _AT_ONCE):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            partial.unlink()
            raise Damaged("its file is damaged: the digest differs")
        partial.replace(target)  # a run reads it once: it may vanish with the machine
        return target

    def open(self, key: str, sha256: str, size: int) -> BinaryIO:
        """Open a file whose size and noted digest are the registered ones.

        Reading a larger one raises Damaged at its end unless the bytes have the digest; a small one is read here.
        """
        self.check()
        stored = self._registered(key, sha256, size)
        if size > _PART_BYTES:
            return self._opened(key, stored, sha256)
        content = b"".join(self._chunks(key, stored.etag, 0, size, 1))
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Damaged("its file is damaged: the digest differs")
        return io.BytesIO(content)

    def link(self, key: str, file_name: str) -> str | None:
        """Return an address from which a client gets the file without a key for a quarter of an hour."""
        disposition = f'attachment; filename="{file_name}"'
        params = {
            "Bucket": self._bucket,
            "Key": self._key(key),
            "ResponseContentDisposition": disposition,
            "ResponseContentType": "application/octet-stream",
        }
        with self._translated():
            return str(self._connected().generate_presigned_url("get_object", Params=params, ExpiresIn=_LINK_SECONDS))

    def delete(self, key: str) -> None:
        self.check()
        with suppress(KeptFiles):
            self._remove([key])

    def delete_job(self, job_id: str) -> None:
        self.check()
        if not job_id or "/" in job_id:
            raise OutsideStorage(f"the key {job_id} is not the name of a job's folder")
        self._remove(list(self._all_keys(f"{job_id}/")))

    def keys(self, job_id: str) -> Iterator[str]:
        self.check()
        return (key for key in self._all_keys(f"{job_id}/") if key.count("/") == 2)

    def job_ids(self) -> Iterator[str]:
        self.check()
        seen: set[str] = set()
        for key in self._all_keys("", Delimiter="/"):
            job_id, slash, _ = key.partition("/")
            if slash and job_id not in seen:
                seen.add(job_id)
                yield job_id

    @contextmanager
    def keeps_files(self) -> Iterator[None]:
        """Keep all files: no process removes one meanwhile, or until ten minutes after this process has died."""
        self.check()
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(_KEPT_SECONDS / 5):
                with suppress(OSError):
                    self._put_text(KEEPING, "a backup needs the files")

        self._put_text(KEEPING, "a backup needs the files")
        threading.Thread(target=renew, daemon=True, name="bucket-lock").start()
        try:
            yield
        finally:
            stop.set()
            self._request("delete_object", Key=self._key(KEEPING))

    def _remove(self, keys: list[str]) -> None:
        """Remove objects, and abort uploads.

        Raises:
            KeptFiles: a backup needs them.
        """
        with suppress(FileNotFoundError):
            lock = self._request("head_object", Key=self._key(KEEPING))
            now = parsedate_to_datetime(lock["ResponseMetadata"]["HTTPHeaders"]["date"])  # the bucket's own clock
            if (now - lock["LastModified"]).total_seconds() < _KEPT_SECONDS:
                raise KeptFiles("a backup is under way, so no file is removed")
        for key in keys:
            for upload in self._uploads(key):
                with suppress(FileNotFoundError):
                    self._request("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
            self._request("delete_object", Key=self._key(key))

    # --- reading ---------------------------------------------------------------------------------------------------

    def _stored(self, key: str) -> _Stored | None:
        try:
            head = self._request("head_object", Key=self._key(key), ChecksumMode="ENABLED")
        except FileNotFoundError:
            return None
        noted = head.get("Metadata", {}).get("sha256")
        whole = head.get("ChecksumSHA256", "-")
        if "-" not in whole + head["ETag"]:  # of the whole object; those of an upload in parts name their number
            noted = base64.b64decode(whole).hex()
        return _Stored(head["ContentLength"], head["ETag"], noted)

    def _registered(self, key: str, sha256: str, size: int) -> _Stored:
        """Return the object of a key after comparing what the bucket knows of it.

        Raises:
            BadFile: it is absent, or other bytes were uploaded.
        """
        if (stored := self._stored(key)) is None:
            self._check_again()
            raise Missing("its file is missing from the bucket")
        compare_size(stored.size, size)
        if stored.sha256 not in (None, sha256):
            raise Damaged("its file is damaged: other bytes were uploaded")
        return stored

    def _opened(self, key: str, stored: _Stored, sha256: str | None) -> BinaryIO:
        def read(start: int) -> Iterator[bytes]:
            return self._chunks(key, stored.etag, start, stored.size, 2)

        return cast(BinaryIO, RemoteFile(read, stored.size, sha256))

    def _chunks(self, key: str, etag: str, start: int, end: int, at_once: int) -> Iterator[bytes]:
        """Return the bytes of one version of an object in order, while the next parts are on their way."""

        def read(first: int) -> bytes:
            last = min(first + _PART_BYTES, end) - 1
            for attempt in range(_TRIES):
                try:
                    part = self._request("get_object", Key=self._key(key), Range=f"bytes={first}-{last}", IfMatch=etag)
                    with self._translated():
                        content = bytes(part["Body"].read())
                    if len(content) == last - first + 1:
                        return content
                except _Refused:
                    raise
                except FileExistsError as error:
                    raise StorageUnavailable("an object of the bucket was replaced while it was read") from error
                except StorageUnavailable:
                    if attempt == _TRIES - 1:
                        raise
            raise StorageUnavailable("the bucket sends fewer bytes than it names")

        return ahead(read, range(start, end, _PART_BYTES), at_once)

    # --- uploads ---------------------------------------------------------------------------------------------------

    def _upload(self, file: BinaryIO, key: str, expected: str | None = None) -> None:
        """Store the bytes of an open file, from where it stands, unless the key has them; continue an upload of them.

        Raises:
            Damaged: they do not have the expected digest.
        """
        start = file.tell()
        if (sha256 := digest_of_open(file)) != (expected or sha256):
            raise Damaged("its file is damaged: the digest differs")
        size = file.seek(0, os.SEEK_END) - start
        for _ in range(_TRIES):
            stored = self._stored(key)
            if stored is not None and (stored.size, stored.sha256) == (size, sha256):
                return
            with suppress(FileNotFoundError):  # somebody has aborted the upload, as a rule of the bucket does
                if size <= _PART_BYTES:
                    file.seek(start)
                    self._request(
                        "put_object",
                        Key=self._key(key),
                        Body=file.read(),
                        ChecksumSHA256=_base64_of(bytes.fromhex(sha256)),
                        Metadata={"sha256": sha256},
                    )
                else:
                    self._upload_parts(file, key, start, size, sha256)
        stored = self._stored(key)
        if stored is None or (stored.size, stored.sha256) != (size, sha256):
            raise StorageUnavailable("the bucket does not have the bytes that were sent")

    def _upload_parts(self, file: BinaryIO, key: str, start: int, size: int, sha256: str) -> None:
        part_bytes = _part_bytes(size)
        upload, present = self._open_upload(key, sha256)
        reading = threading.Lock()

        def send(number: int) -> dict[str, Any]:
            offset = (number - 1) * part_bytes
            with reading:
                file.seek(start + offset)
                content = file.read(min(part_bytes, size - offset))
            checksum = _base64_of(hashlib.sha256(content).digest())
            part = {"PartNumber": number, "ChecksumSHA256": checksum}
            if (known := present.get(number)) is not None and _is_part(known, content, checksum):
                return part | {"ETag": known["ETag"]}
            target = {"Key": self._key(key), "UploadId": upload, **part}
            return part | {"ETag": self._request("upload_part", Body=content, **target)["ETag"]}

        parts = list(ahead(send, range(1, -(-size // part_bytes) + 1), _AT_ONCE))
        target = {"Key": self._key(key), "UploadId": upload}
        self._request("complete_multipart_upload", MultipartUpload={"Parts": parts}, **target)

    def _open_upload(self, key: str, sha256: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """Return an upload of a key, and the parts that it has by number: the newest one, or a new one.

        An upload that began with other bytes ends with their digest in its metadata; then the next one is new.
        """
        begun = [upload for upload in self._uploads(key) if upload["Key"] == self._key(key)]
        for upload in sorted(begun, key=lambda upload: upload["Initiated"], reverse=True)[:1]:
            with suppress(FileNotFoundError):
                target = {"Key": self._key(key), "UploadId": upload["UploadId"]}
                parts = self._pages("list_parts", "Parts", **target)
                return upload["UploadId"], {part["PartNumber"]: part for part in parts}
        created = self._request(
            "create_multipart_upload", Key=self._key(key), ChecksumAlgorithm="SHA256", Metadata={"sha256": sha256}
        )
        return created["UploadId"], {}

    def _uploads(self, name: str) -> Iterator[dict[str, Any]]:
        """Return the unfinished uploads whose keys begin with a name."""
        return self._pages("list_multipart_uploads", "Uploads", Prefix=self._key(name))

    # --- requests --------------------------------------------------------------------------------------------------

    def _all_keys(self, start: str, **options: str) -> Iterator[str]:
        """Return the keys of objects and of unfinished uploads that begin with a text; with a delimiter, of folders."""
        seen: set[str] = set()
        for key in (*self._names(start, **options), *(each["Key"] for each in self._uploads(start))):
            if (own := key.removeprefix(self._prefix)) not in seen:
                seen.add(own)
                yield own

    def _names(self, start: str, **options: str) -> Iterator[str]:
        field, name = ("CommonPrefixes", "Prefix") if options else ("Contents", "Key")
        pages = self._pages("list_objects_v2", field, Prefix=self._key(start), **options)
        return (str(row[name]) for row in pages)

    def _pages(self, operation: str, field: str, **options: Any) -> Iterator[dict[str, Any]]:
        with self._translated():
            for page in self._connected().get_paginator(operation).paginate(Bucket=self._bucket, **options):
                yield from page.get(field, [])

    def _text(self, name: str) -> str | None:
        try:
            body = self._request("get_object", Key=self._key(name))["Body"]
        except FileNotFoundError:
            return None
        with self._translated():
            return str(body.read(4_096).decode("utf-8", "replace").strip())

    def _put_text(self, name: str, text: str, **options: str) -> None:
        self._request("put_object", Key=self._key(name), Body=f"{text}\n".encode(), **options)

    def _key(self, key: str) -> str:
        """Return the name of an object.

        Raises:
            OutsideStorage: the key leads outside the prefix.
        """
        if ".." in key.split("/") or key.startswith("/"):
            raise OutsideStorage(f"the key {key} leads outside the bucket's prefix")
        return self._prefix + key

    def _request(self, operation: str, **options: Any) -> Any:
        with self._translated():
            return getattr(self._connected(), operation)(Bucket=self._bucket, **options)

    def _connected(self) -> Any:
        """Return the client; the library takes the credentials of the environment, of a file or of the machine."""
        with self._lock:
            if self._client is None:
                from botocore.config import Config
                from botocore.session import Session

                session = Session()
                config = Config(
                    signature_version="s3v4",
                    connect_timeout=5,
                    read_timeout=60,
                    max_pool_connections=32,
                    retries={"mode": "standard", "total_max_attempts": _TRIES},
                    s3={"addressing_style": "path" if self._endpoint else "auto"},
                    # Services other than AWS refuse checksums that they do not know; uploads name sha256 themselves.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                region = session.get_config_variable("region") or "us-east-1"
                self._client = session.create_client("s3", region, endpoint_url=self._endpoint, config=config)
            return self._client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the library's errors into those of a storage; their texts may name a key or an account."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._meaning(error.response.get("Error", {}).get("Code", "an error")) from error
        except BotoCoreError as error:
            kind = type(error).__name__
            is_login = "Credential" in kind or "Profile" in kind
            self._forget(with_credentials=is_login)
            if is_login:
                raise StorageUnavailable(
                    f"{self.kind} needs credentials ({kind}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ) from error
            raise StorageUnavailable(f"{self.kind} does not respond ({kind})") from error

    def _meaning(self, code: str) -> OSError:
        if code in _ABSENT:
            return FileNotFoundError(errno.ENOENT, "there is no such object in the bucket")
        if code in _TAKEN:
            return FileExistsError(errno.EEXIST, "the bucket has another object of this name")
        if code in _FULL:
            return OSError(errno.EDQUOT, f"the bucket is full ({code})")
        self._forget(with_credentials=code in _REFUSED)
        if code in _REFUSED:
            return _Refused(code)
        if code == "NoSuchBucket":
            return StorageUnavailable(f"{self.where} does not exist; make it, or correct its name")
        return StorageUnavailable(f"{self.kind} does not respond as expected ({code})")

    def _forget(self, *, with_credentials: bool = False) -> None:
        """Let the next operation compare the id again, and read the credentials again if they were refused."""
        self._checked = None
        if with_credentials:
            with self._lock:
                self._client = None


class _Refused(StorageUnavailable):
    """The bucket refuses the credentials, or what they ask for."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the bucket refuses the credentials ({code}); check them and their permissions")
        self.code = code


class RemoteFile(io.RawIOBase):
    """A file of a bucket, open for reading; it reads from where it stands.

    Args:
        read: returns the bytes from an offset on.
        size: of the file.
        sha256: compared at its end with the bytes, if all were read in order; None compares nothing.
    """

    def __init__(self, read: Callable[[int], Iterator[bytes]], size: int, sha256: str | None) -> None:
        super().__init__()
        self._read, self.size, self._sha256 = read, size, sha256
        self._place = 0
        self._chunks: Iterator[bytes] | None = None
        self._left = memoryview(b"")
        self._digest = hashlib.sha256()
        self._hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if place != self._place:
            self._place, self._chunks, self._left = place, None, memoryview(b"")
        return place

    def readinto(self, buffer: Any) -> int:
        if self._place >= self.size or not len(buffer):
            return 0
        if not self._left:
            self._chunks = self._chunks or self._read(self._place)
            self._left = memoryview(self._checked(next(self._chunks)))
        count = min(len(buffer), len(self._left))
        memoryview(buffer)[:count] = self._left[:count]
        self._left = self._left[count:]
        self._place += count
        return count

    def _checked(self, chunk: bytes) -> bytes:
        """Return a chunk; the last one only if the digest of all is right."""
        if self._sha256 is not None and self._place == self._hashed:
            self._digest.update(chunk)
            self._hashed += len(chunk)
            if self._hashed == self.size and self._digest.hexdigest() != self._sha256:
                raise Damaged("its file is damaged: the digest differs")
        return chunk


class _Work(Generic[R]):
    """A call on a thread that does not hold up the end of the process."""

    def __init__(self, work: Callable[[], R]) -> None:
        self._work = work
        self._result: list[R] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="bucket")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # `result` raises it
            self._error = error

    def result(self) -> R:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]


def ahead(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """Return the results in order; the next ones are computed on threads meanwhile."""
    left = iter(items)
    if at_once == 1:
        yield from map(work, left)
        return

    def begin(item: T) -> _Work[R]:
        return _Work(lambda: work(item))

    running = deque(begin(item) for item in islice(left, at_once))
    while running:
        result = running.popleft().result()
        running.extend(begin(item) for item in islice(left, 1))
        yield result


def _part_bytes(size: int) -> int:
    """Return the bytes of a part: whole MiB, and few enough parts."""
    return max(_PART_BYTES, -(-size // _MOST_PARTS) + (1 << 20) - 1 >> 20 << 20)


def _is_part(known: dict[str, Any], content: bytes, checksum: str) -> bool:
    """Return whether the bucket has these bytes as a part."""
    if known["Size"] != len(content):
        return False
    if (its := known.get("ChecksumSHA256")) is not None:
        return bool(its == checksum)
    return bool(known["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest())


def _base64_of(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")
