"""Build a wheel that names the commit of the checkout that it is built from; pyproject.toml has all else."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithCommit(build_py):
    def run(self) -> None:
        super().run()
        version = runpy.run_path(str(ROOT / "wcl_core" / "version.py"))  # the package itself is not installed yet
        commit = version["commit_of"](ROOT)
        if commit is not None and not self.editable_mode:
            Path(self.build_lib, "wcl_core", version["COMMIT_FILE"]).write_text(commit)


setup(cmdclass={"build_py": BuildWithCommit})
