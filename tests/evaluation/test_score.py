"""The score of a video: metrics on what is known, planted faults, KPIs, and the command as a user calls it."""

import doctest
import json
import re
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation import selfcheck
from phantom_s2v.evaluation.footage import moments, shrunk
from phantom_s2v.evaluation.instruments import LIMITS, Faces, Instruments, Thresholds
from phantom_s2v.evaluation.kpi import evaluate_kpis, read_kpis
from phantom_s2v.evaluation.metrics import measures, subjects
from phantom_s2v.evaluation.metrics.pasting import copy_paste
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.run import parse_crop
from phantom_s2v.evaluation.score import SubjectScore, faults, score
from phantom_s2v.media import images
from phantom_s2v.vision.faces import Face
from phantom_s2v.vision.factory import embed_mini

LIMIT = LIMITS["phantom-mini"]
MINI = Instruments("phantom-mini", embed_mini, LIMIT)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (*shape, 3)).astype(np.uint8)


def numbers(video, references=()):
    return measures.over_time(enumerate(video), references)


def flash(video, image):
    return measures.reference_flash(numbers(video, [image]).similarity[0], LIMIT.flashed)


# Metrics


def test_a_image_that_stands_in_a_frame_is_pasted():
    video = np.stack([noise(96, 96, seed=i) for i in range(12)])
    image = np.kron(noise(6, 6, seed=99), np.ones((8, 8, 1))).astype(np.uint8)
    assert copy_paste(video, image) < 0.5
    video[6, 20:68, 30:78] = image
    found = copy_paste(video, image)
    assert found > 0.9
    whole = np.repeat(image[None], 12, 0)
    assert copy_paste(whole, image) == pytest.approx(1, abs=1e-4)


PHOTOGRAPHS = [p[..., :3] for p in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())]
SHAPES = [(144, 256), (144, 144), (256, 144), (144, 192), (144, 336)]


def fill(image, shape, cropped):
    """An image within a frame of another shape, on black, or cropped to it."""
    scale = (max if cropped else min)(shape[0] / image.shape[0], shape[1] / image.shape[1])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    resized, frame = cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.zeros((*shape, 3), np.uint8)
    top, left = ((a - b) // 2 for a, b in zip(resized.shape[:2], shape, strict=True))
    part = resized[max(0, top) : max(0, top) + shape[0], max(0, left) : max(0, left) + shape[1]]
    frame[max(0, -top) : max(0, -top) + part.shape[0], max(0, -left) : max(0, -left) + part.shape[1]] = part
    return frame


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cropped", [False, True])
def test_a_pasted_image_is_found_at_every_shape_of_a_video(shape, cropped):
    for image, other in zip(PHOTOGRAPHS, PHOTOGRAPHS[1:] + PHOTOGRAPHS[:1], strict=True):
        frame = [fill(image, shape, cropped)]
        assert copy_paste(frame, image) > 0.99
        assert copy_paste(frame, other) < 0.8


def test_a_transparent_reference_is_found_on_another_background():
    image, place = PHOTOGRAPHS[0], PHOTOGRAPHS[1]
    alpha = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(alpha, (230, 200), (150, 190), 0, 0, 360, 1, -1)
    seen, frame = np.where(alpha[..., None] > 0, image, 255).astype(np.uint8), place.copy()
    small, mask = (cv2.resize(p, (256, 256), interpolation=cv2.INTER_AREA) for p in (image, alpha))
    frame[60:316, 150:406][mask > 0] = small[mask > 0]
    assert copy_paste([shrunk(frame)], seen, alpha > 0) > 0.97 > 0.8 > copy_paste([shrunk(frame)], seen)
    assert copy_paste([shrunk(place)], seen, alpha > 0) < 0.8


def test_a_flash_is_found_at_every_shape_of_a_video():
    for shape in SHAPES:
        video = np.stack([fill(np.roll(PHOTOGRAPHS[1], 2 * i, 1), shape, True) for i in range(12)])
        shown = fill(PHOTOGRAPHS[0], (shape[0] * 3 // 4, shape[1] * 3 // 4), False)
        video[5:7, : shown.shape[0], : shown.shape[1]] = shown
        assert flash(video, PHOTOGRAPHS[0])[1] == [5, 6]
        assert flash(video, PHOTOGRAPHS[2])[1] == []


def test_two_flashed_frames_are_named_and_a_steady_image_is_no_flash():
    image = np.kron(noise(8, 8, seed=1), np.ones((8, 8, 1))).astype(np.uint8)
    video = np.stack([np.kron(noise(8, 8, seed=50), np.ones((8, 8, 1))).astype(np.uint8)] * 20)
    assert flash(video, image) == (0.0, [])
    video[7:9] = image
    rise, frames = flash(video, image)
    assert frames == [7, 8]
    assert rise > 0.5
    assert flash(np.repeat(image[None], 20, 0), image)[1] == []


def test_a_flash_is_found_in_the_view_that_its_reference_was_cut_from():
    """The image then stands in every frame, though elsewhere and smaller than the frame that flashes."""
    view = PHOTOGRAPHS[0]
    image = np.ascontiguousarray(view[20:320, 60:420])
    video = np.stack([cv2.resize(np.roll(view, i, 1), (256, 256)) for i in range(25)])
    assert numbers(video, [image]).similarity[0].max(1).min() > 0.9
    assert flash(video, image)[1] == []
    for cropped in (False, True):
        video[11:13] = fill(image, video.shape[1:3], cropped)
        assert flash(video, image)[1] == [11, 12]


def test_frozen_flicker_and_smoothness_on_what_is_known():
    still = np.repeat(noise(40, 40)[None], 10, 0)
    assert (measures.frozen(numbers(still)), measures.flicker(numbers(still)), measures.smoothness(numbers(still))) == (
        1.0,
        0.0,
        1.0,
    )
    assert np.isnan(
        [measures.frozen(numbers(still[:1])), measures.flicker(numbers(still[:2])), measures.smoothness(numbers(still[:2]))]
    ).all()
    moving = np.stack([np.roll(still[0], 2 * i, 1) for i in range(10)])
    assert measures.frozen(numbers(moving)) == 0.0
    gray = np.full((10, 8, 8, 3), 100, np.uint8)
    gray[1::2] = 110
    assert measures.flicker(numbers(gray)) == pytest.approx(10 / 105, rel=0.01)
    rising = np.stack([np.full((8, 8, 3), 20 * i, np.uint8) for i in range(10)])
    assert (measures.flicker(numbers(rising)), measures.smoothness(numbers(rising))) == (0.0, 1.0)
    assert measures.smoothness(numbers(gray)) == pytest.approx(1 - 10 / 255, rel=1e-4)


def test_sharpness_falls_with_blur():
    import cv2

    video = np.stack([noise(64, 64, seed=i) for i in range(3)])
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in video])
    assert measures.sharpness(soft) < 0.1 * measures.sharpness(video)


# Subjects


def square(color, at, video):
    for frame in video:
        frame[at[0] : at[0] + 24, at[1] : at[1] + 24] = color


def by_color(stills):
    """Unit vectors: mean color of what is not white, about its mean."""
    means = np.stack([np.concatenate([p[(p < 250).any(-1)], [[0, 0, 0]]]).mean(0) for p in stills])
    means -= means.mean(1, keepdims=True)
    return means / np.maximum(1e-6, np.linalg.norm(means, axis=1, keepdims=True))


RED, BLUE, GREEN = (210, 40, 40), (40, 40, 210), (40, 190, 40)


def scene(*placed):
    video = np.full((12, 96, 128, 3), 255, np.uint8)
    for color, at in placed:
        square(color, at, video)
    return video


BOX = (0, 0, 20, 20)
REFERENCES = [scene((RED, (30, 40)))[0], scene((BLUE, (30, 40)))[0]]
NAMES = ["red square", "blue square"]
ASKED = "The red square at the left waits, and the blue square at the right waits."


def found_in(video, count=2):
    limits = Thresholds(similarity=0.5, there=0.5, frozen=2.0, pasted=2.0)  # squares are unchanged
    return faults(score(video, REFERENCES[:count], NAMES[:count], ASKED, Instruments("color", by_color, limits)), limits)


def test_found_missing_other_doubled_and_swapped():
    left, right, top = (36, 20), (36, 84), (4, 52)
    assert found_in(scene((RED, left), (BLUE, right))) == {}
    assert found_in(scene((RED, left))) == {"missing": ["blue square"]}
    assert found_in(scene((RED, left), (GREEN, right))) == {"other subject": ["blue square"]}
    assert found_in(scene((RED, left), (BLUE, right), (BLUE, top))) == {"doubled": ["blue square"]}
    assert found_in(scene((RED, right), (BLUE, left))) == {"swapped": [""]}
    assert found_in(scene((RED, left), (RED, right)), count=1) == {"doubled": ["red square"]}


def test_a_subject_that_fills_its_reference_is_looked_for_in_regions():
    filled = np.full((96, 96, 3), 255, np.uint8)
    filled[4:92, 4:92] = RED
    assert subjects.cut_reference(filled) is filled
    assert subjects.cut_reference(np.full((96, 96, 3), 255, np.uint8)) is None
    limits = Thresholds(similarity=0.5, there=0.5, frozen=2.0, pasted=2.0)  # squares are unchanged
    tools = Instruments("color", by_color, limits)
    assert faults(score(scene((RED, (36, 20))), [filled], ["red square"], "", tools), limits) == {}
    missing = score(scene((GREEN, (36, 20))), [filled, REFERENCES[1]], NAMES, "", tools)
    assert set(faults(missing, limits)) == {"missing", "other subject"}


def photographed(*placed):
    """Frames of smooth noise in all colors, as a photograph has them, with what is placed."""
    rng = np.random.default_rng(3)
    background = cv2.resize(rng.integers(0, 255, (12, 16, 3)).astype(np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC)
    video = np.repeat(background[None], 6, 0)
    for image, (top, left) in placed:
        video[:, top : top + len(image), left : left + image.shape[1]] = image
    return video


def test_on_a_photographed_background_a_subject_is_found_in_a_window():
    camera, cat = (
        cv2.resize(p, (96, 96), interpolation=cv2.INTER_AREA) for p in (skimage.data.astronaut(), skimage.data.chelsea())
    )
    tools = instruments(Wanted())
    video = photographed((camera, (96, 0)))
    video[3:] = photographed((cat, (96, 0)))[:3]
    found = score(video, [camera, cat], ["person", "cat"], "", tools)
    person, other = found.subjects
    assert person.in_windows
    assert other.in_windows
    assert min(person.over_time[:3]) > 0.9 > 0.6 > max(person.over_time[3:])
    assert min(other.over_time[3:]) > 0.9 > 0.6 > max(other.over_time[:3])
    assert person.similarity_min_frame in (3, 4, 5)
    assert np.isnan(person.doubled)
    assert "doubled" in found.not_measured
    assert any("frame windows" in note for note in found.notes)


def test_two_subjects_on_a_photographed_background_are_told_by_their_sides():
    person, cat = (
        cv2.resize(p, (96, 96), interpolation=cv2.INTER_AREA) for p in (skimage.data.astronaut(), skimage.data.chelsea())
    )
    tools, asked = instruments(Wanted()), "The person at the left waits, and the cat at the right sleeps."
    right = score(photographed((person, (96, 0)), (cat, (96, 160))), [person, cat], ["person", "cat"], asked, tools)
    wrong = score(photographed((cat, (96, 0)), (person, (96, 160))), [person, cat], ["person", "cat"], asked, tools)
    assert "swapped" not in faults(right, tools.limits)
    assert "swapped" in faults(wrong, tools.limits)


def test_a_photograph_on_a_plain_background_is_looked_for_in_windows_too():
    """What stands out there is not what its reference shows, so it is not missing."""
    subject = cv2.resize(PHOTOGRAPHS[0], (120, 120), interpolation=cv2.INTER_AREA)
    video = np.full((6, 240, 320, 3), 200, np.uint8)
    for i, frame in enumerate(video):
        frame[100:220, 10 * i : 120 + 10 * i] = subject
    tools = instruments(Wanted())
    tools = replace(tools, faces=None)
    alone, none = (score(video, [p], ["it"], "", tools) for p in (PHOTOGRAPHS[0], PHOTOGRAPHS[2]))
    assert not {"missing", "other subject"} & set(faults(alone, tools.limits))
    assert {"missing", "other subject"} & set(faults(none, tools.limits))


@pytest.mark.parametrize(("face", "wrong"), [(0.9, False), (0.3, True), (None, False)])
def test_a_face_decides_who_it_is_where_both_show_one(face, wrong):
    """The square is the same in all: without a face in the video its similarity decides."""

    def find(image):
        return [Face(BOX, np.array([0.0]))] if image.shape == REFERENCES[0].shape and (image == REFERENCES[0]).all() else shown

    shown = [] if face is None else [Face(BOX, np.array([1 - face]))]
    faces = Faces("known", find, lambda a, b: 1 - abs(float(a[0] - b[0])))
    limits = Thresholds(similarity=0.5, there=0.5, frozen=2.0, pasted=2.0)  # squares are unchanged
    video = scene((RED, (36, 20)))
    told = score(video, REFERENCES[:1], NAMES[:1], "", Instruments("color", by_color, limits, faces=faces))
    assert faults(told, limits) == ({"other subject": ["red square"]} if wrong else {})
    missing = score(scene(), REFERENCES[:1], NAMES[:1], "", Instruments("color", by_color, limits, faces=faces))
    assert faults(missing, limits) == ({"missing": ["red square"]} if face is None else faults(told, limits))


@pytest.mark.parametrize(("alike", "swapped"), [(0.9, 1.0), (0.3, 0.0)])
def test_known_faces_decide_on_which_side_two_people_stand(alike, swapped):
    """Both references look alike to the network of similarity; only the brightness of a face says who it is."""
    shades = (90, 200)
    frame = np.zeros((60, 100, 3), np.uint8)
    frame[10:30, 10:30], frame[10:30, 70:90] = shades[1], shades[0]  # the second stands at the left
    references = [np.full((20, 20, 3), shade, np.uint8) for shade in shades]

    def find(image):
        boxes = {shades[0]: (70, 10, 90, 30), shades[1]: (10, 10, 30, 30)} if image.shape == frame.shape else {}
        return [Face(boxes.get(shade, BOX), np.array([shade])) for shade in shades if (image == shade).any()]

    faces = Faces("shade", find, lambda a, b: alike if a == b else -1.0)
    tools = Instruments("none", lambda images: np.ones((len(images), 1)), Thresholds(), faces=faces)
    prompt = "The first one at the left waits, and the second one at the right waits."
    told = score(np.repeat(frame[None], 4, 0), references, ["first one", "second one"], prompt, tools)
    assert told.swapped == swapped


def test_a_subject_that_falls_below_the_bound_in_windows_drifts():
    subject = SubjectScore("a", 0.6, 0.45, 3, 0.6, 0.5, 0, 1.0, float("nan"), 0.2, 0.0, [], in_windows=True)
    steady = replace(subject, similarity=0.52)
    video = score(scene((RED, (36, 20))), [], [], "", Instruments("color", by_color, Thresholds()))
    told = [faults(replace(video, subjects=[s]), Thresholds(frozen=2.0)) for s in (subject, steady, replace(subject, face=0.9))]
    assert told == [{"drifting": ["a"]}, {}, {}]


def test_the_minimum_frame_is_named():
    video = scene((RED, (36, 20)))
    square(GREEN, (36, 20), video[5:6])
    found = score(video, REFERENCES[:1], NAMES[:1], "", Instruments("color", by_color, Thresholds()))
    assert found.subjects[0].similarity_min_frame == 5
    assert found.subjects[0].similarity_min < 0.6 < found.subjects[0].similarity


def test_a_video_is_fully_like_itself():
    clip = selfcheck.planted("", 0, held_out())
    itself = score(clip.video, [clip.video[0]], ["it"], "", MINI)
    assert itself.subjects[0].over_time[0] == pytest.approx(1, abs=1e-4)
    assert itself.subjects[0].copy_paste == pytest.approx(1, abs=1e-4)


def test_an_empty_video_finds_nothing_and_says_so():
    found = score(
        np.full((8, 64, 64, 3), 200, np.uint8), REFERENCES[:1], ["red"], "", Instruments("color", by_color, Thresholds())
    )
    assert np.isnan(found.subjects[0].similarity)
    assert set(faults(found, Thresholds())) == {"missing", "frozen"}


def test_places_in_prompts():
    assert doctest.testmod(subjects).failed == 0
    assert subjects.places_asked("Two squares play.", NAMES) == ["", ""]


def test_small_frames_stay_as_they_are():
    frame = noise(100, 200)
    assert shrunk(frame) is frame
    assert shrunk(noise(256, 512)).shape == (128, 256, 3)


def test_frames_are_chosen_evenly_in_time():
    steady = np.arange(147) / 30
    assert moments(steady, 10) == np.linspace(0, 146, 10).round().astype(int).tolist()
    assert moments(steady[:1], 10) == [0]
    assert moments(steady[:4], 10) == [0, 1, 2, 3]
    burst = np.concatenate([[0.0, 5.0], 5 + np.arange(1, 51) / 10])  # a frame that stands for 5 s, then ten a second
    assert moments(burst, 3) == [0, 1, 51]


# Planted faults


@pytest.mark.parametrize("fault", selfcheck.PLANTED)
def test_planted_faults_are_seen(fault):
    hits = 0
    for number in range(4):
        made = selfcheck.planted(fault, number, held_out())
        names = selfcheck.NAMES[: len(made.references)]
        hits += fault in faults(score(made.video, made.references, names, made.prompt, MINI), LIMIT)
    assert hits >= 3


@pytest.mark.parametrize("number", [4, 6])
def test_an_image_that_is_pasted_for_longer_than_a_flash_is_pasted(number):
    """Its pose is left slowly, so that some frames are much more like it than half of them are."""
    made = selfcheck.planted("pasted", number, held_out())
    scored = score(made.video, made.references, selfcheck.NAMES[:1], made.prompt, MINI)
    assert len(scored.subjects[0].flash_frames) > 3
    assert "pasted" in faults(scored, LIMIT)
    brief = replace(scored, subjects=[replace(scored.subjects[0], flash_frames=[3, 4])])
    assert "pasted" not in faults(brief, LIMIT)  # two frames of 25 are a flash


def test_a_planted_clip_follows_from_its_number():
    one, again, other = (selfcheck.planted("flashed", n, held_out()) for n in (3, 3, 4))
    assert (one.video == again.video).all()
    assert one.video.shape != other.video.shape or (one.video != other.video).any()


# KPIs and the command


def test_kpis_are_evaluated_on_the_worst_subject(tmp_path):
    file = tmp_path / "kpi.toml"
    file.write_text('[similarity]\nmin = 0.8\nreason = "ours"\n[flicker]\nmax = 0.5\nreason = "eyes"\n')
    found = score(scene((RED, (36, 20)), (GREEN, (36, 84))), REFERENCES, NAMES, "", Instruments("color", by_color, Thresholds()))
    verdicts = {v.kpi.metric: v for v in evaluate_kpis(found, read_kpis(file))}
    assert verdicts["similarity"].met is False
    assert verdicts["similarity"].value == min(s.similarity for s in found.subjects)
    assert verdicts["flicker"].met is True
    blind = replace(found, subjects=[])
    assert {v.kpi.metric: v.met for v in evaluate_kpis(blind, read_kpis(file))} == {"similarity": False, "flicker": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "contains no KPI"),
        ("= 1", "not a valid TOML"),
        ('[beauty]\nmin=1\nreason="x"', "unknown metric beauty"),
        ("[similarity]\nmin=1", "is missing reason"),
        ('[similarity]\nreason="x"', "must have a number"),
        ('[similarity]\nmin="much"\nreason="x"', "min must be a number .got 'much'"),
        ('[similarity]\nmin=1\nreason=" "', "reason of .similarity. in k.toml must not be empty"),
    ],
)
def test_a_bad_kpi_file_is_one_sentence(tmp_path, text, said):
    (tmp_path / "k.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_kpis(tmp_path / "k.toml")


@pytest.mark.parametrize("text", ["", "1,2", "0,0,0,1", "a,b,c,d", "0,0,2,1"])
def test_a_bad_crop_is_refused(text):
    with pytest.raises(InputError, match="crop must be"):
        parse_crop(text)


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "evaluate")


def test_score_as_a_user_calls_it(phantom, tmp_path):
    clip = selfcheck.planted("", 0, held_out())
    folder = tmp_path / "動画"
    folder.mkdir()
    images.write_video(folder / "good 1.mp4", clip.video, 12)
    images.write_video(folder / "frozen.mp4", np.repeat(clip.video[:1], 20, 0), 12)
    Image.fromarray(clip.references[0]).save(tmp_path / "ref.png")
    ask = ("--reference", f"toy={tmp_path / 'ref.png'}", "--features", "phantom-mini")
    code, said = phantom("score", folder, *ask, "--out", tmp_path / "page.html")
    assert code == 0
    facts = json.loads(said.out.splitlines()[-1])
    assert (facts["videos"], facts["with_faults"], facts["networks"]["similarity"]) == (2, 1, "phantom-mini")
    assert "good 1.mp4: no fault" in said.out
    rows = {row["video"]: row for row in map(json.loads, (tmp_path / "page.jsonl").read_text().splitlines())}
    assert rows["frozen.mp4"]["faults"] == {"frozen": [""]}
    assert rows["good 1.mp4"]["subjects"][0]["reconstruction"] > 18
    assert rows["good 1.mp4"]["networks"]["reconstruction"] == "phantom-mini"
    page = (tmp_path / "page.html").read_text()
    assert page.index("frozen.mp4") < page.index("good 1.mp4")  # the worst first
    assert "not measured" in page
    assert page.count("<video controls") == 2
    assert "://" not in re.sub(r'data:[^"]+', "", page)
    kpi = tmp_path / "kpi.toml"
    kpi.write_text('[frozen]\nmax = 0.5\nreason = "it has to move"\n')
    assert phantom("score", folder, *ask, "--kpi", kpi)[0] == 1
    (folder / "broken.mp4").write_bytes(b"no source video")
    assert "part of the frames was scored" not in page
    code, said = phantom("score", folder, *ask, "--out", tmp_path / "page.html", "--force", "--crop", "0,0.125,1,1")
    assert code == 3
    assert "scored: 0% to 100% of the width, 12.5% to 100% of the height" in (tmp_path / "page.html").read_text()
    assert "broken.mp4: not measured" in said.out
    assert phantom("score", tmp_path / "none", *ask)[0] == 2
    assert phantom("score", folder / "broken.mp4", *ask)[0] == 2
    assert phantom("score", folder, "--features", "eye")[0] == 2
    assert phantom("score", folder, "--reference", tmp_path / "no.png")[0] == 2


def test_the_self_check_prints_a_rate_for_each_fault(phantom):
    code, said = phantom("self-check", "--each", "1", "--clean", "1")
    assert code == 0
    assert set(json.loads(said.out.splitlines()[-1])) == set(selfcheck.PLANTED)
    assert phantom("self-check", "--each", "0")[0] == 2


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        (("score", "nowhere"), "cases.html", r"cases\.jsonl exists and was not written by phantom"),  # the suite's own file
        (("score", "nowhere"), "v1.0", r"must be a \.html file \(got v1\.0\)"),
        (("compare", "one.jsonl", "two.jsonl"), "mine.html", r"mine\.html exists and was not written by phantom"),
        (("calibrate", "good", "bad"), "mine.toml", r"mine\.toml exists and was not written by phantom"),
        (("calibrate", "good", "bad"), "kpi.json", r"must be a \.toml file \(got kpi\.json\)"),
    ],
)
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_files_of_the_user_are_refused_before_any_work(phantom, tmp_path, command, name, said, force):
    for mine in ("cases.jsonl", "mine.html", "mine.toml"):
        (tmp_path / mine).write_text("mine")
    code, out = phantom(*command, "--out", tmp_path / name, *force)
    assert (code, len(out.err.splitlines())) == (2, 1)
    assert re.search(said, out.err), out.err
    assert {p.read_text() for p in tmp_path.iterdir()} == {"mine"}
