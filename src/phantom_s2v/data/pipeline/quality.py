"""Quality: clips that no training should see, each dropped with its reason. It looks at the small frames of shots.py."""

from collections.abc import Iterable, Iterator
from typing import cast

import cv2
import numpy as np
from scipy import ndimage

from phantom_s2v.data.pipeline.config import Config, Line, Models, Record
from phantom_s2v.data.pipeline.embed import centered
from phantom_s2v.data.pipeline.frames import Crop
from phantom_s2v.media.images import evenly_spaced
from phantom_s2v.media.quality import sharpness

LOOKED_AT = 8  # frames of a clip
CHANGED = 14  # of 255: what counts as a changed pixel
BLACK = 20  # of 255
MAX_LETTER_HEIGHT, MIN_LETTER_HEIGHT = 0.12, 0.035  # letters, as shares of the image's height


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds crop, scores and signature to clips, crops the small frames of those kept, and gives the first reason to drop them."""
    for record in records:
        if record["kind"] != "clip" or record["drop"]:
            yield record
            continue
        crop = content_crop(record["work"], config)
        work = cropped(record["work"], crop)
        scores = measure(work, record["fps"]) | uncropped(record["work"], crop)
        drop = fault(scores, config, models.text is None)
        shown = record["work"] if drop else work  # a report shows why it was dropped, so with its borders
        yield {**record, "crop": crop, "work": shown, "scores": scores, "signature": signature(work), "drop": drop}


def uncropped(frames: np.ndarray, crop: Crop) -> dict[str, float]:
    """Scores of the frames of a clip with their borders: brightness, and the share of the frame that borders take."""
    return {
        "whole": float(frames[evenly_spaced(len(frames), LOOKED_AT)].mean()),
        "border": 1 - (crop[2] - crop[0]) * (crop[3] - crop[1]),
    }


def content_crop(frames: np.ndarray, config: Config) -> Crop:
    """What black borders leave of the frames of a clip; borders narrower than `config.border` stay."""
    top, bottom, left, right = black_borders(frames[evenly_spaced(len(frames), LOOKED_AT)])
    height, width = frames.shape[1:3]
    sides = [
        0.0 if n < config.border * of else (n + 1) / of
        for n, of in ((left, width), (top, height), (right, width), (bottom, height))
    ]
    return sides[0], sides[1], 1 - sides[2], 1 - sides[3]


def cropped(frames: np.ndarray, crop: Crop) -> np.ndarray:
    """Frames [n, h, w, 3] without what lies outside of `crop`; all of them where that would leave nothing."""
    height, width = frames.shape[1:3]
    left, top, right, bottom = (round(value * side) for value, side in zip(crop, (width, height, width, height), strict=True))
    return frames[:, top:bottom, left:right] if bottom - top > 1 and right - left > 1 else frames


def burnt_in(lines: list[Line], config: Config) -> list[Line]:
    """Those of some lines of text that are as large as burnt-in text is."""
    least, most = config.text_height
    sizes = [(bottom - top, right - left) for left, top, right, bottom in lines]
    return [
        line
        for line, (height, width) in zip(lines, sizes, strict=True)
        if least <= height <= most and width >= config.text_width * height
    ]


def measure(frames: np.ndarray, fps: float) -> dict[str, float]:
    """Scores of a clip, uint8 [n, h, w, 3]: blur, brightness, motion, letters."""
    chosen = frames[evenly_spaced(len(frames), LOOKED_AT)]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in chosen])
    return {
        "blur": float(np.median([sharpness(frame) for frame in chosen])),
        "brightness": float(gray.mean()),
        "motion": motion(frames, max(1, round(fps / 2))),
        "letters": float(letters_in_a_row(gray)),
    }


def fault(scores: dict[str, float], config: Config, letters: bool = True) -> str:
    """The first reason to drop a clip with these scores, "" where there is none; rows of letters are one with `letters`."""
    little = 1 - scores["border"] < config.min_left
    checks = (
        ("too dark", little and scores["whole"] < config.dark),  # a fade from black, say, in which hardly a title shows
        ("black borders", little),
        ("too dark", scores["brightness"] < config.dark),
        ("too bright", scores["brightness"] > config.bright),
        ("blurred", scores["blur"] < config.blur),
        ("static", scores["motion"] < config.still),
        ("too much motion", scores["motion"] > config.shaking),
        ("burnt-in text", letters and scores["letters"] >= config.letters),
    )
    return next((reason for reason, holds in checks if holds), "")


def black_borders(frames: np.ndarray) -> list[int]:
    """Rows above and below, columns left and right of uint8 [n, h, w, 3] that stay black and end in an edge; none in the dark."""
    brightest = frames.max((0, 3)).astype(int)
    found = []
    for plane in (brightest, brightest[::-1], brightest.T, brightest.T[::-1]):
        lines = np.percentile(plane, 98, axis=1)
        black = int(np.argmax(lines > BLACK)) if (lines > BLACK).any() else 0
        edge = black and lines[min(black + 1, len(lines) - 1)] - lines[max(0, black - 2)] > BLACK
        found.append(black if edge else 0)
    return found


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
