"""What a score is measured with: networks by name, their limits, and what is not measured and why."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Embed = Callable[[list[np.ndarray]], np.ndarray]  # images -> unit vectors [n, d]
BACKENDS = ("packaged", "hub")


@dataclass(frozen=True)
class Thresholds:
    """Where a fault begins. Frozen on training emoji (dev/LOG.md); another domain needs its own."""

    similarity: float = 0.52  # mean below which a region is another subject
    there: float = 0.45  # similarity from which a subject counts as there, in one frame
    in_windows: float = 0.5  # both, where regions are windows of a photographed frame
    seen: float = 0.4  # min share of frames with a region for a subject that is there
    doubled: float = 0.25  # share of frames
    swapped: float = 0.5  # share of frames
    pasted: float = 0.95
    pasted_alarms: float = 0.004  # share of 500 true cross-pair clips of held-out emoji that lie above `pasted` (self-check)
    flashed: float = 0.1
    frozen: float = 0.9
    flicker: float = 0.006


LIMITS = {"phantom-mini": Thresholds(), "efficientnet-lite0": Thresholds(similarity=0.57, there=0.55, pasted=0.975)}


@dataclass(frozen=True)
class Faces:
    """Features of all faces in an image, and how alike two are; 1 is the same."""

    name: str
    find: Callable[[np.ndarray], list[np.ndarray]]
    alike: Callable[[np.ndarray, np.ndarray], float]


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
    reconstruct: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    reconstruct_videos: bool = False
    names: dict[str, str] = field(default_factory=dict)  # metric -> network, beside `features`
    absent: dict[str, str] = field(default_factory=dict)  # metric -> why it is not measured
    hashes: dict[str, str] = field(default_factory=dict)  # metric -> hash of its network's weights, since a name says little

    def all_names(self) -> dict[str, str]:
        """Metric -> network, similarity among them; part of every score."""
        return {"similarity": self.features, **self.names}
