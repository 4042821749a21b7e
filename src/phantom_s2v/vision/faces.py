"""Boxes of faces and features of faces, by small networks that registry packages ship.

The face detector (BlazeFace, short range) is a TensorFlow Lite file under Apache-2.0 (fetched.py). Face features are dlib's, from
the packages dlib-bin and face-recognition-models. Both are made for people near the camera; they miss people who are small or
turned away.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.hashes import folder_hash
from phantom_s2v.geometry import covered, squares
from phantom_s2v.vision.fetched import run_lite
from phantom_s2v.vision.transformers import default_device

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Face(NamedTuple):
    """A face in an image: its box, and a network's feature of it, None where that network does not know it for a face."""

    box: Box
    feature: np.ndarray | None


FACE_SIDE = 128  # pixels that the network sees
SURE = 0.6  # min score of a face in the whole image
SURE_WITHIN = 0.75  # in a part of it, where more is tried and so more is mistaken
SURE_ALONE = 0.85  # from which BlazeFace's box is taken for a face that dlib's detector misses; animals have 0.78 at most
DLIB_SIDE = 200  # pixels of a face with its surroundings
ARC_SIDE = 112  # pixels that ArcFace sees
# Eyes, nose and the middle of the mouth, (x, y), as InsightFace aligns faces for ArcFace (the mouth's corners joined).
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [56.1396, 92.2848]])


def faces(image: np.ndarray) -> list[tuple[Box, float]]:
    """(box in pixels, score) of faces in uint8 [H, W, 3], the surest first."""
    return [(box, score) for box, score, _ in _found_faces(image)]


def _found_faces(image: np.ndarray) -> list[tuple[Box, float, np.ndarray]]:
    """(box, score, points) of faces; points [6, 2], (x, y) in pixels: eyes, nose, mouth, ears, the left of the image first.

    The network knows faces that fill a tenth and more of what it sees, so it looks at the whole image and at squares of it.
    """
    height, width = image.shape[:2]
    rows = np.concatenate([_faces_in(image, *square) for square in _squares(height, width)])
    kept: list[tuple[Box, float, np.ndarray]] = []
    for row in rows[np.argsort(-rows[:, 0], kind="stable")]:
        left, top, right, bottom = np.clip(row[1:5], 0, [width, height, width, height]).round().astype(int).tolist()
        if all(covered((left, top, right, bottom), other) < 0.3 for other, _, _ in kept):
            kept.append(((left, top, right, bottom), float(row[0]), row[5:].reshape(6, 2)))
    return kept


def _squares(height: int, width: int) -> list[tuple[int, int, int]]:
    """(top, left, side): the whole image, then squares as high as it is and half as high, each half over the next."""
    sides = dict.fromkeys((min(height, width), min(height, width) // 2))
    sides = [side for side in sides if FACE_SIDE // 2 <= side < max(height, width)]
    within = [box for side in sides for box in squares(width, height, side, side // 2)]
    return [(0, 0, max(height, width)), *((top, left, right - left) for left, top, right, _ in within)]


def _faces_in(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """[n, 17] of one square: score, box, six points, in pixels of the image; faces that the square cuts off are left out."""
    height, width = image.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    part = image[top : top + side, left : left + side]
    square[: part.shape[0], : part.shape[1]] = part
    small = np.asarray(Image.fromarray(square).resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BILINEAR), np.float32)
    places, scores = run_lite("face_detection_short_range.tflite", small[None] / 127.5 - 1)
    chances = 1 / (1 + np.exp(-np.clip(scores[0, :, 0], -80, 80)))
    sure = np.flatnonzero(chances >= (SURE if side == max(height, width) else SURE_WITHIN))
    values, anchors = places[0, sure], _anchors()[sure]
    centers, sizes = anchors + values[:, :2] / FACE_SIDE, values[:, 2:4] / FACE_SIDE
    points = anchors[:, None] + values[:, 4:16].reshape(-1, 6, 2) / FACE_SIDE
    candidates = np.concatenate([centers - sizes / 2, centers + sizes / 2, points.reshape(-1, 12)], 1) * side + [left, top] * 8
    edges = np.array([left, top, left + side, top + side])
    inner = np.array([left > 0, top > 0, left + side < width, top + side < height])
    over = np.stack(
        [candidates[:, 0] < edges[0], candidates[:, 1] < edges[1], candidates[:, 2] > edges[2], candidates[:, 3] > edges[3]], 1
    )
    whole = ~(over & inner).any(1)
    return np.concatenate([chances[sure][:, None], candidates], 1)[whole]


def _anchors() -> np.ndarray:
    """Centers of BlazeFace's 896 anchors, in shares: two on each cell of 16 x 16, six on each of 8 x 8."""
    rows = []
    for cells, each in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        rows.append(np.repeat((np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells, each, 0))
    return np.concatenate(rows)


def _dlib_folder() -> Path:
    """Folder of dlib's weights. Raises CheckpointError where the packages are missing."""
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("dlib") is None:
        raise CheckpointError("face features need dlib-bin and face-recognition-models; install phantom-s2v[people]")
    return Path(spec.submodule_search_locations[0]) / "models"


@lru_cache(maxsize=1)
def _dlib() -> tuple[Any, Any, Any]:
    """dlib's face detector, five landmarks and features."""
    root = _dlib_folder()
    import dlib  # type: ignore[import-not-found]

    models: Any = dlib
    return (
        models.get_frontal_face_detector(),
        models.shape_predictor(str(root / "shape_predictor_5_face_landmarks.dat")),
        models.face_recognition_model_v1(str(root / "dlib_face_recognition_resnet_model_v1.dat")),
    )


def dlib_hash() -> str:
    """Hash of the weights behind dlib's features."""
    return folder_hash(_dlib_folder(), (".dat",))


def face_feature(image: np.ndarray, otherwise: Box | None = None) -> np.ndarray | None:
    """Feature float32 [128] of the surest face in uint8 [H, W, 3], None where dlib finds none and no box is given `otherwise`.

    Euclidean distances below 0.6 are of one person, as dlib's author measured on LFW.
    """
    detect, landmarks, describe = _dlib()
    image = np.ascontiguousarray(image)
    detections, scores, _ = detect.run(image, 1, 0.0)
    if len(detections):
        best = detections[int(np.argmax(scores))]
    elif otherwise:
        best = _dlib_rectangle(otherwise)
    else:
        return None
    feature = np.asarray(describe.compute_face_descriptor(image, landmarks(image, best)), np.float32)
    _check(feature, "the face feature by dlib")
    return feature


def _dlib_rectangle(box: Box) -> Any:
    import dlib  # type: ignore[import-not-found]

    models: Any = dlib
    return models.rectangle(*box)


def dlib_faces(image: np.ndarray) -> list[Face]:
    """All faces in uint8 [H, W, 3], the surest first, with dlib's features [128] of those that BlazeFace is sure of, or that
    dlib finds too.
    """
    found = []
    for box, score in faces(image):
        part, inner = _around(image, box)
        found.append(Face(box, face_feature(part, inner if score >= SURE_ALONE else None)))
    return found


def _around(image: np.ndarray, box: Box) -> tuple[np.ndarray, Box]:
    """A face with as much again around it, at a size at which dlib's detector is quick and sure, and its box there."""
    left, top, right, bottom = box
    margin = round(0.5 * max(right - left, bottom - top))
    x, y = max(0, left - margin), max(0, top - margin)
    part = image[y : bottom + margin, x : right + margin]
    scale = DLIB_SIDE / max(part.shape[:2])
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    inner = tuple(round(scale * value) for value in (left - x, top - y, right - x, bottom - y))
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS)), inner  # type: ignore[return-value]


def _check(feature: np.ndarray, what: str) -> None:
    """Raise NotFiniteError where a feature is not finite."""
    from phantom_s2v.models.finite import check_finite  # loads torch, which finding faces alone does without

    check_finite(feature, what)


def dlib_alike(one: np.ndarray, other: np.ndarray) -> float:
    """1 - the distance of two of dlib's features: 1 is the same image, 0.4 and more one person."""
    return 1 - float(np.linalg.norm(one - other))


class ArcFace:
    """Face features by an ArcFace network in an ONNX file, such as InsightFace's w600k_r50 or glintr100, on aligned faces.

    Raises CheckpointError where the file does not load. Eyes, nose and mouth are BlazeFace's; the template is ArcFace's own.
    """

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise CheckpointError("ArcFace needs onnxruntime; install phantom-s2v[people]") from error
        try:
            there = onnxruntime.get_available_providers()
            cuda = ("CUDAExecutionProvider", {"device_id": default_device().index or 0})
            providers = [cuda, "CPUExecutionProvider"] if cuda[0] in there else ["CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(str(file), providers=providers)
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise CheckpointError(f"{file} is not a valid ONNX model: {str(error).splitlines()[0]}") from error
        shape = self.session.get_inputs()[0].shape
        if list(shape[1:]) != [3, ARC_SIDE, ARC_SIDE]:
            raise CheckpointError(f"the ArcFace input must be [3, {ARC_SIDE}, {ARC_SIDE}] (got {shape[1:]} for {file})")

    def __call__(self, image: np.ndarray) -> list[Face]:
        """All faces in uint8 [H, W, 3], the surest first, with features of length one."""
        found = _found_faces(image)
        if not found:
            return []
        aligned = [align(image, points[:4]) for _, _, points in found]
        pixels = np.stack(aligned).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        given = self.session.get_inputs()[0]
        batch = 1 if given.shape[0] == 1 else len(pixels)  # some files are of one face at a time
        parts = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]
        vectors = np.concatenate([np.asarray(self.session.run(None, {given.name: part})[0]) for part in parts])
        _check(vectors, "the face feature by ArcFace")
        return [Face(box, vector / np.linalg.norm(vector)) for (box, _, _), vector in zip(found, vectors, strict=True)]


def align(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A face uint8 [112, 112, 3], turned and scaled so that eyes, nose and mouth (x, y) [4, 2] come nearest to the template."""
    x, y = TEMPLATE[:, 0], TEMPLATE[:, 1]
    # image = [[a, -b], [b, a]] template + (c, d), by least squares: Pillow asks where each pixel comes from
    rows = np.concatenate([np.stack([x, -y, x * 0 + 1, x * 0], 1), np.stack([y, x, x * 0, x * 0 + 1], 1)])
    a, b, c, d = np.linalg.lstsq(rows, np.concatenate([points[:, 0], points[:, 1]]), rcond=None)[0]
    turned = Image.fromarray(image).transform(
        (ARC_SIDE, ARC_SIDE), Image.Transform.AFFINE, (a, -b, c, b, a, d), Image.Resampling.BILINEAR
    )
    return np.asarray(turned)
