"""Background: the scene of a clip without its subjects, as a reference of its own, where that is asked for.

A still in which all subjects of the clip were found, since one that is missed may be there all the same, and most of the scene is
seen; the first one only where no other does. All that was detected in it is inpainted, subject or not. write.py takes that of
another clip of the same scene where there is one, as pairs take subjects (Phantom-Data, section 4).
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record

NAME = "background"  # what a reference of this class is called
GROWN = 0.012  # share of the shorter side by which masks grow, since their edges hold some of the subject
UNSEEN, MISSED = "too little of the scene is seen", "no moment shows all of its subjects"  # one that is missed may be there


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds background to clips: seen (share of the frame outside of masks), and its image and vector, or the reason for none."""
    for record in records:
        if record["kind"] == "clip" and not record["drop"] and config.background:
            record = {**record, "background": _background(record, config, models)}
        yield record


def _background(record: Record, config: Config, models: Models) -> Record:
    stills = list(zip(record["stills"], record["covered"], strict=True))
    later = [(still, mask) for still, mask in stills[1:] or stills if mask is not None]
    later = later or [(still, mask) for still, mask in stills[:1] if mask is not None]
    if not later:
        return {"seen": 0.0, "reason": MISSED}
    masks = [grown(mask) for _, mask in later]
    best = int(np.argmin([mask.mean() for mask in masks]))
    seen = 1 - float(masks[best].mean())
    if seen < config.background_seen:
        return {"seen": seen, "reason": UNSEEN}
    image = models.inpaint(np.ascontiguousarray(later[best][0]), masks[best])
    return {"seen": seen, "reason": "", "image": image, "vector": models.embed([image])[0].astype(np.float32)}


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask, bool [H, W], and what is near to it."""
    width = 2 * max(1, round(GROWN * min(mask.shape))) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))) > 0
