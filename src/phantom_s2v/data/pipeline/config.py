"""Thresholds of the data pipeline, and the models that its stages take as arguments.

A record is a dict. Every stage is `run(records, config, models) -> Iterator[record]`; it passes on what it does not work on:
records with a reason in "drop", and the source video's own record, which comes after those of its clips. Keys that stages add:

    probe     kind "source_video", path, name, source_video (SHA-256 of the content), fps, height, width, caption, rights, notices
    shots     kind "clip", clip (id), start, stop (frames), begins, ends (seconds), work (uint8 [n, h, w, 3], small), drop ""
    quality   scores, signature (float32 [64]), drop
    caption   video (mp4 bytes), frames (of the mp4), stills, caption, phrases
    subjects  subjects: a list of dicts, see subjects.py
    embed     vector, context and, where there is a face, face in each subject
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """What is cut, kept and paired. Lengths in seconds, sizes in pixels or shares, brightness in 0..255."""

    # shots
    shot_detector: str = "scenedetect"  # scenedetect, transnet or both
    content: float = 8.0  # scenedetect's adaptive detector: least change of HSV
    transnet: float = 0.35  # min probability of a cut
    shortest: float = 0.75
    longest: float = 10.0  # a longer shot is cut into pieces
    work_side: int = 128  # shorter side of the frames that shots and quality look at
    # quality
    border: float = 0.03  # share of a side that may be black
    blur: float = 12.0  # min variance of the Laplacian
    dark: float = 8.0
    bright: float = 250.0
    still: float = 0.003  # min share of pixels that change within half a second
    shaking: float = 0.95  # max share of it
    letters: int = 6  # shapes of one height in a row that count as a line of text
    same_clip: float = 0.985  # correlation of signatures from which on a clip repeats another
    # subjects (Phantom-Data, section 4)
    models: str = ""  # hashes of the networks' weights; set by the command line
    people: bool = False  # look for persons and faces as well
    instants: tuple[float, ...] = (0.05, 0.5, 0.95)
    smallest_box: float = 0.04  # share of the image
    largest_box: float = 0.9
    smallest_side: int = 128  # of a box, in pixels, at an image height of 720; scaled with it
    overlap: float = 0.8  # IoU above which the weaker of two boxes goes
    max_subjects: int = 4
    longest_side: int = 1280  # of the clips that are written
    # pairs; bounds set on source videos of the training emoji (dev/LOG.md)
    lower: float = 0.85  # similarity below which it is another subject
    upper: float = 0.96  # sameness of the surroundings above which it is a copy
    colors: float = 0.62  # min overlap of colors
    texture: float = 0.9  # min similarity of the autoencoder's features
    neighbors: int = 16  # looked at for each subject
    partners: int = 2  # cross-pair references kept of each subject


@dataclass(frozen=True)
class Detection:
    """Something found in an image: its box (left, top, right, bottom) in pixels, mask bool [H, W], name and certainty."""

    box: tuple[int, int, int, int]
    mask: np.ndarray
    name: str = ""  # what the caption calls it; empty where there is no caption
    score: float = 1.0
    is_person: bool = False
    has_logo: bool = False  # a thing with its mark whole: the same wherever it shows (Phantom-Data, section 4)


@dataclass(frozen=True)
class Models:
    """The networks of the stages; those that are None are done without."""

    detect: Callable[[list[np.ndarray], list[str]], list[list[Detection]]]  # stills, phrases -> detections of each still
    embed: Callable[[list[np.ndarray]], np.ndarray]  # cutouts on white -> float32 [n, d], of length one
    features: Callable[[np.ndarray], np.ndarray]  # a cutout -> its texture, float32 [k], of length one
    cuts: Callable[[np.ndarray], np.ndarray] | None = None  # uint8 [100, 27, 48, 3] -> chance of a cut after each frame
    caption: Callable[[list[np.ndarray]], str] | None = None
    phrases: Callable[[str], list[str]] | None = None  # a caption's subjects, with their appearance
    face: Callable[[np.ndarray], np.ndarray | None] | None = None  # a crop -> float32 [128], None without a face
    same: Callable[[np.ndarray, np.ndarray], bool] | None = None  # do two crops show one subject in different places
