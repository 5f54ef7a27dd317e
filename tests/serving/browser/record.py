"""Make the pictures of the page for the documentation.

    python -m tests.serving.browser.record MODEL [--candidate MODEL] [--output docs]

Serves the model, operates the page in Chromium, and writes ``serving-page.gif``, and with a candidate
``serving-page.jpg``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from serving.server import Server
from tests.serving.browser.conftest import FLAGS, PROGRAM
from tests.serving.conftest import running, wait
from yolact.files import write_bytes_atomic

SIZE = {"width": 900, "height": 760}
WIDTH = 640
"""Of the GIF, pixels."""


class Recording:
    """Frames of a page with how long each is shown."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def shoot(self, milliseconds: int) -> None:
        """Add what the page shows now."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(shot.resize((WIDTH, WIDTH * shot.height // shot.width), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def encoded(self) -> bytes:
        """A GIF that repeats, with one palette for all frames, so that colours do not flicker."""
        sheet = Image.new("RGB", (WIDTH, sum(frame.height for frame in self.frames)))
        for number, frame in enumerate(self.frames):
            sheet.paste(frame, (0, number * frame.height))
        palette = sheet.quantize(255)
        first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=rest, duration=self.times, loop=0, optimize=True)
        return buffer.getvalue()


def operate(page: Any) -> bytes:
    """Hide low scores of an example, and light the objects of another one after the other; returns the GIF."""
    made = Recording(page)
    page.wait_for_load_state("networkidle")  # the examples
    made.shoot(1000)
    _take(page, 4)
    made.shoot(1200)
    for value in (35, 45, 60, 75, 90, 75, 60, 45, 30):
        page.locator("#threshold").fill(str(value))
        made.shoot(250)
    _take(page, 1)
    made.shoot(1200)
    for number in range(min(3, page.locator(".found li:visible").count())):
        page.locator(".found li:visible").nth(number).hover()
        made.shoot(700)
    page.mouse.move(0, 0)
    page.locator("#masks").uncheck()
    made.shoot(700)
    page.locator("#masks").check()
    page.locator("#boxes").check()
    made.shoot(1000)
    return made.encoded()


def _take(page: Any, number: int) -> None:
    page.locator("#examples button").nth(number).click()
    page.mouse.move(0, 0)  # over the image it would light an object
    page.locator(f"#sides canvas[aria-label^='example-{number + 1}']").wait_for()
    page.locator(".found li:visible").first.wait_for()
    page.evaluate("document.querySelector('#results').scrollIntoView()")


def compare(page: Any) -> bytes:
    """An example with champion and candidate side by side; returns a JPEG of the whole page."""
    page.locator("#examples button").nth(1).click()
    page.locator(".found li:visible").first.wait_for()
    page.locator("#compare").check()
    page.locator("#sides canvas").nth(1).wait_for()
    page.locator("#differences").get_by_text("object").wait_for()
    shot: bytes = page.screenshot(full_page=True, type="jpeg", quality=85)
    return shot


def record(server: Server, output: Path, *, with_candidate: bool) -> None:
    """Operate the page of a server and write the pictures."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=PROGRAM, headless=True, args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        page.goto(server.address)
        page.locator("#examples button").first.wait_for()
        write_bytes_atomic(output / "serving-page.gif", operate(page))
        if with_candidate:
            page.reload()
            page.locator("#examples button").first.wait_for()
            write_bytes_atomic(output / "serving-page.jpg", compare(page))
        browser.close()


def main() -> None:
    """Serve, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--candidate")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    given = parser.parse_args()
    with running(model=given.model, candidate=given.candidate) as server:
        candidate = server.service.candidate
        if candidate is not None:
            wait(lambda: candidate.model is not None)
        record(server, given.output, with_candidate=candidate is not None)


if __name__ == "__main__":
    main()
