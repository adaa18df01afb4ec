"""The one way to the terminal: every text of a user, a server or a file is shown as text.

No markup is read from any text.  Control characters and bidirectional marks are shown as escapes.  No other module of
the client imports `rich`, prints, or writes to stdout or stderr; `tests/contracts` checks it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TransferSpeedColumn,
)
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from wcl_core.text import visible, visible_json, visible_lines

_SIZE = re.compile("[1-9][0-9]{0,3}")  # rich would fail for other numbers
_WIDE = 100_000  # columns: no table is as wide
_COLOURS = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "paused": "yellow",
}


@dataclass(frozen=True)
class Styled:
    """A text with a style of rich, such as a colour."""

    text: str
    style: str

    def __str__(self) -> str:
        return self.text


def bold(text: str) -> Styled:
    """Return a text in bold."""
    return Styled(text, "bold")


def status(text: str) -> Styled:
    """Return the status of a job or a sweep, with its reason after it, in its colour."""
    return Styled(text, _COLOURS.get(text.partition(" ")[0], ""))


class Terminal:
    """Stdout or stderr, for lines, tables and progress; `wide` has no line breaks, for a file or a pipe."""

    def __init__(self, console: Console, wide: Console | None = None) -> None:
        self._console, self._wide = console, wide or console

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks on, rather than a file or a pipe."""
        return self._console.is_terminal

    def say(self, *parts: str | Styled) -> None:
        """Print parts of a text of one or more lines, without a space between them, and not wrapped."""
        text = Text()
        for part in parts:
            text.append(visible_lines(str(part)), style=_style(part))
        self._console.print(text, soft_wrap=True)

    def notify(self, text: str) -> None:
        """Ring the terminal's bell and let it show a desktop notification; a file or a pipe gets nothing.

        The notification is OSC 9, which also passes through SSH; a terminal that does not know it ignores it.
        """
        if self.is_terminal:
            self._console.file.write(f"\a\x1b]9;{visible(text)[:200]}\a")
            self._console.file.flush()

    def show(self, table: Rows) -> None:
        """Print a table; a file or a pipe gets it whole, without line breaks."""
        if self.is_terminal:
            self._console.print(table.rendered())
            return
        with self._wide.capture() as captured:
            self._wide.print(table.rendered())
        # Columns are as wide as their longest cell, and the last one needs no such room.
        self._wide.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())

    @contextlib.contextmanager
    def status(self) -> Iterator[StatusLine]:
        """Show a line that changes, below the lines that are printed meanwhile."""
        with self._console.status(Text("")) as line:
            yield StatusLine(line)

    def job_bars(self) -> Bars:
        """Return progress bars of jobs."""
        columns = (
            SpinnerColumn(),
            _Field("title", "bold"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            _Field("state"),
            _Field("epoch"),
            _Field("facts", "dim"),
        )
        return Bars(Progress(*columns, console=self._console))

    def download_bars(self) -> Bars:
        """Return a progress bar of a download, which a file or a pipe does not get."""
        columns = (_Field("title"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        return Bars(Progress(*columns, console=self._console, transient=True, disable=not self.is_terminal))


class StatusLine:
    """A line that changes."""

    def __init__(self, line: Status) -> None:
        self._line = line

    def update(self, text: str) -> None:
        self._line.update(Text(visible(text)))


class _Field(ProgressColumn):
    """A text of a progress bar, cut where the terminal is too narrow: a bar is one line."""

    def __init__(self, name: str, style: str = "") -> None:
        super().__init__()
        self._name, self._style = name, style

    def render(self, task: Task) -> Text:
        content = task.fields.get(self._name, "")
        return Text(visible(str(content)), style=_style(content) or self._style, no_wrap=True, overflow="ellipsis")


class Bars:
    """Progress bars; a context manager."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bars.stop()

    def add(self, title: str, total: float | None = None) -> int:
        """Add a bar and return its number."""
        return int(self._bars.add_task("", total=total, title=title, state="", epoch="", facts=""))

    def update(
        self,
        number: int,
        completed: float,
        total: float | None = None,
        *,
        state: Styled | None = None,
        epoch: str = "",
        facts: str = "",
    ) -> None:
        """Change a bar."""
        self._bars.update(
            self._bars.task_ids[number], completed=completed, total=total, state=state or "", epoch=epoch, facts=facts
        )


class Rows:
    """A table of texts.

    Args:
        names: of the columns; without any the first column is bold and there is no header.
        title: above the table.
        cut: the columns that are cut with "…" where a terminal is too narrow. With any, each row is one line, and the
            other columns are whole; without, the first column is whole and the others are wrapped.
    """

    def __init__(self, *names: str, title: str = "", cut: Sequence[str] = ()) -> None:
        self._names, self._title, self._cut = names, title, cut
        self._rows: list[tuple[object, ...]] = []

    def add(self, *cells: object) -> None:
        """Add a row."""
        self._rows.append(cells)

    @property
    def has_rows(self) -> bool:
        """Whether it has any row."""
        return bool(self._rows)

    def rendered(self) -> Table:
        """Return the table for the terminal."""
        is_whole = [name not in self._cut if self._cut else name == self._names[0] for name in self._names]
        columns = [Column(_cell(name), no_wrap=whole) for name, whole in zip(self._names, is_whole, strict=True)]
        if not columns:
            columns = [Column(style="bold"), Column()]
        table = Table(
            *columns,
            box=None,
            show_header=bool(self._names),
            header_style="bold",
            title=Text(visible(self._title)) if self._title else None,
            title_justify="left",
        )
        for row in self._rows:
            table.add_row(*(_cell(content, is_cut=bool(self._cut)) for content in row))
        return table


def _cell(content: object, *, is_cut: bool = False) -> Text:
    text = Text(visible(str(content)), style=_style(content))
    if is_cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _style(content: object) -> str:
    return content.style if isinstance(content, Styled) else ""


def print_json(value: Any) -> None:
    """Print a value as JSON that is safe to read in a terminal."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    print(visible_json(json.dumps(value, indent=2, ensure_ascii=not is_unicode)))


def print_csv(table: bytes) -> None:
    """Print a CSV file, whose text is safe to read in a terminal."""
    print(visible_lines(table.decode("utf-8", "replace")), end="")


def write(text: str, file: IO[str] | None = None) -> None:
    """Print lines to a file, by default to stdout, at once."""
    print(visible_lines(text), file=file, flush=True)


def flush() -> None:
    """Write what is still buffered: a full disk or a closed pipe is an error of the command, not of the interpreter."""
    if sys.stdout is not None:
        sys.stdout.flush()


def closed_pipe() -> int:
    """Drop what nobody reads any more, and return the exit code of a command that was cut off."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def be_robust() -> None:
    """Let an odd terminal end no command: neither its encoding, whose gaps become escapes, nor its size."""
    for name in _wrong_sizes():
        del os.environ[name]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _wrong_sizes() -> list[str]:
    """Return the variables whose size of the terminal cannot be one."""
    return [name for name in ("COLUMNS", "LINES") if not _SIZE.fullmatch(os.environ.get(name, "80"))]


def _console(is_stderr: bool, width: int | None = None) -> Console:
    environment = {name: value for name, value in os.environ.items() if name not in _wrong_sizes()}
    return Console(stderr=is_stderr, highlight=False, markup=False, emoji=False, width=width, _environ=environment)


out, err = (Terminal(_console(is_stderr), _console(is_stderr, _WIDE)) for is_stderr in (False, True))
