"""The version with the commit of a checkout, of real repositories of git, and in a wheel that is built from one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from wcl_core.version import COMMIT_FILE, RELEASE, commit_of, release_of

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    author = {f"GIT_{role}_{field}": "tests" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = outside | author | {"GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return folder


@pytest.mark.process
def test_the_commit_is_read_from_each_form_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == commit

    git(checkout, "pack-refs", "--all")
    assert not (checkout / ".git/refs/heads/trunk").exists()
    assert commit_of(checkout) == commit, "packed"

    git(checkout, "worktree", "add", "-q", "-b", "other", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "second")
    assert commit_of(tmp_path / "other") == git(tmp_path / "other", "rev-parse", "HEAD") != commit

    git(checkout, "checkout", "-q", "--detach", "other")
    assert commit_of(checkout) == commit_of(tmp_path / "other"), "detached"


@pytest.mark.process
def test_a_folder_that_is_no_checkout_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "checkout", "-q", "--orphan", "empty")
    assert commit_of(checkout) is None, "a branch without commits"
    assert commit_of(tmp_path / "absent") is None
    (checkout / ".git/HEAD").write_bytes(b"\xff\xfe")
    assert commit_of(checkout) is None
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").write_text("gitdir: /absent\n")
    assert commit_of(checkout) is None


def test_versions_are_compared_without_the_commit() -> None:
    assert [release_of(each) for each in ("0.2.0", "0.2.0+0f1e2d3c", "unknown")] == ["0.2.0", "0.2.0", "unknown"]


@pytest.mark.process
@pytest.mark.slow
def test_a_wheel_names_the_commit_that_it_is_built_from(checkout: Path, tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "wcl_core").mkdir()
    for name in ("__init__.py", "version.py"):
        shutil.copy(ROOT / "wcl_core" / name, checkout / "wcl_core" / name)
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "second")
    commit = git(checkout, "rev-parse", "HEAD")
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as packed:
        assert packed.read(f"wcl_core/{COMMIT_FILE}").decode() == commit
        packed.extractall(tmp_path / "site")

    show = "import sys; sys.path.insert(0, sys.argv[1]); from wcl_core.version import VERSION; print(VERSION)"
    command = [sys.executable, "-S", "-c", show, str(tmp_path / "site")]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert shown.stdout == f"{RELEASE}+{commit[:8]}\n"
