"""Shots: where a source video is cut. One pass over the source video; the small frames that it decodes are those that quality
looks at.

PySceneDetect's adaptive detector finds hard cuts and TransNetV2 gradual ones too, at fifty times the cost on a CPU.
"""

import hashlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.frames import stream_frames
from phantom_s2v.media.videos import Timed, UnreadableVideoError

WINDOW, CONTEXT = 100, 25  # frames that TransNetV2 sees at once, and of context on either side of those that it classifies
DETECTORS = ("scenedetect", "transnet", "both")


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """A source video's record -> one record for each of its clips, then the source video's. A source video that breaks off is
    dropped whole.
    """
    for source_video in records:
        if source_video["kind"] != "source_video" or source_video["drop"]:
            yield source_video
            continue
        count = 0
        try:
            for clip in _clips(source_video, config, models):
                count += 1
                yield clip
        except UnreadableVideoError as error:
            source_video = {**source_video, "drop": error.reason}
        yield {**source_video, "clips": count}


def _clips(source_video: Record, config: Config, models: Models) -> Iterator[Record]:
    """The clips of a source video, cut at its cuts and where they would be too long."""
    max_frames, step = max(2, int(config.longest * source_video["fps"])), 1 / source_video["fps"]
    shot: list[Timed] = []
    start = number = first = 0
    for number, (timed, is_cut) in enumerate(_with_cuts(stream_frames(source_video, config.work_side), config, models)):
        full = len(shot) == max_frames or (shot and timed[0] - shot[0][0] > config.longest - step / 2)
        if shot and (is_cut or full):
            yield _record(source_video, start, first, shot, timed[0], config)
            shot, start, first = [], number, number if is_cut else first
        shot.append(timed)
    if shot:
        yield _record(source_video, start, first, shot, shot[-1][0] + step, config)


def _record(source_video: Record, start: int, first: int, shot: list[Timed], ends: float, config: Config) -> Record:
    """A clip's record; its id follows from the source video's content and its place in it, that of its shot from the shot's
    `first` frame. It `ends` where the next frame begins.
    """
    source = source_video["source_video"]
    clip = hashlib.sha256(f"{source} {start} {start + len(shot)}".encode()).hexdigest()[:32]
    begins = shot[0][0]
    return {
        **source_video,
        "kind": "clip",
        "clip": clip,
        "shot": hashlib.sha256(f"{source} shot {first}".encode()).hexdigest()[:32],
        "start": start,
        "stop": start + len(shot),
        "begins": begins,
        "ends": ends,
        "work": np.stack([frame for _, frame in shot]),
        "drop": "too short" if ends - begins < config.shortest - 1e-6 else "",
    }


def _with_cuts(frames: Iterator[Timed], config: Config, models: Models) -> Iterator[tuple[Timed, bool]]:
    """Every frame, and whether a shot begins with it."""
    if config.shot_detector == "scenedetect":
        yield from _by_content(frames, config)
    elif models.cuts is None:
        raise ValueError("shot_detector transnet needs its model")
    elif config.shot_detector == "transnet":
        yield from _by_network(((timed, False) for timed in frames), config, models)
    else:
        yield from _by_network(_by_content(frames, config), config, models)


def _by_content(frames: Iterator[Timed], config: Config) -> Iterator[tuple[Timed, bool]]:
    """Hard cuts by PySceneDetect, which classifies a frame after two more frames."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(min_content_val=config.content, min_scene_len=2)
    held: list[Timed] = []
    begun = yielded = 0
    cuts: set[int] = set()
    for begun, timed in enumerate(frames, 1):
        held.append(timed)
        found = detector.process_frame(FrameTimecode(begun - 1, 25.0), np.ascontiguousarray(timed[1][..., ::-1]))
        cuts |= {cut.frame_num for cut in found}
        if len(held) > 3:
            yield held.pop(0), yielded in cuts
            yielded += 1
    for timed in held:
        yield timed, yielded in cuts
        yielded += 1


def _by_network(frames: Iterator[tuple[Timed, bool]], config: Config, models: Models) -> Iterator[tuple[Timed, bool]]:
    """Cuts by TransNetV2, whose window of 100 frames classifies the 50 in its center, beside those that are known already."""
    assert models.cuts is not None
    held: list[tuple[Timed, bool]] = []
    small: list[np.ndarray] = []
    above = False  # whether the chance stood above the threshold

    def classify(last: bool) -> Iterator[tuple[Timed, bool]]:
        nonlocal held, small, above
        while held and (last or len(small) >= WINDOW):
            window = small[:WINDOW] + [small[-1]] * max(0, WINDOW - len(small))
            chances = models.cuts(np.stack(window))[CONTEXT : WINDOW - CONTEXT]  # type: ignore[misc]
            for (timed, known), chance in zip(held[: WINDOW - 2 * CONTEXT], chances, strict=False):
                yield timed, known or (above and chance <= config.transnet)
                above = bool(chance > config.transnet)
            held, small = held[WINDOW - 2 * CONTEXT :], small[WINDOW - 2 * CONTEXT :]

    for number, (timed, known) in enumerate(frames):
        tiny = cv2.resize(timed[1], (48, 27), interpolation=cv2.INTER_AREA)
        small += [tiny] * (1 if number else CONTEXT + 1)
        held.append((timed, known))
        yield from classify(last=False)
    yield from classify(last=True)
