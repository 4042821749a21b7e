"""The raters' page in a real browser, against a real server."""

import shutil
import socket
import sqlite3
import threading
import time

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import sync_playwright

from phantom_s2v.evaluation import rating
from phantom_s2v.evaluation.pairs import find_pairs
from phantom_s2v.evaluation.votes import links
from phantom_s2v.media import images

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def served(tmp_path):
    """The address of a server with two comparisons, and its votes."""
    for system, shade in (("a", 40), ("b", 200)):
        (tmp_path / system).mkdir()
        for case in ("one", "two"):
            images.write_video(tmp_path / system / f"{case}.mp4", np.full((8, 64, 64, 3), shade, np.uint8), 8)
    pairs = find_pairs([tmp_path / "a", tmp_path / "b"], {"one": ("A gray field.", ())})
    app = rating.application(pairs, tmp_path / "votes.sqlite")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:  # a port that nobody else can take before the server has it
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        secret = links(tmp_path / "votes.sqlite", ["Ayşe"])["Ayşe"]
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/rate/{secret}", tmp_path / "votes.sqlite"
        server.should_exit = True
        thread.join()


def wait_for_videos(page):
    """Until every video of the page can be played. wait_for_function would use eval, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate("[...document.querySelectorAll('video')].every(v => v.readyState >= 2)"):
            return
        page.wait_for_timeout(50)
    pytest.fail("the videos did not load in 10 s")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_rater_votes_in_a_browser(served):
    address, file = served
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        for number in (1, 2):
            page.get_by_role("heading", name=f"Comparison {number} of 2").wait_for()
            wait_for_videos(page)
            assert page.locator("video").count() == 2
            page.get_by_role("button", name="Next").click()  # nothing chosen: the browser does not let it pass
            page.get_by_role("heading", name=f"Comparison {number} of 2").wait_for()
            page.locator("fieldset").first.get_by_label("right").check()
            page.get_by_role("button", name="Next").click()
        page.get_by_role("heading", name="Thank you").wait_for()
        browser.close()
    rows = sqlite3.connect(file).execute("select rater, case_id, choice from votes where question = 'better'").fetchall()
    assert {(rater, case) for rater, case, _ in rows} == {("Ayşe", "one"), ("Ayşe", "two")}
    assert all(choice in ("a", "b") for _, _, choice in rows)
