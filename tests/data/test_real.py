"""What photographed footage asks of the pipeline: on images that are made here, so that the right answer is known."""

import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from phantom_s2v.data.calibrate import labelled, separation
from phantom_s2v.data.detectors.motion import moving
from phantom_s2v.data.pipeline import background, crops, engine, names, pair, quality, report, write
from phantom_s2v.data.pipeline.config import Config, Detection, Models
from phantom_s2v.data.pipeline.engine import process
from phantom_s2v.data.pipeline.frames import encoded
from phantom_s2v.data.pipeline.groups import grouped
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.pipeline.stills import moments
from phantom_s2v.data.pipeline.subjects import sift
from phantom_s2v.data.pipeline.tracks import carried, follow, steady
from phantom_s2v.data.triplets import Rights, check_triplet
from phantom_s2v.errors import InputError
from phantom_s2v.media import images
from phantom_s2v.media.videos import Video
from phantom_s2v.vision import fetched

CONFIG = Config()
MODELS = Models(lambda *_: [], lambda cutouts: np.zeros((len(cutouts), 4), np.float32))
needs_files = pytest.mark.skipif(not fetched.fetched(), reason="phantom models fetch brings the files")


def texture(rng, height, width, cell=8, low=40, high=215):
    small = rng.integers(low, high, (height // cell + 1, width // cell + 1, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def scene(shift=0, place=None, seed=0):
    """A textured background that the camera moves over by `shift`, and a textured square at `place` in front of it."""
    rng = np.random.default_rng(seed)
    frame = texture(rng, 128, 260)[:, 20 + shift : 220 + shift].copy()
    thing = texture(rng, 40, 40, 6, 0, 255)
    if place:
        frame[place[1] : place[1] + 40, place[0] : place[0] + 40] = thing
    return frame


def person(box=(20, 10, 80, 100), size=(100, 200), **parts):
    mask = np.zeros(size, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return Detection(box, mask, is_person=True, unnamed=True, **parts)


# Completeness


def test_a_person_with_head_and_shoulders_is_a_subject_and_a_torso_is_not():
    bust, torso = person(), person(head=0.4)
    face, far = person(shoulders=0.3), person(shoulders=0.6)
    unsure = person(score=0.5)
    for each, reason in (
        (bust, ""),
        (face, ""),
        (torso, "a person whose head is cut"),
        (far, "a person whose shoulders are cut"),
        (unsure, "a person that is not sure"),
    ):
        kept, dropped = sift([each], (100, 200), CONFIG)
        assert (kept == [each], [why for _, why in dropped]) == (not reason, [reason] if reason else [])
    assert sift([face], (100, 200), replace(CONFIG, shoulders=0.0))[0] == []  # every bound is a field of the configuration
    assert sift([unsure], (100, 200), replace(CONFIG, person=0.4))[0] == [unsure]


def test_a_thing_that_the_frame_cuts_is_dropped_by_how_much_it_is_cut():
    thing = replace(person(), is_person=False)
    assert [why for _, why in sift([thing], (100, 200), CONFIG)[1]] == ["cut by the frame"]
    assert sift([thing], (100, 200), replace(CONFIG, cut=0.3))[0] == [thing]
    torso = person(head=0.4)
    assert sift([thing], (100, 200), CONFIG, is_judged=True)[0] == [thing]  # a model decides
    assert sift([torso], (100, 200), CONFIG, is_judged=True)[0] == [torso]


def test_what_is_known_by_motion_alone_must_be_found_again_at_about_its_size():
    small, large = (replace(person(box), is_person=False) for box in ((20, 10, 50, 40), (20, 10, 95, 85)))
    assert steady([(0, small), (1, small)], CONFIG)
    assert not steady([(0, small)], CONFIG)
    assert not steady([(0, small), (1, large)], CONFIG)
    assert steady([(0, replace(small, unnamed=False))], CONFIG)


# Motion


@pytest.mark.parametrize("camera", [0, 3])
def test_what_moves_by_itself_is_found_and_background_that_it_uncovers_is_not(camera):
    frames = [scene(camera * i, (60 + 4 * i, 40)) for i in (-1, 0, 1)]
    found = moving(np.stack(frames))
    assert len(found) == 1
    true = np.zeros((128, 200), bool)
    true[40:80, 60:100] = True
    assert (found[0] & true).sum() / (found[0] | true).sum() > 0.7


def test_a_camera_that_moves_over_a_scene_finds_nothing():
    assert moving(np.stack([scene(4 * i) for i in (-1, 0, 1)])) == []
    assert moving(np.stack([scene()] * 3)) == []


def test_the_tracker_carries_a_box_to_another_moment_and_two_alike_are_not_swapped():
    work = np.stack([scene(0, (30 + 2 * i, 40)) for i in range(41)])
    mask = np.zeros((128, 200), bool)
    mask[40:80, 30:70] = True
    box = carried(Detection((30, 40, 70, 80), mask), mask.shape, work, 0, 40)
    assert box is not None
    assert np.abs(np.array(box) - (110, 40, 150, 80)).max() <= 3
    first, last = (Detection((x, 40, x + 40, 80), np.roll(mask, x - 30, 1)) for x in (30, 110))
    decoy = Detection((30, 84, 70, 124), np.roll(mask, 44, 0))
    tracks = follow([[first], [decoy, last]], [work[0], work[40]], work, (0.0, 1.0), CONFIG)
    assert [[d.box for _, d in track] for track in tracks if track[0][0] == 0] == [[first.box, last.box]]


# Names


def subject(name, is_person, given=False):
    return {"name": name, "is_person": is_person, "has_caption_name": given}


def test_a_subjects_name_occurs_in_its_caption_or_it_is_none():
    caption, phrases = "A tall man walks with a small dog.", ["tall man", "small dog"]
    found = names.name([subject("person in red", True), subject("brown object", False)], phrases, caption)
    assert [s["name"] for s in found] == ["tall man", "small dog"]
    assert names.name([subject("brown object", False)], ["tall man"], "A tall man walks.") == []
    assert names.name([subject("red bus", False, given=True)], ["car"], "A car stands.") == []
    two = [subject("person in red", True), subject("person in blue", True)]
    assert names.name(two, phrases, caption) == []  # which of them is meant is not known
    assert names.name(two, [], "") == two


@pytest.mark.parametrize(
    ("caption", "drop", "reason"),
    [
        ("A tree.", "the caption does not name its subjects", "not named by the caption"),
        ("", "ambiguous subject names", "ambiguous subject names"),
    ],
)
def test_subjects_without_a_name_are_shown_in_the_report(tmp_path, caption, drop, reason):
    """Three of one color have no names of their own."""
    frames = np.full((24, 240, 320, 3), 220, np.uint8)
    for left in (20, 130, 240):
        frames[:, 60:160, left : left + 60] = (200, 30, 30)
    frames[12:, ::6] = 200  # something moves
    images.write_video(tmp_path / "a.mp4", frames, 12)
    (tmp_path / "a.txt").write_text(caption)
    seen = [Detection((x, 60, x + 60, 160), frames[0, ..., 2] < 128) for x in (20, 130, 240)]
    models = replace(MODELS, detect=lambda stills, *_: [seen] * len(stills))
    (clip,) = [r for r in process([str(tmp_path / "a.mp4")], replace(CONFIG, blur=0), models) if r["kind"] == "clip"]
    assert clip["drop"] == drop
    assert [each["reason"] for each in clip["passed_over"]] == [reason] * 9
    assert report._dropped({"name": "a.mp4", **clip})[1].count(reason) == 3


# Borders, text and what is encoded


def test_black_borders_are_cropped_from_what_is_looked_at_and_what_is_written(tmp_path):
    frames = np.stack([np.roll(texture(np.random.default_rng(1), 96, 192), 3 * i, 1) for i in range(24)])
    film = np.pad(frames, ((0, 0), (16, 16), (0, 0), (0, 0)))
    left, top, right, bottom = quality.content_crop(film, CONFIG)
    assert (left, right) == (0, 1)
    assert (round(top * 128), round(bottom * 128)) == (17, 111)
    images.write_video(tmp_path / "a.mp4", film, 24)
    clip = {"path": str(tmp_path / "a.mp4"), "name": "a", "fps": 24, "height": 128, "width": 192, "count": 24, "playable": True,
            "crop": (left, top, right, bottom), "begins": 0.0, "ends": 1.0, "start": 0, "stop": 24}  # fmt: skip
    shown, _ = images.read_video(io.BytesIO(encoded(clip, 24, 1280)))
    assert shown.shape[1] in (92, 94, 96)
    assert shown.max((0, 2, 3)).min() > 60  # no black line is left
    whole = {**clip, "crop": (0.0, 0.0, 1.0, 1.0)}
    assert encoded(whole, 24, 1280) == (tmp_path / "a.mp4").read_bytes()  # nothing to encode
    assert encoded({**whole, "stop": 12, "ends": 0.5}, 12, 1280) != (tmp_path / "a.mp4").read_bytes()


@pytest.mark.parametrize("share", [0.045, 0.06, 0.08])
@needs_files
def test_burnt_in_text_is_found_on_moving_footage(share):
    from phantom_s2v.vision.text import fixed_lines

    stills = [cv2.resize(scene(8 * i, (60, 40)), (960, 614)) for i in range(3)]
    assert not quality.burnt_in(fixed_lines(stills), CONFIG)
    font = ImageFont.load_default(round(share * 614))
    written = []
    for still in stills:
        image = Image.fromarray(still)
        ImageDraw.Draw(image).text(
            (120, 500), "Breaking News at Nine", fill="white", font=font, stroke_width=2, stroke_fill="black"
        )
        written.append(np.asarray(image))
    assert quality.burnt_in(fixed_lines(written), CONFIG)


def test_lines_count_as_burnt_in_by_their_height_and_width():
    line = (0.2, 0.9, 0.7, 0.95)
    assert quality.burnt_in([(0, 0, 0.1, 0.05), line, (0, 0, 1.5, 0.3), (0, 0, 0.5, 0.01)], CONFIG) == [line]


def test_burnt_in_text_is_shown_where_it_stands(tmp_path):
    frames = np.stack([cv2.resize(scene(i, (60, 40)), (320, 180)) for i in range(24)])
    images.write_video(tmp_path / "a.mp4", frames, 12)
    models = replace(MODELS, text=lambda stills: [(0.0, 0.0, 0.02, 0.02), (0.3, 0.8, 1.2, 0.9)])
    (clip,) = [r for r in process([str(tmp_path / "a.mp4")], CONFIG, models) if r["kind"] == "clip"]
    assert clip["drop"] == "burnt-in text"
    shown, words = report._dropped({"name": "a.mp4", **clip})
    assert words.endswith("1: line of text, burnt-in text")
    assert shown is not None
    x, y = round(0.3 * shown.shape[0]), round(0.85 * shown.shape[0])
    assert abs(shown[y, x].astype(int) - report.BOX).max() < 10  # the left side of its box


def test_text_that_most_stills_do_not_have_is_not_looked_for_in_the_others(monkeypatch):
    from phantom_s2v.vision import text

    asked, line = [], np.zeros((10, 40), np.float32)
    line[4:6, 5:35] = 1

    def chances(still):
        asked.append(still)
        return line * still

    monkeypatch.setattr(text, "text_chances", chances)
    assert text.fixed_lines([0, 0, 1]) == []
    assert len(asked) == 2
    assert text.fixed_lines([0, 1, 0]) == []
    (box,) = text.fixed_lines([0, 1, 1])
    assert box == pytest.approx((0.5 - 0.14, 0.4 - 0.14, 3.5 + 0.14, 0.6 + 0.14), abs=0.01)


def test_a_key_frame_that_is_none_is_not_sought(tmp_path, monkeypatch):
    """Frames are the same from the middle on, however they are reached."""
    film = np.stack([np.roll(texture(np.random.default_rng(2), 96, 128), 2 * i, 1) for i in range(60)])
    images.write_video(tmp_path / "a.mp4", film, 24)
    asked = []
    monkeypatch.setattr(Video, "_seekable", lambda self, begins: asked.append(begins) or False)
    refused = [frame for _, frame in Video(tmp_path / "a.mp4").frames(1.5)]
    monkeypatch.undo()
    sought = [frame for _, frame in Video(tmp_path / "a.mp4").frames(1.5)]
    assert asked == [1.5]
    assert len(refused) == len(sought) == 24
    assert all((a == b).all() for a, b in zip(refused, sought, strict=True))


def test_a_clip_of_two_frames_has_as_many_stills_as_moments():
    assert moments(2, CONFIG) == [0.0, 1.0]
    assert moments(101, CONFIG) == [0.05, 0.5, 0.95]
    assert moments(1, CONFIG) == [0.0]


def test_a_clip_dropped_for_its_borders_is_shown_with_them(tmp_path):
    film = np.pad(np.stack([np.roll(texture(np.random.default_rng(1), 40, 192), 3 * i, 1) for i in range(24)]),
                  ((0, 0), (44, 44), (0, 0), (0, 0)))  # fmt: skip
    images.write_video(tmp_path / "a.mp4", film, 24)
    clip, _ = process([str(tmp_path / "a.mp4")], CONFIG, MODELS)
    assert clip["drop"] == "black borders"
    still = cv2.imdecode(np.frombuffer(clip["still"], np.uint8), cv2.IMREAD_COLOR)
    assert still.shape[:2] == (128, 192)
    assert still[:40].max() < 30 < 60 < still[50:78].mean()


# Reference images


def view(image, number):
    height, width = image.shape[:2]
    inner = np.zeros((height, width), bool)
    inner[40:-40, 40:-40] = True
    share = (0.1, 0.2, 0.9, 0.9)
    return {"instant": number, "image": image, "mask": inner, "box": (40, 40, width - 40, height - 40), "share": share}


def test_views_that_are_no_references_go_and_a_clip_that_has_none_is_dropped():
    sharp = cv2.resize(texture(np.random.default_rng(4), 50, 50, 4), (400, 400), interpolation=cv2.INTER_NEAREST)
    dark, soft = sharp // 40, cv2.GaussianBlur(sharp, (0, 0), 6)
    soft[:40] = sharp[:40]  # what surrounds the subject is sharp
    clip = {"kind": "clip", "drop": "", "passed_over": [], "subjects": [{"name": "red bus", "views": []}]}
    views = [view(image, number) for number, image in enumerate((sharp, dark, soft))]

    def through(*chosen, config=CONFIG, models=MODELS):
        (record,) = crops.run([{**clip, "subjects": [{"name": "red bus", "views": list(chosen)}]}], config, models)
        return record

    record = through(*views)
    assert [v["instant"] for s in record["subjects"] for v in s["views"]] == [0]
    assert record["crops"]["seen"] == 3
    assert record["crops"]["dropped"] == {
        "a blurred reference image": 1, "a reference image that is too dark or too bright": 1
    }  # fmt: skip
    assert [each["reason"] for each in record["passed_over"]] == [
        "a reference image that is too dark or too bright", "a blurred reference image"
    ]  # fmt: skip
    scores = record["subjects"][0]["views"][0]["scores"]
    assert (scores["side"], scores["aesthetic"]) == (320, None)
    assert through(views[2])["drop"] == "no subject: a blurred reference image"
    assert through(*views, config=replace(CONFIG, reference_blur=1.0, reference_clipped=1.0))["drop"] == ""
    assert through(views[0], config=replace(CONFIG, reference_side=321))["drop"].endswith("too small")
    ugly = replace(MODELS, aesthetic=lambda images: np.array([3.0] * len(images), np.float32))
    assert through(views[0], models=ugly)["drop"] == ""
    assert "low aesthetic" in through(views[0], config=replace(CONFIG, reference_aesthetic=4.0), models=ugly)["drop"]


# Backgrounds


def scenes(tmp_path, config, subjects=1, models=MODELS):
    """A library of one film, written: shots of a red square on backgrounds 0, 0, 1, the first of two pieces; triplets by clip."""
    index, rights = SubjectIndex(tmp_path / "t.index"), Rights("film", "MIT")
    for number, (shot, seed) in enumerate((("a", 0), ("a", 0), ("b", 0), ("c", 1))):
        still = texture(np.random.default_rng(seed), 96, 160)
        covered = np.zeros((96, 160), bool)
        covered[30:60, 20 + 30 * number : 50 + 30 * number] = True
        still[covered] = (220, 20, 20)
        views = [{"image": still, "mask": covered, "inner": (0, 0, 1, 1), "box": (0, 0, 160, 96), "instant": 1}]
        one = {"name": "red square", "is_person": False, "has_logo": False, "has_face": False, "views": views}
        one |= {"vector": np.eye(4, dtype=np.float32)[number], "face": np.zeros(128, np.float32)}
        one |= {"context": np.eye(768, dtype=np.float32)[number : number + 1]}
        record = {"kind": "clip", "clip": f"c{number}", "shot": shot, "source_video": "f", "drop": "", "video": b"x",
                  "signature": signature(number), "start": 0, "stop": 9, "name": "f.mp4", "caption": "A red square.", "fps": 8.0,
                  "frames": 9, "height": 96, "width": 160, "scores": {}, "stills": [still, still], "covered": [~covered, covered],
                  "subjects": [{**one, "subject": f"s{number}{i}"} for i in range(subjects)]}  # fmt: skip
        (record,) = background.run([record], config, models)
        index.add(engine._slim(record))
    index.flush()
    pairs = list(pair.run(index, config))
    found = write.run(lambda _: pairs, grouped(pairs), set(), index, rights, config)
    return dict(zip(("c0", "c1", "c2", "c3"), found, strict=True))


def scene_vectors(cutouts):
    """Large colors of an image: the same of one scene whatever is filled."""
    small = np.stack([cv2.resize(each, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32).ravel() for each in cutouts])
    small -= small.mean(1, keepdims=True)
    return small / np.linalg.norm(small, axis=1, keepdims=True)


BACKGROUNDS = replace(CONFIG, background=True)


def test_a_background_is_the_scene_of_another_shot_without_its_subjects(tmp_path):
    found = scenes(tmp_path, BACKGROUNDS, models=replace(MODELS, embed=scene_vectors))
    last = {clip: triplet.references[-1] for clip, triplet in found.items()}
    assert {reference.subject for reference in last.values()} == {"background"}
    pairings = {clip: reference.pairing for clip, reference in last.items()}
    assert pairings == {"c0": "cross-pair", "c1": "cross-pair", "c2": "cross-pair", "c3": "in-pair"}
    assert last["c0"].image == last["c1"].image  # of the other shot
    assert last["c3"].score is None
    assert last["c0"].score > 0.8
    assert 0.8 < last["c0"].scores["seen"] < 1
    for clip, seed, left in (("c0", 0, 80), ("c3", 1, 110)):
        image = images.read_image(io.BytesIO(last[clip].image))[0].astype(int)
        true = texture(np.random.default_rng(seed), 96, 160).astype(int)
        assert np.abs(image[70:] - true[70:]).mean() < 8  # what was seen is as it was
        assert image[30:60, left : left + 30, 1:].mean() > 60  # 20 of the square
    assert [reference.subject for reference in found["c0"].references] == ["red square", "background"]
    check_triplet(found["c0"])


def test_a_background_needs_enough_of_the_scene_and_room(tmp_path):
    assert [r.subject for t in scenes(tmp_path / "off", CONFIG).values() for r in t.references] == ["red square"] * 4
    none = scenes(tmp_path / "unseen", replace(BACKGROUNDS, background_seen=0.99))
    assert [r.subject for t in none.values() for r in t.references] == ["red square"] * 4
    facts = SubjectIndex(tmp_path / "unseen" / "t.index").clip_facts(["c0"])["c0"]["background"]
    assert facts["reason"] == "too little of the scene is seen"
    clip = {"stills": [np.zeros((9, 9, 3), np.uint8)] * 2, "covered": [None, None]}
    assert background._background(clip, BACKGROUNDS, MODELS)["reason"] == "no moment shows all of its subjects"
    four = scenes(tmp_path / "four", BACKGROUNDS, subjects=4, models=replace(MODELS, embed=scene_vectors))
    assert "background" not in {r.subject for t in four.values() for r in t.references}


# Pairs


def filled(tmp_path, rows):
    """An index of subjects (clip, shot, source video, face or None, has_logo), all of one look in other surroundings."""
    index, rng = SubjectIndex(tmp_path / "t.index"), np.random.default_rng(3)
    for number, (clip, shot, source, face, has_logo) in enumerate(rows):
        context = rng.normal(size=(1, 768)).astype(np.float32)
        picture, mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
        view = {"instant": 0, "image": picture, "mask": mask, "inner": (0, 0, 1, 1), "box": (0, 0, 8, 8)}
        one = {
            "subject": f"s{number}",
            "name": "a",
            "is_person": face is not None,
            "has_logo": has_logo,
            "views": [view],
            "vector": np.eye(4, dtype=np.float32)[0],
            "has_face": face is not None,
            "face": np.full(128, face or 0, np.float32),
            "context": context / np.linalg.norm(context),
        }
        record = {
            "kind": "clip",
            "clip": clip,
            "shot": shot,
            "source_video": source,
            "drop": "",
            "video": b"",
            "start": 0,
            "stop": 9,
        }
        index.add({**record, "signature": signature(number), "subjects": [one]})
    index.flush()
    return index


def signature(number):
    values = np.random.default_rng(number).normal(size=64).astype(np.float32)
    return values / np.linalg.norm(values)


def kept(index, config=CONFIG):
    return {(p["subject"], p["partner"], p["kind"]) for p in pair.run(index, config) if not p["drop"]}


def test_pieces_of_a_shot_are_not_paired_unless_that_is_asked_for(tmp_path):
    index = filled(tmp_path, [("a", "1", "f", None, False), ("b", "1", "f", None, False), ("c", "2", "f", None, False)])
    assert kept(index) == {
        ("s0", "s2", "cross-shot"),
        ("s1", "s2", "cross-shot"),
        ("s2", "s0", "cross-shot"),
        ("s2", "s1", "cross-shot"),
    }
    assert ("s0", "s1", "same-shot") in kept(index, replace(CONFIG, same_shot=True))


def test_across_source_videos_a_face_or_a_logo_has_to_match(tmp_path):
    rows = [("a", "1", "f", 0.0, False), ("b", "2", "g", 0.01, False), ("c", "3", "h", 0.05, False), ("d", "4", "i", None, True),
            ("e", "5", "j", None, True), ("f", "6", "k", None, False)]  # fmt: skip
    found = kept(filled(tmp_path, rows))
    assert found == {
        ("s0", "s1", "cross-source"),
        ("s1", "s0", "cross-source"),
        ("s3", "s4", "cross-source"),
        ("s4", "s3", "cross-source"),
    }


def identities(pairs):
    groups = grouped(pairs)
    return groups, groups.identities({each[side] for each in pairs for side in ("subject", "partner")})


def test_subjects_of_a_library_are_one_identity_by_pairs_and_across_films_by_face(tmp_path):
    near, far = 0.005, 0.05  # of each of 128 numbers: distances 0.06 and 0.57
    rows = [(f"a{i}", f"a{i}", "f", 0.0, False) for i in range(5)] + [(f"b{i}", f"b{i}", "g", near, False) for i in range(5)]
    rows += [("c", "c", "h", far, False), ("d", "d", "f", None, False), ("e", "e", "f", None, False)]
    rows += [("p1", "p", "k", None, False), ("p2", "p", "k", None, False)]
    pairs = list(pair.run(filled(tmp_path, rows), CONFIG))
    groups, found = identities(pairs)
    assert {found[f"s{i}"] for i in range(10)} == {"s0"}  # both have enough partners in their own film
    assert found["s10"] == "s10"  # within a film this distance would be one person
    assert found["s11"] == found["s12"] == "s11"
    assert groups.across == 1
    assert found["s13"] == found["s14"] == "s13"  # pieces of one shot, which are no references of each other
    assert not [p for p in pairs if {p["subject"], p["partner"]} == {"s13", "s14"} and not p["drop"]]
    assert sum(not p["drop"] for p in pairs if p["subject"] == "s0") == CONFIG.partners
    assert len({(p["subject"], p["partner"]) for p in pairs}) == len(pairs)


def test_subjects_that_are_seen_together_are_two_and_the_least_similar_pair_between_them_is_not_used():
    def of(one, other, similarity, drop=""):
        ends = {"subject": one, "clip": one[0], "partner": other, "partner_clip": other[0]}
        return {**ends, "kind": "cross-shot", "similarity": similarity, "sameness": 0.0, "face": None, "drop": drop}

    pairs = [of("a1", "b1", 0.9), of("a2", "b1", 0.7), of("b1", "c1", 0.8, "near-duplicate"), of("a2", "d1", 0.7)]
    groups, found = identities([*pairs, of("c1", "d1", 0.1, "another subject")])
    assert found == {"a1": "a1", "b1": "a1", "c1": "a1", "a2": "a2", "d1": "a2"}
    assert groups.contradicting == 1


def test_many_subjects_are_searched_through_an_index(tmp_path, monkeypatch):
    rows = [(f"c{i}", f"{i}", f"f{i}", 0.1 * i, False) for i in range(300)]
    rows += [(f"d{i}", f"d{i}", f"g{i}", rows[i][3] + 1e-4, False) for i in range(20)]
    index = filled(tmp_path, rows)
    monkeypatch.setattr("phantom_s2v.data.pipeline.index.INDEXED", 300)
    index.index_vectors()
    version = index.open("subjects").version
    assert {column for each in index.open("subjects").describe_indices() for column in each.field_names} == {"vector", "face"}
    index.index_vectors()
    assert index.open("subjects").version == version  # nothing new, nothing to do
    found = kept(index)
    assert sum((f"s{i}", f"s{300 + i}", "cross-source") in found for i in range(20)) >= 18


def test_calibration_finds_the_bound_of_a_wanted_precision(tmp_path):
    vectors = np.array([[1, 0], [0.9, 0.4359], [0, 1], [0.4359, 0.9]])
    found = separation(vectors, ["a", "a", "b", "b"], 0.95)
    assert (found.precision, found.recall, found.auc, found.same, found.other) == (1, 1, 1, 2, 4)
    assert found.lower == pytest.approx(0.9, abs=1e-3)
    mixed = separation(vectors, ["a", "b", "a", "b"], 0.3)
    assert mixed.precision < 0.5
    with pytest.raises(InputError, match="no bound reaches a precision of 0"):
        separation(vectors, ["a", "b", "a", "b"], 0.95)
    with pytest.raises(InputError, match="got 0 images of 0 subjects"):
        labelled(tmp_path)


def test_boxes_of_subjects_lie_in_their_frames():
    from pathlib import Path

    films = json.loads((Path(__file__).parent / "real_boxes.json").read_text())["films"]
    assert len(films) == 20
    for film in films.values():
        times = [frame["time"] for frame in film["frames"]]
        assert times == sorted(times)
        for each in (one for frame in film["frames"] for one in frame["subjects"]):
            left, top, right, bottom = each["box"]
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            assert each["extent"] in ("whole", "bust", "head", "cut")


def test_a_report_shows_what_was_seen_in_a_dropped_clip_and_why_it_is_no_subject():
    seen = [
        {"instant": 2, "box": (0.25, 0.25, 0.75, 0.75), "what": "person", "reason": "a person whose head is cut"},
        {"instant": 1, "box": (0, 0, 1, 1), "what": "object", "reason": "too large"},  # not in this frame
    ]
    clip = {"name": "a.mp4", "begins": 2.0, "ends": 4.0, "passed_over": seen, "kind": "clip"}
    stills = [np.full((90, 160, 3), shade, np.uint8) for shade in (250, 250, 0)]
    clip = engine._slim({**clip, "stills": stills, "drop": "no subject: a person whose head is cut"})
    assert clip["shown"] == 2  # where the reason is to be seen
    frame, words = report._dropped(clip)
    assert words == "a.mp4, 2.0 to 4.0 s. 1: person, a person whose head is cut"
    assert frame is not None
    assert frame[22:24, 60].max() > 100  # the upper edge of the box
    assert frame[45, 80].max() < 30
