"""Reports: the verdict first, thresholds in the curves, subjects once with their pairs, bounded pages, nothing from outside."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from phantom_s2v.data.pipeline import report as data_report
from phantom_s2v.data.pipeline.config import Config
from phantom_s2v.data.pipeline.groups import PairGroups
from phantom_s2v.data.pipeline.index import jpeg, png
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.compare import Change, Comparison
from phantom_s2v.evaluation.instruments import Thresholds
from phantom_s2v.evaluation.kpi import Kpi, Verdict
from phantom_s2v.evaluation.reports import emoji
from phantom_s2v.evaluation.reports.comparison import write_comparison, write_votes
from phantom_s2v.evaluation.reports.score import Scored, ScorePage
from phantom_s2v.evaluation.reports.selfcheck import write_self_check
from phantom_s2v.evaluation.reports.words import FAULT_WORDS, explained
from phantom_s2v.evaluation.score import FAULTS, SubjectScore, VideoScore
from phantom_s2v.evaluation.selfcheck import Checked, Mistake, Planted
from phantom_s2v.evaluation.selfcheck import table as check_table
from phantom_s2v.media import images
from phantom_s2v.media.charts import Axis, Bound, curve, histogram, ticks
from phantom_s2v.media.pages import CASES, Cases, later_page, later_pages, preview

ODD = '</title><script src="http://x.example/a.js">"A" & \'b\''


class Seen(HTMLParser):
    """Tags with their attributes, and the words of a page in its order."""

    VOID = ("meta", "img", "input", "link", "br", "hr")

    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def checked(file):
    """A page, after what holds for every one: well-formed, escaped, nothing from outside, alternatives, one first heading."""
    page = file.read_text()
    seen = Seen(page)
    names = [tag for tag, _ in seen.tags]
    assert not seen.open
    assert names.count("h1") == 1
    assert "script" not in names
    assert names.count("title") >= 1
    assert not re.search(r"url\(|@import|javascript:", page.split("</style>")[0])
    for tag, attrs in seen.tags:
        for where in ("src", "href", "poster", "action", "srcset", "data"):
            assert re.match(r"data:|#|[^/:]+\.html$", attrs.get(where, "#")), (tag, attrs[where][:80])
        assert tag != "img" or attrs["alt"]
        assert tag not in ("svg", "video") or {"aria-label", "aria-hidden"} & attrs.keys()
    assert [attrs["content"] for tag, attrs in seen.tags if attrs.get("name") == "viewport"]
    assert [attrs for tag, attrs in seen.tags if "default-src 'none'" in attrs.get("content", "")]
    return seen


def scored(name, similarity=0.9, faults=None, **more):
    subject = SubjectScore("fox", similarity, similarity - 0.2, 4, 0.6, 0.2, 8, 0.75, 0.0, 0.3, 0.0, [8], face=0.4, face_min=0.3,
                           face_min_frame=4, face_seen=0.5, over_time=[similarity, similarity - 0.2, -1.0])  # fmt: skip
    frames = {i: np.full((200, 300, 3), 9 * i, np.uint8) for i in (0, 4, 8)}
    score = VideoScore([subject], 0.0, 1.5, 0.0, 0.01, 0.99, 120.0, [0, 4, 8], text=0.3, notes=["looked at windows"],
                       not_measured={"aesthetic": "no head was given", "dino_i": f"no {ODD}"})  # fmt: skip
    references = [np.full((80, 90, 3), 200, np.uint8)]
    return Scored(name, frames, references, score, faults or {}, [], seconds={0: 0.0, 4: 0.5, 8: 1.0}, **more)


def test_a_score_report_says_first_what_passes_and_what_to_do(tmp_path):
    page = ScorePage(Thresholds(), {"similarity": "efficientnet-lite0"})
    page.add(scored("good.mp4"))
    page.add(scored(f"{ODD}.mp4", 0.4, {"other subject": ["fox"], "flicker": [""]}))
    page.add(scored("wrong.mp4", 0.3, {"other subject": ["fox"]}))
    page.add(Scored("broken.mp4", {}, [], None, {}, [], f"truncated {ODD}"))
    page.write(tmp_path / "p.html", ["measured with efficientnet"], {"similarity": 0.5})
    seen = checked(tmp_path / "p.html")
    verdict = seen.text[: seen.text.index("What is wrong")]
    assert "1 of 4 pass" in verdict
    assert "(25%; 95% interval 5 to 70%)" in verdict
    assert "other subject, in 2 of 4 videos" in verdict
    assert "--best-of 4" in verdict
    assert "Not readable 1 of 4" in verdict
    places = [seen.text.rindex(name) for name in ("broken.mp4", f"{ODD}.mp4", "wrong.mp4", "good.mp4")]
    assert places == sorted(places)  # the worst first
    assert "other subject: fox: another subject is in the reference's place (face 0.4; at least 0.5 passes)" in seen.text
    assert "frame 4 (0.5 s): similarity 0.20" in seen.text
    assert "frame 8 (1.0 s): not seen" in seen.text
    assert seen.text.count("no head was given") == 1
    assert seen.text.index("no head was given") > places[-1]
    assert "3 of 4" in seen.text[seen.text.index("no head was given") :]


def test_a_report_of_sound_videos_has_no_fault_in_its_verdict(tmp_path):
    page = ScorePage(Thresholds(), {})
    page.add(scored("good.mp4"))
    page.write(tmp_path / "p.html", [])
    seen = checked(tmp_path / "p.html")
    assert "1 of 1 pass The video passes." in seen.text
    assert "Most frequent fault" not in seen.text
    assert ("section", "headline good") in [(tag, attrs.get("class")) for tag, attrs in seen.tags]


def test_a_missed_kpi_fails_a_video_and_its_bound_is_in_the_curve(tmp_path):
    page = ScorePage(Thresholds(), {})
    missed = Verdict(Kpi("similarity", ODD, 0.95), 0.9, False)
    absent = Verdict(Kpi("text", "asked", 0.2), None, None)
    page.add(replace(scored("good.mp4"), verdicts=[missed, absent]))
    page.write(tmp_path / "p.html", [])
    seen = checked(tmp_path / "p.html")
    assert "0 of 1 pass" in seen.text
    assert "The video does not pass. Fault KPI missed: similarity What to do" in seen.text  # of one video nothing is frequent
    assert "What is wrong, a video once" not in seen.text
    for words in ("threshold 0.52 (mean)", "KPI similarity 0.95", "time (s)", "at least 0.95", "not measured"):
        assert words in seen.text
    assert sum(attrs.get("class") == "bound" for _, attrs in seen.tags) == 2


@pytest.mark.parametrize(
    ("changes", "decided"),
    [
        ({}, "face 0.4; at least 0.5 passes"),
        ({"face": float("nan")}, "similarity 0.4; at least 0.52 passes"),
        ({"face": float("nan"), "in_windows": True}, "similarity 0.4; at least 0.5 passes"),
    ],
)
def test_a_fault_names_the_value_that_decided_it(changes, decided):
    score = scored("v.mp4", 0.4).score
    score = replace(score, subjects=[replace(score.subjects[0], **changes)])
    assert explained("other subject", ["fox"], score, Thresholds()).endswith(f"({decided})")


def test_every_fault_has_words_and_a_threshold_that_exists():
    assert set(FAULTS) <= set(FAULT_WORDS)
    for fault in FAULTS:
        decided = FAULT_WORDS[fault].decided
        assert decided
        assert hasattr(Thresholds(), decided[-1][1]), fault


def test_a_curve_breaks_where_there_is_no_value_and_lies_where_its_axes_say():
    points = [(0, 1.0, ""), (1, None, ""), (1.5, 0.5, ""), (2, 0.0, "")]
    chart = curve("c", Axis("time (s)", 0, 2), Axis("similarity", 0, 1), points, [Bound(0.5, "half")])
    left, top, right, bottom = chart.frame
    assert len(chart.lines) == 1
    assert len(chart.dots) == 3
    assert len(chart.crosses) == 1
    assert chart.dots[0][:2] == (left, top)
    assert chart.dots[2][:2] == (right, bottom)
    assert chart.bounds[0][1] == chart.dots[1][1] == (top + bottom) / 2
    assert [words for _, words in chart.ticks_y] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_the_words_of_a_threshold_hide_neither_the_curve_nor_other_words():
    falling = [(0, 0.9, ""), (1, 0.7, ""), (2, 0.56, ""), (3, 0.52, ""), (4, 0.47, "")]
    flat = [(i, 0.55, "") for i in range(5)]
    for points in (falling, flat, [(at, 1 - value, "") for at, value, _ in falling]):
        limits = [Bound(0.5, "threshold 0.5 (mean)"), Bound(0.52, "KPI similarity 0.52")]
        chart = curve("c", Axis("time (s)", 0, 4), Axis("similarity", 0, 1), points, limits)
        assert all(limit.hides([dot[:2] for dot in chart.dots]) == 0 for limit in chart.bounds)
        assert len({(limit.y, limit.anchor) for limit in chart.bounds}) == 2
    bars = histogram("h", Axis("distance", 0, 1.6), "pairs", [0, 0, 0, 0, 0, 40, 30, 0, 0, 0], Bound(0.75, "kept up to 0.75"))
    assert bars.bounds[0].anchor == "end"  # at the other side a bar reaches the top
    low = curve("c", Axis("time (s)", 0, 2), Axis("similarity", 0, 1), [(0, 0.5, ""), (2, 0.5, "")], [Bound(0.0, "least")])
    assert low.bounds[0].y < low.frame[3]  # and not among the numbers below


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 5.2, [0, 1, 2, 3, 4, 5]), (-0.2, 1, [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, None), (0, 7200, None)],
)
def test_ticks_are_few_and_round(low, high, expected):
    found = ticks(Axis("", low, high))
    assert found == expected or (expected is None and 1 <= len(found) <= 7)


def test_a_histogram_draws_its_threshold_and_counts():
    chart = histogram("h", Axis("similarity", -0.2, 1.0), "pairs", [0, 1, 4, 100], Bound(0.4, "kept from 0.4"))
    heights = [height for _, _, _, height, _ in chart.bars]
    assert heights[0] == 0
    assert heights[3] == pytest.approx(5 * heights[2], rel=0.02)
    assert chart.bounds[0][0] == chart.bounds[0][2] == pytest.approx(sum(chart.frame[::2]) / 2)
    assert chart.ticks_y[0][1] == "0"
    assert chart.ticks_y[-1][1] == "100"


def test_a_long_report_has_bounded_pages_that_link_and_replaces_a_longer_one(tmp_path):
    def write(count):
        page = ScorePage(Thresholds(), {})
        for number in range(count):
            page.add(scored(f"v{number:03}.mp4", 0.9 - number / 1000))
        page.write(tmp_path / "p & q.html", [])

    write(3 * CASES + 1)
    files = [tmp_path / "p & q.html", *(later_page(tmp_path / "p & q.html", n) for n in (2, 3, 4))]
    assert later_pages(files[0]) == files[1:]
    seen = [checked(file) for file in files]
    assert [sum(attrs.get("class") == "case" for _, attrs in each.tags) for each in seen] == [CASES, CASES, CASES, 1]
    links = [{attrs["href"] for tag, attrs in each.tags if tag == "a" and "href" in attrs} for each in seen]
    assert "p%20%26%20q.2.html" in links[0]
    assert "p%20%26%20q.html" in links[3]
    assert f"{3 * CASES + 1} of {3 * CASES + 1} pass" in seen[0].text
    assert "pass" not in seen[1].text.split("Page 2 of 4")[0]
    assert "v030.mp4" in seen[0].text
    assert "v000.mp4" in seen[3].text
    (tmp_path / "p & q.9.html").write_text("someone's own")
    write(1)
    assert later_pages(files[0]) == [tmp_path / "p & q.9.html"]


def test_cases_wait_on_disk_in_the_order_of_their_ranks(tmp_path):
    cases = Cases()
    for number in range(25):
        cases.add((number % 2, -number), {"name": str(number)}, f"<p>{number}</p>")
    pages = list(cases.pages(10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [page[0]["number"] for page in pages] == [1, 11, 21]
    assert [case["name"] for page in pages for case in page] == [str(n) for n in (*range(24, -1, -2), *range(23, 0, -2))]
    assert list(Cases().pages()) == [[]]


def test_a_video_on_a_page_is_small_and_plays_from_inside(tmp_path):
    images.write_video(tmp_path / "v.mp4", np.full((20, 400, 600, 3), 90, np.uint8), 30)
    frames, fps = images.read_video(io.BytesIO(preview(tmp_path / "v.mp4").content))
    assert frames.shape[1:3] == (320, 480)
    assert fps == 15
    assert len(frames) == 10
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert preview(tmp_path / "b.mp4") is None
    page = ScorePage(Thresholds(), {})
    page.add(scored("v.mp4", path=tmp_path / "v.mp4"))
    page.write(tmp_path / "p.html", [])
    videos = [attrs for tag, attrs in checked(tmp_path / "p.html").tags if tag == "video"]
    assert len(videos) == 1
    assert "controls" in videos[0]
    assert videos[0]["src"].startswith("data:video/mp4;base64,")


def comparison(metric, difference, low, high, name="two"):
    return Comparison(metric, "net", "one", name, 12, 0.5, 0.5 + difference, difference, low, high, 9, 3)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([comparison("similarity", 0.1, 0.02, 0.2), comparison("flicker", -0.1, -0.2, -0.05)], "two is better"),
        ([comparison("flicker", 0.1, 0.02, 0.2)], "one is better"),  # of which less is better
        ([comparison("similarity", 0.1, 0.02, 0.2), comparison("face", -0.1, -0.2, -0.02)], "Better in some, worse in others"),
        ([comparison("similarity", 0.1, -0.02, 0.2), comparison("motion_fb", 0.1, 0.02, 0.2)], "No clear difference"),
    ],
)
def test_a_comparison_says_first_which_is_better(tmp_path, rows, verdict):
    change = Change(ODD, ("one", "two"), (0.2, 0.7), (None, None), ("missing", "no fault"))
    write_comparison(tmp_path / "c.html", rows, [f"text of {ODD} is not compared"], [change])
    seen = checked(tmp_path / "c.html")
    assert verdict in seen.text[: seen.text.index("What to do")]
    assert f"{ODD}: +0.50" in seen.text
    assert "two: similarity 0.70, no fault" in seen.text


def test_votes_say_first_who_is_preferred(tmp_path):
    row = {"first": "one", "second": ODD, "question": "better", "cases": 9, "raters": 2, "first_wins": 14, "second_wins": 3,
           "equal": 1, "second_share": 0.19, "interval": [0.05, 0.35], "agreement": 0.7}  # fmt: skip
    write_votes(tmp_path / "v.html", [row, {**row, "question": "logo", "agreement": None}], {"better": "Which is better?"})
    seen = checked(tmp_path / "v.html")
    assert "one is preferred" in seen.text
    assert "81% of the votes (95% interval 65 to 95%" in seen.text
    assert "tentative conclusion" in seen.text
    assert seen.text.count("Krippendorff") == 1  # explained once, above the table
    assert "Which is better?" in seen.text


class Index:
    """What a report reads of the index of a build: clips of one film, each with one subject of its number."""

    still = jpeg(np.full((90, 160, 3), 90, np.uint8))

    def __init__(self, dropped=()):
        self.dropped = dropped

    def rows(self, name, columns, where=None):
        if "video" in columns:
            return iter(())
        lost = {"seen": 3, "dropped": {"a blurred reference image": 1}, "reason": "a blurred reference image", "words": ODD}
        facts = [{**self._facts(i), "crops": lost} for i in range(3)]
        kept = [{"id": f"c{i}", "drop": "", "still": self.still, "facts": json.dumps(each)} for i, each in enumerate(facts)]
        return iter([*kept, *self.dropped])

    def _facts(self, number):
        return {"name": f"{ODD}.mp4", "begins": 1.0 * number, "ends": number + 1.0, "subjects": [f"s{number}"], "caption": ODD}

    def source_videos(self):
        return iter([
            {"drop": "", "path": "a.mp4", "notices": []},
            {"drop": "truncated", "path": f"{ODD}.mp4", "notices": ["rotated", ODD]},
        ])  # fmt: skip

    def subjects(self, ids):
        image = png(np.full((200, 300, 3), 90, np.uint8))
        return {each: {"clip": f"c{each[1:]}", "name": f"bottle {ODD}", "views": [{"image": image}] * 3} for each in ids}

    def clip_facts(self, ids):
        return {each: self._facts(int(each[1:])) for each in ids}


def pair(one, other, similarity, drop="", **changed):
    ends = {"subject": f"s{one}", "clip": f"c{one}", "partner": f"s{other}", "partner_clip": f"c{other}"}
    return {**ends, "kind": "cross-shot", "similarity": similarity, "sameness": 0.5, "face": None, "drop": drop} | changed


def test_a_build_report_shows_what_was_dropped_and_a_subject_once(tmp_path):
    facts = {"name": "d.mp4", "begins": 0.0, "ends": 2.0, "subjects": []}
    seen_there = [{"instant": 1, "box": [0.1, 0.2, 0.5, 0.6], "what": ODD, "reason": "too small"}]
    dropped = [
        {
            "id": "d",
            "drop": "no subject: too small",
            "still": Index.still,
            "facts": json.dumps({**facts, "passed_over": seen_there, "shown": 1}),
        },
        {"id": "e", "drop": "dark", "still": b"", "facts": json.dumps({**facts, "passed_over": []})},
    ]
    group = [pair(1, 2, 0.9), pair(2, 1, 0.9), pair(2, 3, 0.7), pair(3, 4, 0.8)]
    pairs = [*group, pair(7, 8, 0.95), pair(1, 9, 0.2, ODD), pair(2, 9, 0.3, ODD)]
    data_report.write_report(tmp_path / "t.html", Index(dropped), iter(pairs), 7, {"shots": 1.25}, Config())
    seen = checked(tmp_path / "t.html")
    verdict = seen.text[: seen.text.index("From files")]
    assert "7 triplets" in verdict
    assert "3 of 5 clips were kept (60%)" in verdict
    assert "no subject: too small: 1 of 2 dropped clips" in verdict
    assert "smallest_box" in verdict
    assert "Not read 1 file;" in verdict
    assert f"d.mp4, 0.0 to 2.0 s. 1: {ODD}, too small" in seen.text
    assert "Reference images not used" in seen.text
    assert "reference images kept 6" in seen.text
    groups = [attrs for tag, attrs in seen.tags if attrs.get("class") == "group"]
    assert len(groups) == 2
    assert "3 pairs of 4 clips; similarity 0.70 to 0.90" in seen.text
    assert "1 pair of 2 clips" in seen.text
    assert "kept from 0.63" in seen.text or f"kept from {Config().lower:g}" in seen.text
    nearest = f"{ODD}: similarity 0.30, at least {Config().lower:g}; surroundings 0.50"
    assert seen.text.count(nearest) == 1  # of the rejected pairs of one subject
    assert "Faces of pairs" not in seen.text


def test_a_build_report_shows_the_value_that_rejected_a_pair_and_how_many_clips_are_not_shown(tmp_path):
    facts = json.dumps({"name": "d.mp4", "begins": 0.0, "ends": 2.0, "subjects": [], "passed_over": []})
    dropped = [{"id": f"d{i}", "drop": "too dark", "still": Index.still, "facts": facts} for i in range(5)]
    of_people = [
        pair(1, 2, 0.9, "another face", face=0.52, kind="cross-source"),
        pair(3, 4, 0.2, "another face", face=0.71),
        pair(5, 6, 0.3, face=0.4),
        pair(7, 8, 0.4, "near-duplicate", face=0.1, sameness=0.99),
    ]
    data_report.write_report(tmp_path / "t.html", Index(dropped), iter(of_people), 1, {}, Config())
    seen = checked(tmp_path / "t.html")
    assert "too dark: 4 of 5" in seen.text
    assert "another face: distance 0.52, at most 0.45; similarity 0.90, surroundings 0.50" in seen.text
    assert "another face: distance 0.71, at most 0.6; similarity 0.20, surroundings 0.50" in seen.text
    assert "near-duplicate: surroundings 0.99, at most 0.96; similarity 0.40" in seen.text
    assert "Faces of pairs of one source video" in (tmp_path / "t.html").read_text()
    assert "Faces of pairs of two source videos" in (tmp_path / "t.html").read_text()
    assert "Similarity of pairs without two faces" not in (tmp_path / "t.html").read_text()  # of these pairs faces decide


def test_a_build_of_nothing_says_so(tmp_path):
    index = Index()
    index.rows = index.source_videos = lambda *_: iter(())
    data_report.write_report(tmp_path / "t.html", index, iter(()), 0, {}, Config())
    seen = checked(tmp_path / "t.html")
    assert "0 triplets" in seen.text
    assert "cross-pair" not in seen.text[: seen.text.index("From files")]  # of no subjects nothing is said
    assert "No pairs were kept" in seen.text
    assert ("section", "headline bad") in [(tag, attrs.get("class")) for tag, attrs in seen.tags]


def test_groups_put_together_what_is_paired_through_others_and_choose_the_doubtful():
    groups = PairGroups()
    for number in range(0, 600, 3):
        groups.add(pair(number, number + 1, 0.5 + number / 2000))
        groups.add(pair(number + 2, number + 1, 0.9))
    groups.add(pair(0, 5, 0.9, "another subject"))
    assert groups.gather() == 200
    assert groups.identities(["s0", "s2", "s3", "alone"]) == {"s0": "s0", "s2": "s0", "s3": "s3", "alone": "alone"}
    chosen = list(groups.chosen(10, 2, 2))
    assert [group.appearances for group in chosen] == [3] * 10
    assert [len(group.members) for group in chosen] == [2] * 10
    least = [group.least for group in chosen]
    assert least == sorted(least)
    assert least[4] == pytest.approx(0.506)
    assert least[9] == pytest.approx(0.5 + 597 / 2000)
    assert chosen[0].members == ["s0", "s1"]
    assert chosen[0].shown[0]["similarity"] == 0.5


def test_a_page_that_is_not_ours_stays(tmp_path):
    later_page(tmp_path / "p.html", 2).write_text("mine")
    page = ScorePage(Thresholds(), {})
    for _ in range(CASES + 1):
        page.add(Scored("broken.mp4", {}, [], None, {}, [], "truncated"))
    with pytest.raises(InputError, match=r"p\.2\.html exists and was not written by phantom"):
        page.write(tmp_path / "p.html", [])
    assert not (tmp_path / "p.html").exists()
    assert later_page(tmp_path / "p.html", 2).read_text() == "mine"


def test_a_page_of_rating_has_a_choice_for_every_question(tmp_path):
    fastapi = pytest.importorskip("fastapi.testclient")
    from phantom_s2v.evaluation import rating
    from phantom_s2v.evaluation.pairs import QUESTIONS, Pair
    from phantom_s2v.evaluation.votes import links

    for name in ("one.mp4", "two.mp4"):
        images.write_video(tmp_path / name, np.zeros((5, 32, 32, 3), np.uint8), 8)
    reference = tmp_path / "r.png"
    reference.write_bytes(png(np.full((8, 9, 3), 200, np.uint8)))
    shown = Pair("case", "one", "two", (tmp_path / "one.mp4", tmp_path / "two.mp4"), ODD, (reference,))
    secret = links(tmp_path / "votes.sqlite", ["ann"])["ann"]
    app = rating.application([shown], tmp_path / "votes.sqlite")
    with fastapi.TestClient(app, base_url="http://localhost") as client:
        ballot = Seen(client.get(f"/rate/{secret}").text)
        client.post(f"/rate/{secret}/vote/0", data={"better": "left"}, headers={"origin": "http://localhost"})
        thanks = Seen(client.get(f"/rate/{secret}").text)
    radios = [attrs["name"] for tag, attrs in ballot.tags if attrs.get("type") == "radio"]
    assert {name: radios.count(name) for name in radios} == {name: 4 - (name == "better") for name in QUESTIONS}
    assert ODD in ballot.text
    assert not [tag for tag, _ in ballot.tags if tag == "script"]
    assert not ballot.open
    assert {attrs["aria-label"] for tag, attrs in ballot.tags if tag == "video"} == {"left video", "right video"}
    assert "All 1 comparisons are done" in thanks.text


# The emoji suite


def emoji_figures(value=0.33, low=0.25, high=0.42):
    shares = {"identification": (value, low, high), "identification_control": (0.0, 0.0, 0.04), "top5": (0.5, 0.4, 0.6),
              "identification_named": (0.32, 0.2, 0.4),
              "identification_true_clips": (0.96, 0.92, 0.99), "top5_control": (0.07, 0.02, 0.12), "direction": (1.0, 0.9, 1.0),
              "direction_true_clips": (1.0, 0.9, 1.0), "two_subjects": (0.08, 0.02, 0.16), "background": (1.0, 0.9, 1.0),
              "background_true_clips": (1.0, 0.9, 1.0), "two_subjects_true_clips": (0.8, 0.68, 0.9),
              "autoencoder_psnr": (30.0, 28.0, 31.0)}  # fmt: skip
    return {k: v for name, (mean, *ends) in shares.items() for k, v in ((name, mean), (f"{name}_interval", ends))}


def emoji_page(tmp_path, figures, ranks=(0, 7, None)):
    strip = np.full((64, 320, 3), 200, np.uint8)
    shown = [emoji.Shown(f"{ODD} {n}", [strip[:, :64]], strip, [emoji.Made("unnamed", strip, [r])]) for n, r in enumerate(ranks)]
    kinds = [emoji.Ranks("unnamed", ranks), emoji.Ranks("control", [99, 3, None]), emoji.Ranks("true clips", [0, 0, 1])]
    emoji.write_emoji_page(tmp_path / "e.html", ODD, figures, kinds, 100, shown)
    return checked(tmp_path / "e.html")


def test_the_emoji_page_begins_with_control_and_upper_bound_and_shows_the_worst_first(tmp_path):
    seen = emoji_page(tmp_path, emoji_figures())
    for words in (
        "33% identified",
        "Without a reference image it is 0%, in true clips 96%",
        "two subjects, both identified: 72 points",
    ):
        assert words in seen.text
    order = [seen.text.index(f"{n}. {ODD} {case}") for n, case in ((1, 2), (2, 1), (3, 0))]
    assert order == sorted(order)
    assert seen.text.index("33% identified") < seen.text.index("Figures") < order[0]
    assert [words in seen.text for words in ("unnamed: not found", "unnamed: rank 8 of 100", "unnamed: identified")] == [True] * 3
    curves = [attrs["points"].split() for tag, attrs in seen.tags if tag == "polyline"]
    assert [len(points) for points in curves] == [100, 100, 100]
    ends = [float(points[-1].split(",")[1]) for points in curves]
    assert ends[2] < ends[0] == ends[1]  # all of the true clips are found, two thirds of the others


@pytest.mark.parametrize(
    ("value", "low", "high", "state"), [(0.95, 0.9, 0.99, "good"), (0.33, 0.25, 0.42, "mixed"), (0.02, 0.01, 0.06, "bad")]
)
def test_the_emoji_page_says_whether_clips_are_as_true_ones_or_as_chance(tmp_path, value, low, high, state):
    seen = emoji_page(tmp_path, emoji_figures(value, low, high))
    assert next(attrs["class"] for tag, attrs in seen.tags if tag == "section") == f"headline {state}"


# The self-check


def self_check(tmp_path, rates, mistakes=()):
    rows = {
        f: {"detection": [hit, hit, 1.0], "false_alarm": [alarm, 0.0, alarm], "clips": [9, 5]}
        for f, (hit, alarm) in rates.items()
    }
    write_self_check(tmp_path / "s.html", rows, mistakes, ODD, "clips composed of emoji")
    return checked(tmp_path / "s.html")


def test_the_page_of_a_self_check_says_which_checks_hold_and_shows_what_was_mistaken(tmp_path):
    strip = np.full((64, 320, 3), 90, np.uint8)
    mistakes = [Mistake("pasted", (), strip, (strip[:, :64],)), Mistake("", ("flicker",), strip, (strip[:, :64],) * 2)]
    seen = self_check(tmp_path, {"pasted": (0.4, 0.0), "flicker": (1.0, 0.2), "frozen": (0.95, 0.01)}, mistakes)
    for words in (
        "1 of 3 checks hold", "Often missed pasted (40%)", "Often a false alarm flicker (20%)", FAULT_WORDS["frozen"].means,
        "pasted was planted, nothing was found", "No fault, flicker was found",
    ):  # fmt: skip
        assert words in seen.text
    assert sum(tag == "img" for tag, _ in seen.tags) == 5
    good = self_check(tmp_path, {"frozen": (0.95, 0.01)})
    assert "1 of 1 checks hold" in good.text
    assert "mistaken" not in good.text


def test_a_check_keeps_a_few_mistakes_of_each_kind():
    video, reference = np.zeros((9, 300, 200, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    sound = VideoScore([], 0.0, 1.0, 0.0, 0.0, 1.0, 100.0, [0])
    kept = Checked(Thresholds(), ("frozen", "flicker"))
    for fault, value in [("frozen", 0.0)] * 9 + [("", 1.0)] * 9 + [("frozen", 1.0)]:
        kept.add(Planted(fault, video, (reference,), ""), replace(sound, frozen=value))
    assert [(m.planted, m.found) for m in kept.mistakes] == [("frozen", ())] * 3 + [("", ("frozen",))] * 3
    assert kept.mistakes[0].strip.shape == (192, 640, 3)
    rates = check_table(kept)
    assert rates["frozen"]["detection"][0] == 0.1
    assert rates["frozen"]["false_alarm"][0] == 1.0
    assert rates["frozen"]["clips"] == [10, 9]
