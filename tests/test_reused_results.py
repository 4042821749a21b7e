"""Nothing that an earlier run left is used for its name: what was made of something else is made again, or refused."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from phantom_s2v.data.synthetic.heldout import held_out, still_path
from phantom_s2v.evaluation.suites import emoji
from phantom_s2v.media import images
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset
from phantom_s2v.pipeline import batch
from phantom_s2v.pipeline.metadata import origin_of


@pytest.fixture
def zeroed(tiny, tmp_path):
    """The same model by name, but its blocks are zero."""
    folder = tmp_path / "copy" / tiny.name
    shutil.copytree(tiny, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: 0 * value if name.startswith("blocks.") else value for name, value in load_file(file).items()}, file)
    return folder


@pytest.fixture
def made(monkeypatch):
    """Seeds of the videos that are made."""
    seeds = []
    for module in (batch, emoji):
        whole = module.generate
        monkeypatch.setattr(module, "generate", lambda request, *a, whole=whole: seeds.append(request.seed) or whole(request, *a))
    return seeds


def test_a_broken_model_does_not_get_the_sound_ones_figures(call_phantom, tiny, zeroed, made, tmp_path, monkeypatch):
    """The issue's own example: emoji --limit 1, then again with a copy whose blocks are zeroed."""
    monkeypatch.setattr(emoji, "TEXTURED_CLIPS", 1)
    classifier = emoji.SubjectClassifier()
    reference_features = emoji.embed_references(classifier, held_out())
    monkeypatch.setattr(emoji, "SubjectClassifier", lambda: classifier)
    monkeypatch.setattr(emoji, "embed_references", lambda *_: reference_features)
    ask, out = ("evaluate", "run", "emoji", "--limit", "1"), tmp_path / "out"

    def run(model):
        before = len(made)
        code, said = call_phantom(*ask, "--model", model, "--out", out)
        assert code == 0, said.err
        rows = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]
        frames = {path.name: path.read_bytes() for path in (out / "frames").iterdir()}
        return len(made) - before, json.loads(said.out.splitlines()[-1]), rows, frames

    count, sound, rows, frames = run(tiny)
    assert (count, len(rows), len(frames)) == (4, 4, 8)  # of each a strip of frames and the video
    assert run(tiny)[0] == 0
    with (out / "cases.jsonl").open("a") as file:
        file.write('{"id": "of another limit", "origin": "x"}\n{"id": "unnamed-cut o')
    count, broken, others, changed = run(zeroed)
    assert count == 4
    assert broken["weights"] != sound["weights"]
    assert [row["id"] for row in others] == ["of another limit", *(row["id"] for row in rows)]
    assert not {row["origin"] for row in rows} & {row["origin"] for row in others}
    assert all(changed[name] != frames[name] for name in frames)
    fresh = call_phantom(*ask, "--model", zeroed, "--out", tmp_path / "fresh")[1]
    report = str(tmp_path / "fresh" / "report.html")
    assert json.loads(fresh.out.splitlines()[-1]) == {**broken, "report": report}


def test_requests_are_made_again_where_anything_changed(call_phantom, tiny, zeroed, image, made, tmp_path):
    folder, file = tmp_path / "videos", tmp_path / "all.jsonl"
    folder.mkdir()
    two = {"prompt": "two", "seed": 9, "out": "two.mp4"}

    def run(line, model=tiny, *more):
        file.write_text(json.dumps(line) + "\n" + json.dumps(two))
        before = len(made)
        code, said = call_phantom("generate", "--model", model, "--requests", file, "--out", folder, *more)
        assert code == 0, said.err
        metadata = json.loads((folder / "one.metadata.json").read_text(encoding="utf-8"))
        assert metadata["request"]["seed"] == line["seed"]
        return made[before:], said.err

    one = {"prompt": "one", "reference": [str(image)], "seed": 1, "out": "one.mp4"}
    assert run(one)[0] == [1, 9]
    seeds, said = run(one)
    assert (seeds, "2 of 2 videos are up to date" in said) == ([], True)
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(image.read_bytes())
    assert run(one | {"reference": [str(moved)], "several_views": True})[0] == []  # the same content
    seeds, said = run(one | {"seed": 2})
    assert (seeds, "regenerating one.mp4: request.seed was 1 and is 2" in said) == ([2], True)
    seeds, said = run(one | {"seed": 2, "prompt": "other"})
    assert (seeds, "request.prompt was one and is other" in said) == ([2], True)
    one |= {"seed": 2, "prompt": "other"}
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(image)
    assert run(one)[0] == [2]
    seeds, said = run(one, zeroed)
    assert (seeds, "one.mp4: weights was" in said) == ([2, 9], True)
    for name in ("one.mp4", "one.sheet.png", "one.metadata.json"):
        shutil.copy(folder / name.replace("one", "two"), folder / name)  # a whole video of ours, under another's name
    assert run(one, zeroed)[0] == [2]
    (folder / "one.metadata.json").unlink()
    seeds, said = run(one, zeroed)
    assert (seeds, "not recorded how it was made" in said) == ([2], True)


def test_a_change_of_the_code_makes_videos_again(call_phantom, tiny, made, tmp_path, monkeypatch):
    (tmp_path / "all.jsonl").write_text('{"prompt": "one"}')
    ask = ("generate", "--model", tiny, "--requests", tmp_path / "all.jsonl", "--out", tmp_path)
    assert call_phantom(*ask)[0] == 0
    monkeypatch.setattr("phantom_s2v.pipeline.metadata.code_version", lambda *_: {"phantom_s2v": "another"})
    code, said = call_phantom(*ask)
    assert (code, len(made)) == (0, 2)
    assert "code.phantom_s2v was" in said.err


def test_a_suite_makes_again_what_another_model_made(call_phantom, tiny, zeroed, made, tmp_path):
    suite, out = tmp_path / "suite", tmp_path / "out"
    suite.mkdir()
    shutil.copy(still_path("1f427"), suite / "bird.webp")
    case = {"id": "a", "prompt": "The bird moves.", "reference": ["bird=bird.webp"], "seed": 1}

    def run(model, **changes):
        before = len(made)
        (suite / "cases.jsonl").write_text(json.dumps({**case, **changes}) + "\n" + json.dumps({**case, "id": "b", "seed": 5}))
        code, said = call_phantom("evaluate", "run", suite, "--model", model, "--out", out, "--features", "phantom-mini")
        assert code == 0, said.err
        return made[before:], said.err

    assert run(tiny)[0] == [1, 5]
    assert run(tiny)[0] == []
    seeds, said = run(tiny, seed=3)
    assert (seeds, "1 of 2 videos are regenerated; a: request.seed was 1 and is 3" in said) == ([3], True)
    assert run(zeroed, seed=3)[0] == [3, 5]


def test_a_rephraser_counts_and_not_the_words_that_it_found(tmp_path, tiny):
    request = replace(batch.build_request({"prompt": "asked"}, load_preset(tiny)), prompt="found", asked_prompt="asked")
    other = replace(request, prompt="found the next time")
    placement, folder = asdict(Placement()), tmp_path / "rephraser"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")

    def origin(request, where):
        return origin_of(request, "weights", placement, rephrase=where)

    first = origin(request, str(folder))
    assert origin(other, str(folder)) == first
    assert origin(other, None) != origin(request, None)  # made again of its metadata: by the words
    (folder / "model.safetensors").write_bytes(b"two")
    assert origin(request, str(folder)) != first
    assert "secret" not in str(origin(request, "https://me:secret@example.org#model"))


def test_true_clips_are_known_by_their_frames(call_phantom, tiny, tmp_path, monkeypatch):
    from phantom_s2v.evaluation.robustness import clip_origin

    clip = np.zeros((5, 16, 16, 3), np.uint8)
    target = tmp_path / "clip.mp4"
    images.write_video(target, clip, 8)
    batch.note_video(target, clip_origin(clip, 8), {})
    assert batch.remade_because(target, clip_origin(clip, 8)) == ""
    assert "frames was" in batch.remade_because(target, clip_origin(clip + 1, 8))
    assert batch.remade_because(target, clip_origin(clip, 9)) == "fps was 8 and is 9"
