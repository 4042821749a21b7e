"""Stills: a few frames of a clip in full, sought one by one, which captions, text and subjects are looked for in."""

from collections.abc import Iterable, Iterator

import av
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Line, Models, Record
from phantom_s2v.data.pipeline.frames import stills_of
from phantom_s2v.data.pipeline.quality import burnt_in
from phantom_s2v.media.videos import UnreadableVideoError

SOURCE = ("path", "fps", "height", "width", "count", "playable", "crop", "begins", "ends", "start", "stop")  # of what is cut out
TEXT = "burnt-in text"  # why a clip is dropped
APART = 0.125  # seconds between a still and the small frames around it, for motion


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Adds stills, around, frames (how many the clip has), height and width to clips; drops those with burnt-in text."""
    for record in records:
        if record["kind"] != "clip" or record["drop"]:
            yield record
            continue
        count = max(1, round((record["ends"] - record["begins"]) * record["fps"]))
        try:
            stills = stills_of(record, count, moments(count, config), config.longest_side)
        except (av.FFmpegError, UnreadableVideoError) as error:
            yield {**record, "drop": f"cannot be cut out ({getattr(error, 'reason', error)})"}
            continue
        text = burnt_in(models.text(stills), config) if models.text else []
        height, width = stills[0].shape[:2]
        yield {
            **record,
            "origin": {name: record[name] for name in SOURCE},
            "stills": stills,
            "around": [around(record["work"], each, record["fps"]) for each in moments(count, config)],
            "frames": count,
            "height": height,
            "width": width,
            **({"drop": TEXT, "passed_over": _passed(text, len(stills) // 2, width / height)} if text else {}),
        }


def _passed(lines: list[Line], still: int, aspect: float) -> list[Record]:
    """Lines of text as what was seen in a still, with boxes in shares of it."""
    boxes = [(left / aspect, top, right / aspect, bottom) for left, top, right, bottom in lines]
    return [{"instant": still, "box": box, "what": "line of text", "reason": TEXT} for box in boxes]


def moments(count: int, config: Config) -> list[float]:
    """Where the stills of a clip of `count` frames stand, as shares of it: fewer than asked for where these share a frame."""
    return [number / max(1, count - 1) for number in sorted({round(instant * (count - 1)) for instant in config.instants})]


def around(work: np.ndarray, instant: float, fps: float) -> np.ndarray:
    """The small frames before, at and after an instant (share of the clip), uint8 [3, h, w, 3]."""
    step = max(1, round(APART * fps))
    middle = int(np.clip(round(instant * (len(work) - 1)), step, max(step, len(work) - 1 - step)))
    return work[np.clip([middle - step, middle, middle + step], 0, len(work) - 1)]
