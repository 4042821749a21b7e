"""What a score is measured with: the hub's metrics on tiny random networks, faces, the autoencoder, and what has no number."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from phantom_s2v.data.synthetic.compose import compose
from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.evaluation.instruments import Faces
from phantom_s2v.evaluation.metrics import looks, measures
from phantom_s2v.evaluation.metrics.table import METRICS, network_of
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.score import SubjectScore, VideoScore, as_json, ranking_score, score
from phantom_s2v.evaluation.suites.emoji import emoji_cases
from phantom_s2v.media import images
from phantom_s2v.vision import fetched
from phantom_s2v.vision.embed import AESTHETIC_LAYERS, Aesthetics, Embedder, convert_head
from phantom_s2v.vision.faces import dlib_alike, dlib_faces, face_feature
from phantom_s2v.vision.faces import faces as faces_of

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "evaluate")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders of a CLIP and a DINO as a hub would give them, small and random; CLIP's space is as wide as ViT-L/14's."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub")
    signs = [chr(c) for c in range(33, 127)]
    words = [*signs, *[sign + "</w>" for sign in signs], "<|startoftext|>", "<|endoftext|>"]
    text = {**SMALL, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": len(words) - 1}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder / "clip")
    CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=16).save_pretrained(folder / "clip")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder / "dino")
    BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder / "dino")
    head = {
        f"layers.{i}.{part}": torch.randn(*((m, n) if part == "weight" else (m,)))
        for i, n, m in AESTHETIC_LAYERS
        for part in ("weight", "bias")
    }
    torch.save(head, folder / "head.pth")
    save_file(head, folder / "head.safetensors")
    return folder


def wanted(hub, **more):
    return Wanted(backend="hub", clip=str(hub / "clip"), dino=str(hub / "dino"), aesthetic=str(hub / "head.safetensors"), **more)


@pytest.fixture(scope="module")
def clip():
    case = next(c for c in emoji_cases(held_out(), 1) if c.kind == "unnamed")
    return compose(case.spec, held_out())


def test_the_hubs_metrics_are_what_their_definitions_say(hub, clip):
    tools = instruments(wanted(hub))
    found = score(clip.video, [clip.references[0]], ["toy"], "a toy", tools)
    frames = [clip.video[i] for i in found.frames_looked_at]
    embed = Embedder(hub / "clip")
    similarity = [float(embed([frame])[0] @ embed([clip.references[0]])[0]) for frame in frames]  # one by one
    subject = found.subjects[0]
    assert subject.clip_i == pytest.approx(np.mean(similarity), abs=1e-5)
    assert subject.clip_i_min == pytest.approx(min(similarity), abs=1e-5)
    assert found.text == pytest.approx(np.mean([embed([f])[0] @ embed.words("a toy") for f in frames]), abs=1e-5)
    assert all(np.isfinite([subject.clip_i_seg, subject.dino_i, subject.dino_i_seg, subject.dino_i_seg_min, found.aesthetic]))
    row = as_json(found, {}, tools)
    assert row["backend"] == "hub"
    assert row["networks"]["clip_i"] == str(hub / "clip")
    assert network_of("clip_i_seg_min", row["networks"]) == str(hub / "clip")
    assert network_of("similarity_min", row["networks"]) == "efficientnet-lite0"
    assert network_of("flicker", row["networks"]) == ""


def test_a_video_is_fully_like_itself_by_every_network(hub, clip):
    still = np.repeat(clip.video[:1], 4, 0)
    found = score(still, [clip.video[0]], ["it"], "", instruments(wanted(hub)))
    subject = found.subjects[0]
    same = (
        subject.whole,
        subject.similarity,
        subject.clip_i,
        subject.clip_i_seg,
        subject.dino_i,
        subject.dino_i_seg,
        subject.copy_paste,
    )
    np.testing.assert_allclose(same, 1, atol=1e-4)
    assert found.not_measured["text"] == "no prompt was given"


def test_the_aesthetic_head_is_five_plain_layers_on_unit_embeddings(hub):
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    value = torch.from_numpy(Embedder(hub / "clip")([image]))
    state = load_file(hub / "head.safetensors")
    for i, _, _ in AESTHETIC_LAYERS:
        value = value @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    assert Aesthetics(hub / "clip", hub / "head.safetensors")([image])[0] == pytest.approx(float(value), rel=1e-4)


def test_the_published_head_is_converted_and_nothing_else(hub, tmp_path, call_phantom):
    code, _ = call_phantom("models", "convert-aesthetic", hub / "head.pth", tmp_path / "head.safetensors")
    assert code == 0
    converted, original = load_file(tmp_path / "head.safetensors"), load_file(hub / "head.safetensors")
    assert all((converted[name] == original[name]).all() for name in original)
    torch.save({"layers.0.weight": torch.zeros(2)}, tmp_path / "part.pth")
    torch.save(Path("x"), tmp_path / "code.pth")
    for bad in ("part.pth", "code.pth", "none.pth"):
        with pytest.raises(CheckpointError):
            convert_head(tmp_path / bad, tmp_path / "out.safetensors")
    save_file({"layers.0.weight": torch.zeros(2)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="not an aesthetic head"):
        Aesthetics(hub / "clip", tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="has no text encoder"):
        Embedder(hub / "dino").words("a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"features": "eye"}, "got 'eye'"), ({"backend": "cloud"}, "got 'cloud'"),
        ({"reconstruct": "all"}, "got 'all'"), ({"clip": "somewhere"}, "need --backend hub"),
    ],
)  # fmt: skip
def test_bad_choices_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        instruments(Wanted(**options))


def test_packaged_says_what_it_does_not_measure(phantom, clip, tmp_path):
    images.write_video(tmp_path / "v.mp4", clip.video, 8)
    images.write_image(tmp_path / "r.png", clip.references[0])
    code, _ = phantom(
        "score", tmp_path / "v.mp4", "--reference", tmp_path / "r.png", "--prompt", "It moves.", "--out", tmp_path / "p.html"
    )
    assert code == 0
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert {"text", "clip_i", "dino_i", "aesthetic"} <= set(row["not_measured"])
    assert row["text"] is row["subjects"][0]["clip_i"] is None
    assert 'data-label="why">its model comes from a hub' in (tmp_path / "p.html").read_text()


# The autoencoder


def test_reconstruction_of_reference_and_video(clip):
    tools = instruments(Wanted(reconstruct="videos"))
    found = score(clip.video, [clip.references[0]], ["toy"], "", tools)
    assert 18 < found.subjects[0].reconstruction < 45
    assert 18 < found.reconstruction < 45
    given, out = tools.reconstruct(np.zeros((7, 90, 120, 3), np.uint8))
    assert given.shape == out.shape == (5, 48, 64, 3)
    assert np.isnan(score(clip.video, [], [], "", replace(tools, reconstruct_videos=False)).reconstruction)


# What cannot be measured


def test_one_frame_two_frames_and_no_reference_are_said():
    tools = instruments(Wanted(features="phantom-mini"))
    video = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3)).astype(np.uint8)
    one, two = score(video[:1], [], [], "", tools), score(video, [], [], "", tools)
    assert {"motion_fb", "frozen", "flicker", "smoothness", "subjects"} <= set(one.not_measured)
    assert np.isnan([one.motion_fb, one.frozen, one.flicker, one.smoothness, one.similarity]).all()
    assert {"flicker", "smoothness"} <= set(two.not_measured)
    assert np.isfinite([two.motion_fb, two.frozen]).all()
    assert json.dumps(as_json(one, {}, tools))


def test_a_reference_without_a_subject_is_looked_for_in_whole_frames(clip):
    tools = instruments(Wanted(features="phantom-mini"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    found = score(clip.video, [noise, clip.references[0]], ["noise", "toy"], "", tools)
    assert any("no subject was segmented in the reference of noise" in note for note in found.notes)
    first, second = found.subjects
    assert (first.seen, first.similarity) == (1.0, pytest.approx(first.whole))
    alone = score(clip.video, [clip.references[0]], ["toy"], "", tools).subjects[0]
    assert second.similarity == pytest.approx(alone.similarity)  # it takes no region from the other


def test_candidates_are_ranked_by_their_subject(clip):
    tools = instruments(Wanted(features="phantom-mini"))
    other = compose(next(c for c in emoji_cases(held_out(), 3) if c.seed == 1002).spec, held_out())
    right, wrong, empty = (
        ranking_score(v, [clip.references[0]], tools) for v in (clip.video, other.video, np.full_like(clip.video, 90))
    )
    assert right > wrong > empty == 0


# Faces


def vectors(*levels):
    return [np.array([level]) for level in levels]


def test_faces_go_to_one_reference_each_and_no_face_is_no_number():
    def alike(a, b):
        return 1 - abs(float(a[0] - b[0]))

    frames = [vectors(0.1, 0.9), vectors(0.85), [], vectors(0.2, 0.3, 0.9)]
    found = measures.face_similarity(frames, [*vectors(0.0), None, *vectors(1.0)], alike)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(found[:, 0], [0.9, np.nan, np.nan, 0.8])
    np.testing.assert_allclose(found[:, 2], [0.9, 0.85, np.nan, 0.9])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.7, 0.6, 0.1, 0.2, 0.2, 0.1], [1, 1, 0, 0, 0, 0]),  # a person, then a cut to somebody else
        ([0.7, 0.2, 0.1, 0.2, 0.2, 0.1], [1, 1, 1, 1, 1, 1]),  # within a shot somebody else takes the place: all count
        ([0.2, 0.3, 0.1, 0.2, 0.2, 0.1], [1, 1, 1, 1, 1, 1]),  # nobody is the person
        ([np.nan, 0.6, np.nan, 0.2, 0.2, 0.1], [0, 1, 0, 0, 0, 0]),
        ([0.7, 0.6, 0.8, 0.6, 0.6, 0.4], [1, 1, 1, 1, 1, 1]),  # the person turns away for a moment
        ([np.nan] * 6, [0] * 6),
    ],
)
def test_a_face_counts_in_the_shots_that_show_the_person(values, expected):
    found = measures.own_shots(np.array(values), np.array([0, 0, 1, 1, 1, 1]), 0.5)
    assert found.tolist() == [bool(each) for each in expected]


def test_a_person_who_shows_too_shortly_is_not_the_one_of_the_video():
    values = np.array([0.8] + [0.1] * 9)
    assert measures.own_shots(values, np.arange(10) > 0, 0.5).all()
    assert measures.own_shots(values[:5], np.arange(5) > 0, 0.5).sum() == 1


def test_shots_begin_where_a_frame_changes_much_and_those_around_it_do_not():
    frames = np.concatenate([np.full((5, 8, 8, 3), 40, np.uint8), np.full((5, 8, 8, 3), 200, np.uint8)])
    seen = measures.over_time(enumerate(frames))
    assert measures.shots(seen).tolist() == [0] * 5 + [1] * 5
    assert measures.shots(measures.over_time(enumerate(frames[:1]))).tolist() == [0]


def portrait(name):
    spec = importlib.util.find_spec("skimage")
    return np.asarray(Image.open(Path(spec.submodule_search_locations[0]) / "data" / f"{name}.png").convert("RGB"))


@pytest.mark.skipif(not fetched.fetched(), reason="phantom models fetch brings the files")
def test_a_portrait_is_found_in_a_video_of_it_and_a_cat_has_no_face():
    pytest.importorskip("dlib")
    tools = instruments(Wanted())
    face = portrait("astronaut")
    video = np.stack([face, (face * 0.7).astype(np.uint8), face[:, ::-1], np.full_like(face, 120)])
    found = score(video, [face, portrait("chelsea")], ["person", "cat"], "", tools)
    person, cat = found.subjects
    assert person.face > 0.7
    assert person.face_seen == 0.75
    assert person.face_min < person.face
    assert np.isnan(cat.face)
    assert found.not_measured["face of cat"] == "its reference shows no face"
    none = score(np.full((4, *face.shape), 120, np.uint8), [face], ["person"], "", tools)
    assert none.not_measured["face of person"].startswith("no frame that was looked at shows a face")


@pytest.mark.skipif(not fetched.fetched(), reason="phantom models fetch brings the files")
def test_a_face_that_dlib_alone_would_miss_has_features_where_blazeface_is_sure(monkeypatch):
    pytest.importorskip("dlib")
    image = portrait("astronaut")
    narrow = np.pad(image[:, ::2], ((0, 0), (0, image.shape[1] // 2), (0, 0)), "edge")
    assert face_feature(narrow) is None
    sure = faces_of(narrow)[0][1]
    monkeypatch.setattr("phantom_s2v.vision.faces.SURE_ALONE", sure)
    found, known = dlib_faces(narrow), dlib_faces(image)
    assert [len(found), len(known)] == [1, 1]
    assert dlib_alike(found[0].feature, known[0].feature) > 0.4  # one person, by dlib's own bound
    monkeypatch.setattr("phantom_s2v.vision.faces.SURE_ALONE", sure + 0.01)
    assert [face.feature for face in dlib_faces(narrow)] == [None]


def test_faces_that_cannot_be_looked_for_are_said(monkeypatch, clip):
    monkeypatch.setattr(fetched, "fetched", lambda: False)
    tools = instruments(Wanted(features="phantom-mini"))
    assert "phantom models fetch" in tools.absent["face"]
    assert np.isnan(score(clip.video, [clip.references[0]], ["toy"], "", tools).subjects[0].face)
    assert isinstance(Faces("x", lambda p: [], lambda a, b: 0.0), Faces)


def test_the_table_of_metrics_names_the_fields_of_a_score():
    fields = {"subject": SubjectScore.__dataclass_fields__, "video": VideoScore.__dataclass_fields__}
    for metric in METRICS.values():
        assert metric.name in fields[metric.of], metric
        assert metric.better in ("more", "less", "")
    known = {
        "name",
        "similarity_min_frame",
        "whole_min_frame",
        "flash_frames",
        "face_min_frame",
        "reconstruction",
        "over_time",
        "in_windows",
        "boxes",
    }
    assert set(fields["subject"]) - known == {m.name for m in METRICS.values() if m.of_subjects}
    assert METRICS["doubled"].worst([0.1, 0.4]) == 0.4
    assert METRICS["similarity"].worst([0.1, 0.4]) == 0.1


def test_a_metric_is_credited_to_its_own_network_alone():
    """By its prefix, "text_legibility" would be CLIP's."""
    names = {"text": "clip", "similarity": "dino", "face": "dlib"}
    assert network_of("text_legibility", names) == ""
    assert [network_of(name, names) for name in ("text", "seen", "face_min", "flicker")] == ["clip", "dino", "dlib", ""]


def test_blur_is_of_the_sharpest_part_and_small_videos_have_none():
    sharp = portrait("astronaut")
    soft = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3)))
    half = np.concatenate([soft[:256], sharp[256:]])
    assert looks.blur([sharp]) < 0.4
    assert looks.blur([half]) < 0.4
    assert looks.blur([soft]) > 0.5
    assert np.isnan(looks.blur([sharp[:100, :100]]))


def test_clothes_are_told_by_their_colors():
    image = np.full((300, 200, 3), 128, np.uint8)
    face = (70, 40, 130, 100)
    image[120:] = (200, 40, 40)
    darker, blue = (image * 0.85).astype(np.uint8), image[..., ::-1]
    own = looks.clothes(image, face)
    assert own is not None
    assert looks.clothes(darker, face) @ own > 0.76 > looks.clothes(np.ascontiguousarray(blue), face) @ own
    assert looks.clothes(image[:140], face) is None
