"""Batches out of a store, at random, in an order that follows from the seed and can be taken up at any batch, bit for bit."""

import io
from dataclasses import dataclass

import numpy as np

from phantom_s2v.data.triplets import Triplet, TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.media import images


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


class TripletLoader:
    """Batch number -> samples. Every epoch is a permutation of all triplets; the last, incomplete batch of an epoch is left out.

    The order is over sorted ids, so it is the same however the rows came into the store.
    """

    def __init__(self, store: TripletStore, batch: int, seed: int) -> None:
        ids = store.ids()
        if len(ids) < batch:
            raise DataError(f"the dataset has {len(ids)} triplets, fewer than a batch of {batch}")
        self.store, self.batch, self.seed = store, batch, seed
        self.rows = [row for _, row in sorted(zip(ids, range(len(ids)), strict=True))]

    def __getitem__(self, number: int) -> list[Sample]:
        """The samples of batch `number`, counted over all epochs."""
        each = len(self.rows) // self.batch
        epoch, place = divmod(number, each)
        order = np.random.default_rng([self.seed, 7, epoch]).permutation(len(self.rows))
        chosen = order[place * self.batch : (place + 1) * self.batch]
        return [decode(triplet) for triplet in self.store.take([self.rows[i] for i in chosen])]


def decode(triplet: Triplet) -> Sample:
    """A triplet's video and images as arrays."""
    video, _ = images.read_video(io.BytesIO(triplet.video), f"the video of triplet {triplet.id}")
    name = f"a reference of triplet {triplet.id}"
    reference_images = tuple(images.read_image(reference.image, name=name)[0] for reference in triplet.references)
    names, identities = (tuple(getattr(r, field) for r in triplet.references) for field in ("subject", "identity"))
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    subjects = tuple(places[name] for name in names)
    return Sample(triplet.id, video, reference_images, subjects, triplet.caption, names, identities)
