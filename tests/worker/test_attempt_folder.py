"""The folder of an attempt: one supervisor holds it, and a copy of it is another folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.attempts import AttemptRef
from wcl_core.protocol import Place
from worker.attempt_folder import mark_of, owned, place_of

_HOLD = """
import sys
from pathlib import Path
from worker.attempt_folder import owned
with owned(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""


def test_one_supervisor_holds_a_folder(tmp_path: Path) -> None:
    with owned(tmp_path) as one, owned(tmp_path) as other:
        assert (one, other) == (True, False)
    with owned(tmp_path) as again:
        assert again


@pytest.mark.process
def test_a_folder_is_free_once_its_supervisor_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "True\n"
        with owned(tmp_path) as is_ours:
            assert not is_ours
        supervisor.kill()
    with owned(tmp_path) as is_ours:
        assert is_ours


def test_a_copy_is_another_place_and_a_moved_folder_is_the_same(tmp_path: Path) -> None:
    attempt = AttemptRef.new("job", 1)
    original = tmp_path / "data" / attempt.folder
    original.mkdir(parents=True)
    place = place_of(original)
    copy = shutil.copytree(original, tmp_path / "copy")
    (tmp_path / "link").symlink_to(original)

    assert not place.is_same(place_of(copy))
    assert mark_of(attempt, place) != mark_of(attempt, place_of(copy))
    assert place.is_same(place_of(tmp_path / "link"))
    moved = original.rename(tmp_path / "moved")
    assert place.is_same(place_of(moved))
    shutil.copytree(moved, original)
    assert not place.is_same(place_of(original)), "a restored copy at the old path"


def test_after_a_start_of_the_machine_a_folder_is_known_by_path_and_inode() -> None:
    """Numbers of devices may change then, and no process of before is alive."""
    place = Place(path="p", device=1, inode=2, boot="before")

    assert place.is_same(Place(path="p", device=9, inode=2, boot="after"))
    assert not place.is_same(Place(path="q", device=1, inode=2, boot="after"))
    assert not place.is_same(Place(path="p", device=1, inode=3, boot="after"))
    assert not place.is_same(Place(path="p", device=9, inode=2, boot="before")), "a snapshot that is mounted there"


def test_attempts_of_one_number_have_tokens_folders_and_marks_of_their_own(tmp_path: Path) -> None:
    one, other = AttemptRef.new("job", 1), AttemptRef.new("job", 1)
    place = place_of(tmp_path)

    assert one.folder != other.folder
    assert mark_of(one, place) != mark_of(other, place)
    assert AttemptRef("job", 1, None).folder == "job/1", "of an older version"
