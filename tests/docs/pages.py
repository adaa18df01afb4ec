"""The Markdown of this repository as a reader sees it: fenced blocks, shell commands, inline code, links, anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line where it begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Return page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """Return the name of the file that the block shows, if its first line is a comment with only a name."""
        first_line = re.match(r"# ([\w-]+\.\w+)\n", self.text)
        return first_line.group(1) if first_line else None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match.group(1), match.group(2))
        for match in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def inline_code(page: Path) -> list[str]:
    """Return every `code` of the prose."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def links(page: Path) -> list[str]:
    """Return the targets of all links and images of the prose."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made where Markdown is shown."""
    return {_slug(heading) for heading in _HEADING.findall(prose(page))}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(block: Block) -> list[str]:
    """Return the commands of a shell block: comments cut off, lines joined where a quote or a backslash goes on."""
    result: list[str] = []
    open_command = ""
    for line in block.text.splitlines():
        open_command += ("\n" if open_command else "") + line
        if open_command.endswith("\\") or _has_open_quote(open_command):
            continue
        command = _without_comment(open_command).strip()
        result += [command] if command else []
        open_command = ""
    assert not open_command, f"{block.place}: a command does not end: {open_command}"
    return result


def _has_open_quote(text: str) -> bool:
    quote = ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
    return bool(quote)


def _without_comment(command: str) -> str:
    return re.sub(r"(^|\s+)#\s.*$", "", command) if "'" not in command and '"' not in command else command
