"""Verify: a second check of each pair of one subject: the same subject in another context (Phantom-Data, section 4).

By a vision-language model where there is one; by phantom-mini's autoencoder and colors for drawn subjects, for which its
embeddings are made. Embeddings of photographs separate by themselves, and faces decide of people (pair.py).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np

from phantom_s2v.data.pipeline.batches import batches
from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.index import SubjectIndex, unpng
from phantom_s2v.data.pipeline.pair import PIECE, UNUSED
from phantom_s2v.data.pipeline.subjects import WHITE
from phantom_s2v.data.pipeline.tracks import colors

Seen = tuple[np.ndarray, np.ndarray, np.ndarray]  # colors, texture (empty where it is not compared) and the middle image
NO_TEXTURE = np.zeros(0, np.float32)


def run(records: Iterable[Record], config: Config, models: Models, subject_index: SubjectIndex) -> Iterator[Record]:
    """Adds what was compared to pairs, and the reason to drop those that fail."""
    dataset = subject_index.open("subjects")

    @lru_cache(maxsize=512)
    def seen(subject: str) -> Seen:
        """Colors, texture and the middle image of a subject."""
        views = dataset.to_table(columns=["views"], filter=f"id = '{subject}'")["views"].to_pylist()[0]
        images = [unpng(view["image"]) for view in views]
        masks = [unpng(view["mask"]) > 0 for view in views]
        middle = len(views) // 2
        cut = np.where(masks[middle][..., None], images[middle], WHITE).astype(np.uint8)
        shades = np.mean([colors(image[mask]) for image, mask in zip(images, masks, strict=True)], 0)
        return shades, models.features(cut) if models.features else NO_TEXTURE, images[middle]

    def asks(pair: Record) -> bool:
        # the model is asked for other surroundings, which pieces of one shot do not have
        return models.same is not None and pair["drop"] in ("", *UNUSED) and pair["drop"] != PIECE

    for batch in batches(records, asks):
        compared = [_compared(pair, seen, config, models) for pair in batch]
        asked = [i for i, pair in enumerate(batch) if asks(pair) and compared[i]["drop"] == pair["drop"]]
        said = models.same([_both(compared[i], seen) for i in asked]) if models.same and asked else []
        refused = {i for i, same in zip(asked, said, strict=True) if not same}
        yield from ({**pair, "drop": "refused by the model"} if i in refused else pair for i, pair in enumerate(compared))


def _compared(pair: Record, seen: Callable[[str], Seen], config: Config, models: Models) -> Record:
    """A pair with the overlap of its colors and the similarity of its textures, where these are compared."""
    if models.features is None or pair["drop"] not in ("", *UNUSED):
        return pair
    (shades, texture, _), (other_shades, other_texture, _) = seen(pair["subject"]), seen(pair["partner"])
    overlap, similarity = float(np.minimum(shades, other_shades).sum()), float(np.vdot(texture, other_texture))
    drop = "other colors" if overlap < config.colors else "other texture" if similarity < config.texture else ""
    return {**pair, "colors": overlap, "texture": similarity, "drop": drop or pair["drop"]}


def _both(pair: Record, seen: Callable[[str], Seen]) -> tuple[np.ndarray, np.ndarray]:
    return seen(pair["subject"])[2], seen(pair["partner"])[2]
