"""The bound of similarity that tells subjects apart, from labelled images NAME-NN.jpg: what `phantom data build` pairs by."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.data.pipeline.subjects import cutout
from phantom_s2v.errors import InputError
from phantom_s2v.media.images import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
BATCH = 16  # images in memory at once


@dataclass(frozen=True)
class Separation:
    """How well similarities tell pairs of one subject from pairs of two."""

    lower: float  # the least bound at which `precision` is reached
    precision: float  # share of the pairs at or above it that are of one subject
    recall: float  # share of the pairs of one subject that lie at or above it
    auc: float  # chance that a pair of one subject is more similar than a pair of two
    same: int  # pairs of one subject
    other: int


def labelled(folder: Path) -> tuple[list[Path], list[str]]:
    """Images NAME-NN below a folder and their NAMEs. Raises InputError where no name has two, or there is one name alone."""
    paths = sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES and "-" in each.stem)
    names = [path.stem.rsplit("-", 1)[0] for path in paths]
    if len(set(names)) < 2 or len(set(names)) == len(names):
        found = f"{len(names)} images of {len(set(names))} subjects"
        raise InputError(f"{folder} must hold images NAME-NN.jpg of two or more subjects, some of them twice (got {found})")
    return paths, names


def embeddings(paths: list[Path], embed: Callable[[list[np.ndarray]], np.ndarray]) -> np.ndarray:
    """Unit vectors [n, d] of images, each on a white square that it fills, as the build embeds its subjects."""
    parts = [embed([_squared(read_image(path)[0]) for path in paths[i : i + BATCH]]) for i in range(0, len(paths), BATCH)]
    return np.concatenate(parts)


def _squared(image: np.ndarray) -> np.ndarray:
    return cutout(image, Detection((0, 0, image.shape[1], image.shape[0]), np.ones(image.shape[:2], bool)))


def separation(vectors: np.ndarray, names: list[str], precision: float) -> Separation:
    """Of unit vectors [n, d] and their subjects, at the wanted precision. Raises InputError where no bound reaches it."""
    first, second = np.triu_indices(len(names), 1)
    similar = (vectors @ vectors.T)[first, second]
    same = np.array(names)[first] == np.array(names)[second]
    order = np.argsort(-similar, kind="stable")
    right = np.cumsum(same[order])
    reached = np.flatnonzero(right / np.arange(1, len(order) + 1) >= precision)
    if not len(reached):
        raise InputError(f"no bound reaches a precision of {precision:g} with this embedder")
    last, count = reached[-1], int(same.sum())
    above = rankdata(similar)[same].sum() - count * (count + 1) / 2
    return Separation(
        lower=float(similar[order[last]]),
        precision=float(right[last] / (last + 1)),
        recall=float(right[last] / count),
        auc=float(above / (count * (len(same) - count))),
        same=count,
        other=len(same) - count,
    )
