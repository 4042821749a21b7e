"""Verify: a second check of each pair of one subject: the same subject in another context (Phantom-Data, section 4).

By a vision-language model where there is one; by phantom-mini's autoencoder and colors for drawn subjects, for which its
embeddings are made. Embeddings of photographs separate by themselves, and faces decide of people (pair.py).
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.index import SubjectIndex, unpng
from phantom_s2v.data.pipeline.pair import PIECE, UNUSED
from phantom_s2v.data.pipeline.subjects import WHITE
from phantom_s2v.data.pipeline.tracks import colors


def run(records: Iterable[Record], config: Config, models: Models, subject_index: SubjectIndex) -> Iterator[Record]:
    """Adds what was compared to pairs, and the reason to drop those that fail."""
    dataset = subject_index.open("subjects")

    @lru_cache(maxsize=512)
    def seen(subject: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Colors, texture where it is asked for, and the middle image of a subject."""
        views = dataset.to_table(columns=["views"], filter=f"id = '{subject}'")["views"].to_pylist()[0]
        images = [unpng(view["image"]) for view in views]
        masks = [unpng(view["mask"]) > 0 for view in views]
        middle = len(views) // 2
        cut = np.where(masks[middle][..., None], images[middle], WHITE).astype(np.uint8)
        shades = np.mean([colors(image[mask]) for image, mask in zip(images, masks, strict=True)], 0)
        return shades, models.features(cut) if models.features else None, images[middle]

    for pair in records:
        if pair["drop"] in ("", *UNUSED) and (models.features or models.same):
            known = pair["drop"]
            (shades, texture, image), (other_shades, other_texture, other) = seen(pair["subject"]), seen(pair["partner"])
            if texture is not None and other_texture is not None:
                overlap, similarity = float(np.minimum(shades, other_shades).sum()), float(texture @ other_texture)
                drop = "other colors" if overlap < config.colors else "other texture" if similarity < config.texture else ""
                pair = {**pair, "colors": overlap, "texture": similarity, "drop": drop or known}
            # the model is asked for other surroundings, which pieces of one shot do not have
            if pair["drop"] == known != PIECE and models.same and not models.same(image, other):
                pair = {**pair, "drop": "refused by the model"}
        yield pair
