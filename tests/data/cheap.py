"""Models without a network for the data pipeline's tests, and a run of it that can be killed: `python cheap.py VIDEOS OUT`."""

import sys
from pathlib import Path

import cv2
import numpy as np

from phantom_s2v.data.detectors.objects import detect_objects
from phantom_s2v.data.pipeline.config import Config, Models
from phantom_s2v.data.pipeline.engine import build
from phantom_s2v.data.triplets import Rights


def embed(images):
    """Colors of a small copy, of mean 0 and length 1."""
    small = np.stack([cv2.resize(p, (8, 8), interpolation=cv2.INTER_AREA).ravel() for p in images]).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    return small / np.maximum(1e-6, np.linalg.norm(small, axis=1, keepdims=True))


def models():
    return Models(detect_objects, embed, lambda image: embed([image])[0])


CONFIG = Config(lower=0.8, texture=0.5)


def run(videos, out, config=CONFIG, **options):
    return build(sorted(Path(videos).glob("*.mp4")), Path(out), config, models, Rights("test", "MIT"), **options)


if __name__ == "__main__":
    run(*sys.argv[1:])
