"""Rules about the repository's own files: import contracts, container files, no host names of package registries."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PRODUCT = ("api", "jobs", "migrations", "wcl_client", "wcl_core", "worker")
# Written apart, so that this file names none of them either.
_HOSTS = "py pi.org|python hosted|download.py torch|deb.deb ian|npm js|ghcr .io|docker .io|nvcr .io|quay .io".replace(
    " ", ""
)
REGISTRY_HOST = re.compile("|".join(re.escape(host) for host in _HOSTS.split("|")) + "|--(extra-)?index-url")


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def run_tool(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "code",
    [
        "print(1)",
        "from rich.console import Console",
        "import rich.markup",
        "import typer\n\ntyper.echo(1)",
        'import sys\n\nsys.stderr.write("")',
        "import logging\n\nlogging.basicConfig()",
    ],
)
@pytest.mark.parametrize("folder", ["wcl_client/commands", "wcl_core", "jobs", "api", "worker"])
def test_the_linter_forbids_another_way_to_the_terminal(folder: str, code: str) -> None:
    command = [str(BIN / "ruff"), "check", "--select", "T20,TID251", "--stdin-filename", f"{folder}/example.py", "-"]

    done = subprocess.run(command, input=code + "\n", cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search("T201|TID251", done.stdout)


def test_import_contracts_hold() -> None:
    done = run_tool("lint-imports")

    assert done.returncode == 0, done.stdout + done.stderr


_IMPORT_ALL = """
import importlib, pkgutil, sys
for name, absent in {
    "wcl_client": ("torch", "jobs", "api", "worker", "sqlalchemy", "celery", "pygments"),
    "jobs": ("torch", "api", "worker"),
    "worker": ("torch", "api"),
    "api": ("torch",),
}.items():
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"): importlib.import_module(module.name)
    for each in absent: assert each not in sys.modules, f"{name} imports {each}"
"""


def test_service_packages_import_without_torch() -> None:
    """The contract above reads the source; this test imports every module of the packages, in one process."""
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr


PROGRAMS = ("api", "jobs", "wcl_core", "worker")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_prints_its_help_and_refuses_other_arguments(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped argument starts nothing; help needs no right settings."""
    monkeypatch.setenv("WCL_PORT", "x")
    main = importlib.import_module(f"{program}.__main__").main
    for arguments, code in ((["--help"], 0), (["--nonsense"], 2), (["nonsense"], 2)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
        assert f"usage: python -m {program}" in "".join(capsys.readouterr())


def test_every_program_is_tested() -> None:
    """The client's is in tests/wcl_client; programs of the tests have tests of their own."""
    packages = {path.relative_to(ROOT).parts[0] for path in tracked_files() if path.name == "__main__.py"}
    assert packages == {*PROGRAMS, "wcl_client", "tests"}


def test_dockerfile_passes_the_linter() -> None:
    done = run_tool("hadolint", "Dockerfile")

    assert done.returncode == 0, done.stdout + done.stderr


def test_image_runs_as_an_ordinary_user() -> None:
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert users
    assert users[-1] not in {"root", "0"}


def test_no_file_names_a_package_registry() -> None:
    matches = []
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in {".png", ".ico", ".woff2"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        matches += [f"{path.relative_to(ROOT)}: {match.group(0)}" for match in REGISTRY_HOST.finditer(text)]

    assert matches == []


def test_no_test_patches_a_clock_that_other_threads_use() -> None:
    patch = re.compile(r"""setattr\((?:"[\w.]*\btime\.|time,|[\w.]+\.time,)""")

    assert [path for path in tracked_files() if path.suffix == ".py" and patch.search(path.read_text())] == []


def test_every_locked_requirement_is_pinned_and_hashed() -> None:
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[a-zA-Z0-9])", text.strip())

    assert len(blocks) > 50
    for block in blocks:
        assert re.match(r"^[A-Za-z0-9_.\-]+(\[[a-z,]+\])?==\S+", block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_the_image_gets_the_locked_requirements_without_test_tools() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[A-Za-z0-9_.\-]+==\S+|--hash=\S+", (ROOT / name).read_text(), re.MULTILINE))

    runtime = pins("requirements-runtime.lock")

    assert runtime < pins("requirements.lock")
    assert any(pin.startswith("torch==") for pin in runtime)
    assert not [pin for pin in runtime if re.match("(pytest|mypy|ruff|playwright|hadolint|hypothesis)", pin)]


def test_every_runtime_dependency_is_locked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = set(re.findall(r"^([A-Za-z0-9_.\-]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))

    names = {re.split(r"[\[<>=~! ]", entry)[0].lower() for entry in dependencies}
    assert names <= {name.lower() for name in locked}


def test_the_version_is_the_newest_one_of_the_changelog() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert sections[0] == "Unreleased"
    assert re.fullmatch(re.escape(version) + r" - \d{4}-\d\d-\d\d", sections[1])


@pytest.mark.parametrize(("page", "least"), [("GUARANTEES.md", 60), ("SECURITY.md", 15)])
def test_every_guarantee_names_tests_that_exist(page: str, least: int) -> None:
    """A row of a table of promises or rules names its proof as `path::name`."""
    tables = re.findall(r"^\| (?:promise|rule) \|.*\n\|---.*\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]

    assert len(rows) > least
    for row in rows:
        proofs = re.findall(r"`(tests/[^`:]+)::([^`]+)`", row)
        assert proofs, f"no test named: {row}"
        for path, name in proofs:
            assert (ROOT / path).exists(), f"{path} does not exist"
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_every_module_docstring_opens_with_one_line() -> None:
    folders = (*PRODUCT, "examples", "benchmarks", "docs")
    modules = [path for path in tracked_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]
    one_line = re.compile(r'r?"""\S.*\S(?:"""$|\n\n)', re.MULTILINE)

    assert modules
    wrong = [path for path in modules if path.read_text().strip() and not one_line.match(path.read_text())]
    assert [str(path.relative_to(ROOT)) for path in wrong] == []


def test_migrations_are_one_line() -> None:
    heads = ScriptDirectory(str(ROOT / "migrations")).get_heads()

    assert len(heads) == 1, f"two migrations follow the same one: {heads}"


def test_json_files_parse() -> None:
    for path in tracked_files():
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_one_function_makes_plurals() -> None:
    """`wcl_core.text.counted` and the filters of this name; a second way would forget the number 1 somewhere."""
    own = re.compile(r"""(['"])(s|es)\1 if|if [^{}]{1,40} else (['"])(s|es)\3""")
    files = [
        path for name in ("api", "jobs", "worker", "wcl_core", "wcl_client") for path in (ROOT / name).rglob("*.py")
    ]
    files += (ROOT / "api" / "web" / "templates").glob("*.html")
    assert [path.name for path in files if own.search(path.read_text(encoding="utf-8"))] == []
