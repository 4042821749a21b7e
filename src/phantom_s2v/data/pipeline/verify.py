"""Verify: a second check of each kept pair: the same subject in another context (Phantom-Data, section 4)."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.index import SubjectIndex, unpng
from phantom_s2v.data.pipeline.subjects import WHITE, colors


def run(records: Iterable[Record], config: Config, models: Models, subject_index: SubjectIndex) -> Iterator[Record]:
    """Adds colors and texture to pairs, and the reason to drop those that fail."""
    dataset = subject_index.open("subjects")

    @lru_cache(maxsize=512)
    def seen(subject: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colors, texture and the middle image of a subject."""
        views = dataset.to_table(columns=["views"], filter=f"id = '{subject}'")["views"].to_pylist()[0]
        images = [unpng(view["image"]) for view in views]
        masks = [unpng(view["mask"]) > 0 for view in views]
        middle = len(views) // 2
        cut = np.where(masks[middle][..., None], images[middle], WHITE).astype(np.uint8)
        shades = np.mean([colors(image[mask]) for image, mask in zip(images, masks, strict=True)], 0)
        return shades, models.features(cut), images[middle]

    for pair in records:
        if not pair["drop"]:
            (first, texture, image), (second, other_texture, other) = seen(pair["subject"]), seen(pair["partner"])
            overlap, similarity = float(np.minimum(first, second).sum()), float(texture @ other_texture)
            drop = "other colors" if overlap < config.colors else "other texture" if similarity < config.texture else ""
            if not drop and models.same and not models.same(image, other):
                drop = "refused by the model"
            pair = {**pair, "colors": overlap, "texture": similarity, "drop": drop}
        yield pair
