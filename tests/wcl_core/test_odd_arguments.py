"""Every argument of `python -m wcl_core` with odd values: one line, and never a traceback."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import pytest

from tests.odd import ODD, check_odd_values
from wcl_core import __main__ as command_line

# Reading the whole machine as an image folder takes long.
_TOO_MUCH = ("/", "..", "~", "a/../../b")
_USUAL = {
    "spec": "absent.yaml",
    "native": "absent.safetensors",
    "file": "absent.safetensors",
    "out": "out",
    "name": "mine",
    "folder": "absent",
    "kind": "folder",
    "path": "absent",
    "image": "absent",
    "classifier": "absent.safetensors",
    "embeddings": "absent.safetensors",
}


def _arguments() -> list[tuple[str, str, list[str]]]:
    """Return each verb with each of its arguments, and the command with usual values of the others."""
    verbs = next(each for each in command_line._parser()._actions if isinstance(each, argparse._SubParsersAction))
    cases = []
    for verb, parser in verbs.choices.items():
        positional = [each for each in parser._actions if not each.option_strings]
        for action in parser._actions:
            if action.dest != "help" and verb != "attempt":  # a worker calls that one, and it ends its process
                others = [_USUAL[each.dest] for each in positional if each is not action]
                place = positional.index(action) if action in positional else len(others)
                option = f"{action.option_strings[-1]}=VALUE" if action.option_strings else "VALUE"
                cases.append((verb, action.dest, [verb, *others[:place], option, *others[place:]]))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "argument", "command"), _arguments(), ids=lambda case: str(case)[:20])
def test_each_argument_takes_an_odd_value_or_is_named(
    verb: str,
    argument: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "_parser", functools.cache(command_line._parser))
    check_odd_values(command_line.main, command, (each for each in ODD if each not in _TOO_MUCH), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["a: .inf", "epochs: 010", "epochs: 1\nepochs: 2", "[" * 50_000, "a: &a [*a]", "\x1b", "8: 1"]
)
def test_a_spec_file_with_odd_content_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.yaml").write_text(text)

    assert command_line.main(["pretrain", str(tmp_path / "spec.yaml"), "--output", str(tmp_path / "run")]) == 1

    assert len(capsys.readouterr().err.splitlines()) == 1
