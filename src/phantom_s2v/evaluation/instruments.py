"""What a score is measured with: networks by name, their limits, and what is not measured and why."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it loads torch
    from phantom_s2v.vision.faces import Face

Found = tuple[tuple[int, int, int, int], str, float]  # box (left, top, right, bottom) in pixels, phrase, score
Embed = Callable[[list[np.ndarray]], np.ndarray]  # images -> unit vectors [n, d]
BACKENDS = ("packaged", "hub")


@dataclass(frozen=True)
class Thresholds:
    """Where a fault begins. Frozen on training emoji (dev/LOG.md); another domain needs its own."""

    similarity: float = 0.52  # mean below which a region is another subject
    there: float = 0.45  # similarity from which a subject counts as there, in one frame
    in_windows: float = 0.5  # both, where regions are windows of a photographed frame
    pasted_cutout: float = 0.84  # of a transparent reference (15 on videos of others: 0.71 to 0.997, and 0.69 at most without)
    clothes: float = 0.76  # least similarity of the colors below the face (set on seven people, docs/evaluation.md)
    blurred: float = 0.45  # set on 23 videos
    on_plain: float = 2.0  # from which a window counts on a plain background; phantom-mini knows cutouts alone, so none does
    drift: float = 0.08  # fall of similarity below its mean, in windows (set on three clips)
    face: float = 0.5  # mean similarity of faces below which it is another person (dlib; ArcFace has its own)
    seen: float = 0.4  # min share of frames with a region for a subject that is there
    doubled: float = 0.25  # share of frames
    swapped: float = 0.5  # share of frames
    pasted: float = 0.95
    flashed: float = (
        0.2  # of 50 training clips 0.45 at least, of 90 without 0.01 at most; of source videos 0.16 at most (dev/LOG.md)
    )
    flash_share: float = 0.12  # max share of the frames that a flash takes; an image that is shown for longer was pasted
    frozen: float = 0.9
    flicker: float = 0.006


LIMITS = {"phantom-mini": Thresholds(), "efficientnet-lite0": Thresholds(similarity=0.57, there=0.55, pasted=0.96, on_plain=0.5)}


@dataclass(frozen=True)
class Faces:
    """All faces in an image, the surest first, and how alike two features are; 1 is the same."""

    name: str
    find: Callable[[np.ndarray], "list[Face]"]
    alike: Callable[[np.ndarray, np.ndarray], float]

    def known(self, image: np.ndarray) -> np.ndarray | None:
        """The feature of the surest face that has one; None without any."""
        return next((face.feature for face in self.find(image) if face.feature is not None), None)


@dataclass(frozen=True)
class Instruments:
    """Similarity and faults by `embed` and its limits, under the name `features`; the rest where it is there.

    `clip` and `dino` embed images, `words` a text into clip's space, `aesthetic` gives images 1..10, and `reconstruct` sends
    uint8 [F, H, W, 3] through the autoencoder: what of it went in, at a size that fits, and what came out.
    """

    features: str
    embed: Embed
    limits: Thresholds
    backend: str = "packaged"
    clip: Embed | None = None
    words: Callable[[str], np.ndarray] | None = None
    dino: Embed | None = None
    aesthetic: Callable[[list[np.ndarray]], np.ndarray] | None = None
    faces: Faces | None = None
    segment: Callable[[np.ndarray, str], np.ndarray] | None = None  # image and name of its subject -> the subject on white
    curricular: Faces | None = None  # CurricularFace, for OpenS2V's FaceSim-Cur
    find: Callable[[list[np.ndarray], list[str]], list[list[Found]]] | None = None  # images and phrases -> boxes, best first
    ask: Callable[[list[np.ndarray], str], str] | None = None  # images and a question -> an answer
    gme: Embed | None = None  # for OpenS2V's GmeScore
    gme_words: Callable[[str], np.ndarray] | None = None  # a text into gme's space
    reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    reconstruct_videos: bool = False
    names: dict[str, str] = field(default_factory=dict)  # metric -> network, beside `features`
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it is not measured
    hashes: dict[str, str] = field(default_factory=dict)  # metric -> hash of its network's weights, since a name says little

    def all_names(self) -> dict[str, str]:
        """Metric -> network, similarity among them; part of every score."""
        return {"similarity": self.features, **self.names}
