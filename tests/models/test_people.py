"""People: on NASA's portrait of Eileen Collins and on a cat, which scikit-image ships."""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.detectors.people import detect_people_too
from phantom_s2v.errors import CheckpointError, DataError
from phantom_s2v.vision import faces, fetched, pose

needs_files = pytest.mark.skipif(not fetched.fetched(), reason="phantom models fetch brings the files")


def image(name):
    spec = importlib.util.find_spec("skimage")
    return np.asarray(Image.open(Path(spec.submodule_search_locations[0]) / "data" / f"{name}.png").convert("RGB"))


@needs_files
def test_a_face_is_where_it_is_and_a_cat_has_none():
    (box, score), *more = faces.faces(image("astronaut"))
    assert not more
    assert score > 0.9
    assert np.abs(np.array(box) - (179, 82, 274, 177)).max() <= 8  # eyes at (208, 120) and (242, 115)
    assert faces.faces(image("chelsea")) == []


@needs_files
def test_a_face_in_a_wide_image_is_found_at_its_own_place():
    wide = np.full((256, 512, 3), 90, np.uint8)
    wide[:, 212:] = image("astronaut")[:256, 100:400]
    ((box, _),) = faces.faces(wide)
    assert np.abs(np.array(box) - (291, 82, 386, 177)).max() <= 12


@needs_files
def test_the_mask_of_a_pose_holds_the_person():
    mask = pose.people(image("astronaut"), 0.5, 0.5)[0].mask
    assert mask[100:300, 200:260].mean() > 0.95
    assert mask[:60, :60].mean() < 0.2
    assert mask.shape == (512, 512)


def test_features_of_one_face_are_near_and_a_cat_has_none():
    pytest.importorskip("dlib")
    face = image("astronaut")
    mirrored, darker = face[:, ::-1], (face * 0.6).astype(np.uint8)
    own = faces.face_feature(face)
    assert own is not None
    assert np.linalg.norm(own - faces.face_feature(mirrored)) < 0.4
    assert np.linalg.norm(own - faces.face_feature(darker)) < 0.3
    assert faces.face_feature(image("chelsea")) is None


@needs_files
def test_a_person_is_one_detection_and_the_cat_is_no_person():
    portrait, cat = detect_people_too([image("astronaut")], [])[0], detect_people_too([image("chelsea")], [])[0]
    assert [d.is_person for d in portrait].count(True) == 1
    assert not any(d.is_person for d in cat)


def test_what_was_not_fetched_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched._network.cache_clear()
    assert not fetched.fetched()
    with pytest.raises(CheckpointError, match="phantom models fetch"):
        faces.faces(np.zeros((64, 64, 3), np.uint8))
    fetched._network.cache_clear()


def pip_that_brings(monkeypatch, content):
    def run(command, **_):
        target = Path(command[command.index("--dest") + 1])
        if content is not None:
            with zipfile.ZipFile(target / "a.whl", "w") as wheel:
                for name in fetched.FILES:
                    wheel.writestr(f"mediapipe/modules/x/{name}", content)
        return subprocess.CompletedProcess(command, 0 if content else 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", run)


def test_another_file_than_the_pinned_one_is_refused(tmp_path, monkeypatch):
    pip_that_brings(monkeypatch, b"other")
    with pytest.raises(DataError, match="not the pinned file"):
        fetched.fetch(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    pip_that_brings(monkeypatch, None)
    with pytest.raises(DataError, match="No matching distribution"):
        fetched.fetch(tmp_path / "b")


def test_pinned_files_are_kept_once(tmp_path, monkeypatch):
    content = b"a network"
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(fetched, "FILES", {name: (wheel, digest) for name, (wheel, _) in fetched.FILES.items()})
    pip_that_brings(monkeypatch, content)
    first = fetched.fetch(tmp_path)
    pip_that_brings(monkeypatch, None)
    assert fetched.fetch(tmp_path) == first
    assert all(path.read_bytes() == content for path in first)


@needs_files
def test_all_faces_get_features_at_any_size():
    pytest.importorskip("dlib")
    face = image("astronaut")
    two = np.concatenate([face, np.asarray(Image.fromarray(face[:, ::-1]).resize((512, 512)))], 1)
    ((box, own),) = faces.dlib_faces(face)
    assert box == faces.faces(face)[0][0]
    both = faces.dlib_faces(two)
    assert len(both) == 2
    assert all(faces.dlib_alike(own, other.feature) > 0.6 for other in both)
    small = np.asarray(Image.fromarray(face).resize((200, 200)))
    assert faces.dlib_alike(own, faces.dlib_faces(small)[0].feature) > 0.6
    assert faces.dlib_faces(image("chelsea")) == []


def test_alignment_brings_a_turned_scaled_face_onto_the_template():
    angle, scale, moved = np.deg2rad(25), 2.2, np.array([90.0, 60.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = faces.TEMPLATE @ turn.T + moved
    canvas = np.zeros((400, 400, 3), np.uint8)
    for channel, (x, y) in enumerate(points[:3]):
        canvas[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5, channel] = 255
    face = faces.align(canvas, points)
    assert face.shape == (112, 112, 3)
    for channel in range(3):
        y, x = np.argwhere(face[..., channel] > 100).mean(0)
        assert np.hypot(*(faces.TEMPLATE[channel] - (x, y))) < 1


def onnx_network(path, side=112):
    """A network that answers with every eighth pixel of the middle of a face, channel by channel: it adds nothing up."""
    import onnx
    from onnx import TensorProto, helper

    given = helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, side, side])
    out = helper.make_tensor_value_info("feature", TensorProto.FLOAT, [1, None])
    places = {"starts": [40, 40], "ends": [72, 72], "axes": [2, 3], "steps": [8, 8]}
    nodes = [
        helper.make_node("Slice", ["face", *places], ["pixels"]),
        helper.make_node("Flatten", ["pixels"], ["feature"], axis=1),
    ]
    constants = [helper.make_tensor(name, TensorProto.INT64, [2], values) for name, values in places.items()]
    graph = helper.make_graph(nodes, "pixels", [given], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


@needs_files
def test_arcface_sees_the_aligned_face_as_its_network_was_trained(tmp_path):
    face = image("astronaut")
    ((box, vector),) = faces.ArcFace(onnx_network(tmp_path / "arc.onnx"))(face)
    ((there, _, points),) = faces._found_faces(face)
    assert box == there
    aligned = faces.align(face, points[:4])
    expected = aligned[40:72:8, 40:72:8].transpose(2, 0, 1).ravel() / 127.5 - 1
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    eyes = aligned[46:58, 30:84].mean(), aligned[60:68, 30:84].mean()
    assert eyes[0] < eyes[1]  # eyes are darker than the cheeks below them
    assert faces.ArcFace(tmp_path / "arc.onnx")(image("chelsea")) == []


def test_what_is_no_arcface_is_one_sentence(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="not a valid ONNX model"):
        faces.ArcFace(tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match=r"got \[3, 64, 64\]"):
        faces.ArcFace(onnx_network(tmp_path / "small.onnx", 64))


@needs_files
def test_a_build_takes_arcface_and_its_bounds(tmp_path, call_phantom, monkeypatch):
    from phantom_s2v.cli import data

    built = []
    monkeypatch.setattr(data, "_built", lambda videos, out, settings, make, *_: built.append((settings, make())))
    network, video = onnx_network(tmp_path / "arc.onnx"), tmp_path / "a.mp4"
    video.touch()
    asked = ["build", video, "--out", tmp_path / "t.lance", "--people", "--arcface", network]
    (tmp_path / "c.toml").write_text("same_face_across = 0.7\n")
    assert call_phantom("data", *asked)[0] == 0
    assert call_phantom("data", *asked, "--config", tmp_path / "c.toml")[0] == 0
    (first, models), (second, _) = built
    assert (first.same_face, first.same_face_across) == (1.1, 0.9)
    assert (second.same_face, second.same_face_across) == (1.1, 0.7)
    assert "arcface=" in first.models
    np.testing.assert_array_equal(models.face(image("astronaut")), faces.ArcFace(network)(image("astronaut"))[0].feature)
    assert models.face(image("chelsea")) is None
