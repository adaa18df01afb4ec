"""Odd values, such as people type, paste and point at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from tests.wcl_client.answers import ID

ODD = (
    *("", " ", "-", "--", ".", "..", "/", "~", "~nobody/x", "/dev/null", "/dev/zero", "/proc/self/mem", "a/../../b"),
    *("0", "-1", "1.5", "010", "1e400", "nan", "inf", "9" * 30, "9" * 5_000, "٣", "²", "1_000"),
    *(
        "last",
        ID,
        ID[:-1] + "/",
        "?" * 36,
        "../" * 12,
        "[/b]",
        "[bold]",
        "%s{0}",
        "a=b",
        "=",
        "a=1e400",
        "a." * 30 + "=1",
    ),
    *(
        'a={"b": 1, "b": 2}',
        "a=" + "[" * 100_000,
        "x=/",
        "x=~nobody",
        "é猫",
        "\udcff",
        "a\nb",
        "\r",
        "\x1b]0;owned\x07",
        "\u202e",
    ),
    *("a" * 5_000, "a,b", "0,1", "cifar10", "native", "evaluate", "http://[", "::1", "nosuch.invalid", "'\"`$(id)"),
)


def check_odd_values(
    main: Callable[[Sequence[str]], int],
    command: Sequence[str],
    values: Iterable[str],
    printed: pytest.CaptureFixture[str],
) -> None:
    """Run a command with each value in place of VALUE: it works, or it says in one line why not."""
    for value in values:
        try:
            code = main([part.replace("VALUE", value) for part in command])
        except SystemExit as end:
            code = int(str(end.code))
        err = printed.readouterr().err
        assert code in (0, 1, 2), value
        assert code == 0 or "error: " in err, value
