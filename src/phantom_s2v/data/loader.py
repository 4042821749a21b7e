"""Triplets of a store as arrays."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from phantom_s2v.data.triplets import Triplet
from phantom_s2v.media import images
from phantom_s2v.media.videos import Video


@dataclass(frozen=True)
class Sample:
    """A triplet as arrays."""

    id: str
    video: np.ndarray  # uint8 [F, H, W, 3]
    references: tuple[np.ndarray, ...]  # uint8 [h, w, 3] each
    subjects: tuple[int, ...]  # which subject each reference shows
    caption: str
    names: tuple[str, ...] = ()  # what the caption calls the subject of each reference
    identities: tuple[str, ...] = ()  # of each reference: the same in all triplets that show this subject; empty: not known


def decode(triplet: Triplet, fit: Callable[[Iterator[np.ndarray]], np.ndarray] | None = None) -> Sample:
    """A triplet's video and images as arrays. `fit` makes the array of the video's frames, of which it need not take all."""
    source, what = io.BytesIO(triplet.video), f"the video of triplet {triplet.id}"
    video = fit(frame for _, frame in Video(source, what).frames()) if fit else images.read_video(source, what)[0]
    name = f"a reference of triplet {triplet.id}"
    reference_images = tuple(images.read_image(reference.image, name=name)[0] for reference in triplet.references)
    names, identities = (tuple(getattr(r, field) for r in triplet.references) for field in ("subject", "identity"))
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    subjects = tuple(places[name] for name in names)
    return Sample(triplet.id, video, reference_images, subjects, triplet.caption, names, identities)
