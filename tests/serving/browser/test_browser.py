"""The page in a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import CATEGORY_IDS, SIZE, encoded, picture, running, wait
from yolact.inference.predictor import Predictor

pytestmark = pytest.mark.slow

FOUND = re.compile(r"^\d+ objects?: ")
AXE = os.environ.get("YOLACT_TEST_AXE")
"""File ``axe.min.js`` of the package axe-core; `make test-page` fetches it."""


def upload(page: Any, data: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def status(page: Any, text: str | re.Pattern[str]) -> None:
    """Wait until the status says so."""
    expect(page.locator("#status"), text)


def alert(page: Any, text: str | re.Pattern[str]) -> None:
    expect(page.locator("#alert"), text)


def expect(locator: Any, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect as playwright_expect

    playwright_expect(locator).to_contain_text(text, timeout=15_000)


def pixels(page: Any, number: int = 0) -> np.ndarray:
    """What a canvas shows, (H, W, 4) uint8."""
    url = page.locator("#sides canvas").nth(number).evaluate("canvas => canvas.toDataURL()")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def show(page: Any, **parts: bool) -> None:
    for name, on in parts.items():
        page.locator(f"#{name}").set_checked(on)


def rows(page: Any) -> Any:
    return page.locator(".found li:visible")


def test_an_uploaded_image_shows_its_objects(page: Any) -> None:
    upload(page, encoded(picture()))
    status(page, FOUND)
    assert rows(page).count() > 0
    show(page, masks=False, labels=False)
    plain = pixels(page)[..., :3]
    reduced = Image.fromarray(plain).resize(SIZE, Image.Resampling.BOX)
    assert np.abs(np.array(reduced, int) - np.array(picture(), int)).mean() < 4  # the image itself
    show(page, masks=True)
    changed = (pixels(page)[..., :3] != plain).any(axis=2)
    assert 0.01 < changed.mean() < 0.99


def test_a_pasted_and_a_dropped_image_are_taken(page: Any) -> None:
    for event in ("paste", "drop"):
        page.evaluate(
            """async ([event, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], `by ${event}.png`, { type: "image/png" }));
              const made = event === "paste"
                ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
                : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
              document.body.dispatchEvent(made);
            }""",
            [event, list(encoded(picture()))],
        )
        page.locator(f"#sides canvas[aria-label^='by {event}']").wait_for()
        status(page, FOUND)
    page.evaluate(
        "document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer(), bubbles: true }))"
    )
    alert(page, "The clipboard has no image.")


def test_an_example_is_taken(page: Any) -> None:
    page.locator("#examples button").nth(1).click()
    page.locator("#sides canvas[aria-label^='example-2']").wait_for()
    assert page.locator("#examples button[aria-pressed=true]").count() == 1


def test_the_slider_filters_without_a_request(page: Any) -> None:
    upload(page, encoded(picture()))
    status(page, FOUND)
    sent = len(page.predictions)
    counts = []
    for value in (5, 40, 60, 95):
        page.locator("#threshold").fill(str(value))
        scores = page.locator(".found li:visible .score").all_inner_texts()
        assert all(int(score.split()[0]) >= value for score in scores)
        expect(page.locator("#threshold-shown"), f"{value} %")
        counts.append(len(scores))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    status(page, re.compile("^No object has this score|^[0-9]+ object"))
    assert len(page.predictions) == sent


def test_an_object_is_hidden_and_lit_by_pointer_and_focus(page: Any) -> None:
    upload(page, encoded(picture()))
    status(page, FOUND)
    show(page, labels=False)
    every = pixels(page)
    box = rows(page).first.locator("input")
    box.hover()
    assert page.locator(".found li.lit").count() == 1
    box.uncheck()  # the pointer and the focus stay
    assert page.locator(".found li.lit").count() == 0
    assert (pixels(page) != every).any()
    box.check()
    page.mouse.move(0, 0)
    page.locator("#masks").focus()
    np.testing.assert_array_equal(pixels(page), every)
    rows(page).first.hover()
    assert page.locator(".found li.lit").count() == 1
    assert (pixels(page) != every).any()
    page.mouse.move(0, 0)
    assert page.locator(".found li.lit").count() == 0
    page.locator("#sides canvas").scroll_into_view_if_needed()
    canvas = page.locator("#sides canvas").bounding_box()
    lit = set()
    for number in range(100):
        x, y = (number % 10 + 0.5) / 10, (number // 10 + 0.5) / 10
        page.mouse.move(canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"])
        lit.add(page.locator(".found li.lit").count())
    assert lit == {0, 1}


def test_a_tapped_object_stays_lit_until_the_next_tap(phone_page: Any, model_dir: Path, tmp_path: Path) -> None:
    page = phone_page
    found = Predictor.load(model_dir, device="cpu").predict(np.array(picture()))
    shown = int((found.scores >= 0.3).sum())  # the slider's first value
    hit = np.full(SIZE[::-1], -1)
    for number in reversed(range(shown)):  # of masks that overlap, the best one's is hit
        hit[found.masks[number].numpy()] = number
    one, other = (int(number) for number in np.unique(hit[hit >= 0])[:2])

    def tap(number: int) -> None:
        """On a pixel of an object; -1 for one of none."""
        canvas = page.locator("#sides canvas")
        canvas.scroll_into_view_if_needed()
        frame = canvas.bounding_box()
        row, column = np.argwhere(hit == number)[0]
        x, y = (column + 0.5) / SIZE[0] * frame["width"], (row + 0.5) / SIZE[1] * frame["height"]
        page.touchscreen.tap(frame["x"] + x, frame["y"] + y)

    def lit() -> list[int]:
        flags = page.locator(".found li").evaluate_all("rows => rows.map((row) => row.classList.contains('lit'))")
        return [number for number, flag in enumerate(flags) if flag]

    upload(page, encoded(picture()))
    status(page, FOUND)
    plain = pixels(page)
    tap(one)
    assert lit() == [one]
    assert (pixels(page) != plain).any()
    tap(other)
    assert lit() == [other]
    tap(-1)
    assert lit() == []
    for _ in range(2):  # hidden and shown again; the box keeps the focus
        page.locator(".found li").nth(other).locator("input").tap()
    tap(one)
    assert lit() == [one]
    page.locator("#results-title").tap()
    assert lit() == []
    tap(one)
    with page.expect_download() as download:
        page.locator("#save-png").tap()
    download.value.save_as(tmp_path / "saved.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "saved.png").convert("RGBA"), plain)
    tap(other)
    page.locator("#threshold").fill("95")
    page.locator("#threshold").fill("30")
    assert lit() == []
    np.testing.assert_array_equal(pixels(page), plain)


def test_champion_and_candidate_stand_side_by_side(page: Any) -> None:
    upload(page, encoded(picture()))
    status(page, FOUND)
    page.locator("#threshold").fill("5")
    page.locator("#compare").check()
    status(page, "Candidate:")
    assert page.locator("#sides canvas").count() == 2
    text = page.locator("#differences").inner_text()
    both, champion, candidate = (int(number) for number in re.findall(r": (\d+)\.", text))
    assert champion + candidate > 0
    sides = page.locator(".side")
    for number, own in enumerate((champion, candidate)):
        assert sides.nth(number).locator(".found li:visible").count() == both + own
        assert sides.nth(number).locator(".found li.different:visible").count() == own
    assert (pixels(page, 0) != pixels(page, 1)).any()
    page.locator("#compare").uncheck()
    status(page, FOUND)
    assert page.locator("#sides canvas").count() == 1


@pytest.mark.parametrize("which", ["text", "truncated", "large", "megapixels"])
def test_files_that_cannot_be_used_are_explained(page: Any, tmp_path: Path, which: str) -> None:
    data, reason = {
        "text": (b"no image", "is not a JPEG, PNG, WebP, GIF or BMP image"),
        "truncated": (encoded(picture())[:200], "This image cannot be used"),
        "large": (b"\xff\xd8" + bytes(33_000_000), "is too large: 33.0 MB; the server takes 32 MB"),
        "megapixels": (encoded(Image.new("1", (9000, 9000))), "81.0 megapixels"),
    }[which]
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    page.set_input_files("#file", path)
    alert(page, reason)
    assert not page.locator("#results").is_visible()
    upload(page, encoded(picture()))
    status(page, FOUND)
    expect(page.locator("#alert"), "")


def test_an_image_of_40_megapixels_is_shown_reduced(page: Any, tmp_path: Path) -> None:
    picture((8000, 5000)).save(tmp_path / "large.jpg", quality=80)
    page.set_input_files("#file", tmp_path / "large.jpg")
    status(page, re.compile("object"))
    assert pixels(page).shape == (1000, 1600, 4)


def test_the_page_goes_on_when_the_server_is_back(chromium: Any, model_dir: Path) -> None:
    page = chromium.new_page()
    page.set_default_timeout(15_000)
    with running(model=str(model_dir)) as server:
        port = int(server.address.rpartition(":")[2])
        page.goto(server.address)
        upload(page, encoded(picture()))
        status(page, FOUND)
    upload(page, encoded(picture()), "second.png")
    alert(page, "The server does not answer. The page goes on when it is back.")
    with running(model=str(model_dir), port=port):
        status(page, re.compile(r"^The server is back\. \d+ object"))
        assert page.locator("#sides canvas[aria-label^='second.png']").count() == 1
        page.close()


def test_a_busy_server_is_asked_again(page: Any) -> None:
    answers = iter([429, 429])

    def handle(route: Any) -> None:
        code = next(answers, None)
        if code is None:
            route.continue_()
        else:
            route.fulfill(status=code, headers={"Retry-After": "1"}, json={"error": "the queue is full"})

    page.route("**/predict?*", handle)
    upload(page, encoded(picture()))
    alert(page, "The server is busy. Trying again in 1 s.")
    status(page, FOUND)
    assert len(page.predictions) == 3


def test_a_candidate_that_is_not_loaded_is_explained_and_the_champion_stays(page: Any) -> None:
    upload(page, encoded(picture()))
    status(page, FOUND)
    page.route(
        "**/predict?*candidate=true",
        lambda route: route.fulfill(status=503, json={"error": "the candidate is not loaded yet"}),
    )
    page.locator("#compare").click()
    alert(page, "The server could not load its candidate yet")
    assert not page.locator("#compare").is_checked()
    assert page.locator("#sides canvas").count() == 1


def test_the_token_is_asked_for_and_kept_in_the_tab_only(chromium: Any, model_dir: Path) -> None:
    page = chromium.new_page()
    page.set_default_timeout(15_000)
    with running(model=str(model_dir), token="secret") as server:
        page.goto(server.address)
        for token, message in (("wrong", "The server needs a token."), ("secret", "")):
            page.locator("#token").wait_for()
            page.locator("#token-text").fill(token)
            page.keyboard.press("Enter")
            alert(page, message)
        page.locator("#model dl").first.wait_for()
        upload(page, encoded(picture()))
        status(page, FOUND)
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.close()


def test_everything_can_be_done_by_keyboard(page: Any, tmp_path: Path) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    # Playwright takes over file choosers from the first listener on, but does not wait until the browser does so.
    page.on("filechooser", lambda _: None)
    page.locator("#examples li:nth-child(2) button").wait_for()  # until then the scripts may not listen yet
    tab_to("#pick")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    path = tmp_path / "key.png"
    path.write_bytes(encoded(picture()))
    chooser.value.set_files(path)
    status(page, FOUND)
    page.evaluate("document.activeElement.blur()")
    tab_to("#examples li:nth-child(2) button")
    page.keyboard.press("Enter")
    page.locator("#sides canvas[aria-label^='example-2']").wait_for()
    tab_to("#threshold")
    page.keyboard.press("Home")
    expect(page.locator("#threshold-shown"), "5 %")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#threshold-shown"), "6 %")
    tab_to("#masks")
    page.keyboard.press("Space")
    assert not page.locator("#masks").is_checked()
    tab_to("#save-coco")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "example-2.json"
    tab_to(".found li input")
    assert page.locator(".found li.lit").count() == 1
    page.keyboard.press("Space")
    assert not page.locator(".found li input").first.is_checked()
    tab_to(".found li button")
    page.keyboard.press("Enter")
    status(page, "Thank you.")


def test_downloads_hold_what_is_shown(page: Any, tmp_path: Path) -> None:
    upload(page, encoded(picture()), "my image.png")
    status(page, FOUND)
    page.locator("#threshold").fill("30")
    shown = rows(page).count()
    files = {}
    for name in ("png", "coco", "yolo"):
        with page.expect_download() as download:
            page.locator(f"#save-{name}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        files[name] = path
    assert [path.name for path in files.values()] == ["my image.png", "my image.json", "my image.txt"]
    width, height = Image.open(files["png"]).size
    assert width / SIZE[0] == height / SIZE[1] >= 1
    found = json.loads(files["coco"].read_text())
    assert len(found) == shown
    assert [row["category_id"] for row in found] == [CATEGORY_IDS[row["category_name"]] for row in found]
    lines = files["yolo"].read_text().splitlines()
    assert len(lines) == shown
    assert all(0 <= float(value) <= 1 for line in lines for value in line.split()[1:])


def test_a_wrong_object_and_a_wrong_result_are_stored(page: Any, feedback_dir: Path) -> None:
    before = set(feedback_dir.glob("*.json"))
    upload(page, encoded(picture()))
    status(page, FOUND)
    shown = rows(page).count()
    rows(page).first.get_by_role("button").click()
    status(page, "Thank you. It is stored for 30 days.")
    page.locator("#wrong-image").click()
    wait(lambda: len(set(feedback_dir.glob("*.json")) - before) == 2)
    trees = [json.loads(path.read_text()) for path in set(feedback_dir.glob("*.json")) - before]
    counts = sorted((len(tree["rejected"]), len(tree["annotations"])) for tree in trees)
    assert counts == sorted([(1, shown - 1), (shown, 0)])


def test_the_model_is_described(page: Any) -> None:
    expect(page.locator("#model"), "Classes")
    expect(page.locator("#model"), "disc, box, bar")
    assert page.locator("#model h3").first.inner_text() == "Model"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_axe_finds_nothing_serious(page: Any, scheme: str, width: int) -> None:
    if AXE is None:
        pytest.skip("YOLACT_TEST_AXE does not name axe-core's axe.min.js; `make test-page` fetches it")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    for step in ("start", "objects", "compared"):
        if step == "objects":
            upload(page, encoded(picture()))
            status(page, FOUND)
        elif step == "compared":
            page.locator("#compare").check()
            status(page, "Candidate:")
            page.locator("summary").first.click() if page.locator("summary").count() else None
        page.evaluate(Path(AXE).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 10
        serious = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]]
        assert serious == [], step
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the screen"
