"""Detections for the noun phrases of a caption, by an open-vocabulary detector, with SAM2's masks where it is given."""

from pathlib import Path

import numpy as np

from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.segment import subject_mask
from phantom_s2v.vision.vlm import VisionLanguageModel


def detect_phrases(
    detector: OpenVocabularyDetector,
    segmenter: Path | None,
    vlm: VisionLanguageModel | None,
    stills: list[np.ndarray],
    phrases: list[str],
) -> list[list[Detection]]:
    """A detection for every phrase that names one place, with SAM2's mask of its box, or the whole box without SAM2.

    Where there is a `vlm`, it says which things carry their mark whole: those are paired with other source videos as well.
    """

    def mask(still: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        left, top, right, bottom = box
        whole = np.zeros(still.shape[:2], bool)
        part = still[top:bottom, left:right]
        whole[top:bottom, left:right] = subject_mask(segmenter, part) if segmenter else True
        return whole

    def has_logo(still: np.ndarray, box: tuple[int, int, int, int]) -> bool:
        return vlm is not None and vlm.has_logo(still[box[1] : box[3], box[0] : box[2]])

    return [
        [
            Detection(box, mask(still, box), phrase, score, has_logo=has_logo(still, box))
            for box, phrase, score in detector(still, phrases)
        ]
        for still in stills
    ]
