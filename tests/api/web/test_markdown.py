"""Notes in Markdown: whatever a user writes, the page gets listed elements and links that start no code."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.web.markdown import markdown
from tests.api.web.payloads import PAYLOADS

ELEMENTS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "h3", "h4", "h5", "h6"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href", "title", "rel"}, "ol": {"start"}, "code": {"class"}}
PARTS = (
    *(
        "[a](",
        "](",
        ")",
        "![",
        "<",
        ">",
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil",
        "/\\evil",
        "&#106;",
        "&",
        "\n",
    ),
    *(
        "\n\n",
        "`",
        "```",
        "|",
        "|-|",
        "|:-:|",
        "'",
        '"',
        " onclick=x ",
        "<script>",
        "<img src=x onerror=x>",
        "[a]: ",
        "https:",
        "#",
    ),
    *("\\", "\t", "\x00", "\u202e", "a", "<!--", "-->", "<https://", "style=", "vbscript:"),
)


class Inert(HTMLParser):
    """Checks that a document has listed elements and attributes only, and links to the web or to this server."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES.get(tag, set()), (tag, name)
            if name == "href":
                lower = (value or "").lower()
                assert lower.startswith(("https://", "http://", "mailto:", "/", "#")), value
                assert not lower.startswith(("//", "/\\")), value

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    handle_comment = handle_pi = unknown_decl = handle_decl


def assert_inert(text: str) -> None:
    parser = Inert()
    parser.feed(markdown(text))
    parser.close()


@pytest.mark.slow
@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join) | st.text(max_size=200))
def test_no_text_makes_other_elements_attributes_or_links(text: str) -> None:
    assert_inert(text)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_is_text(payload: str) -> None:
    for text in (
        payload,
        f"[{payload}]({payload})",
        f"`{payload}`",
        f"[a](<{payload}>)",
        f"> {payload}\n\n# {payload}",
    ):
        assert_inert(text)


def test_markdown_is_shown_as_people_know_it() -> None:
    shown = markdown("# Title\n\n**bold** ~~old~~ [run](/jobs/1) <https://example.org>\n\n|a|b|\n|-|-:|\n|1|2|\n")

    assert "<h3>Title</h3>" in shown
    assert "<strong>bold</strong> <s>old</s>" in shown
    assert '<a href="/jobs/1" rel="nofollow noopener noreferrer">run</a>' in shown
    assert "<td>2</td>" in shown


def test_nothing_is_loaded_from_elsewhere_and_hidden_characters_are_visible() -> None:
    assert "<img" not in markdown("![a](https://example.org/x.png)")
    assert markdown("a\u202eb") == "<p>a\\u202eb</p>\n"


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "vbscript:x", "//evil", "/\\evil"])
def test_a_link_leads_to_the_web_or_to_this_server_only(address: str) -> None:
    assert_inert(f"[a]({address})")
    assert_inert(f"[a](<{address}>)")


def test_a_link_without_an_address_leads_nowhere() -> None:
    assert "href" not in markdown("[a]()")
    assert "href" not in markdown("[a](<>)")
