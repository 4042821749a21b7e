"""Who of the references is in which frame, by their faces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from phantom_s2v.evaluation.instruments import Faces
from phantom_s2v.evaluation.metrics import looks, measures
from phantom_s2v.vision.faces import Face

NAN = float("nan")


@dataclass(frozen=True)
class People:
    """Faces of references and frames, the surest first; of frames none where no reference shows one that has a feature."""

    references: list[list[Face]]
    frames: list[list[Face]]
    known: list[np.ndarray | None]  # the feature of each reference's surest face
    alike: Callable[[np.ndarray, np.ndarray], float]

    @property
    def similarity(self) -> np.ndarray:
        """Of each reference's face in each frame, [frames, references]; nan where there is none."""
        return measures.face_similarity([_described(faces)[1] for faces in self.frames], self.known, self.alike)

    def centers(self, places: Sequence[str], bound: float) -> list[dict[int, np.ndarray]]:
        """Centers (x, y) in pixels of the references' faces in each frame, where two people are asked for at `places`.

        Only faces whose similarity is `bound` or more.
        """
        if sum(face is not None and bool(place) for face, place in zip(self.known, places, strict=True)) < 2:
            return [{} for _ in self.frames]
        found = []
        for faces in self.frames:
            boxes, features = _described(faces)
            own = measures.whose(features, self.known, self.alike)
            sure = {i: boxes[face] for i, (face, similarity) in own.items() if similarity >= bound}
            found.append({i: np.array([left + right, top + bottom]) / 2 for i, (left, top, right, bottom) in sure.items()})
        return found

    def clothes(self, reference: np.ndarray, frames: Sequence[np.ndarray], index: int) -> float:
        """Similarity of the colors below the face of reference `index` and below the most similar face of each frame.

        nan where no face has a feature, or none shows what is below it.
        """
        own = [looks.clothes(reference, face.box) for face in self.references[index][:1]]
        if self.known[index] is None or not own or own[0] is None:
            return NAN
        alike = [
            [colors @ own[0] for face in faces if (colors := looks.clothes(frame, face.box)) is not None]
            for frame, faces in zip(frames, self.frames, strict=True)
        ]
        best = [max(each) for each in alike if each]
        return float(np.mean(best)) if best else NAN


def people_in(frames: Sequence[np.ndarray], references: Sequence[np.ndarray], faces: Faces | None) -> People:
    """Faces of uint8 [H, W, 3] frames and references; all absent where they are not looked for."""
    if not faces:
        return People([[] for _ in references], [[] for _ in frames], [None] * len(references), lambda one, other: NAN)
    shown = [faces.find(image) for image in references]
    known = [next(iter(_described(each)[1]), None) for each in shown]
    looked = [faces.find(frame) for frame in frames] if any(face is not None for face in known) else [[] for _ in frames]
    return People(shown, looked, known, faces.alike)


def _described(faces: Sequence[Face]) -> tuple[list[tuple[int, int, int, int]], list[np.ndarray]]:
    """Boxes and features of the faces that have features."""
    rows = [(face.box, face.feature) for face in faces if face.feature is not None]
    return [box for box, _ in rows], [feature for _, feature in rows]
