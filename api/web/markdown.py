"""Markdown of users as HTML: only elements that the renderer writes, and links to the web or to this server."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from markupsafe import Markup

from wcl_core.text import visible_lines

_ADDRESS: Final = re.compile(r"(https?://|mailto:|/(?![/\\])|#)", re.IGNORECASE)
_LOWEST_HEADING: Final = 6
_HEADINGS_ABOVE: Final = 2  # levels of the page around the text


class _Renderer(RendererHTML):
    """A renderer whose links reveal nothing about the page, and whose headings are below those of the page."""

    def link_open(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        if not tokens[index].attrGet("href"):  # `[a]()` is no link: it would lead to the page itself
            tokens[index].attrs.pop("href", None)
        tokens[index].attrSet("rel", "nofollow noopener noreferrer")
        return self.renderToken(tokens, index, options, env)

    def heading_open(
        self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]
    ) -> str:
        level = int(tokens[index].tag[1:]) + _HEADINGS_ABOVE
        tokens[index].tag = f"h{min(level, _LOWEST_HEADING)}"
        return self.renderToken(tokens, index, options, env)

    heading_close = heading_open

    def td_open(self, tokens: Sequence[Token], index: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        tokens[index].attrs.pop("style", None)  # the alignment of a column; the pages allow no style of an element
        return self.renderToken(tokens, index, options, env)

    th_open = td_open


def _parser() -> MarkdownIt:
    # HTML of the text is shown as text.  An image would be loaded from wherever the text says.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}, renderer_cls=_Renderer)
    parser.enable(["table", "strikethrough"]).disable("image")
    parser.validateLink = lambda url: bool(_ADDRESS.match(url))  # type: ignore[method-assign]
    return parser


_PARSER: Final = _parser()


def markdown(text: str) -> Markup:
    """Return a text in Markdown as HTML that runs no code and loads nothing; hidden characters are escapes."""
    return Markup(_PARSER.render(visible_lines(text)))  # noqa: S704 (the renderer escapes all text)
