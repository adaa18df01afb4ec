"""Small real file systems for the tests: full, read-only and growing disks."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ABORT, _DETACH = 1, 2  # MNT_FORCE, MNT_DETACH


class Disk:
    """A mounted file system in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave_bytes: int = 0) -> Path:
        """Write a file until the disk is full, but for so many bytes; return the file."""
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                file.truncate(max(0, file.tell() - leave_bytes))
        return filler

    def resize(self, size: str) -> None:
        """Give the disk another size, such as `64m`."""
        self._remount(f"size={size}")

    def make_read_only(self, is_read_only: bool = True) -> None:
        self._remount("ro" if is_read_only else "rw")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)


class CannotMount(Exception):  # noqa: N818 (named by the reason)
    """This user may not mount a file system; the message says why."""


def mount(folder: Path, size: str) -> Disk:
    """Mount a file system of this size on a folder.

    Raises:
        CannotMount: this user may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMount("NOT TESTED HERE: a small file system needs the program mount") from error
    if done.returncode:
        raise CannotMount(f"NOT TESTED HERE: a small file system needs the right to mount ({done.stderr.strip()})")
    return Disk(folder)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Disk]:
    """Mount a file system of this size on a folder; skip the test where this user may not mount one."""
    try:
        disk = mount(folder, size)
    except CannotMount as reason:
        pytest.skip(str(reason))
    try:
        yield disk
    finally:
        disk.unmount()


@contextmanager
def hung(folder: Path) -> Iterator[None]:
    """Let a folder not respond, as a mount whose server is gone; at the end, its own content is there again.

    A file system of FUSE is mounted on it, which answers no request but the first one.  Skip the test where this user
    may not mount one.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"NOT TESTED HERE: a mount that does not respond needs /dev/fuse ({error.strerror})")
    options, place = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode(), os.fsencode(folder)
    if libc.mount(b"hung", place, b"fuse", 0, options):
        os.close(device)
        reason = os.strerror(ctypes.get_errno())
        pytest.skip(f"NOT TESTED HERE: a mount that does not respond needs the right to mount ({reason})")
    try:
        _, _, request = struct.unpack_from("<IIQ", os.read(device, 1 << 17))
        version = struct.pack("<4I2H2I2H8I", 7, 26, 1 << 16, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)
        os.write(device, struct.pack("<IiQ", 16 + len(version), 0, request) + version)
        yield
    finally:
        libc.umount2(place, _ABORT)  # what waits for it gets an error
        libc.umount2(place, _DETACH)
        os.close(device)


class _Capabilities(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


@contextmanager
def under_modes() -> Iterator[None]:
    """Let this thread obey the modes of files, also as root; skip the test where that is impossible."""
    overrides = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    libc, header, sets = ctypes.CDLL(None), _Header(0x20080522, 0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), sets):
        pytest.skip("NOT TESTED HERE: the capabilities of a thread cannot be read")
    before = sets[0].effective
    sets[0].effective = before & ~overrides
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0
