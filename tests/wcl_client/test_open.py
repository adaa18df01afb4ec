"""`wcl open` opens the pages signed in, or says what to do without a browser."""

from __future__ import annotations

import webbrowser

import httpx
import pytest

from tests.api.served import Served
from tests.waiting import PATIENCE
from wcl_client import WclClient, cli, terminal


def test_the_opened_link_signs_in_once(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda link: opened.append(link) or True)
    monkeypatch.setattr("webbrowser.get", lambda: None)
    assert cli.run(["open"]) == 0
    assert capsys.readouterr().out == f"{server.url} opens in the browser\n"
    (link,) = opened
    with httpx.Client(base_url=server.url, trust_env=False, timeout=PATIENCE) as browser:
        assert browser.get(link).status_code == 200
        assert "No jobs yet" in browser.get("/").text
    assert httpx.get(link, trust_env=False, timeout=PATIENCE).status_code == 403


@pytest.mark.parametrize("is_terminal", [True, False])
def test_without_a_browser_only_a_terminal_shows_the_link(
    server: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    def no_browser() -> None:
        raise webbrowser.Error

    links: list[str] = []
    link = WclClient.sign_in_link
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    monkeypatch.setattr("webbrowser.get", no_browser)
    monkeypatch.setattr(WclClient, "sign_in_link", lambda client: links.append("link") or link(client))
    monkeypatch.setattr(type(terminal.out), "is_terminal", is_terminal)
    assert (cli.run(["open"]) == 0) == is_terminal
    printed = capsys.readouterr()
    assert ("/sign-in?token=" in printed.out) == is_terminal
    assert "token" not in printed.err
    assert bool(links) == is_terminal, "a link that nothing shows is not made"
    way = f"run `wcl open` in a terminal, or open {server.url} and sign in there with a key"
    assert is_terminal or way in " ".join(printed.err.split())
