"""Text from outside: hidden characters as escapes, secrets as stars."""

from __future__ import annotations

import io
import json
import logging
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from wcl_core.text import (
    Secret,
    VisibleFormatter,
    counted,
    noun_of,
    visible,
    visible_json,
    visible_lines,
    without_paths,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b]text[/b] é 猫 👩‍👩‍👧", "plain [b]text[/b] é 猫 👩‍👩‍👧"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("abc\u202edcba\u2066", r"abc\u202edcba\u2066"),
        ("\ud800 \u2028", r"\ud800 \u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("\ufffe\uffff", r"\ufffe\uffff"),
    ],
)
def test_hidden_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_lines_keep_their_ends() -> None:
    assert visible_lines("a\n\tb\r\x1b") == "a\n\tb" r"\r\x1b"


def test_no_hidden_character_is_left() -> None:
    everything = "".join(map(chr, range(0x3000))) + "".join(map(chr, range(0xD800, 0xE000)))

    shown = visible(everything)

    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e\u2066]", shown)
    shown.encode()  # no half surrogate is left


def test_json_stays_the_same_value() -> None:
    value = {"a\x1b\u202e": ["\x9b", "\U000e0041", "é\n", "\ud800"]}

    text = visible_json(json.dumps(value, ensure_ascii=False, indent=2))

    assert json.loads(text) == value
    assert visible_lines(text) == text


def test_a_log_line_cannot_be_forged() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VisibleFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)

    log.warning("no dataset %s", "x\nERROR forged\x1b[2J")
    try:
        raise ValueError("a\x1b[31m")
    except ValueError:
        log.exception("failed")

    lines = stream.getvalue().splitlines()
    assert lines[0] == r"WARNING no dataset x\nERROR forged\x1b[2J"
    assert lines[1] == "ERROR failed"
    assert lines[-1] == r"ValueError: a\x1b[31m"


class _Settings(BaseModel):
    key: Secret


def test_a_secret_is_shown_by_its_name_only() -> None:
    secret = Secret("wcl_abc")

    assert f"{secret} {secret!r} {_Settings(key='wcl_abc')} {[secret]}" == "*** *** key=*** [***]"  # type: ignore[arg-type]
    assert secret.reveal() == "wcl_abc"
    assert _Settings(key=secret).key == secret


@pytest.mark.parametrize("folder", ["data", "my data", "a: b, c", "it's"])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read {}/x.jpg: not an image", "cannot read x.jpg: not an image"),
        ("FileNotFoundError: [Errno 2] No such file: '{}/x.jpg'", "FileNotFoundError: [Errno 2] No such file: 'x.jpg'"),
        ("{}/x.jpg", "x.jpg"),
        ("{}/x.jpg.", "x.jpg."),
        ("from {}/x.jpg to {}/x.jpg", "from x.jpg to x.jpg"),
        ("see {}/x.jpg\nand more", "see x.jpg\nand more"),
    ],
)
def test_a_message_names_no_path_of_the_machine(tmp_path: Path, folder: str, text: str, shown: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "x.jpg").touch()

    assert without_paths(text.replace("{}", str(tmp_path / folder))) == shown


def test_a_path_that_is_gone_is_no_path_either(tmp_path: Path) -> None:
    assert without_paths(f"{tmp_path}/gone/x.jpg: absent") == "x.jpg: absent"
    assert without_paths(f"({tmp_path}/gone)") == "(gone)"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/spec/knn_k: 20 is above half",
            "http://127.0.0.1:8000/tmp/x",
            "3/4 of 1/2",
            "train/cat/x.jpg",
            "a / b",
            "/",
        ),
        *("POST /v1/jobs", "//", "/ /", "", "km/h", "~/x", "../tmp/x", "/no-such-root/x/y"),
    ],
)
def test_other_text_with_slashes_stays(text: str) -> None:
    assert without_paths(text) == text


def test_a_number_has_its_noun_in_the_right_form() -> None:
    assert [counted(number, "file") for number in (0, 1, 2000, 0.5)] == [
        "0 files",
        "1 file",
        "2,000 files",
        "0.5 files",
    ]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert (noun_of(1, "image"), noun_of(3, "image")) == ("image", "images")
