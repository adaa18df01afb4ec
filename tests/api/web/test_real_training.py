"""A real job from submission to download, with server, worker and training started by `wcl up`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.acceptance.service import SHORT_SPEC, Service, submit_when_ready
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(360)


def test_a_real_run_is_seen_from_submit_to_download(browser: Browser, tmp_path: Path) -> None:
    service = Service(tmp_path / "data")
    service.start()
    context = browser.new_context()
    try:
        with service.client() as client:
            page = context.new_page()
            page.goto(client.sign_in_link())
            expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()

            job = submit_when_ready(client, SHORT_SPEC | {"epochs": 8, "knn_every_epochs": 4}, name="a real run")
            page.get_by_role("link", name="a real run").first.click(timeout=30_000)
            chart = page.locator("figure[data-metrics='train/loss']")
            expect(chart).to_be_visible(timeout=60_000)
            early = int(chart.get_attribute("data-points") or 0)
            eventually(lambda: int(chart.get_attribute("data-points") or 0) > early, "a longer curve")

            expect(page.locator("#run-summary .status.pill")).to_have_text("succeeded", timeout=120_000)
            groups = client.weak_groups(job["id"])
            assert groups["epochs"] == list(range(1, 9))
            page.get_by_role("link", name="Weak labels").click()
            expect(page.locator(".group")).to_have_count(groups["num_groups"])
            expect(page.locator(".bars a")).to_have_count(8)
            assert page.locator(".group a.thumb").count() == groups["num_images"]
            assert (groups["pair_precision"] or 0) > 2 * (groups["pair_precision_chance"] or 1)
            page.go_back()

            last = client.checkpoints(job["id"])[-1]
            expect(page.locator("#checkpoints tbody tr").first).to_contain_text(last["sha256"][:12])
            expect(chart).to_have_attribute("data-step", str(last["step"]))
            for name in ("full checkpoint", "weights"):
                with page.expect_download() as started:
                    page.locator("#checkpoints tbody tr").first.get_by_role("link", name=name).click()
                started.value.save_as(tmp_path / name)
            assert hashlib.sha256((tmp_path / "full checkpoint").read_bytes()).hexdigest() == last["sha256"]
            assert (tmp_path / "weights").stat().st_size > 0
            with page.expect_download() as started:
                page.get_by_role("link", name="Download weights").click()
            assert started.value.path().read_bytes() == (tmp_path / "weights").read_bytes()
            expect(page.locator("#hardware figure[data-metrics='system/cpu_percent']")).to_be_visible()

            page.get_by_role("button", name=f"Create map of step {last['step']}").click()
            page.wait_for_url(lambda url: job["id"] not in url)
            expect(page.locator("#run-summary .status.pill")).to_have_text("succeeded", timeout=120_000)
            page.get_by_role("navigation", name="Sections").get_by_role("link", name="Map").click()
            count = client.datasets()[0]["counts"]["test"]
            expect(page.locator("#stage")).to_have_attribute("data-drawn", str(count))
            expect(page.get_by_role("link", name="Weak label")).to_be_visible()
            page.get_by_role("link", name="digits").click()
            expect(page.locator(".classes .samples")).to_have_count(10)
            expect(page.locator("#runs tbody tr")).to_have_count(2)
    finally:
        context.close()
        service.stop()
