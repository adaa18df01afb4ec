"""The version of this installation, with the commit of the checkout that it runs from or was built from."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

# Beside this module in a wheel (setup.py) and in an image (Dockerfile).
COMMIT_FILE: Final = "commit.txt"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NUM_DIGITS: Final = 8  # as many as `git log` prints for a repository of this size


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, from its files, since a machine may lack git; None if it has none.

    Changes that are not committed do not show.
    """
    try:
        return _read_commit(checkout / ".git")
    except (OSError, UnicodeDecodeError):
        return None


def _read_commit(git: Path) -> str | None:
    if git.is_file():  # of another working tree of a repository
        git = git.parent / git.read_text().removeprefix("gitdir:").strip()
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return _checked(head)
    name, shared = head.removeprefix("ref:").strip(), git
    if (git / "commondir").exists():
        shared = git / (git / "commondir").read_text().strip()
    if (shared / name).is_file():
        return _checked((shared / name).read_text())
    for line in (shared / "packed-refs").read_text().splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return _checked(commit)
    return None


def _checked(text: str) -> str | None:
    commit = text.strip()
    return commit if _COMMIT.fullmatch(commit) else None


def _commit() -> str | None:
    own = Path(__file__)
    if (commit := commit_of(own.parents[1])) is not None:
        return commit
    try:
        return _checked(own.with_name(COMMIT_FILE).read_text())
    except (OSError, UnicodeDecodeError):
        return None


def _version() -> str:
    try:
        return version("wcl-service")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def release_of(build: str) -> str:
    """Return the release of a build: `0.2.0` of `0.2.0+0f1e2d3c`.  Versions are compared by it."""
    return build.partition("+")[0]


def _build(release: str, commit: str | None) -> str:
    return release if commit is None or "+" in release else f"{release}+{commit[:_NUM_DIGITS]}"


RELEASE: Final = _version()
# As people read it, on one line; read once, so that it names the code that this process has loaded.
VERSION: Final = _build(RELEASE, _commit())
