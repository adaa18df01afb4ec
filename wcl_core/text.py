"""Text from outside, made safe to show: control characters as escapes, secrets as stars.  Standard library only."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import IO, Any, Final

_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
# Control characters, marks that reorder what is read, line separators, half surrogates, invisible tag characters, and
# what is no character in XML.
_HIDDEN = f"\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff{_BIDIRECTIONAL}\ud800-\udfff\U000e0000-\U000e007f"
_IN_A_LINE = re.compile(f"[{_HIDDEN}]")
_IN_LINES = re.compile(f"(?![\n\t])[{_HIDDEN}]")
_ROOT = re.compile(r"(?<![\w:/.~-])/(?=[^\s/])")  # the start of an absolute path, and not of a URL's
_GONE = re.compile(r"/([^\s/]+)/[^\s'\",;:)\]}>]+")
_AFTER_PATH = re.compile(r"[\s'\",;:)\]}>]|\.(?=\s|$)")
_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,6})?) ?(?:([KMGTkmgt])(i?))?B\s*")
_AGO = re.compile(r"([0-9]{1,9}) ?([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST_PATH, _MOST_PLACES = 5_000, 100
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str) -> str:
    """Return one line of text in which each character that a terminal or a reader would not show is an escape."""
    return _IN_A_LINE.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Return text as `visible` does; line ends and tabs stay."""
    return _IN_LINES.sub(_escape, text)


def visible_json(text: str) -> str:
    """Return a JSON document in which each hidden character is a JSON escape; its line ends stay."""
    return _IN_LINES.sub(_json_escape, text)


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 file`, `2,000 files`, `0.5 minutes`.

    Args:
        plural: of the noun; by default with an `s`.
    """
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun_of(number, noun, plural)}"


def noun_of(number: float, noun: str, plural: str | None = None) -> str:
    """Return the noun alone in the form of a number; arguments as for `counted`."""
    return noun if number == 1 else plural or f"{noun}s"


def quoted(name: str) -> str:
    """Return a name, in quotes if a reader could not see where it ends.

    >>> quoted("clothes"), quoted("clothes, 20 more epochs")
    ('clothes', '"clothes, 20 more epochs"')
    """
    return f'"{name}"' if re.search(r"[\s,;]", name) else name


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence.

    >>> listed(["clothes", "clothes, 20 more epochs"])
    'clothes, "clothes, 20 more epochs"'
    """
    return ", ".join(map(quoted, names))


def twin_name(name: str, method: str) -> str:
    """Return the usual name of the twin of a training; that of a continued one keeps its end.

    >>> twin_name("clothes", "simclr"), twin_name("clothes, 20 more epochs", "simclr")
    ('clothes-simclr', 'clothes-simclr, 20 more epochs')
    """
    start, end = re.fullmatch(r"(.*?)((?:, \d+ more epochs(?:-\d+)?)*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{start}-{method}{end}"


def capitalised(text: str) -> str:
    """Return text as the start of a sentence: with a capital, unless its first word is a field's name or a path.

    >>> capitalised("few steps"), capitalised("batch_size is 64"), capitalised("loss.beta is 9")
    ('Few steps', 'batch_size is 64', 'loss.beta is 9')
    """
    first = text.split(maxsplit=1)[:1]
    is_name = bool(first) and re.search(r"[_/]|\w\.\w", first[0]) is not None
    return text if is_name else text[:1].upper() + text[1:]


def file_size(num_bytes: float) -> str:
    """Return a number of bytes with its unit.

    >>> file_size(500), file_size(1_600_000), file_size(3 * 1024**4)
    ('500 B', '1.5 MiB', '3.0 TiB')
    """
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        num_bytes /= 1024
        if num_bytes < 1024:
            return f"{num_bytes:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} TiB"


_MUCH_LONGER = 1.5  # times the time that was expected
_BRIEF = 120.0  # seconds of a training that is never called long
_PHASES = {
    "load": "loading the dataset",
    "prepare": "waiting for the dataset",
    "compile": "compiling its steps",
    "train": "training",
    "evaluate": "measuring",
    "save": "saving a checkpoint",
}


def phase_text(progress: Mapping[str, Any]) -> str:
    """Return the present work of a run by its latest progress report; "" before the first one.

    >>> phase_text({"phase": "prepare", "share": 0.43})
    'preparing the dataset, 43%'
    >>> phase_text({"phase": "evaluate", "step": 2, "total_steps": 3, "part": "linear probe of the trained network"})
    'linear probe of the trained network, part 3 of 3'
    """
    phase, part, share = str(progress.get("phase") or ""), progress.get("part"), progress.get("share")
    text = _PHASES.get(phase, phase)
    if phase == "prepare" and share is not None:
        text = "preparing the dataset"
    if phase == "evaluate" and part:
        text = f"{part}, part {progress['step'] + 1} of {progress['total_steps']}"
    return text if share is None else f"{text}, {share:.0%}"


def share_done(progress: Mapping[str, Any], earlier: int = 0) -> float | None:
    """Return the share of its own steps that a job has done; None if unknown.

    Args:
        progress: its latest report.
        earlier: epochs of the job that it continues, which are not its own.

    >>> progress = {"step": 120, "total_steps": 200, "total_epochs": 20}
    >>> share_done(progress), share_done(progress, earlier=10), share_done({})
    (0.6, 0.2, None)
    """
    step, total = progress.get("step") or 0, progress.get("total_steps")
    if not total:
        return None
    epochs = progress.get("total_epochs")
    start = total * earlier / epochs if epochs else 0
    return 1.0 if total <= start else min(1.0, max(0.0, (step - start) / (total - start)))


def much_longer(progress: Mapping[str, Any], most_seconds: float | None, earlier: int = 0) -> str | None:
    """Return that a training takes much longer than expected, as a phrase; None if not, and in its first epoch.

    Args:
        progress: its latest report.
        most_seconds: that it was expected to take at most, before it began; None if unknown.
        earlier: epochs of the job that it continues.

    >>> progress = {"step": 20, "total_steps": 100, "epoch": 2.0, "total_epochs": 10, "eta_seconds": 1600}
    >>> much_longer(progress, 960)
    'it takes about 33 minutes, much longer than the expected 16 minutes'
    >>> much_longer(progress, 1500), much_longer(progress | {"epoch": 0.9}, 960)
    (None, None)
    """
    left, share = progress.get("eta_seconds"), share_done(progress, earlier)
    if not most_seconds or not left or share is None or share >= 1:
        return None
    whole = left / (1 - share)
    if (progress.get("epoch") or 0) - earlier < 1 or whole <= max(_MUCH_LONGER * most_seconds, _BRIEF):
        return None
    takes, expected = (counted(max(1, round(seconds / 60)), "minute") for seconds in (whole, most_seconds))
    return f"it takes about {takes}, much longer than the expected {expected}"


def bytes_of(size: str) -> int | None:
    """Return the number of bytes of a size; None for another text.

    >>> bytes_of("500 GB"), bytes_of("1.5TiB"), bytes_of("500")
    (500000000000, 1649267441664, None)
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        return None
    number, prefix, binary = match.groups()
    return int(Decimal(number) * (1024 if binary else 1000) ** (" KMGT".index(prefix.upper()) if prefix else 0))


def time_of(text: str, now: datetime) -> datetime | None:
    """Return the time in UTC that a text names; None for another text.

    Args:
        text: a time before now, such as `30s`, `10m`, `2h`, `3d` or `1w`, or one in ISO 8601, in UTC without a zone.
        now: with a time zone.

    >>> now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    >>> [f"{time_of(text, now):%d %H:%M}" for text in ("10m", "3d", "2026-11-29", "2026-11-29T08:30+01:00")]
    ['30 11:50', '27 12:00', '29 00:00', '29 07:30']
    """
    try:
        if match := _AGO.fullmatch(text.strip()):
            return now.astimezone(UTC) - timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
        time = datetime.fromisoformat(text.strip())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # before the year 1, too
        return None


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


class Arguments(argparse.ArgumentParser):
    """A parser that refuses `--option=--`; argparse would take it for an empty list, whatever the option's type is."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for argument in sys.argv[1:] if args is None else args:
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"argument {argument[:-3]}: expected a value")
        return super().parse_known_args(args, namespace)


def without_paths(text: str) -> str:
    """Return a message in which each absolute path of this machine is its last part alone.

    A path may hold spaces: the longest piece that exists counts.  A path that is gone counts up to the next space.
    """
    shown, at = "", 0
    for start in _ROOT.finditer(text):
        if start.start() < at:
            continue
        path = next((end for end in _ends(text, start.start()) if os.path.lexists(text[start.start() : end])), None)
        if path is None:
            gone = _GONE.match(text, start.start())
            path = gone.end() if gone and os.path.lexists(f"/{gone.group(1)}") else None
        if path is not None and (name := text[start.start() : path].rstrip("/").rpartition("/")[2]):
            shown, at = shown + text[at : start.start()] + name, path
    return shown + text[at:]


def _ends(text: str, start: int) -> Iterator[int]:
    """Yield where a path that starts there may end, the furthest place first."""
    rest = text[start : start + _LONGEST_PATH].partition("\n")[0]
    places = [match.start() for match in _AFTER_PATH.finditer(rest)][:_MOST_PLACES]
    yield from (start + place for place in reversed([*places, len(rest)]))


_ASSIGNMENT: Final = re.compile(r"\s*(WCL_[A-Z0-9_]+)=(.*)")


def assignments(text: str) -> dict[str, str]:
    """Return the settings of a file for systemd: lines `WCL_NAME=VALUE`, values as in a shell, and comments.

    Raises:
        ValueError: a line is none; the message has its number alone, as the line may hold a password.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None or (words := _words(match[2])) is None or len(words) > 1:
            raise ValueError(f"line {number}: expected WCL_NAME=VALUE, with JSON in single quotes")
        values[match[1]] = words[0] if words else ""
    return values


def _words(text: str) -> list[str] | None:
    """Return the words of a line as a shell reads it; None if a quotation does not end."""
    try:
        return shlex.split(text)
    except ValueError:
        return None


def written_assignments(values: Mapping[str, str]) -> str:
    """Return the text that `assignments` reads.

    Raises:
        ValueError: a value has a line break or another control character.
    """
    for name, value in values.items():
        if not value.isprintable():
            raise ValueError(f"{name} has a character that a line of a file cannot hold")
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def write_line(text: str, stream: IO[str] | None = None) -> None:
    """Print one line with hidden characters as escapes, by default to stdout."""
    print(visible(text), file=stream, flush=True)


def write_error(text: str) -> None:
    """Print the line that says why a program ends."""
    write_line(f"error: {text}", sys.stderr)


class VisibleFormatter(logging.Formatter):
    """A formatter of log lines that no text from outside can split, forge or hide."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the name in logging)
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the name in logging)
        return visible_lines(super().formatException(ei))


class Secret:
    """A key or an address with a password, which no message, log line or traceback shows."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema  # the client does not need pydantic

        text = core_schema.no_info_after_validator_function(cls, core_schema.str_schema())
        return core_schema.union_schema(
            [core_schema.is_instance_schema(cls), text],
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )
