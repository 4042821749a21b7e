"""Reports in a real browser, at the widths of a desktop and of a phone, and on paper."""

import shutil

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from phantom_s2v.evaluation.compare import Change, Comparison
from phantom_s2v.evaluation.instruments import Thresholds
from phantom_s2v.evaluation.reports.comparison import write_comparison, write_votes
from phantom_s2v.evaluation.reports.score import Scored, ScorePage
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media import images

CHROMIUM = shutil.which("chromium")
LONG = "a" * 180 + "<script>alert(1)</script>"


@pytest.fixture
def reports(tmp_path):
    """One report of each kind, with a video in two of them."""
    video = tmp_path / "v.mp4"
    images.write_video(video, np.full((24, 96, 160, 3), 128, np.uint8), 12)
    over_time = [0.9, 0.4, -1.0]
    subject = SubjectScore(LONG, 0.4, 0.4, 8, 0.6, 0.2, 8, 0.6, 0.0, 0.3, 0.0, [], over_time=over_time)
    score = VideoScore([subject], 0.0, 1.5, 0.0, 0.01, 0.99, 120.0, [0, 8, 16], not_measured={"text": f"no {LONG}"})
    frames = {i: np.full((270, 480, 3), 9 * i, np.uint8) for i in (0, 8, 16)}
    page = ScorePage(Thresholds(), {"similarity": "efficientnet-lite0"})
    reference = np.full((500, 200, 3), 200, np.uint8)
    page.add(Scored(LONG, frames, [reference], score, {"other subject": [LONG]}, [], "", {0: 0.0, 8: 0.7, 16: 1.3}, video))
    page.add(Scored("broken.mp4", {}, [], None, {}, [], LONG))
    page.write(tmp_path / "scores.html", [])
    rows = [Comparison(name, LONG, "one", LONG, 12, 0.5, 0.6, 0.1, 0.02, 0.2, 9, 3) for name in ("similarity", "clip_i_seg_min")]
    change = Change(LONG, ("one", LONG), (0.2, 0.7), (video, None), ("missing", "no fault"))
    write_comparison(tmp_path / "comparison.html", rows, [LONG], [change])
    row = {"first": "one", "second": LONG, "question": "better", "cases": 9, "raters": 2, "first_wins": 14, "second_wins": 3,
           "equal": 1, "second_share": 0.19, "interval": [0.05, 0.35], "agreement": 0.7}  # fmt: skip
    write_votes(tmp_path / "votes.html", [row], {})
    return [tmp_path / f"{name}.html" for name in ("scores", "comparison", "votes")]


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_reports_fit_a_desktop_and_a_phone_and_their_videos_play(reports):
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1280, 375):
            page = browser.new_page(viewport={"width": width, "height": 800})
            notices, asked = [], []
            page.on("console", lambda message, kept=notices: kept.append(message.text))
            page.on("request", lambda request, kept=asked: kept.append(request.url[:40]))
            for report in reports:
                page.goto(report.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, report.name
                faces = "[...document.querySelectorAll('.row:not(.small) figure img:not(.paper)')]"
                faces += ".map(i => Math.max(i.width, i.height))"
                assert all(size >= 240 for size in page.evaluate(faces)), report.name
                letters = "[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height)"
                assert all(size >= 9 for size in page.evaluate(letters)), report.name
            assert not notices
            assert all(url.startswith(("file:", "data:")) for url in asked)
            page.goto(reports[0].as_uri())
            assert page.evaluate("document.querySelector('video').play().then(() => true)")
            for _ in range(200):  # wait_for_function would use eval, which the page's policy forbids
                if page.evaluate("document.querySelector('video').currentTime") > 0.2:
                    break
                page.wait_for_timeout(50)
            else:
                pytest.fail("the video did not play in 10 s")
        browser.close()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_printed_report_is_dark_on_white_and_keeps_rows_whole(reports):
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark")
        page.goto(reports[0].as_uri())
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(media="print")
        color = "getComputedStyle(document.body)"
        assert dark != page.evaluate(f"{color}.backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate(f"{color}.color") == "rgb(0, 0, 0)"
        kept = page.evaluate("[...document.querySelectorAll('tr, figure, svg.chart')].map(e => getComputedStyle(e).breakInside)")
        assert set(kept) == {"avoid"}
        assert page.pdf(format="A4").startswith(b"%PDF")
        browser.close()
