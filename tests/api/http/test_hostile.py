"""The addresses that a test in a browser fills with hostile text (tests/api/web/test_hostile.py): none is forgotten."""

from __future__ import annotations

from pathlib import Path

from api.app import create_app
from api.http.auth import classification
from api.web.pages import PAGES
from jobs.database import Database
from jobs.settings import Settings

# Addresses that are no pages: parts of pages, pictures, and data for programs.
NO_PAGES = {
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/live",
    "/jobs/{job_id}/live",
    "/sweeps/{sweep_id}/live",
}
NO_PAGES |= {"/jobs/{job_id}/curve.svg", "/compare/curve.svg", "/shared/{secret}/curve.svg"}
NO_PAGES |= {"/shared/{secret}/jobs/{job_id}/metrics", "/leaderboard.csv", "/llms.txt"}
ALL_PAGES = {page.address for page in PAGES} | {"/deleted", "/shared/{secret}"}


def test_every_address_is_a_page_or_named_as_none(tmp_path: Path) -> None:
    routes = classification(create_app(Settings(data_dir=tmp_path), Database("sqlite://")))
    shown = {route[4:] for route in routes if route.startswith("GET /") and not route.startswith("GET /v1")}

    assert shown - NO_PAGES == ALL_PAGES, "a route that is neither in ALL_PAGES nor in NO_PAGES"
