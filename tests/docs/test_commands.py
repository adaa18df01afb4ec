"""Every command, Python block and file of the documentation is used as a reader would use it, page by page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.api.web.conftest import installed_chromium
from tests.docs.exceptions import NOT_RUN, NOT_RUN_PREFIXES, SHORT
from tests.docs.pages import PAGES, ROOT, blocks, commands
from tests.docs.shell import DocsService, Reader

pytestmark = pytest.mark.timeout(600)
_FOLLOWED = [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]


def is_run(command: str) -> bool:
    """Return whether a command of a page is run here; `exceptions` has the reasons for the others."""
    return command not in NOT_RUN and not command.startswith(tuple(NOT_RUN_PREFIXES))


@pytest.mark.parametrize("page", _FOLLOWED, ids=lambda page: page.stem)
def test_every_block_of_a_page_works(
    page: Path, service: DocsService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tmp_path, service)
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.file_name:
            reader.write(block)
        if block.language == "python":
            reader.python(block)
        for command in commands(block) if block.language == "sh" else ():
            if is_run(command):
                began = time.monotonic()
                reader.run(command, block.place)
                print(f"{time.monotonic() - began:5.1f} s  {command}")
    service.clear_queue(set())


def test_no_exception_is_left_over() -> None:
    shown = {
        command for page in PAGES for block in blocks(page) if block.language == "sh" for command in commands(block)
    }

    assert [command for command in NOT_RUN if command not in shown] == []
    assert [start for start in NOT_RUN_PREFIXES if not any(command.startswith(start) for command in shown)] == []


def test_the_plugins_of_the_page_are_plugins(tmp_path: Path) -> None:
    from wcl_core.config import BackboneConfig

    built: dict[str, object] = {"__name__": "docs"}
    for block in blocks(ROOT / "docs" / "plugins.md"):
        if block.language == "python":
            exec(block.text, built)  # noqa: S102

    network = built["build"](BackboneConfig(), 16)  # type: ignore[operator]
    source = built["load"](tmp_path)  # type: ignore[operator]

    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, network.feature_dim)
    assert source.train[0].dtype == torch.uint8


def test_a_run_is_followed_from_python(service: DocsService, tmp_path: Path) -> None:
    reader = Reader(tmp_path, service)

    reader.run("python examples/follow_a_run.py --epochs 2 > watched.txt", "examples/follow_a_run.py")

    printed = (tmp_path / "watched.txt").read_text()
    for words in ("job ", "points", "event: ", "few_labels", "sha256"):
        assert words in printed, printed
    assert (tmp_path / "backbone.safetensors").exists()


_EXECUTE = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        result = shell.run_cell("".join(cell["source"]))
        result.raise_error()
        print(getattr(result.result, "_repr_html_", lambda: "no card")())
"""


def test_the_notebook_runs_from_its_first_cell_to_its_last(service: DocsService, tmp_path: Path) -> None:
    reader = Reader(tmp_path, service)
    (tmp_path / "execute.py").write_text(_EXECUTE)
    cells = (ROOT / "examples" / "first_run.ipynb").read_text()
    (tmp_path / "short.ipynb").write_text(cells.replace(r"{\"epochs\": 6}", repr(SHORT).replace("'", r"\"")))

    reader.run("python execute.py short.ipynb > shown.txt", "examples/first_run.ipynb")

    shown = (tmp_path / "shown.txt").read_text()
    for words in ("from a notebook</a>", "succeeded", "<polyline", "train/loss", "eval/knn_top1", "kNN", "conv1"):
        assert words in shown, shown
    with_results = [cell for cell in json.loads(cells)["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert with_results == [], "the file holds the results of a run"


def _has_browser() -> bool:
    """Look for a browser in a process of its own: Playwright may already run here for the tests of the pages."""
    code = (
        "from playwright.sync_api import sync_playwright\n"
        "from tests.api.web.conftest import find_chromium\n"
        "with sync_playwright() as playwright: find_chromium(playwright)\n"
    )
    return bool(installed_chromium()) or subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_screenshot(service: DocsService, tmp_path: Path) -> None:
    if not _has_browser():
        pytest.skip("NO CHROMIUM: the screenshot was not tested; install chromium")
    with service.client() as client:
        trained = client.jobs(status="succeeded", kind="pretrain", limit=1)
        job_id = trained[0]["id"] if trained else client.submit("pretrain", SHORT, preset="digits-cpu")["id"]

    Reader(tmp_path, service).run(f"python docs/screenshot.py --job {job_id} --output job.png", "docs/screenshot.py")

    assert 10_000 < (tmp_path / "job.png").stat().st_size < 200_000
    assert (ROOT / "docs" / "images" / "job.png").stat().st_size < 200_000
