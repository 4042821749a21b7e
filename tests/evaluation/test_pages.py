"""Pages have the elements, attributes and words of tests/evaluation/pages, whatever their templates do with white space."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from phantom_s2v.data.pipeline import report as data_report
from phantom_s2v.data.pipeline.config import Config
from phantom_s2v.data.pipeline.index import png
from phantom_s2v.evaluation.compare import Comparison, write_comparison
from phantom_s2v.evaluation.kpi import Kpi, Verdict
from phantom_s2v.evaluation.reports.score import Scored, ScorePage
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media import images

PAGES = Path(__file__).parent / "pages"
ODD = "<b>\"A\" & 'b'"


class Seen(HTMLParser):
    """The events of a page, one a line; images and styles without their content, white space as a browser shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def handle_starttag(self, tag, attrs):
        kept = (f"{name}={value}" for name, value in attrs)
        self.lines.append(re.sub(r"base64,\S+", "base64", " ".join([f"<{tag}", *kept])))

    def handle_endtag(self, tag):
        self.lines.append(f"</{tag}")

    def handle_data(self, data):
        if words := " ".join(data.split()):
            self.lines.append(words)

    def handle_comment(self, data):
        self.lines.append("<!-- " + data.split()[0])


def seen(page: str) -> str:
    parser = Seen()
    parser.feed(page)
    return "\n".join(parser.lines) + "\n"


def scores(path):
    subject = SubjectScore(ODD, 0.5, 0.1, 4, 0.6, 0.2, 8, 0.75, 0.0, 0.3, 0.0, [8], clip_i=0.7, face=0.4, face_min=0.3,
                           face_min_frame=4, face_seen=0.5, reconstruction=28.5, over_time=[0.5, 0.1, -1.0])  # fmt: skip
    never = SubjectScore("cat", float("nan"), 0, 0, 0.1, 0, 0, 0.0, 0, 0, 0, [], over_time=[-1, -1, -1])
    frames = {i: np.full((20, 30, 3), 9 * i, np.uint8) for i in (0, 4, 8)}
    found = VideoScore([subject, never], 0.0, 1.5, 0.0, 0.01, 0.99, 120.0, [0, 4, 8], text=0.3, notes=[f"looked at {ODD}"],
                       not_measured={"aesthetic": f"no {ODD}"})  # fmt: skip
    verdicts = [
        Verdict(Kpi("similarity", ODD, 0.6), 0.5, False),
        Verdict(Kpi("flicker", "steady", 0.0, 0.1), 0.01, True),
        Verdict(Kpi("text", "asked", 0.2), None, None),
    ]
    references = [np.full((8, 9, 3), 200, np.uint8)] * 2
    page = ScorePage()
    page.add(Scored("good & short", frames, references, found, {}, []))
    page.add(Scored(f"{ODD}.mp4", frames, references, found, {"absent": [ODD, "cat"], "flicker": [""]}, verdicts))
    page.add(Scored("broken.mp4", {}, [], None, {}, [], f"truncated {ODD}"))
    page.write(path, [f"measured with {ODD}"])


def comparison(path):
    rows = [
        Comparison("similarity", ODD, "one", ODD, 12, 0.5, 0.625, 0.125, 0.02, 0.2, 9, 3),
        Comparison("motion_fb", "", "one", ODD, 12, 1.5, 1.25, -0.25, -0.6, 0.1, None, None),
    ]
    write_comparison(path, rows, [f"text of {ODD} is not compared"])


class Index:
    """What a report reads of the index of a build."""

    def rows(self, name, columns):
        return iter([{"drop": "", "facts": '{"subjects": [1, 2]}', "still": b""}, {"drop": "dark", "facts": "{}", "still": b""}])

    def source_videos(self):
        return iter([
            {"drop": "", "path": "a.mp4", "notices": []},
            {"drop": "truncated", "path": f"{ODD}.mp4", "notices": ["rotated", ODD]},
        ])  # fmt: skip

    def subjects(self, ids):
        image = png(np.full((20, 30, 3), 90, np.uint8))
        return {each: {"views": [{"image": image}] * 3} for each in ids}


def report(path):
    pair = {"subject": "a", "partner": "b", "similarity": 0.9, "sameness": 0.5, "drop": ""}
    pairs = [pair, {**pair, "partner": "c", "sameness": 0.99, "drop": "near-duplicate"}, {**pair, "similarity": 0.2, "drop": ODD}]
    data_report.write_report(path, Index(), iter(pairs), 7, {"shots": 1.25}, Config(lower=0.85))


def empty_report(path):
    index = Index()
    index.rows = index.source_videos = lambda *_: iter(())
    data_report.write_report(path, index, iter(()), 0, {}, Config(lower=0.85))


@pytest.mark.parametrize("make", [scores, comparison, report, empty_report])
def test_a_page_has_the_elements_it_had(tmp_path, make, monkeypatch):
    monkeypatch.setattr(data_report, "BINS", 4)
    make(tmp_path / f"{make.__name__}.html")
    assert seen((tmp_path / f"{make.__name__}.html").read_text()) == (PAGES / f"{make.__name__}.txt").read_text()


def test_a_page_of_rating_has_the_elements_it_had(tmp_path):
    fastapi = pytest.importorskip("fastapi.testclient")
    from phantom_s2v.evaluation import rating

    for name in ("one.mp4", "two.mp4"):
        images.write_video(tmp_path / name, np.zeros((5, 32, 32, 3), np.uint8), 8)
    reference = tmp_path / "r.png"
    reference.write_bytes(png(np.full((8, 9, 3), 200, np.uint8)))
    pair = rating.Pair("case", "one", "two", (tmp_path / "one.mp4", tmp_path / "two.mp4"), ODD, (reference,))
    secret = rating.links(tmp_path / "votes.sqlite", ["ann"])["ann"]
    app = rating.application([pair], tmp_path / "votes.sqlite")
    with fastapi.TestClient(app, base_url="http://localhost") as client:
        ballot = client.get(f"/rate/{secret}").text.replace(secret, "SECRET")
        client.post(f"/rate/{secret}/vote/0", data={"better": "left"}, headers={"origin": "http://localhost"})
        thanks = client.get(f"/rate/{secret}").text
    assert seen(ballot) == (PAGES / "ballot.txt").read_text()
    assert seen(thanks) == (PAGES / "thanks.txt").read_text()
