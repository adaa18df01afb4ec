"""The list of all pages: the application takes their routes from it, the navigation its entries, tests the addresses.

A page is a module with its route and its view (a frozen dataclass that is read in one short session, which is closed
before a template is rendered), a template, a style sheet and, where it needs one, a script.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter

from api.web import (
    activity,
    bulk,
    checkpoints,
    compare,
    dataset,
    datasets,
    deletion,
    docs,
    job,
    jobs,
    keys,
    leaderboard,
    map,
    shares,
    sign_in,
    sweep,
    sweeps,
    timeline,
    troubleshooting,
    usage,
    weak_labels,
    webhooks,
    workers,
)
from api.web.forms import job_form, sweep_form
from api.web.render import NavigationEntry


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        address: the path of its route, with parameters in braces.
        router: the routes of the page, with those of its parts and buttons.
        title: the text of its entry in the navigation; a page without one has no entry.
        parts: the start of the addresses below which that entry is marked as current; the page's own if empty.
    """

    address: str
    router: APIRouter
    title: str = ""
    parts: str = ""

    @property
    def entry(self) -> NavigationEntry:
        return NavigationEntry(self.address, self.title, self.parts or f"{self.address}/")


PAGES = (
    Page("/", jobs.router, "Jobs", parts="/jobs/"),
    Page("/jobs/{job_id}", job.router),
    Page("/jobs/{job_id}/timeline", timeline.router),
    Page("/jobs/{job_id}/weak-labels", weak_labels.router),
    Page("/jobs/{job_id}/map", map.router),
    Page("/submit", job_form.router),
    Page("/sweeps", sweeps.router, "Sweeps"),
    Page("/sweeps/new", sweep_form.router),  # before `/sweeps/{sweep_id}`, which would match it
    Page("/sweeps/{sweep_id}", sweep.router),
    Page("/compare", compare.router, "Compare"),
    Page("/leaderboard", leaderboard.router, "Leaderboard"),
    Page("/checkpoints", checkpoints.router, "Checkpoints"),
    Page("/datasets", datasets.router, "Datasets"),
    Page("/datasets/{name}", dataset.router),
    Page("/workers", workers.router, "Workers"),
    Page("/change/{verb}", bulk.router),
    Page("/delete", deletion.router),
    Page("/shares", shares.router),
    Page("/webhooks", webhooks.router),
    Page("/activity", activity.router),
    Page("/keys", keys.router),
    Page("/usage", usage.router),
    Page("/docs", docs.router),
    Page("/troubleshooting", troubleshooting.router),
    Page("/sign-in", sign_in.router),
)
NAVIGATION = tuple(page.entry for page in PAGES if page.title)
