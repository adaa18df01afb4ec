"""The screenshot of the README: a real training run in a real browser.

    ./run up                                                        # in another terminal
    python docs/screenshot.py --output docs/images/job.png

Without --job it trains the preset `digits-cpu` for all its epochs, about a minute on one CPU thread.  It needs
Playwright and Chromium, which `./run test` installs.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from wcl_client import WclClient

_MAX_BYTES = 200_000
_BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Train if no job is named, then write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", help="id of a job that has ended")
    parser.add_argument("--output", type=Path, default=Path("docs/images/job.png"))
    parser.add_argument("--height", type=int, default=954, help="pixels of the page that the picture shows")
    options = parser.parse_args()
    with WclClient.connect() as wcl:
        job_id = options.job or wcl.submit("pretrain", preset="digits-cpu", name="WCL on digits", tags=["readme"])["id"]
        job = wcl.wait(job_id)
        if options.job is None:
            evaluation = wcl.evaluate(wcl.checkpoints(job_id)[-1]["id"])
            wcl.wait(evaluation["id"])
        photograph(wcl.sign_in_link(), wcl.url + job["links"]["page"], options.output, options.height)
    print(f"{options.output}: {options.output.stat().st_size} bytes")


def photograph(sign_in_link: str, address: str, output: Path, height: int) -> None:
    """Open the page as a signed-in user and write what a window of this height shows.

    Raises:
        ValueError: the file is larger than a README should load.
    """
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, _BROWSERS)), None)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu", *sandbox])
        page = browser.new_page(viewport={"width": 1200, "height": height}, reduced_motion="reduce")
        page.goto(sign_in_link)
        page.wait_for_url(lambda url: "/sign-in" not in url)  # the link leads to the first page
        page.goto(address)
        page.wait_for_selector("canvas")
        page.wait_for_timeout(1500)  # all charts in sight are drawn
        output.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=output)
        browser.close()
    shrink(output)
    if (size := output.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{output} has {size} bytes; expected at most {_MAX_BYTES}. Use a smaller --height.")


def shrink(path: Path) -> None:
    """Reduce the picture to 256 colours, which a page of text and lines does not show."""
    from PIL import Image

    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


if __name__ == "__main__":
    main()
