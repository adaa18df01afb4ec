"""The parts of the documentation that come from the code; this script writes them anew.

    python docs/tables.py

Each part begins with a comment that names its source, and ends with the page.
"""

from __future__ import annotations

from pathlib import Path

from jobs.reasons import EXPLANATIONS
from jobs.settings_help import table

DOCS = Path(__file__).parent


def reasons() -> str:
    """Return a section for each reason of a status."""
    sections = (
        f"### `{name}`\n\n**{why.title}.** {why.meaning}\n\n{why.advice}\n" for name, why in EXPLANATIONS.items()
    )
    return "\n" + "\n".join(sections)


PARTS = {
    "troubleshooting.md": ("<!-- from jobs/reasons.py by docs/tables.py -->\n", reasons),
    "operating.md": ("<!-- from jobs/settings_help.py by docs/tables.py -->\n", lambda: "\n" + table()),
}


def page(name: str) -> str:
    """Return a page of the documentation with its part made anew."""
    start, part = PARTS[name]
    before, _, _ = (DOCS / name).read_text().partition(start)
    return before + start + part()


if __name__ == "__main__":
    for name in PARTS:
        (DOCS / name).write_text(page(name))
