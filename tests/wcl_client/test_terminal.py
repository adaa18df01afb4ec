"""All that reaches the terminal: every text of a user, a server or a file is shown as text."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.wcl_client.answers import ID, answer, response
from wcl_client import cli
from wcl_client.connection import Connection, check
from wcl_client.doctor import Finding
from wcl_client.terminal import Rows, Terminal, status
from wcl_core.text import visible

PIECES = (
    *("[", "]", "[/]", "[/b]", "[bold]", "[red]", "[link=http://x.example]", "[/link]", "[@click=a]", ":smile:", "\\["),
    *(
        "\x1b]0;owned\x07",
        "\x1b]52;c;eA==\x07",
        "\x1b[2J",
        "\x1b[31m",
        "\x9b31m",
        "\x90q\x9c",
        "\x07",
        "\b",
        "\r",
        "\0",
    ),
    *("\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\ud800", "\udfff", "\U000e0041", "\x7f", "\x85", "\ufeff"),
    *("é", "猫", "👩‍👩‍👧", "a\u0301", "{0}", "%s", "%", "\\x1b", "'", '"', "<b>", "\n", "\t", " ", "abc"),
)
# Everything that a terminal obeys, and what reorders or forges the text that a reader sees.
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
COMMANDS = (
    *(
        ("jobs",),
        ("show", ID),
        ("compare", ID),
        ("group", ID),
        ("groups", ID),
        ("logs", ID),
        ("watch", ID),
        ("checkpoints", ID),
    ),
    *(("cancel", ID), ("change", ID, "--name", "x"), ("workers",), ("worker", "drain", ID), ("datasets",)),
    *(("sweep", "list"), ("sweep", "show", ID), ("sweep", "watch", ID), ("audit",), ("doctor",), ("evaluate", ID)),
    ("compare", ID),
    *(("webhook", "list"), ("webhook", "show", ID), ("webhook", "deliveries", ID), ("webhook", "remove", ID)),
    *(("webhook", "test", ID), ("webhook", "add", "night", "https://example.org/hook")),
)

Wcl = Callable[..., tuple[int, str, str]]


class Hostile:
    """A source of texts of all kinds of pieces, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self) -> str:
        return "".join(self._random.choices(PIECES, k=self._random.randint(1, 6)))


def serve(monkeypatch: pytest.MonkeyPatch, text: Callable[[], str]) -> None:
    """Let each request of the client be answered with texts of `text`."""

    def respond(_self: Connection, method: str, path: str, **_request: Any) -> Any:
        return response(method, path, answer(path.partition("?")[0], text))

    monkeypatch.setattr(Connection, "_response", respond)
    for check_of_machine in ("_python", "_torch"):
        monkeypatch.setattr(f"wcl_client.doctor.{check_of_machine}", lambda: Finding("Python", True, text()))
    monkeypatch.setattr("wcl_client.api.WclClient.obstacle", lambda _self: None)
    monkeypatch.setattr("wcl_client.api.WclClient.follow", lambda _self, _id: iter(()))


@pytest.fixture
def wcl(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wcl:
    """Run a command in this process; return its exit code and what it prints to stdout and stderr."""
    monkeypatch.setenv("WCL_DATA_DIR", str(tmp_path))  # not the folder of a service that this user runs

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        printed = capsys.readouterr()
        assert "report this defect" not in printed.err, (arguments, printed.err)
        return code, printed.out, printed.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_text_of_a_server_is_markup_or_reaches_the_terminal_as_a_command(
    monkeypatch: pytest.MonkeyPatch, wcl: Wcl, command: tuple[str, ...]
) -> None:
    for seed in range(25):
        serve(monkeypatch, Hostile(seed))
        for options in ((), ("--json",)):
            _, out, err = wcl(*command, *options)
            assert out or err
            assert not OBEYED.search(out + err), (seed, options)


def test_brackets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, wcl: Wcl) -> None:
    monkeypatch.setattr("wcl_client.terminal.out._console", Console(width=400, markup=False, emoji=False))
    serve(monkeypatch, lambda: "[wip] a[/tmp/x] :smile:")

    for command in (("jobs",), ("show", ID), ("logs", ID), ("workers",), ("datasets",), ("sweep", "list")):
        assert "[wip] a[/tmp/x] :smile:" in wcl(*command)[1], command


def test_a_class_and_a_log_line_set_no_title(monkeypatch: pytest.MonkeyPatch, wcl: Wcl) -> None:
    serve(monkeypatch, lambda: "\x1b]0;owned\x07")

    assert r"\x1b]0;owned\x07" in wcl("groups", ID)[1]
    assert r"\x1b]0;owned\x07" in wcl("logs", ID)[1]


def test_json_is_the_same_value_in_the_terminal(monkeypatch: pytest.MonkeyPatch, wcl: Wcl) -> None:
    serve(monkeypatch, lambda: "\x9b\u202e[/b]\ud800")

    assert {line["line"] for line in json.loads(wcl("logs", ID, "--json")[1])} == {"\x9b\u202e[/b]\ud800"}


@pytest.mark.parametrize("seed", range(20))
def test_messages_of_a_server_and_names_of_files_are_text(
    monkeypatch: pytest.MonkeyPatch, wcl: Wcl, tmp_path: Path, seed: int
) -> None:
    text = Hostile(seed)
    problem = {"title": text(), "detail": text(), "errors": [{"pointer": text(), "detail": text()}]}
    failure = response("GET", "/", problem if seed % 2 else problem | {"errors": []}, 422)
    monkeypatch.setattr(Connection, "_response", lambda *_args, **_kwargs: check(failure))
    name = re.sub("[/\0\ud800-\udfff]", "", text()) + ".yaml"
    (tmp_path / name).write_text("a: [1")

    for arguments in (("jobs",), ("submit", str(tmp_path / name)), ("submit", "--preset", "x", "--kind", text())):
        code, _, message = wcl(*arguments)
        assert code == 2
        assert message.startswith("error: ")
        assert not OBEYED.search(message), message
    assert visible(name) in wcl("submit", str(tmp_path / name))[2]


def test_progress_bars_show_text() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200, no_color=True, legacy_windows=False)
    with Terminal(console).job_bars() as bars:
        number = bars.add("[wip] a[/x]\x1b]0;owned\x07", total=1.0)
        bars.update(number, completed=1.0, state=status("failed"), epoch="[b]", facts="\x9b")
    with Terminal(console).status() as line:
        line.update("[/b]\x1b]0;owned\x07")

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert r"[wip] a[/x]\x1b]0;owned\x07" in shown
    assert "\x1b]0" not in shown


def test_a_table_in_a_pipe_is_whole_and_has_no_spaces_at_the_ends_of_lines() -> None:
    piped = io.StringIO()
    table = Rows("name", "text")
    table.add("a", "short")
    table.add("b", "long " * 60 + "end")
    Terminal(Console(file=piped, width=80), Console(file=piped, width=1_000)).show(table)

    lines = piped.getvalue().splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert any(line.endswith("long end") for line in lines)
