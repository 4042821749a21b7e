"""The player in Chromium: a seek shows the very frame that was asked for, and comments and versions stay with it."""

import io
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from phantom_s2v.studio import reviews, sign_in
from phantom_s2v.studio.schema import Video
from phantom_s2v.studio.web.view import SESSION, sign_cookie
from studio.rows import add_subject, add_video, mp4, set_policy

CHROMIUM = Path("/usr/bin/chromium")
FRAMES, BITS, CELL = 81, 7, 32
pytestmark = [pytest.mark.long, pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Debian's Chromium")]


def numbered(number: int, seed: int) -> np.ndarray:
    """A frame whose number is burnt in as black and white squares, over noise that differs from frame to frame."""
    rng = np.random.default_rng((seed, number))
    image = Image.fromarray(rng.integers(90, 160, (96, BITS * CELL, 3), np.uint8))
    drawn = ImageDraw.Draw(image)
    for bit in range(BITS):
        color = (255, 255, 255) if number >> bit & 1 else (0, 0, 0)
        drawn.rectangle((bit * CELL, 0, (bit + 1) * CELL - 1, CELL - 1), fill=color)
    return np.asarray(image)


@pytest.fixture
def films(studio):
    set_policy(studio)
    subject = add_subject(studio)
    values = {"num_frames": FRAMES, "fps": 16, "width": BITS * CELL, "height": 96, "score": {"verdicts": []}}
    contents = [mp4([numbered(number, seed) for number in range(FRAMES)], 23, 16) for seed in (1, 2)]
    return [add_video(studio, content, subjects=[subject], **values) for content in contents]


@pytest.fixture
def page(studio, served):
    from playwright.sync_api import sync_playwright

    with studio.writing() as session:
        cookie = sign_cookie(studio.settings, sign_in.begin_session(session, studio.people["reviewer"]))
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.add_cookies([{"name": SESSION, "value": cookie, "url": served}])
        opened, errors = context.new_page(), []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        opened.goto(served)
        assert opened.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=avc1.42E01E')") == "probably"
        yield opened
        assert errors == []
        browser.close()


def seen(page, which=0) -> int:
    """The number in the frame that is shown."""
    shot = page.locator(".screen video").nth(which).screenshot()
    image = np.asarray(Image.open(io.BytesIO(shot)).convert("L")).astype(float)
    width, height = image.shape[1] / BITS, image.shape[0] * CELL / 96
    places = [int((bit + 0.5) * width) for bit in range(BITS)]
    return sum(int(image[int(height / 2), place] > 128) << bit for bit, place in enumerate(places))


def wait(page, expression: str) -> None:
    """Until an expression is true; the page's policy forbids what Playwright's own waiting evaluates."""
    until = time.monotonic() + 20
    while not page.evaluate(expression):
        assert time.monotonic() < until, expression
        time.sleep(0.02)


def settled(page) -> None:
    page.wait_for_load_state()
    wait(page, "[...document.querySelectorAll('video')].every((v) => v.readyState >= 2 && !v.seeking && v.paused)")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_a_hundred_seeks_show_the_frame_that_was_asked_for(studio, served, films, page):
    page.goto(f"{served}/projects/{studio.project_id}/videos/{films[0]}/review")
    settled(page)
    rng, wrong = random.Random(0), []
    for number in [0, FRAMES - 1, *(rng.randrange(FRAMES) for _ in range(98))]:
        page.locator("#scrubber").evaluate("(e, n) => { e.value = n; e.dispatchEvent(new Event('input')); }", number)
        settled(page)
        if seen(page) != number or page.inner_text("#frame") != str(number):
            wrong.append((number, seen(page)))
    assert wrong == []
    for key, step in (("ArrowRight", 1), ("ArrowLeft", -1)):
        for _ in range(10):
            before = int(page.inner_text("#frame"))
            page.keyboard.press(key)
            settled(page)
            assert seen(page) == int(page.inner_text("#frame")) == max(0, min(FRAMES - 1, before + step))


def test_comments_versions_and_wipe_stay_in_the_address(studio, served, films, page, actor_of):
    with studio.writing() as session:
        reviews.comment(session, actor_of("maker"), session.get_one(Video, films[0]), "Look here.", 37, (0.5, 0.5))
    address = f"{served}/projects/{studio.project_id}/videos/{films[0]}/review"
    page.goto(f"{address}?with={films[1]}&wipe=30&frame=5")
    settled(page)
    assert (seen(page, 0), page.locator(".pin").count()) == (5, 0)
    page.locator("#marks a").click()
    settled(page)
    assert page.inner_text("#frame") == "37"
    assert page.locator(".pin").count() == 1
    wait(page, "location.search.includes('frame=37')")
    page.locator("#wipe-on").uncheck()
    settled(page)
    assert (seen(page, 0), seen(page, 1)) == (37, 37)
    assert "wipe" not in page.url
    page.reload()
    settled(page)
    assert (page.inner_text("#frame"), seen(page, 1)) == ("37", 37)
    page.keyboard.press("c")
    page.keyboard.type("Too dark c")
    page.locator("[data-screen=this]").click(position={"x": 20, "y": 40})
    page.get_by_role("button", name="Add the comment").click()
    settled(page)
    assert "Too dark c" in page.inner_text(".comments")
    assert page.inner_text("#frame") == "37"
    assert page.locator(".pin").count() == 2
