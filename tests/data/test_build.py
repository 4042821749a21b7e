"""The data pipeline: each stage against what is known of its input, and whole runs against each other."""

import doctest
import io
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cheap
import numpy as np
import pytest
from cheap import CONFIG, models, run

from phantom_s2v.data.loader import decode
from phantom_s2v.data.pipeline import caption, engine, names, pair, probe, quality, shots, subjects, verify
from phantom_s2v.data.pipeline.batches import AT_ONCE, LONGEST, batches
from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.data.pipeline.engine import index_path, process
from phantom_s2v.data.pipeline.frames import WHOLE, encoded, fit, stills_of, stream_frames
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.pipeline.tracks import follow
from phantom_s2v.data.synthetic.check import evaluate_pipeline, pair_metrics
from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.data.synthetic.source_videos import write_source_videos
from phantom_s2v.data.triplets import TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.media import images
from phantom_s2v.vision.factory import cut_chances

SOURCE_VIDEOS = 5
MODELS = models()


@pytest.fixture(scope="module")
def source_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source_videos")
    write_source_videos(folder, held_out(), SOURCE_VIDEOS, 3)
    return folder


@pytest.fixture(scope="module")
def built(source_videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "triplets.lance"
    return out, run(source_videos, out)


def truth(path):
    return json.loads(path.with_suffix(".truth.json").read_text())


def through(stages, path, config=CONFIG):
    records = [{"path": str(path)}]
    for stage in stages:
        records = stage.run(records, config, MODELS)
    return list(records)


def pairs_of(out, summary):
    return list(SubjectIndex(index_path(out)).pairs(summary.version, CONFIG))


def rows(out):
    return {t.id: (t.caption, t.video, t.references, t.rights) for t in TripletStore(out)}


# Shots


def test_cuts_are_found_in_source_videos(source_videos):
    for path in sorted(source_videos.glob("*.mp4")):
        clips = through((probe, shots), path)[:-1]
        assert [c["start"] for c in clips] == [s["start"] for s in truth(path)["shots"]]
        assert clips[-1]["stop"] == truth(path)["shots"][-1]["stop"]
        assert all(len(c["work"]) == c["stop"] - c["start"] for c in clips)


def test_long_shots_are_cut_into_pieces(source_videos):
    path = sorted(source_videos.glob("*.mp4"))[0]
    clips = through((probe, shots), path, replace(CONFIG, longest=1.0))[:-1]
    assert max(len(c["work"]) for c in clips) == 12
    assert sum(len(c["work"]) for c in clips) == truth(path)["shots"][-1]["stop"]


@pytest.mark.parametrize("length", [1, 26, 50, 51, 100, 149, 230])
def test_windows_of_the_network_are_those_of_its_package(length):
    """Chances are read from the image, so every frame's own must come back, as from TransNetV2's own padding and windows."""
    seen = []

    def chances(frames):
        assert frames.shape == (100, 27, 48, 3)
        seen.append(len(frames))
        return frames[:, 0, 0, 0] / 255

    values = np.random.default_rng(length).integers(0, 256, length)
    frames = [((i / 12), np.full((54, 96, 3), v, np.uint8)) for i, v in enumerate(values)]
    config = replace(CONFIG, shot_detector="transnet", transnet=0.5)
    flagged = list(shots._with_cuts(iter(frames), config, replace(MODELS, cuts=chances)))
    above = values / 255 > 0.5
    assert [is_cut for _, is_cut in flagged] == [bool(i and above[i - 1] and not above[i]) for i in range(length)]
    assert [t for (t, _), _ in flagged] == [t for t, _ in frames]
    assert len(seen) == -(-length // 50)


def test_transnet_finds_a_fade_that_scenedetect_misses(tmp_path):
    rng = np.random.default_rng(0)
    one, other = (np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))) for _ in range(2))
    weights = np.concatenate([np.zeros(40), np.linspace(0, 1, 16), np.ones(40)])
    fade = np.stack([one * (1 - w) + other * w for w in weights]).astype(np.uint8)
    images.write_video(tmp_path / "fade.mp4", fade, 24)
    source_video = through((probe,), tmp_path / "fade.mp4")
    with_network = replace(MODELS, cuts=cut_chances())
    assert len(list(shots.run(source_video, CONFIG, MODELS))) == 2
    clips = list(shots.run(source_video, replace(CONFIG, shot_detector="both"), with_network))[:-1]
    assert len(clips) == 2
    assert 40 < clips[1]["start"] <= 57


# Quality


def test_faults_are_found_and_good_clips_stay(tmp_path):
    rng = np.random.default_rng(1)
    moving = np.repeat(np.kron(rng.integers(60, 200, (9, 16, 3)), np.ones((8, 8, 1)))[None], 24, 0).astype(np.uint8)
    for i in range(24):
        moving[i, 20:50, 10 + 2 * i : 50 + 2 * i] = (220, 40, 40)
    bars = moving.copy()
    bars[:, :24] = bars[:, -24:] = 2
    fade = np.zeros_like(moving)
    fade[:, 60:66, 20:60] = 60
    cases = {
        "": moving,
        "black borders": bars,
        "static": np.repeat(moving[:1], 24, 0),
        "too dark": moving // 30,
        "too bright": np.maximum(moving, 252),
        "blurred": np.stack([np.full((72, 128, 3), 40 + 6 * i, np.uint8) for i in range(24)]),
        "too much motion": rng.integers(0, 255, (24, 72, 128, 3)).astype(np.uint8),
    }
    for reason, frames in [*cases.items(), ("too dark", fade)]:
        crop = quality.content_crop(frames, CONFIG)
        scores = quality.measure(quality.cropped(frames, crop), 24.0) | quality.uncropped(frames, crop)
        assert quality.fault(scores, CONFIG) == reason


def test_planted_faults_of_source_videos_are_dropped_for_their_reason(source_videos):
    for path in sorted(source_videos.glob("*.mp4")):
        for clip, shot in zip(through((probe, shots, quality), path)[:-1], truth(path)["shots"], strict=True):
            expected = {"static": "static", "text": "burnt-in text"}.get(shot["kind"], "")
            assert clip["drop"] == expected
            assert (clip["crop"] == WHOLE) == (shot["kind"] != "borders")


# Cutting out


def write_with_times(path, frames, times, rate=25):
    """An mp4 whose frames stand at given multiples of 1 / `rate` seconds."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for image, moment in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def ramp(count, height=48, width=64):
    return np.stack([np.full((height, width, 3), 10 + 4 * i, np.uint8) for i in range(count)])


def brightness(content):
    """Which frame of a ramp each frame is, within rounding of its color."""
    return np.array([(float(f.mean()) - 10) / 4 for f in images.read_video(io.BytesIO(content))[0]])


def cut(source_video, begins, ends, instants, longer):
    """Clip, stills and number of frames of a span, by the two functions that the stages call."""
    count = max(1, round((ends - begins) * source_video["fps"]))
    clip = {**source_video, "begins": begins, "ends": ends, "crop": WHOLE, "start": 0, "stop": count}
    return encoded(clip, count, longer), stills_of(clip, count, instants, longer), count


def test_a_clip_holds_the_frames_of_its_span(tmp_path):
    write_with_times(tmp_path / "a.mp4", ramp(60), range(60))
    source_video = through((probe,), tmp_path / "a.mp4")[0]
    video, stills, count = cut(source_video, 30 / 25, 50 / 25, (0.05, 0.5, 0.95), 1280)
    off = brightness(video) - np.arange(30, 50)
    assert count == 20
    assert np.abs(off).max() < 0.6
    assert [(float(s.mean()) - 10) / 4 for s in stills] == pytest.approx([31, 40, 48], abs=0.6)


def test_a_varying_rate_is_resampled_to_its_mean(tmp_path):
    times = [*range(0, 25), *range(25, 75, 5), *range(75, 100)]
    write_with_times(tmp_path / "v.mp4", ramp(60), times)
    source_video = through((probe,), tmp_path / "v.mp4")[0]
    assert any("variable" in notice for notice in source_video["notices"])
    shown = brightness(cut(source_video, 0.0, 50 / source_video["fps"], (0.5,), 1280)[0])
    step = 1 / source_video["fps"]
    on_screen = [max(i for i, t in enumerate(times) if t / 25 <= (n + 0.5) * step + 1e-9) for n in range(50)]
    assert np.abs(shown - on_screen).max() <= 1.2


def test_a_turned_source_video_is_upright(tmp_path):
    frames = ramp(30)
    frames[:, :24] = 250  # the upper half as it is stored
    images.write_video(tmp_path / "plain.mp4", frames, 24)
    source, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    content = source.read_bytes()
    matrix = b"".join(v.to_bytes(4, "big", signed=True) for v in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    quarter = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30))
    track = content.index(b"tkhd")
    turned.write_bytes(content[:track] + content[track:].replace(matrix, quarter, 1))
    source_video = through((probe,), turned)[0]
    assert (source_video["height"], source_video["width"]) == (64, 48)
    still = cut(source_video, 0.0, 20 / 24, (0.5,), 1280)[1][0]
    assert still.shape == (64, 48, 3)
    assert still[:, 30:].mean() > 200 > 100 > still[:, :18].mean()  # what was above is right, after a quarter clockwise
    assert next(stream_frames(source_video, 128))[1].shape == (64, 48, 3)


def test_sizes_are_even_and_keep_the_shape():
    assert fit(720, 1280, shorter=128) == (128, 228)
    assert fit(4320, 7680, longer=1280) == (720, 1280)
    assert fit(101, 51) == (100, 52)


# Subjects


def detection(left, top, right, bottom, score=1.0, size=(100, 200)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return Detection((left, top, right, bottom), mask, score=score)


def test_boxes_are_kept_by_the_rules_of_the_paper():
    good, twin, low = detection(20, 20, 70, 70), detection(21, 20, 70, 70, 0.5), detection(100, 40, 110, 60)
    cut_off, whole = detection(0, 20, 60, 70), detection(2, 1, 198, 99)
    kept, dropped = subjects.sift([twin, good, low, cut_off, whole], (100, 200), CONFIG)
    assert kept == [good]
    assert {reason for _, reason in dropped} == {"too small", "cut by the frame", "too large"}
    assert subjects.sift([detection(20, 20, 70, 37)], (100, 200), CONFIG)[0] == []  # 17 pixels: 122 at a height of 720
    assert len(subjects.sift([detection(20, 20, 70, 38)], (100, 200), CONFIG)[0]) == 1


def test_a_subject_is_followed_by_its_colors():
    stills = [np.full((100, 200, 3), 255, np.uint8) for _ in range(3)]
    places = [
        ((20, 20, 60, 60), (120, 20, 170, 70)),
        ((40, 30, 80, 70), (110, 25, 160, 75)),
        ((60, 40, 100, 80), (130, 20, 180, 70)),
    ]
    found = []
    for still, boxes in zip(stills, places, strict=True):
        for (left, top, right, bottom), color in zip(boxes, ((200, 30, 30), (30, 30, 200)), strict=True):
            still[top:bottom, left:right] = color
        found.append([detection(*box) for box in (boxes if still is stills[0] else boxes[::-1])])
    tracks = follow(found, stills, np.stack(stills), CONFIG.instants, CONFIG)
    assert sorted([d.box for _, d in track] for track in tracks) == [[p[0] for p in places], [p[1] for p in places]]


def test_names_tell_subjects_apart_or_the_clip_is_dropped():
    def named(name, left, given=False):
        return {"name": name, "has_caption_name": given, "views": [{"share": (left, 0.2, left + 0.2, 0.5)}]}

    pair_of = [named("red object", 0.6), named("red object", 0.1), named("blue object", 0.4)]
    assert names.tell_apart(pair_of)
    assert [s["name"] for s in pair_of] == ["red object on the right", "red object on the left", "blue object"]
    assert not names.tell_apart([named("a girl", 0.6, True), named("a girl", 0.1, True)])
    assert not names.tell_apart([named("red object", x / 10) for x in (1, 4, 7)])


def test_noun_phrases():
    assert doctest.testmod(caption).failed == 0
    assert caption.noun_phrases("二匹の犬") == []


# Whole runs


def test_the_check_counts_what_is_known():
    from phantom_s2v.data.synthetic.check import Known

    truths = {
        "f": {"identities": [{"decoy_of": -1}, {"decoy_of": 0}], "shots": [{"kind": "plain"}] * 3 + [{"kind": "duplicate"}]}
    }
    known = {
        "a": Known("f", 0, 0, -1, 0), "b": Known("f", 1, 0, -1, 1), "d": Known("f", 2, 1, 0, 2),
        "copy": Known("f", 3, 0, -1, 0), "alone": Known("g", 0, 0, -1, 0),
    }  # fmt: skip
    found = pair_metrics(
        [{"subject": s, "partner": p} for s, p in (("a", "b"), ("b", "d"), ("a", "copy"), ("b", "alone"))], known, truths
    )
    assert found["pair_precision"] == 0.25
    assert found["pair_recall"] == pytest.approx(1 / 3)  # a, b and the copy have partners; a got one
    assert (found["decoys_kept"], found["near_duplicates_kept"], found["decoys_planted"]) == (1, 1, 1)


def test_a_run_finds_subjects_and_pairs_and_no_copies(source_videos, built):
    out, summary = built
    found = evaluate_pipeline(SubjectIndex(index_path(out)), sorted(source_videos.glob("*.mp4")), pairs_of(out, summary), CONFIG)
    assert found["shot_f1"] == 1
    assert found["subject_recall"] > 0.8
    assert found["near_duplicates_kept"] == 0
    assert found["identity_precision"] > 0.95
    assert found["identity_recall"] > 0.7
    assert summary.triplets == len(TripletStore(out)) > 10
    of_pairs = {p["subject"] for p in pairs_of(out, summary)}
    samples = [decode(t) for t in TripletStore(out)]
    named = [identity for sample in samples for identity in sample.identities]
    assert all(re.fullmatch("[0-9a-f]{32}", identity) for identity in named)
    assert len(set(named)) < len(of_pairs)
    crossed = [r for t in TripletStore(out) for r in t.references if r.pairing == "cross-pair"]
    assert len(crossed) > 5
    assert all(r.rights.license == "MIT" for r in crossed)


def test_a_second_run_does_nothing_and_another_bound_pairs_anew(source_videos, built, monkeypatch):
    out, summary = built
    before = rows(out)
    monkeypatch.setattr("phantom_s2v.data.pipeline.engine.process", None)  # no source video is looked at again
    again = run(source_videos, out)
    assert (again.new, rows(out)) == (0, before)
    assert [p["subject"] for p in pairs_of(out, again)] == [p["subject"] for p in pairs_of(out, summary)]
    subject_index = SubjectIndex(index_path(out))
    strict = [p for p in pair.run(subject_index, replace(CONFIG, lower=0.99)) if not p["drop"]]
    assert len(strict) < sum(not p["drop"] for p in pairs_of(out, summary))


def test_a_source_video_is_looked_at_again_where_anything_that_made_its_records_changed(source_videos, tmp_path, monkeypatch):
    videos, out, looked = tmp_path / "videos", tmp_path / "t.lance", []
    videos.mkdir()
    source_video = videos / "source_video.mp4"
    source_video.write_bytes((source_videos / "video-0000.mp4").read_bytes())
    whole = engine.process
    monkeypatch.setattr(engine, "process", lambda paths, *rest: looked.extend(paths) or whole(paths, *rest))

    def again(config=CONFIG):
        before = len(looked)
        run(videos, out, config)
        return len(looked) - before

    assert [again(), again()] == [1, 0]
    os.utime(source_video)
    assert again() == 0  # the same content
    (videos / "source_video.txt").write_text("The toys play.")
    assert [again(), again()] == [1, 0]
    index = SubjectIndex(index_path(out))  # subjects of the former caption are gone
    listed = [each for row in index.rows("clips", ["facts"], "`drop` = ''") for each in json.loads(row["facts"])["subjects"]]
    assert sorted(listed) == [row["id"] for row in index.rows("subjects", [])]
    other = replace(CONFIG, models="embedder=another content")
    assert [again(other), again(other)] == [1, 0]
    source_video.write_bytes((source_videos / "video-0001.mp4").read_bytes())
    assert again(other) == 1
    monkeypatch.setattr("phantom_s2v.data.pipeline.index.code_version", lambda *a, **k: {"phantom_s2v": "another"})
    assert [again(other), again(other)] == [1, 0]


def test_networks_are_known_by_content_and_not_by_folder(tmp_path):
    from phantom_s2v.cli.data import asked_models

    folder = tmp_path / "dino"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    named = {"captioner": "", "object_detector": "", "segmenter": "", "embedder": str(folder)}
    first = asked_models(CONFIG, named)[0]
    (folder / "model.safetensors").write_bytes(b"doubled")
    assert asked_models(CONFIG, named)[0].models != first.models
    (folder / "model.safetensors").write_bytes(b"weights")
    folder.rename(tmp_path / "moved")
    assert asked_models(CONFIG, {**named, "embedder": str(tmp_path / "moved")})[0] == first
    assert asked_models(CONFIG, dict.fromkeys(named, ""))[0].models.startswith("packaged=")


def test_source_videos_of_another_seed_are_refused_and_damaged_ones_made_again(source_videos, tmp_path):
    folder = tmp_path / "source_videos"
    write_source_videos(folder, held_out(), 1, 3)
    source_video = folder / "video-0000.mp4"
    assert source_video.read_bytes() == (source_videos / source_video.name).read_bytes()
    stamp = source_video.stat().st_mtime_ns
    write_source_videos(folder, held_out(), 1, 3)
    assert source_video.stat().st_mtime_ns == stamp
    with pytest.raises(
        DataError, match="contains source videos made with other settings: seed was 3 and is 4; choose another folder"
    ):
        write_source_videos(folder, held_out(), 1, 4)
    some = replace(held_out(), subjects=held_out().subjects[:150])
    with pytest.raises(DataError, match="subjects was"):
        write_source_videos(folder, some, 1, 3)
    source_video.write_bytes((source_videos / "video-0001.mp4").read_bytes())  # a source video of ours, under another's name
    write_source_videos(folder, held_out(), 1, 3)
    assert source_video.read_bytes() == (source_videos / source_video.name).read_bytes()


def test_other_thresholds_take_back_what_they_would_not_write(source_videos, built, tmp_path):
    out = tmp_path / "t.lance"
    run(source_videos, out)
    few = run(source_videos, out, replace(CONFIG, lower=0.999))
    assert len(rows(out)) == few.triplets
    assert all(r.score is None if r.pairing == "in-pair" else r.score > 0.99 for t in TripletStore(out) for r in t.references)
    run(source_videos, out)
    assert rows(out) == rows(built[0])


@pytest.mark.long
def test_a_pool_and_ray_give_the_same_rows(source_videos, built, tmp_path):
    run(source_videos, tmp_path / "pool.lance", workers=2)
    assert rows(tmp_path / "pool.lance") == rows(built[0])
    code = "import sys, cheap; cheap.run(*sys.argv[1:], ray='local')"
    here = str(Path(cheap.__file__).parent)
    subprocess.run(
        [sys.executable, "-c", code, str(source_videos), str(tmp_path / "ray.lance")],
        check=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": here, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"},
        timeout=200,
        capture_output=True,
    )
    assert rows(tmp_path / "ray.lance") == rows(built[0])


@pytest.mark.long
def test_a_run_that_is_killed_twenty_times_loses_and_doubles_nothing(source_videos, built, tmp_path):
    """At random moments; where a run comes to its end in spite of it, another one is begun."""
    rng, kills, number = random.Random(5), 0, 0
    while kills < 20:
        out, number, done = tmp_path / f"killed-{number}.lance", number + 1, False
        command = [sys.executable, cheap.__file__, str(source_videos), str(out)]
        while not done:
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                done = running.wait(rng.uniform(1.0, 3.5) if kills < 20 else None) == 0
                assert done
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.wait()
                kills += 1
        assert rows(out) == rows(built[0])
        assert len(TripletStore(out)) == len(rows(out))


def test_what_cannot_be_read_is_named_and_left_behind(source_videos, tmp_path, monkeypatch):
    good = sorted(source_videos.glob("*.mp4"))[0].read_bytes()
    folder = tmp_path / "videos"
    folder.mkdir()
    contents = {
        "empty.mp4": b"", "text.mp4": b"this is no source video", "broken.mp4": good[: len(good) // 2],
        "hole.mp4": good[:3000] + bytes(len(good) // 2) + good[3000 + len(good) // 2 :],
        "un source video à nous 映画.mp4": good,
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    locked = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "01" * 16, "encryption_kid": "02" * 16}
    with av.open(str(folder / "encrypted.mp4"), "w", options=locked) as out:
        stream = out.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for still in ramp(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
        out.mux(stream.encode())
    with av.open(str(folder / "sound.mp4"), "w") as sound:
        stream = sound.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        sound.mux(stream.encode(frame))
        sound.mux(stream.encode())
    (folder / "loop").symlink_to(folder)
    found = {p.name: list(process([str(p)], CONFIG, MODELS))[-1] for p in probe.find(folder)}
    assert set(found) == {*contents, "sound.mp4", "encrypted.mp4"}
    assert found["un source video à nous 映画.mp4"]["drop"] == ""
    assert found["empty.mp4"]["drop"] == "empty"
    assert found["sound.mp4"]["drop"] == "no video stream (audio only)"
    for name in ("text.mp4", "broken.mp4", "hole.mp4", "encrypted.mp4"):
        assert "not a readable video" in found[name]["drop"] or "truncated after" in found[name]["drop"]
    summary = run(folder, tmp_path / "t.lance")
    assert (summary.source_videos, len(summary.left_behind)) == (7, 6)
    assert summary.triplets > 0
    (folder / "un source video à nous 映画.mp4").unlink()
    with pytest.raises(DataError, match="none of 6 files"):
        run(folder, tmp_path / "u.lance")


def test_ten_bits_and_large_images_are_read_and_told(tmp_path):
    with av.open(str(tmp_path / "ten.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p10le"
        for image in ramp(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p10le")))
        out.mux(stream.encode())
    source_video = through((probe,), tmp_path / "ten.mp4")[0]
    assert source_video["notices"] == ["10 bits reduced to 8"]
    assert abs(float(next(stream_frames(source_video, 48))[1].mean()) - 10) < 3


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    (tmp_path / "locked").mkdir()
    assert list(probe.find(tmp_path / "locked")) == [tmp_path / "locked"]
    assert list(process([str(tmp_path / "locked")], CONFIG, MODELS))[-1]["drop"] == "not a file"


def test_rights_and_captions_lie_beside_a_source_video(source_videos, tmp_path):
    source = sorted(source_videos.glob("*.mp4"))[0]
    (tmp_path / "a.mp4").write_bytes(source.read_bytes())
    facts = {"caption": "A toy moves.", "license": "CC0-1.0", "source": "shelf 3"}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    run(tmp_path, tmp_path / "t.lance", require_license=True)
    triplets = list(TripletStore(tmp_path / "t.lance"))
    assert {t.rights.license for t in triplets} == {"CC0-1.0"}
    assert {t.caption for t in triplets} == {"A toy moves."}
    (tmp_path / "a.json").write_text("[]")
    assert "not a JSON object" in list(process([str(tmp_path / "a.mp4")], CONFIG, MODELS))[-1]["drop"]


def test_time_of_a_stage_is_its_own(source_videos):
    start = time.process_time()
    records = process([str(path) for path in sorted(source_videos.glob("*.mp4"))[:2]], CONFIG, MODELS)
    found = [record["seconds"] for record in records if record["kind"] == "source_video"]
    spent = time.process_time() - start
    assert [set(each) for each in found] == [{name for name, _ in (*engine.LOOK, *engine.KNOW)}] * 2
    assert min(value for each in found for value in each.values()) >= 0
    assert 0.5 * spent < sum(value for each in found for value in each.values()) <= spent


# Models that are asked several questions at once


def test_batches_keep_the_order_and_ask_a_few_at_a_time():
    records = [{"asks": n % 5 == 0, "n": n} for n in range(60)]
    found = list(batches(records, lambda record: record["asks"]))
    assert [record for batch in found for record in batch] == records
    assert all(len(batch) <= LONGEST and sum(r["asks"] for r in batch) <= AT_ONCE for batch in found)
    assert [len(batch) for batch in batches(records[:1] * 9, lambda _: True)] == [AT_ONCE, AT_ONCE, 1]


def test_captions_are_asked_of_clips_of_several_source_videos_together():
    asked = []

    def captions(clips):
        asked.append(len(clips))
        return [f"A red {clip[0]} and a box." if clip[0] else "" for clip in clips]

    clips = [{"kind": "clip", "drop": "dark" if n == 2 else "", "stills": [n], "n": n} for n in range(6)]
    records = [*clips[:3], {"kind": "source_video"}, *clips[3:]]
    phrases = [["red", str(n)] for n in range(6)]
    models = replace(MODELS, captions=captions, phrases=lambda told: [["red", each.split()[2]] for each in told])
    found = list(caption.run(records, CONFIG, models))
    assert asked == [4, 1]
    assert [r.get("n") for r in found] == [0, 1, 2, None, 3, 4, 5]
    assert [r["caption"] for r in found if "caption" in r] == ["", *(f"A red {n} and a box." for n in (1, 3, 4, 5))]
    assert [r["phrases"] for r in found if "phrases" in r] == [[], *(phrases[n] for n in (1, 3, 4, 5))]


def test_a_model_is_asked_of_pairs_together_and_only_of_those_that_stand(source_videos, built):
    out, _ = built
    index, asked = SubjectIndex(index_path(out)), []
    looked_at = list(pair.run(index, CONFIG))
    open_pairs = [each for each in looked_at if each["drop"] in ("", pair.MORE)]

    def same(pairs):
        asked.append(len(pairs))
        assert all(image.ndim == 3 for both in pairs for image in both)
        return [len(asked) % 2 == 1] * len(pairs)

    told = list(verify.run(looked_at, CONFIG, replace(MODELS, features=None, same=same), index))
    assert [each["subject"] for each in told] == [each["subject"] for each in looked_at]
    assert sum(asked) == len(open_pairs) > AT_ONCE
    assert max(asked) == AT_ONCE
    assert sum(each["drop"] == "refused by the model" for each in told) == sum(asked[1::2])


def test_processes_of_a_pool_are_numbered_for_their_gpus(tmp_path):
    numbers = queue.Queue()
    numbers.put(3)
    before = dict(os.environ), signal.getsignal(signal.SIGINT)
    try:
        engine._start(CONFIG, cheap.models, str(tmp_path), numbers)
        assert os.environ["LOCAL_RANK"] == "3"
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        signal.signal(signal.SIGINT, before[1])
        engine._state.clear()
