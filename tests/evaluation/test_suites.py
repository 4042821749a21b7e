"""Suites of cases, from files to videos, scores and tables, as a user calls them."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.synthetic.compose import compose
from phantom_s2v.data.synthetic.heldout import held_out, still_path
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation import robustness
from phantom_s2v.evaluation.instruments import Faces, Instruments, Thresholds
from phantom_s2v.evaluation.suites import emoji, nexus
from phantom_s2v.evaluation.suites import own as own_suites
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import write_json
from phantom_s2v.media import images
from phantom_s2v.pipeline.batch import OPTIONS
from phantom_s2v.vision.faces import Face


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "evaluate")


@pytest.fixture
def own(tmp_path):
    """A suite of two cases with images below it, and true clips of both as videos made elsewhere."""
    folder, videos = tmp_path / "我的 suite", tmp_path / "system-a"
    (folder / "images").mkdir(parents=True)
    videos.mkdir()
    lines = []
    for number, case in enumerate(c for c in emoji.emoji_cases(held_out(), 2) if c.kind == "unnamed"):
        images.write_image(folder / "images" / f"{number}.png", images.read_image(still_path(case.subjects[0].key))[0])
        images.write_video(videos / f"case-{number}.mp4", compose(case.spec, held_out()).video, 8)
        given = {"id": f"case-{number}", "prompt": "The subject moves.", "reference": [f"toy=images/{number}.png"], "seed": 4}
        lines.append(json.dumps(given))
    (folder / "cases.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder, videos


def test_a_folder_of_ones_own_with_videos_made_elsewhere(phantom, own, tmp_path):
    folder, videos = own
    out = tmp_path / "out"
    code, said = phantom("run", folder, "--videos", videos, "--out", out, "--features", "phantom-mini")
    assert code == 0, said.err
    facts = json.loads(said.out.splitlines()[-1])
    similarity, control = (facts["by_kind"]["all"][name][0] for name in ("similarity", "control"))
    assert similarity > 0.7 > control + 0.1  # true clips against their own subject, and against the other's
    rows = own_suites.read_rows(out)
    assert [row["id"] for row in rows] == ["case-0", "case-1"]
    assert (out / "scores.html").is_file()
    (videos / "case-1.mp4").unlink()
    assert phantom("run", folder, "--videos", videos, "--out", out, "--features", "phantom-mini")[0] == 3
    assert "unreadable" in own_suites.read_rows(out)[1]


def test_a_video_whose_numbers_are_not_finite_does_not_end_the_run(own, tmp_path):
    folder, videos = own
    images.write_video(videos / "case-0.mp4", np.zeros((6, 64, 64, 3), np.uint8), 8)  # black, which this network cannot do

    def embed(stills):
        dark = all(int(np.asarray(image).max()) < 8 for image in stills)
        return np.full((len(stills), 1), np.nan if dark else 1, np.float32)

    tools = Instruments("test", embed, Thresholds())
    found = own_suites.run_suite(own_suites.read_own(folder), videos, None, tools, [], tmp_path, lambda *_: None)
    assert (found.unreadable, found.summary["videos"]) == (1, 2)
    first, second = own_suites.read_rows(tmp_path)
    assert "not finite" in first["unreadable"]
    assert "unreadable" not in second


def test_videos_are_made_once(phantom, own, tmp_path, tiny):
    folder, _ = own
    out = tmp_path / "out"
    for _ in range(2):
        code, said = phantom("run", folder, "--model", tiny, "--out", out, "--limit", 1)
        assert code == 0, said.err
        made = out / "videos" / "case-0.mp4"
        metadata = json.loads(made.with_suffix(".metadata.json").read_text(encoding="utf-8"))
        assert metadata["request"]["seed"] == 4
        stamp = made.stat().st_mtime_ns
    assert made.stat().st_mtime_ns == stamp
    assert [row["id"] for row in own_suites.read_rows(out)] == ["case-0"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "is not a case"),
        ('{"id": "a"}', "is not a case"),
        ('{"id": "../a", "prompt": "x"}', "file names without a folder"),
        ('{"id": "a", "prompt": "x", "reference": ["../../secret.png"]}', "not inside"),
        ('{"id": "a", "prompt": "x", "reference": ["none.png"]}', "not a file"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', "must be unique"),
        ("", "contains no case"),
        ('\n{"id": ["a"], "prompt": "x"}', "line 2, .*id must be a text .got a list of 1"),
        ('{"id": "a", "prompt": {"x": 1}}', "line 1, .*prompt must be a text .got an object"),
        ('{"id": "a", "prompt": "x", "reference": "a.png"}', "line 1, .*reference must be a list of a text .got 'a.png'"),
        ('{"id": "a", "prompt": "x", "first_frame": 3}', "line 1, .*first_frame must be a text .got 3"),
        ('{"id": "a", "prompt": "x", "first_frame": ""}', "line 1, .*first_frame is not a file name"),
        ('{"id": "a", "prompt": "x", "sead": 3}', r"line 1, .*unknown key 'sead' \(did you mean seed\?\)"),
        ('{"id": "a", "prompt": "x", "seed": "3"}', "line 1, .*seed must be a whole number .got '3'"),
        ('{"id": "a", "prompt": "x", "out": "b.mp4"}', "line 1, .*out is not allowed"),
    ],
)
def test_what_is_wrong_in_a_suite_is_one_sentence(tmp_path, line, said):
    (tmp_path / "cases.jsonl").write_text(line)
    with pytest.raises(InputError, match=said):
        own_suites.read_own(tmp_path)


def test_a_line_of_a_suite_takes_the_options_of_a_request():
    assert set(own_suites._Line.__dataclass_fields__) - {"id"} == OPTIONS - {"out"}


def test_bad_suites_and_places_are_refused(phantom, tmp_path):
    assert phantom("run", tmp_path / "none")[0] == 2
    assert phantom("run", tmp_path)[0] == 2  # no cases.jsonl
    assert phantom("run", "opens2v")[0] == 2
    assert phantom("run", "robustness", tmp_path / "x.json")[0] == 2
    (tmp_path / "x.json").write_text('{"singleobj_1": {"prompt": "a"}}')
    code, said = phantom("run", "opens2v", tmp_path / "x.json", "--out", tmp_path / "o")
    assert (code, len(said.err.strip().splitlines())) == (2, 1)
    assert phantom("run", "emoji", "--limit", "0")[0] == 2


# OpenS2V


@pytest.fixture
def opens2v(tmp_path):
    """Three cases in the layout of OpenS2V-Eval, with images, and videos of two."""
    rng = np.random.default_rng(0)
    given = {
        "singleobj_1": {"img_paths": ["Images/singleobject/cup/52.jpg"], "prompt": "A cup.", "class_label": ["Cup"]},
        "faceobj_2": {"img_paths": ["Images/man/1.jpg", "Images/cup/2.jpg"], "prompt": "Two.", "class_label": ["Man", "Cup"]},
        "multi_3": {"img_paths": ["Images/a.jpg", "Images/b.jpg"], "prompt": "Two cups.", "class_label": ["Cup", "Cup"]},
    }  # fmt: skip
    for path in {p for row in given.values() for p in row["img_paths"]}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / path)
    (tmp_path / "Open-Domain_Eval.json").write_text(json.dumps(given))
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("singleobj_1", "faceobj_2"):
        images.write_video(videos / f"{name}.mp4", rng.integers(0, 255, (6, 48, 64, 3)).astype(np.uint8), 8)
    return tmp_path / "Open-Domain_Eval.json", videos


def test_opens2v_cases_keep_their_order_and_names(opens2v):
    cases = own_suites.read_opens2v(opens2v[0])[0]
    assert [c.id for c in cases] == ["singleobj_1", "faceobj_2", "multi_3"]
    assert [c.kind for c in cases] == ["singleobj", "faceobj", "multi"]
    assert [name for name, _ in cases[2].references] == ["cup 1", "cup 2"]
    assert [name for name, _ in cases[1].references] == ["man", "cup"]


def test_opens2v_runs_without_the_cases_whose_images_are_missing(phantom, opens2v, tmp_path):
    file, videos = opens2v
    (tmp_path / "Images/b.jpg").unlink()
    cases, missing = own_suites.read_opens2v(file)
    assert [c.id for c in cases] == ["singleobj_1", "faceobj_2"]
    assert len(missing) == 1
    assert "multi_3" in missing[0]
    assert "b.jpg is missing" in missing[0]
    code, said = phantom("run", "opens2v", file, "--videos", videos, "--out", tmp_path / "o", "--features", "phantom-mini")
    assert code == 0
    assert "multi_3 is left out" in said.err
    for image in (tmp_path / "Images").rglob("*.jpg"):
        image.unlink()
    with pytest.raises(InputError, match="the images of all 3 cases"):
        own_suites.read_opens2v(file)


@pytest.mark.parametrize("option", ["--curricularface", "--vlm"])
def test_the_networks_of_opens2v_are_not_ignored(phantom, opens2v, tmp_path, option):
    file, videos = opens2v
    code, said = phantom("run", "opens2v", file, "--videos", videos, "--out", tmp_path / "o", option, tmp_path / "missing")
    assert code == 2
    assert "missing" in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": {"x": 1}, "img_paths": []}', "'a_1': prompt must be a text .got an object"),
        ('{"prompt": "x", "img_paths": "cup.jpg"}', "'a_1': img_paths must be a list"),
        ('{"prompt": "x", "img_paths": [], "class_label": "cup"}', "'a_1': class_label must be .*'cup'"),
        ('["prompt"]', "'a_1': it must be an object .got a list of 1"),
    ],
)
def test_what_is_wrong_in_opens2v_names_the_case(tmp_path, row, said):
    (tmp_path / "x.json").write_text('{"a_1": ' + row + "}")
    with pytest.raises(InputError, match=said):
        own_suites.read_opens2v(tmp_path / "x.json")


def test_opens2v_results_are_in_its_own_files(phantom, opens2v, tmp_path):
    file, videos = opens2v
    out = tmp_path / "out"
    code, said = phantom("run", "opens2v", file, "--videos", videos, "--out", out)
    assert code == 3  # one video is missing
    assert "multi_3.mp4: not measured" in said.out
    results = json.loads((out / "videos_output_json" / "motionscore.json").read_text())
    assert set(results) == {"singleobj_1", "faceobj_2"}
    video, _ = images.read_video(videos / "faceobj_2.mp4")
    assert results["faceobj_2"] == {"motion_fb": pytest.approx(suites_motion(video))}
    assert not (out / "videos_output_json" / "facesim.json").exists()  # no ArcFace here, and dlib's is another column


def suites_motion(video):
    from phantom_s2v.evaluation.metrics.measures import motion_fb

    return motion_fb(video)


def test_opens2v_faces_and_aesthetics_come_from_32_frames_with_its_rules(opens2v):
    case = own_suites.read_opens2v(opens2v[0])[0][1]
    seen = []

    def find(image):
        seen.append(image)
        level = float(image.mean()) / 255
        return [Face((0, 0, 4, 4), np.array([level, 1.0]))] if len(seen) != 3 else []  # the second frame shows none

    faces = Faces("arcface test", find, lambda a, b: float(a[0] - 0.5))
    frames = [np.full((4, 4, 3), v, np.uint8) for v in (0, 255, 255, 51)]
    assert own_suites.face_score(case, frames, faces) == pytest.approx((0 + 0.5 + 0) / 3)
    other = own_suites.read_opens2v(opens2v[0])[0][0]
    assert own_suites.face_score(other, frames, faces) is None  # no people in it


def test_nexus_and_natural_scores_are_of_what_is_found_and_answered(opens2v, tmp_path):
    """In files of their own names; a frame without the subject counts as 0, and an answer without a number as none."""
    _, videos = opens2v

    def by_mean(stills):
        means = np.stack([p.reshape(-1, 3).mean(0) for p in stills])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def find(stills, names):
        return [[((0, 0, 9, 9), names[0], 0.9)] if still.any() else [] for still in stills]

    red, blue = (np.full((20, 20, 3), color, np.uint8) for color in ((200, 0, 0), (0, 0, 200)))
    frames = [red, blue, np.zeros((20, 20, 3), np.uint8)]
    tools = Instruments("none", by_mean, Thresholds(), clip=by_mean, find=find)
    assert nexus.nexus_score(frames, [("cup", red)], tools) == pytest.approx(1 / 3)
    assert nexus.nexus_score(frames, [("cup", red)], replace(tools, find=None)) is None
    assert nexus.natural_score(frames, replace(tools, ask=lambda images, question: "I say 4.")) == 0.75
    assert nexus.natural_score(frames, replace(tools, ask=lambda images, question: "Natural!")) is None
    out = tmp_path / "o"
    out.mkdir()
    row = {"id": "singleobj_1", "video": "singleobj_1.mp4", "motion_fb": 1.0}
    (out / "scores.jsonl").write_text(json.dumps(row) + "\n")
    cases = [c for c in own_suites.read_opens2v(opens2v[0])[0] if c.id == "singleobj_1"]
    asked = replace(tools, ask=lambda images, question: "5")
    files = {f.name: json.loads(f.read_text()) for f in own_suites.write_opens2v(cases, videos, asked, out / "results")}
    assert set(files) == {"motionscore.json", "nexusscore_owlv2.json", "naturalscore_vlm.json"}
    assert files["naturalscore_vlm.json"]["singleobj_1"] == {"naturalscore_vlm": 1.0}


# Hard references


def test_references_made_hard_differ_as_they_say():
    image = images.read_image(still_path("1f427"))[0]
    other = images.read_image(still_path(emoji.evaluated(held_out())[3].key))[0]
    made = {kind: robustness.hardened(kind, image, other) for kind in robustness.ONE}
    assert (made["plain"] == image).all()
    assert made["dark"].mean() < 0.35 * image.mean()
    assert made["cropped"].shape[1] < 0.6 * image.shape[1]
    assert made["small"].shape[0] == 4 * image.shape[0]
    assert max(made["turned"].shape[:2]) > max(image.shape[:2])
    assert made["turned"][0, 0].tolist() == [255, 255, 255]
    inside = (image < 250).any(-1)
    assert made["backlit"][inside].mean() < 0.8 * image[inside].mean()
    assert np.abs(np.diff(made["blurred"].astype(int), axis=0)).max() < np.abs(np.diff(image.astype(int), axis=0)).max() / 2
    half = image.shape[0] // 3
    assert (made["overlapping"][:half, :half] == image[:half, :half]).all()
    assert (made["overlapping"] != image).any()


def test_robustness_holds_videos_against_clean_images(phantom, tmp_path, tiny):
    out = tmp_path / "out"
    code, said = phantom("run", "robustness", "--limit", 1, "--model", tiny, "--out", out, "--features", "phantom-mini")
    assert code == 0, said.err
    facts = json.loads(said.out.splitlines()[-1])
    assert list(facts["by_kind"]) == list(robustness.KINDS)
    assert facts["by_kind"]["true clip"]["similarity"][0] > 0.75
    assert (out / "references" / "dark-1f31b.png").is_file() or len(list((out / "references").glob("dark-*.png"))) == 1


def test_look_alikes_are_two_different_subjects(tmp_path):
    def by_mean(stills):
        means = np.stack([p.reshape(-1, 3).mean(0) for p in stills])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    cases, clips = robustness.robustness_cases(tmp_path, by_mean, 2)
    pair = next(c for c in cases if c.kind == "look-alikes")
    (_, one), (_, other) = pair.references
    assert one != other
    assert len(clips) == 2
    assert all(c.against for c in cases if c.kind in robustness.ONE)


def test_a_run_replaces_no_file_of_the_user(phantom, own, tmp_path, tiny):
    """The score's page, OpenS2V's own results and the suite's cases may lie where a run would write."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.jsonl").write_text("mine")
    code, said = phantom("run", own[0], "--model", tiny, "--features", "phantom-mini", "--out", out)
    assert (code, "scores.jsonl exists and was not written by phantom" in said.err) == (2, True)
    assert (out / "scores.jsonl").read_text() == "mine"
    assert not list((out / "videos").glob("*.mp4"))


@pytest.mark.parametrize("mine", ['{"id": "case-1", "prompt": "x"}\n', "notes", "[]"])
def test_the_emoji_suite_does_not_write_into_a_suite_of_ones_own(tmp_path, mine):
    (tmp_path / "cases.jsonl").write_text(mine)
    with pytest.raises(InputError, match=r"cases\.jsonl exists and was not written by phantom"):
        emoji.keep_rows(tmp_path / "cases.jsonl", {})
    assert (tmp_path / "cases.jsonl").read_text() == mine


def test_results_in_the_layout_of_opens2v_are_known_by_their_hashes(tmp_path):
    out = tmp_path / "videos_output_json"
    own_suites.check_opens2v(out)
    out.mkdir()
    (out / "facesim.json").write_text("{}")
    with pytest.raises(InputError, match=r"facesim\.json exists and was not written by phantom"):
        own_suites.check_opens2v(out)
    write_json(out / "written.json", {"files": {"facesim.json": content_hash(out / "facesim.json")}}, sealed=True)
    own_suites.check_opens2v(out)
    (out / "facesim.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"facesim\.json exists"):
        own_suites.check_opens2v(out)


@pytest.mark.parametrize(("rows", "said"), [
    ('{"video": "a.mp4"}\n{"video": "b.m', "scores.jsonl, line 2, is damaged or truncated"),
    ("", "must contain results"), ('["video"]', "must contain results"),
])  # fmt: skip
def test_truncated_scores_are_one_sentence(phantom, tmp_path, rows, said):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.jsonl").write_text(rows)
    code, out = phantom("compare", tmp_path / "one", tmp_path / "two")
    assert (code, said in out.err, len(out.err.splitlines())) == (2, True, 1)
