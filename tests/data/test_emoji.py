import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.synthetic import emoji
from phantom_s2v.data.synthetic.heldout import ASSETS, evaluated, held_out, held_out_families, still_path
from phantom_s2v.errors import DataError
from phantom_s2v.models.registry import model_folder


def test_variants_are_one_family():
    same = ["1f9d1-200d-1f692", "1f469-1f3fd-200d-1f692", "1f468-200d-1f692"]
    assert len({emoji.family_of(key) for key in same}) == 1
    assert emoji.family_of("1f3c4-1f3fb-200d-2640-fe0f") == emoji.family_of("1f3c4")
    assert emoji.family_of("1f98a") != emoji.family_of("1f43b")


@pytest.mark.parametrize(
    ("key", "name"),
    [("1f98a", "fox"), ("1f3c4-200d-2640-fe0f", "woman surfer"), ("1f9d1-200d-1f692", "adult and fire engine")],
)
def test_names_come_from_unicode(key, name):
    assert emoji.name_of(key) == name


@pytest.mark.parametrize(
    ("key", "kept"), [("1f98a", True), ("1f1e6-1f1e8", False), ("1f44b-1f3fd", False), ("30-fe0f-20e3", False)]
)
def test_what_is_a_subject(key, kept):
    assert emoji.wanted(key) is kept


def test_two_hundred_families_are_held_out_and_listed():
    assert len(held_out_families()) == emoji.HELD_OUT
    listed = sorted(held_out_families())
    assert hashlib.sha256("\n".join(listed).encode()).hexdigest() == HELD_OUT_HASH, "the split must never change"
    assert {s.family for s in held_out().subjects} == set(listed)


HELD_OUT_HASH = "aa5086a0c0e3bacce377be0d8c8f4c4aa3dc2d93590d3be755042cf2e5673d6a"


def test_a_hundred_are_evaluated_with_still_and_clip():
    subjects = evaluated(held_out())
    assert len({s.family for s in subjects}) == 100
    assert all(s.frames == 26 and still_path(s.key).is_file() for s in subjects)
    assert sum(f.stat().st_size for f in ASSETS.rglob("*")) < 13e6
    assert (ASSETS / "LICENSE").read_text().count("Microsoft") > 1


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/assets/{name}.webp")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def webp(colors, side=256):
    frames = [Image.new("RGBA", (side, side), color) for color in colors]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=len(frames) > 1, append_images=frames[1:], lossless=True)
    return buffer.getvalue()


def test_packages_become_a_store_without_held_out_subjects(tmp_path):
    still = archive(tmp_path / "x-3d-1.tgz", {"1f98a": webp(["red"]), "1f43b": webp(["blue"]), "1f1e6-1f1e8": webp(["green"])})
    clips = archive(tmp_path / "x-anim-1.tgz", {"1f98a": webp(["red", "#f80000"]), "1f43b": webp(["white", "yellow"])})
    rows = list(emoji.read_packages([still, clips]))
    assert [(key, clip is not None) for key, _, clip in rows] == [("1f43b", False), ("1f98a", True)], (
        "a clip of another is left out"
    )
    emoji.write_store(tmp_path / "store", iter(rows))
    sprites = emoji.load_store(tmp_path / "store")
    fox = sprites.subjects[1]
    assert (fox.name, fox.frames, fox.animated) == ("fox", 3, True)
    assert sprites.still(fox)[0, 0].tolist() == [255, 0, 0, 255]
    assert sprites.clip(fox)[1, 0, 0].tolist() == [248, 0, 0, 255]
    assert sprites.clip(sprites.subjects[0]).shape[0] == 1, "a still stands for its own clip"


def test_a_missing_store_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="phantom data emoji"):
        emoji.load_store(tmp_path)


def test_fetch_without_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="npm is not installed"):
        emoji.fetch(tmp_path, set(), lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_split_is_stable_under_order():
    subjects = tuple(emoji.Subject(f"{i:x}", "n", f"f{i}", 0, 1 + i % 2) for i in range(600))
    assert emoji.split(subjects) == emoji.split(subjects[::-1])
    assert len(emoji.split(subjects)) == emoji.HELD_OUT
    assert emoji.subjects_hash(subjects) == emoji.subjects_hash(subjects[::-1])
    assert np.array_equal(sorted(emoji.split(subjects)), sorted(set(emoji.split(subjects))))


def test_what_the_packaged_model_saw_holds_no_held_out_subject():
    """The checkpoint's hash is that of the listed subjects, and none of their families is held out."""
    facts = json.loads((model_folder("phantom-mini") / "facts.json").read_text())
    keys = json.loads((ASSETS.parent / "training-subjects.json").read_text())
    assert facts["subjects"] == hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    assert facts["subject_count"] == len(keys)
    assert not {emoji.family_of(key) for key in keys} & held_out_families()
