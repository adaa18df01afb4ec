"""The documentation agrees with the repository: links, paths, names, verbs, settings, and the layout."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs import tables
from jobs.reasons import EXPLANATIONS
from jobs.settings import Settings
from jobs.status import Reason
from jobs.waiting import Cause
from tests.contracts.test_repository import PRODUCT, tracked_files
from tests.docs.pages import PAGES, ROOT, anchors, blocks, inline_code, links, prose
from wcl_client.cli import app

README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "architecture.md"
_PATH = re.compile(r"\b(?:api|jobs|worker|wcl_core|wcl_client|tests|examples|benchmarks|docs)/[\w/.-]*[\w]\.\w+")
_DOTTED = re.compile(r"\bwcl_(?:core|client)(?:\.\w+)+")


@cache
def _wcl() -> Any:
    """Return the command `wcl` with all below it; to make it takes a twentieth of a second."""
    return get_command(app)


def by_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_every_link_has_a_target(page: Path) -> None:
    for target in links(page):
        if target.startswith("https://arxiv.org/abs/"):
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", target)
            continue
        assert "://" not in target, f"{target}: no test can follow it"
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_every_path_and_name_exists(page: Path) -> None:
    text = page.read_text()

    assert [path for path in sorted(set(_PATH.findall(text))) if not (ROOT / path).exists()] == []
    assert [name for name in sorted(set(_DOTTED.findall(text))) if not _resolves(name)] == []


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[length:], module)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_every_command_stands_in_a_fenced_block(page: Path) -> None:
    """The tests do not read other blocks."""
    assert re.findall(r"^(?: {4}|\t)\s*(?:\./run|wcl|python|curl|docker) .*", prose(page), re.MULTILINE) == []
    assert {block.language for block in blocks(page)} <= {"sh", "python", "yaml", "toml", "text", "nginx"}


@pytest.mark.parametrize("page", PAGES, ids=by_page)
def test_every_verb_and_option_of_the_prose_exists(page: Path) -> None:
    for code in inline_code(page):
        if code.startswith("wcl ") and code != "wcl COMMAND --help":
            _check_wcl(code)
        if code.startswith("./run "):
            assert re.search(rf"^  {code.split()[1]}\)", (ROOT / "run").read_text(), re.MULTILINE), code


def _check_wcl(code: str) -> None:
    command, words = _wcl(), shlex.split(code)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command.name != "wcl" or all(word.startswith("-") for word in words), code
    options = {option for parameter in command.params for option in parameter.opts}
    assert [word for word in words if word.startswith("-") and word not in options] == [], code


def test_using_describes_every_verb() -> None:
    described = set(re.findall(r"^\| `wcl ([\w-]+)` \|", (ROOT / "docs" / "using.md").read_text(), re.MULTILINE))

    commands = _wcl().commands
    assert described == {name for name, command in commands.items() if not command.hidden}


def test_operating_describes_every_setting() -> None:
    text = (ROOT / "docs" / "operating.md").read_text().split("## Settings")[1]

    described = re.findall(r"^\| `(WCL_\w+)` \|", text, re.MULTILINE)

    assert sorted(described) == sorted(f"WCL_{name.upper()}" for name in Settings.model_fields)
    assert (ROOT / "docs" / "operating.md").read_text() == tables.page("operating.md"), "run: python docs/tables.py"


def test_troubleshooting_describes_every_cause_and_reason() -> None:
    name = "troubleshooting.md"
    text = (ROOT / "docs" / name).read_text()

    assert sorted(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) == sorted(Cause)
    assert set(EXPLANATIONS) == set(Reason)
    assert text == tables.page(name), "run: python docs/tables.py"


def test_security_names_every_request() -> None:
    assert (ROOT / "SECURITY.md").read_text() == tables.page("../SECURITY.md"), "run: python docs/tables.py"


def test_method_explains_the_marks() -> None:
    method = (ROOT / "docs" / "method.md").read_text()

    assert all(f"| [{mark}] |" in method for mark in "PCD")


# --- the layout ------------------------------------------------------------------------------------------------------


def _trees() -> str:
    return "\n".join(
        block.text for page in (README, ARCHITECTURE) for block in blocks(page) if block.language == "text"
    )


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150
    assert len(blocks(README)[-1].text.splitlines()) <= 25
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 25


def test_every_folder_and_top_file_has_its_line() -> None:
    shown = [path.relative_to(ROOT).parts for path in tracked_files()]
    names = {parts[0] for parts in shown if len(parts) == 1 and not parts[0].startswith(".")}
    names |= {f"{parts[0]}/" for parts in shown if len(parts) > 1 and not parts[0].startswith(".")}
    names |= {
        f"{parts[-2]}/" for parts in shown if parts[0] in PRODUCT and len(parts) > 2 and parts[-1] == "__init__.py"
    }
    trees = _trees()

    assert [name for name in sorted(names) if name not in trees] == []
