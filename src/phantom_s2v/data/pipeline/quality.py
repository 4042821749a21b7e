"""Quality: clips that no training should see, each dropped with its reason. It looks at the small frames of shots.py."""

from collections.abc import Iterable, Iterator
from typing import cast

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.embed import centered
from phantom_s2v.media.images import evenly_spaced

LOOKED_AT = 8  # frames of a clip
CHANGED = 14  # of 255: what counts as a changed pixel
BLACK = 20  # of 255
MAX_LETTER_HEIGHT, MIN_LETTER_HEIGHT = 0.12, 0.035  # letters, as shares of the image's height


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds scores and signature to clips, and the first reason to drop them."""
    for record in records:
        if record["kind"] != "clip" or record["drop"]:
            yield record
            continue
        scores = measure(record["work"], record["fps"])
        yield {**record, "scores": scores, "signature": signature(record["work"]), "drop": fault(scores, config)}


def measure(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Scores of a clip, uint8 [n, h, w, 3]: border, blur, brightness, motion, letters."""
    chosen = frames[evenly_spaced(len(frames), LOOKED_AT)]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in chosen])
    return {
        "border": black_border(chosen),
        "blur": float(np.median([cv2.Laplacian(g, cv2.CV_32F).var() for g in gray])),
        "brightness": float(gray.mean()),
        "motion": motion(frames, max(1, round(fps / 2))),
        "letters": float(letters_in_a_row(gray)),
    }


def fault(scores: dict[str, float], config: Config) -> str:
    """The first reason to drop a clip with these scores; empty where there is none."""
    checks = (
        ("black borders", scores["border"] > config.border),
        ("too dark", scores["brightness"] < config.dark),
        ("too bright", scores["brightness"] > config.bright),
        ("blurred", scores["blur"] < config.blur),
        ("static", scores["motion"] < config.still),
        ("too much motion", scores["motion"] > config.shaking),
        ("burnt-in text", scores["letters"] >= config.letters),
    )
    return next((reason for reason, holds in checks if holds), "")


def black_border(frames: np.ndarray) -> float:
    """Largest share of a side that stays black over all frames and ends in an edge: in the dark, nothing does."""
    brightest = frames.max((0, 3)).astype(int)
    shares = [0.0]
    for plane in (brightest, brightest[::-1], brightest.T, brightest.T[::-1]):
        lines = np.percentile(plane, 98, axis=1)
        black = int(np.argmax(lines > BLACK)) if (lines > BLACK).any() else 0
        if black and lines[min(black + 1, len(lines) - 1)] - lines[max(0, black - 2)] > BLACK:
            shares.append(black / len(lines))
    return max(shares)


def motion(frames: np.ndarray, apart: int) -> float:
    """Share of pixels that change within `apart` frames, the mean over the clip."""
    apart = min(apart, len(frames) - 1)
    if apart < 1:
        return 0.0
    starts = evenly_spaced(len(frames) - apart, LOOKED_AT)
    return float(np.mean([(cv2.absdiff(frames[i], frames[i + apart]).max(-1) > CHANGED).mean() for i in starts]))


def letters_in_a_row(gray: np.ndarray) -> int:
    """Most shapes of one height that stand in one row through all frames, uint8 [n, h, w]: the letters of burnt-in text.

    A grid of dots has many such rows, and text has one or two. What it misses: text that moves, and letters lower than a 28th of
    the image.
    """
    height = gray.shape[1]
    fixed = (gray.max(0).astype(int) - gray.min(0)) < CHANGED  # text does not move
    best = 0
    for bright in (True, False):
        extreme = (gray.min(0) > 200) if bright else (gray.max(0) < 60)
        labels, _ = cast(tuple[np.ndarray, int], ndimage.label(extreme & fixed))
        shapes = []
        for place in ndimage.find_objects(labels):
            tall, wide = place[0].stop - place[0].start, place[1].stop - place[1].start
            if MIN_LETTER_HEIGHT * height <= tall <= MAX_LETTER_HEIGHT * height and wide <= 1.6 * tall:
                shapes.append((place[0].stop, tall))
        rows = [
            sum(abs(bottom - b) <= 1 + tall // 4 and abs(tall - t) <= 1 + tall // 2 for b, t in shapes) for bottom, tall in shapes
        ]
        long = {shapes[i][0] // max(1, round(0.04 * height)) for i, count in enumerate(rows) if count >= 5}
        if 1 <= len(long) <= 4:
            best = max(best, max(rows))
    return best


def signature(frames: np.ndarray) -> np.ndarray:
    """What a clip looks like in 64 numbers: gray 4 x 4 images of four moments, mean 0 and length 1."""
    moments = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
    small = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (4, 4), interpolation=cv2.INTER_AREA).ravel() for f in moments]
    return centered(np.concatenate(small))
