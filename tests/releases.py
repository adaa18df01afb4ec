"""Former releases, installed from wheels that are built from the history of this repository."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PREVIOUS = "0.2.0"
SCHEMA = "0009"  # its newest migration
# A tag can be moved and is absent from some clones; a commit is neither.
_COMMITS = {"0.2.0": "50863e172d9d61365e677ba50f3a6eba86fa641f"}


def install(version: str, folder: Path) -> Path:
    """Install a former release into an environment of its own, with the other packages of this one.

    Args:
        version: the release.
        folder: of the environment; it is made.

    Returns:
        The Python of the environment.
    """
    environment = folder / "environment"
    venv.create(environment, symlinks=True, with_pip=False)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    with zipfile.ZipFile(build_wheel(version, folder)) as wheel:
        wheel.extractall(site)
    # Packages of this path come after those of the wheel, and its `.pth` file of the present version is not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "python"


def build_wheel(version: str, folder: Path) -> Path:
    """Build the wheel of a former release in a folder; skip the test if its commit is not in this clone."""
    source, wheels = folder / "source", folder / "wheels"
    for each in (source, wheels):
        each.mkdir(parents=True)
    archived = subprocess.run(["git", "archive", _COMMITS[version]], cwd=ROOT, capture_output=True)
    if archived.returncode != 0:
        pytest.skip(f"NOT TESTED HERE: this clone lacks the commit of {version}; 'git fetch --unshallow' brings it")
    subprocess.run(["tar", "x"], cwd=source, input=archived.stdout, check=True)
    backend = f"from setuptools import build_meta; print(build_meta.build_wheel({str(wheels)!r}))"
    subprocess.run([sys.executable, "-c", backend], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    assert f"-{version}-" in wheel.name
    return wheel
