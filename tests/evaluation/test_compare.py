"""Comparison of systems, calibration of KPIs, and raters' votes."""

import json
import re
import sqlite3
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from phantom_s2v.errors import InputError, NotFiniteError
from phantom_s2v.evaluation import calibration, compare, rating
from phantom_s2v.evaluation.instruments import Instruments, Thresholds
from phantom_s2v.evaluation.kpi import check_networks, evaluate_kpis, read_kpis
from phantom_s2v.evaluation.metrics.table import METRICS
from phantom_s2v.evaluation.pairs import QUESTIONS, Pair, find_pairs
from phantom_s2v.evaluation.score import SubjectScore, VideoScore, check_scores
from phantom_s2v.evaluation.votes import agreement, bind, keep, links, open_votes, results
from phantom_s2v.media import images

TOOLS = Instruments("color", lambda p: np.zeros((len(p), 1)), Thresholds())


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "evaluate")


def row(case, similarity, flicker=0.0, network="color"):
    subject = {"name": "a", "similarity": similarity, "clip_i": None}
    video = dict.fromkeys(name for name, metric in METRICS.items() if not metric.of_subjects) | {"flicker": flicker}
    return {"id": case, "video": f"{case}.mp4", "networks": {"similarity": network}, "subjects": [subject], **video}


# Comparison


def test_a_clear_difference_is_told_from_noise():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, 60)
    systems = {
        "old": [row(str(i), v) for i, v in enumerate(base)],
        "new": [row(str(i), v + 0.05 + rng.normal(0, 0.02)) for i, v in enumerate(base)],
        "same": [row(str(i), v + rng.normal(0, 0.05)) for i, v in enumerate(base)],
    }
    found, notes = compare.compare(systems)
    by = {(c.first, c.second): c for c in found if c.metric == "similarity"}
    new = by["old", "new"]
    assert new.clear
    assert new.low < 0.05 < new.high
    assert new.difference == pytest.approx(new.mean_second - new.mean_first)
    assert new.wins_second + new.wins_first == new.cases == 60
    assert not by["old", "same"].clear
    assert not any(c.metric == "clip_i" for c in found)  # it was not measured
    assert notes == []


def test_pairing_sees_what_means_alone_do_not():
    """Cases differ far more than systems do: the paired interval is a small part of the unpaired one."""
    rng = np.random.default_rng(1)
    base = rng.uniform(0, 1, 50)
    found, _ = compare.compare(
        {"a": [row(str(i), v) for i, v in enumerate(base)], "b": [row(str(i), v + 0.01) for i, v in enumerate(base)]}
    )
    paired = found[0].high - found[0].low
    assert found[0].clear
    assert paired < 0.05 * 2 * 1.96 * base.std() * np.sqrt(2 / 50)


def test_less_is_better_where_it_is():
    found, _ = compare.compare({"a": [row("1", 0.5, 0.01)], "b": [row("1", 0.5, 0.002)]})
    flicker = next(c for c in found if c.metric == "flicker")
    assert (flicker.wins_second, flicker.wins_first) == (1, 0)


def test_networks_are_never_mixed_and_cases_are_paired_by_id():
    found, notes = compare.compare({"a": [row("1", 0.5), row("2", 0.1)], "b": [row("2", 0.4, network="other"), row("3", 0.9)]})
    assert not any(c.metric == "similarity" for c in found)
    assert any("measured by color and by other" in note for note in notes)
    assert next(c for c in found if c.metric == "flicker").cases == 1
    assert any("2 videos" in note for note in notes)
    with pytest.raises(InputError, match="no cases in common"):
        compare.compare({"a": [row("1", 0.5)], "b": [row("2", 0.5)]})
    with pytest.raises(InputError, match="at least two systems"):
        compare.compare({"a": [row("1", 0.5)]})


def test_compare_as_a_user_calls_it(phantom, tmp_path):
    for name, value in (("one", 0.4), ("two", 0.6)):
        (tmp_path / name).mkdir()
        rows = [json.dumps(row(str(i), value + i / 100)) for i in range(5)]
        (tmp_path / name / "scores.jsonl").write_text("\n".join(rows))
    code, said = phantom("compare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    assert code == 0
    found = json.loads(said.out.splitlines()[-1])["comparisons"]
    similarity = next(c for c in found if c["metric"] == "similarity")
    assert similarity["difference"] == pytest.approx(0.2)
    assert "better in 5, worse in 0 of 5" in said.out
    assert "+0.2000" in (tmp_path / "page.html").read_text()
    assert phantom("compare", tmp_path / "one", tmp_path / "none")[0] == 2
    assert phantom("compare", tmp_path / "one")[0] == 2


def test_what_bears_the_same_name_and_is_another_is_not_compared():
    def rows(value, asked="a" * 64, weights="1" * 64):
        return [{**row(str(i), value), "asked": asked if i else "a" * 64, "weights": {"similarity": weights}} for i in range(4)]

    found, notes = compare.compare({"one": rows(0.4), "two": rows(0.6)})
    assert ([c.cases for c in found if c.metric == "similarity"], notes) == ([4], [])
    found, notes = compare.compare({"one": rows(0.4), "two": rows(0.6, asked="b" * 64)})
    assert [c.cases for c in found if c.metric == "similarity"] == [1]
    assert notes == ["3 cases of one and two were skipped: the same id has another prompt, reference or crop (1)"]
    found, notes = compare.compare({"one": rows(0.4), "two": rows(0.6, weights="2" * 64)})
    assert not [c for c in found if c.metric == "similarity"]
    assert f"similarity of one and two is not compared: the weights of color differ ({'1' * 12} and {'2' * 12})" in notes


# Calibration


def scored(similarity, flicker):
    subject = SubjectScore("a", similarity, similarity, 0, 0.5, 0.5, 0, 1.0, 0.0, 0.2, 0.0, [])
    return VideoScore([subject], 0.0, 0.1, 0.0, flicker, 0.9, 100.0, [0])


def test_calibration_finds_what_tells_and_says_how_often_it_errs(tmp_path):
    rng = np.random.default_rng(0)
    good = [scored(v, f) for v, f in zip(rng.normal(0.7, 0.05, 30), rng.uniform(0, 1, 30), strict=True)]
    bad = [scored(v, f) for v, f in zip(rng.normal(0.5, 0.05, 30), rng.uniform(0, 1, 30), strict=True)]
    bounds = {b.metric: b for b in calibration.calibrate_thresholds(good, bad, TOOLS)}
    assert set(bounds) == {"similarity", "similarity_min"}  # flicker is the same in both, and the rest never changes
    assert bounds["similarity"].low
    assert 0.55 < bounds["similarity"].bound < 0.65
    assert bounds["similarity"].good_refused + bounds["similarity"].bad_passed <= 6
    file = tmp_path / "kpi.toml"
    file.write_text(calibration.as_toml(list(bounds.values())))
    kpis = read_kpis(file)
    assert [v.met for v in evaluate_kpis(good[0], kpis)] == [True, True]
    assert [v.met for v in evaluate_kpis(scored(0.4, 0), kpis)] == [False, False]
    check_networks(kpis, TOOLS)
    known = replace(TOOLS, hashes={"similarity": "ab" * 32})
    file.write_text(calibration.as_toml(calibration.calibrate_thresholds(good, bad, known)))
    check_networks(read_kpis(file), known)
    with pytest.raises(InputError, match=f"set for other weights of color .{'ab' * 8}, not {'cd' * 8}"):
        check_networks(read_kpis(file), replace(TOOLS, hashes={"similarity": "cd" * 32}))
    with pytest.raises(InputError, match="was set for color, but is measured with efficientnet"):
        check_networks(kpis, Instruments("efficientnet-lite0", TOOLS.embed, Thresholds()))


def test_calibration_refuses_what_cannot_be_told():
    rng = np.random.default_rng(3)
    same = [scored(v, 0) for v in rng.normal(0.6, 0.1, 40)]
    with pytest.raises(InputError, match="no metric separates"):
        calibration.calibrate_thresholds(same[:20], same[20:], TOOLS)
    with pytest.raises(InputError, match="at least 5"):
        calibration.calibrate_thresholds(same[:2], same[2:], TOOLS)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_best_bound_is_no_worse_than_any(good, bad):
    good, bad = np.array(good), np.array(bad)

    def errors(low, bound):
        return (good < bound).mean() + (bad >= bound).mean() if low else (good > bound).mean() + (bad <= bound).mean()

    values = np.unique(np.concatenate([good, bad]))
    if len(values) > 1:
        tried = [errors(low, m) for low in (True, False) for m in (values[1:] + values[:-1]) / 2]
        assert errors(*calibration.best_bound(good, bad)) <= min(tried) + 1e-9


def test_an_infinite_score_is_no_score():
    check_scores(scored(float("nan"), 0.0))
    with pytest.raises(NotFiniteError, match="the score flicker is infinite"):
        check_scores(scored(0.5, float("inf")))


def test_calibrate_as_a_user_calls_it(phantom, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("good", "bad"):
        (tmp_path / kind).mkdir()
        for number in range(5):
            still = rng.integers(60, 200, (1, 48, 48, 3)).astype(np.uint8)
            frames = np.stack([np.roll(still[0], 2 * i, 1) for i in range(8)]) if kind == "good" else np.repeat(still, 8, 0)
            images.write_video(tmp_path / kind / f"{number}.mp4", frames, 8)
    code, said = phantom("calibrate", tmp_path / "good", tmp_path / "bad", "--out", tmp_path / "kpi.toml")
    assert code == 0, said.err
    assert "frozen" in {k["metric"] for k in json.loads(said.out.splitlines()[-1])["kpis"]}
    assert phantom("score", tmp_path / "good", "--kpi", tmp_path / "kpi.toml")[0] == 0
    assert phantom("score", tmp_path / "bad", "--kpi", tmp_path / "kpi.toml")[0] == 1
    assert phantom("calibrate", tmp_path / "good", tmp_path / "none")[0] == 2


# Raters


@pytest.fixture
def pairs(tmp_path):
    for system in ("secret-a", "secret-b"):
        (tmp_path / system / "videos").mkdir(parents=True)
        for case in range(6):
            frames = np.full((4, 16, 16, 3), 10 * case + (100 if system == "secret-b" else 0), np.uint8)
            images.write_video(tmp_path / system / "videos" / f"case {case}.mp4", frames, 8)
    images.write_image(tmp_path / "ref.png", np.zeros((8, 8, 3), np.uint8))
    told = {"case 0": ("A <fox> runs.", (tmp_path / "ref.png",))}
    return find_pairs([tmp_path / "secret-a", tmp_path / "secret-b" / "videos"], told)


def test_votes_on_other_videos_of_the_same_name_are_not_counted_for_these(pairs, tmp_path):
    file = tmp_path / "votes.sqlite"
    bind(file, pairs)
    bind(file, pairs)
    with open_votes(file) as votes:
        keep(votes, pairs[0], "ann", dict.fromkeys(QUESTIONS, "left"))
    bind(file, pairs)
    for change in (pairs[0].videos[1], pairs[0].references[0]):
        kept = change.read_bytes()
        change.write_bytes(pairs[1].videos[0].read_bytes())
        with pytest.raises(
            InputError, match=r"contains votes on other videos of case case 0, .* choose another file with --votes"
        ):
            bind(file, pairs)
        change.write_bytes(kept)
    pairs[1].videos[0].write_bytes(pairs[2].videos[0].read_bytes())  # nobody has voted on these yet
    bind(file, pairs)


def client_of(pairs, file):
    """A browser on the loopback that sends what browsers send."""
    address = "http://127.0.0.1:8765"
    return TestClient(rating.application(pairs, file), base_url=address, headers={"Origin": address})


def test_a_rater_sees_no_names_and_votes_reach_the_right_system(pairs, tmp_path):
    file = tmp_path / "votes.sqlite"
    client = client_of(pairs, file)
    first, second = (f"/rate/{secret}" for secret in links(file, ["Zoë & co", "another"]).values())
    sides = set()
    for done in range(6):
        page = client.get(first).text
        assert f"Comparison {done + 1} of 6" in page
        assert "secret-" not in page
        assert "<fox>" not in page
        number = int(re.search(r"/vote/(\d+)", page)[1])
        shown = [client.get(f"{first}/video/{number}/{side}") for side in (0, 1)]
        assert all("secret-" not in str(s.headers) for s in shown)
        brighter = shown.index(max(shown, key=lambda s: images.read_video(as_file(s.content))[0].mean()))
        sides.add(brighter)
        said = {"better": ("left", "right")[brighter], "logo": "equal"}
        assert client.post(f"{first}/vote/{number}", data=said, follow_redirects=False).status_code == 303
    assert sides == {0, 1}  # both systems stood at both sides
    assert "All 6 comparisons are done" in client.get(first).text
    assert "Comparison 1 of 6" in client.get(second).text
    better, logo = results(file)
    assert (better["first_wins"], better["second_wins"], better["second_share"]) == (0, 6, 1.0)
    assert (logo["question"], logo["equal"], logo["second_share"]) == ("logo", 6, 0.5)


def as_file(content):
    import io

    return io.BytesIO(content)


def test_bad_votes_and_places_are_refused(pairs, tmp_path):
    client = client_of(pairs, tmp_path / "votes.sqlite")
    link = f"/rate/{links(tmp_path / 'votes.sqlite', ['a'])['a']}"
    assert client.post(f"{link}/vote/0", data={"better": "secret-a"}).status_code == 422
    assert client.post(f"{link}/vote/99", data={"better": "left"}).status_code == 422
    assert client.post(f"{link}/vote/0", data={"logo": "left"}).status_code == 422
    assert client.get(f"{link}/video/0/7").status_code == 404
    assert client.get(f"{link}/video/-1/0").status_code == 404
    with pytest.raises(InputError, match="contains no votes yet"):
        results(tmp_path / "votes.sqlite")
    with pytest.raises(InputError, match="not a file"):
        results(tmp_path / "none.sqlite")
    (tmp_path / "no.sqlite").write_bytes(b"x" * 5000)
    with pytest.raises(InputError, match="not a votes file"):
        open_votes(tmp_path / "no.sqlite")
    with pytest.raises(InputError, match="at least two folders"):
        find_pairs([tmp_path / "secret-a"], {})


@pytest.mark.parametrize(
    ("videos", "said"),
    [
        (("x/one/a.mp4", "y/one/a.mp4"), "a second system of this name, one"),
        (("x/a.mp4", "x/a.mov", "y/a.mp4"), r"case a: a\.mov and a\.mp4"),
        (("equal/a.mp4", "y/a.mp4"), "the name of an answer, equal"),
    ],
)
def test_systems_and_cases_that_votes_could_not_tell_apart_are_refused(tmp_path, videos, said):
    for name in videos:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=said):
        find_pairs(list(dict.fromkeys((tmp_path / name).parent for name in videos)), {})


def test_a_vote_given_again_replaces_the_former(pairs, tmp_path):
    votes = open_votes(tmp_path / "v.sqlite")
    for choice in ("left", "right"):
        keep(votes, pairs[0], "a", {"better": choice})
    votes.commit()
    expected = (pairs[0].first, pairs[0].second)[pairs[0].sides("a")[1]]
    assert sqlite3.connect(tmp_path / "v.sqlite").execute("select choice from votes").fetchall() == [(expected,)]


def test_agreement_on_known_answers():
    """Full, none beyond chance, and Krippendorff's own example of nominal data (alpha 0.743, twelve units, four observers)."""
    assert agreement([["a", "a"], ["b", "b"], ["a", "a"]]) == 1.0
    assert agreement([["a", "b"]] * 10) < 0
    assert agreement([["a"], ["b"]]) is None
    assert agreement([["a", "a"]]) is None
    observers = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[answer for answer in column if answer != "."] for column in zip(*map(str.split, observers), strict=True)]
    assert agreement(units) == pytest.approx(0.743, abs=0.001)


def test_votes_as_a_user_calls_it(phantom, pairs, tmp_path):
    file = tmp_path / "votes.sqlite"
    votes = open_votes(file)
    for rater in ("a", "b"):
        for pair in pairs:
            keep(votes, pair, rater, {"better": ("left", "right")[pair.sides(rater).index(1)]})
    votes.commit()
    code, said = phantom("votes", file)
    assert code == 0
    assert json.loads(said.out.splitlines()[-1])["questions"][0]["second_share"] == 1.0
    assert phantom("votes", tmp_path / "none")[0] == 2
    assert phantom("rate", tmp_path / "secret-a", "--votes", file)[0] == 2


def test_the_sides_are_even():
    pair = SimpleNamespace(case="c", first="a", second="b")
    left = sum(Pair.sides(pair, str(i))[0] for i in range(400))
    assert 150 < left < 250
