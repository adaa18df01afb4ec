"""Hardware metrics on the page of a job, and why some are missing."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.api.web.conftest import Visitor
from tests.api.web.served import Site

CPU = {"system/cpu_percent": 180.5, "system/process_memory_mib": 612.0, "train/images_per_second": 900.0}
GPU = CPU | {"system/gpu_memory_mib": 3072.0}


@pytest.mark.parametrize("scripts", [True, False])
def test_measurements_stand_apart_and_absent_ones_are_explained(visitor: Visitor, site: Site, scripts: bool) -> None:
    run = site.running("on a CPU")
    run.report({"type": "started", "start_step": 0, "device": "cpu AVX2", "torch": "2.11.0", "threads": 1})
    page = visitor.window(f"/jobs/{run.job_id}", scripts=scripts)
    section = page.locator("#hardware")
    expect(section).to_contain_text("Metrics appear with the first report.")

    for step in (1, 2):
        run.report({"type": "metrics", "step": step, "values": {"train/loss": 3.0, **CPU}})
    run.end()
    if not scripts:
        page.reload()
        expect(section.get_by_role("img")).to_have_count(3)
        expect(page.locator("#curves").get_by_role("img", name="Curve of Loss")).to_be_visible()
        expect(page.locator("#curves").get_by_role("img")).to_have_count(1)
    else:
        expect(section.locator("figure[data-metrics='system/cpu_percent']")).to_contain_text("180.5")
        expect(section.locator("figure[data-metrics='train/images_per_second']")).to_contain_text("900")
        expect(section.get_by_role("heading", name="Process memory, MiB")).to_be_visible()
        expect(page.locator("#charts figure")).to_have_count(1)
    expect(section).to_contain_text("This job trains on the CPU, so there are no GPU metrics.")
    expect(section).not_to_contain_text("NVML")
    expect(section).not_to_contain_text("/proc")
    page.get_by_role("navigation", name="Sections").get_by_role("link", name="Hardware").click()
    assert page.url.endswith("#hardware")


def test_a_print_has_the_charts_that_were_never_on_the_screen(visitor: Visitor, site: Site) -> None:
    run = site.running("printed")
    run.start()
    run.report({"type": "metrics", "step": 1, "values": {"train/loss": 3.0, **CPU}})
    run.end()
    page = visitor.window()
    page.set_viewport_size({"width": 1440, "height": 200})
    page.goto(f"/jobs/{run.job_id}")
    expect(page.locator("#hardware figure.chart")).to_have_count(3)
    unseen = page.locator("figure.chart:not([data-seen])")
    assert unseen.count() > 0, "no chart is below the screen"

    page.evaluate("() => void dispatchEvent(new Event('beforeprint'))")

    expect(unseen).to_have_count(0)
    expect(page.locator("#hardware figure.chart canvas")).to_have_count(3)


def test_missing_gpu_metrics_are_explained(visitor: Visitor, site: Site) -> None:
    site.submit("on a GPU", processes=2)
    run = site.claim()
    run.report({"type": "started", "start_step": 0, "device": "NVIDIA A10", "torch": "2.11.0", "threads": 1})
    run.report({"type": "metrics", "step": 1, "values": GPU})
    page = visitor.window(f"/jobs/{run.job_id}", scripts=False)
    sentences = page.locator("#hardware-missing")
    expect(sentences).to_contain_text("GPU utilisation is not available: install nvidia-ml-py")
    expect(sentences).to_contain_text("The metrics are of the first of 2 processes.")

    run.report({"type": "metrics", "step": 2, "values": GPU | {"system/gpu_percent": 93.0}})
    run.end()
    page.reload()
    expect(sentences).not_to_contain_text("NVML")


def test_an_ended_job_without_hardware_metrics_has_no_hardware_section(visitor: Visitor, site: Site) -> None:
    run = site.running("of an older worker")
    run.start()
    run.losses([1])
    run.end()
    page = visitor.window(f"/jobs/{run.job_id}")

    expect(page.locator("#charts figure")).to_have_count(1)
    expect(page.locator("#hardware")).to_have_count(0)
    expect(page.get_by_role("link", name="Hardware")).to_have_count(0)
