"""A real browser in front of a real server; a message on the console fails the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, expect, sync_playwright

from tests.api.web.served import SCOPES, Site

_QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
_PATIENCE = 60_000  # ms; on a machine whose cores others share, a page may take half a minute
expect.set_options(timeout=_PATIENCE)
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed_chromium() -> str | None:
    """Return the system's browser."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


def find_chromium(playwright: Playwright) -> str | None:
    """Return the system's browser, None for Playwright's own; skip the test if neither exists."""
    if path := installed_chromium():
        return path
    if Path(playwright.chromium.executable_path).exists():
        return None  # Playwright chooses its headless shell by itself
    pytest.skip("NO CHROMIUM: the page was not tested; install chromium (or run `playwright install chromium`)")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        path = find_chromium(playwright)
        browser = playwright.chromium.launch(executable_path=path, args=[*_QUIET, *sandbox, "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = Site(tmp_path_factory.mktemp("site"))
    shutil.copyfile(sqlite_template, str(server.database.engine.url.database))  # a twentieth of the time of migrations
    server.register()
    server.start()
    yield server
    server.stop()


class Visitor:
    """Browser windows that are signed in, and all errors of their consoles."""

    def __init__(self, browser: Browser, site: Site) -> None:
        self._browser, self._site = browser, site
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self._has_failures = False

    def window(
        self,
        path: str = "/",
        *,
        width: int = 1280,
        theme: str = "light",
        scripts: bool = True,
        scopes: Sequence[str] = SCOPES,
        touch: bool = False,
        session: str | None = None,
    ) -> Page:
        """Open a page in a new window; each page more costs an eighth of a second of processor time.

        It is signed in by the cookie `session`, an empty one for none; by default with a key of all projects.
        """
        context = self._browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            java_script_enabled=scripts,
            has_touch=touch,
            is_mobile=touch,
            base_url=self._site.url,
            reduced_motion="reduce",
        )
        context.set_default_timeout(_PATIENCE)
        self._contexts.append(context)
        if cookie := self._site.session(scopes) if session is None else session:
            context.add_cookies([{"name": self._site.cookie, "value": cookie, "url": self._site.url}])
        page = context.new_page()
        self._listen(page)
        page.goto(path)
        return page

    def _listen(self, page: Page) -> None:
        page.on("console", lambda message: self._complain(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def _complain(self, kind: str, text: str) -> None:
        is_expected = self._has_failures and text.startswith("Failed to load resource")
        if kind in ("error", "warning") and not is_expected:
            self.complaints.append(f"{kind}: {text}")

    def forget_failures(self) -> None:
        """Forget the complaints so far, and later ones of failed requests.

        The browser may log a failed request only after the page has shown it, or while its window is closed.
        """
        self._has_failures = True
        self.complaints.clear()

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[Visitor]:
    guest = Visitor(browser, site)
    yield guest
    guest.close()
    assert guest.complaints == []
