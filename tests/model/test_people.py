"""People: on NASA's portrait of Eileen Collins and on a cat, which scikit-image ships."""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.backends import detect_people_too
from phantom_s2v.errors import CheckpointError, DataError
from phantom_s2v.model import people

needs_files = pytest.mark.skipif(not people.fetched(), reason="phantom models fetch brings the files")


def picture(name):
    spec = importlib.util.find_spec("skimage")
    return np.asarray(Image.open(Path(spec.submodule_search_locations[0]) / "data" / f"{name}.png").convert("RGB"))


@needs_files
def test_a_face_is_where_it_is_and_a_cat_has_none():
    (box, score), *more = people.faces(picture("astronaut"))
    assert not more
    assert score > 0.9
    assert np.abs(np.array(box) - (179, 82, 274, 177)).max() <= 8  # eyes at (208, 120) and (242, 115)
    assert people.faces(picture("chelsea")) == []


@needs_files
def test_a_face_in_a_wide_picture_is_found_at_its_own_place():
    wide = np.full((256, 512, 3), 90, np.uint8)
    wide[:, 212:] = picture("astronaut")[:256, 100:400]
    ((box, _),) = people.faces(wide)
    assert np.abs(np.array(box) - (291, 82, 386, 177)).max() <= 12


@needs_files
def test_the_person_mask_holds_the_person():
    mask = people.person_mask(picture("astronaut"))
    assert mask[100:300, 200:260].mean() > 0.95
    assert mask[:60, :60].mean() < 0.2
    assert mask.shape == (512, 512)


def test_features_of_one_face_are_near_and_a_cat_has_none():
    pytest.importorskip("dlib")
    face = picture("astronaut")
    mirrored, darker = face[:, ::-1], (face * 0.6).astype(np.uint8)
    own = people.face_feature(face)
    assert own is not None
    assert np.linalg.norm(own - people.face_feature(mirrored)) < 0.4
    assert np.linalg.norm(own - people.face_feature(darker)) < 0.3
    assert people.face_feature(picture("chelsea")) is None


@needs_files
def test_a_person_is_one_detection_and_the_cat_is_no_person():
    portrait, cat = detect_people_too([picture("astronaut")], [])[0], detect_people_too([picture("chelsea")], [])[0]
    assert [d.living for d in portrait].count(True) == 1
    assert not any(d.living for d in cat)


def test_what_was_not_fetched_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    people._network.cache_clear()
    assert not people.fetched()
    with pytest.raises(CheckpointError, match="phantom models fetch"):
        people.faces(np.zeros((64, 64, 3), np.uint8))
    people._network.cache_clear()


def pip_that_brings(monkeypatch, content):
    def run(command, **_):
        target = Path(command[command.index("--dest") + 1])
        if content is not None:
            with zipfile.ZipFile(target / "a.whl", "w") as wheel:
                for name in people.FILES:
                    wheel.writestr(f"mediapipe/modules/x/{name}", content)
        return subprocess.CompletedProcess(command, 0 if content else 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", run)


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    pip_that_brings(monkeypatch, b"other")
    with pytest.raises(DataError, match="not the file that is pinned"):
        people.fetch(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    pip_that_brings(monkeypatch, None)
    with pytest.raises(DataError, match="No matching distribution"):
        people.fetch(tmp_path / "b")


def test_pinned_files_are_kept_once(tmp_path, monkeypatch):
    content = b"a network"
    monkeypatch.setattr(people, "FILES", dict.fromkeys(people.FILES, hashlib.sha256(content).hexdigest()))
    pip_that_brings(monkeypatch, content)
    first = people.fetch(tmp_path)
    pip_that_brings(monkeypatch, None)
    assert people.fetch(tmp_path) == first
    assert all(path.read_bytes() == content for path in first)
