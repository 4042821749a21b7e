"""Lines of text in images, by PaddleOCR's detector (PP-OCRv4, differentiable binarization, arXiv 1911.08947), Apache-2.0."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from phantom_s2v.models.finite import check_finite
from phantom_s2v.vision.fetched import fetched_file

SIDE = 384  # the shorter side that the network sees, pixels: letters of 2% of it are read
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
LIKELY, SURE = 0.3, 0.7  # least chance of a pixel of a line, and of its mean
GROWN = 1.5  # lines are found shrunk: their area times this, over their length around, is what is missing on each side


@lru_cache(maxsize=1)
def _network() -> Any:
    """The detector. Raises CheckpointError where it was not fetched."""
    file = fetched_file("ch_PP-OCRv4_det_infer.onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def text_chances(image: np.ndarray) -> np.ndarray:
    """Chance that a pixel lies in a line of text, float32 [h, w], of uint8 [H, W, 3]; h and w are multiples of 32."""
    scale = SIDE / min(image.shape[:2])
    height, width = (max(32, round(side * scale / 32) * 32) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    pixels = ((small - MEAN) / STD).transpose(2, 0, 1)[None]
    network = _network()
    chances = np.asarray(network.run(None, {network.get_inputs()[0].name: pixels})[0])[0, 0]
    check_finite(chances, "the chances of text")
    return chances


def fixed_lines(stills: list[np.ndarray]) -> list[tuple[float, float, float, float]]:
    """Lines of text that stand where they stand in most of some stills: left, top, right, bottom, in heights of the image."""
    seen = list[np.ndarray]()
    for still in stills:
        seen.append(text_chances(still))
        if len(seen) == len(stills) // 2 + 1 and not any((each > LIKELY).any() for each in seen):
            return []  # most of them have none, so that the others need not be looked at
    chances = np.median(seen, 0)
    count, labels, facts, _ = cv2.connectedComponentsWithStats((chances > LIKELY).astype(np.uint8))
    lines = []
    for number in range(1, count):
        left, top, width, height, area = facts[number].tolist()
        if chances[labels == number].mean() >= SURE:
            missing = GROWN * area / (width + height) / 2
            sides = (left - missing, top - missing, left + width + missing, top + height + missing)
            lines.append(tuple(side / len(chances) for side in sides))
    return lines
