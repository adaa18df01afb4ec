"""One service for all commands of the documentation, with a folder of images and the example plugin."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import ROOT
from tests.docs.shell import DocsService


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two classes of coloured noise: 45 train and 10 test images of each."""
    folder = tmp_path_factory.mktemp("images") / "flowers"
    random = np.random.default_rng(0)
    for split, count in (("train", 45), ("test", 10)):
        for colour, name in enumerate(("rose", "tulip")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (72, 72, 3), dtype=np.uint8)
                pixels[..., colour] += 100
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the example plugin as a wheel, and unpack it as an installer does."""
    source = tmp_path_factory.mktemp("plugin") / "source"
    shutil.copytree(ROOT / "examples" / "method_plugin", source)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(source.parent)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    site = source.parent / "site"
    with zipfile.ZipFile(source.parent / done.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    return site


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, flowers: Path, plugin_site: Path) -> Iterator[DocsService]:
    """Yield a running `wcl up` with digits, the flowers and the plugin."""
    started = DocsService(tmp_path_factory.mktemp("docs"), flowers, plugin_site)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        print(started.words())
