"""Thresholds of the data pipeline, and the models that its stages take as arguments.

A record is a dict. Every stage is `run(records, config, models) -> Iterator[record]`; it passes on what it does not work on:
records with a reason in "drop", and the source video's own record, which comes after those of its clips. Keys that stages add:

    probe     kind "source_video", path, name, source_video (SHA-256 of the content), fps, height, width, count, playable,
              caption, rights, notices
    shots     kind "clip", clip (id), shot (id), start, stop (frames), begins, ends (seconds), work (uint8 [n, h, w, 3], small),
              drop ""
    quality   crop (left, top, right, bottom, in shares of the frame), scores, signature (float32 [64]), work without black
              borders where the clip is kept, drop
    stills    stills, around (uint8 [3, h, w, 3] small frames of each still's moment), frames (of the clip), height, width, drop,
              and passed_over where that is text
    caption   caption, phrases
    subjects  subjects: a list of dicts, see subjects.py; passed_over: what was seen and is no subject, with its reason; covered:
              of each still what was detected, bool [h, w], None where a subject of the clip was not
    crops     scores in each view; subjects and passed_over without views that are no references; crops, still, drop
    embed     vector, context, face and has_face in each subject
    background seen, reason and, where there is no reason against it, image and vector of the scene without subjects
    encode    video (mp4 bytes)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from phantom_s2v.media.inpaint import inpaint

Record = dict[str, Any]
Line = tuple[float, float, float, float]  # of text: left, top, right, bottom, in heights of the frame


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
    border: float = 0.02  # share of a side from which on a black border is cropped
    min_left: float = 0.4  # share of the frame that black borders must leave
    blur: float = 12.0  # min variance of the Laplacian
    dark: float = 8.0
    bright: float = 250.0
    still: float = 0.003  # min share of pixels that change within half a second
    shaking: float = 0.95  # max share of it
    letters: int = 6  # shapes of one height in a row that count as a line of text, where no network looks for it
    text_height: tuple[float, ...] = (0.025, 0.15)  # of a line that counts as burnt in, shares of the frame's height
    text_width: float = 3.5  # min, in heights of the line
    same_clip: float = 0.985  # correlation of signatures from which on a clip repeats another
    # subjects (Phantom-Data, section 4)
    models: str = ""  # hashes of the networks' weights; set by the command line
    people: bool = False  # look for persons and faces as well
    instants: tuple[float, ...] = (0.05, 0.5, 0.95)
    detected: float = 0.0  # min score of what --object-detector finds; 0: 0.3 of GroundingDINO, 0.2 of OWLv2
    person: float = 0.7  # least score of a person, of the detector and of the landmarks
    shoulders: float = 0.35  # share of the frame by which a person's shoulders may lie outside; 0: they must show
    cut: float = 0.02  # share of a thing's outline that may lie on the frame's edge
    edge: float = 0.008  # of a side: what lies that near to it lies on the edge
    moments: int = 2  # stills in which a subject that is known by its pose or motion alone must be found
    growth: float = 4.0  # largest change of area of such a thing; a person may come closer
    followed: float = 0.5  # least agreement of two stills on what is one subject, 0..1
    smallest_box: float = 0.04  # share of the image
    largest_box: float = 0.9  # of a thing; a person may fill the frame
    smallest_side: int = 128  # of a box, in pixels, at an image height of 720; scaled with it
    overlap: float = 0.8  # IoU above which the weaker of two boxes goes
    max_subjects: int = 4  # of a clip: those seen in most stills and with the best score
    longest_side: int = 1280  # of the clips that are written
    # reference images; what cannot be measured drops none
    reference_side: int = 0  # min shorter side of the subject's box, pixels
    reference_blur: float = 0.6  # max blur effect of the subject, 0 sharp..1; not measured below 200 pixels
    reference_clipped: float = 0.9  # max share of the subject's pixels that are black or white
    reference_aesthetic: float = 0.0  # min aesthetic score, 1..10, where its network is given
    # the scene without its subjects, as a reference
    background: bool = False
    background_seen: float = 0.5  # min share of the frame that no subject covers
    scene: float = 0.7  # min similarity of two clips' scenes that are one (16 videos, docs/data.md)
    # pairs; bounds hold for an embedder: these for EfficientNet-Lite0 (`phantom data calibrate` sets others)
    embedder: str = "efficientnet-lite0"  # or phantom-mini, for drawn subjects; a larger one is in `models`
    lower: float = 0.628  # similarity below which it is another subject
    same_face: float = 0.6  # distance of face features within which it is one person: dlib's; of ArcFace 1.1
    same_face_across: float = 0.45  # the same between source videos, where all people of a library are tried; of ArcFace 0.9
    same_shot: bool = False  # pair pieces of one shot as well, as a class of their own
    upper: float = 0.96  # sameness of the surroundings above which it is a copy
    colors: float = 0.62  # min overlap of colors, with phantom-mini
    texture: float = 0.9  # min similarity of its autoencoder's features, with phantom-mini
    neighbors: int = 16  # looked at for each subject
    partners: int = 2  # cross-pair references kept of each subject

    def checked(self) -> "Config":
        """The configuration. Raises ValueError for a value that is out of range."""
        for names, (low, high) in RANGES.items():
            for name in names.split():
                given = getattr(self, name)
                if not all(low <= value <= high for value in (given if isinstance(given, tuple) else (given,))):
                    shown = list(given) if isinstance(given, tuple) else given
                    raise ValueError(f"{name} must be from {low:g} to {high:g} (got {shown})")
        if not self.instants or list(self.instants) != sorted(set(self.instants)):
            raise ValueError(f"instants must be one or more shares of a clip in rising order (got {list(self.instants)})")
        if len(self.text_height) != 2 or self.text_height[0] > self.text_height[1]:
            raise ValueError(f"text_height must be a minimum and a maximum (got {list(self.text_height)})")
        if self.shortest > self.longest:
            raise ValueError(f"shortest must not exceed longest (got {self.shortest:g} and {self.longest:g})")
        return self


MANY = 1_000_000
RANGES = {  # names of fields -> least and greatest value
    "transnet border min_left still shaking person detected shoulders cut edge followed smallest_box largest_box overlap "
    "instants text_height reference_blur reference_clipped background_seen colors": (0.0, 1.0),
    "same_clip scene lower upper texture": (-1.0, 1.0),
    "blur text_width reference_side": (0.0, MANY),
    "content dark bright": (0.0, 255.0),
    "shortest longest": (0.1, 86_400.0),  # seconds
    "work_side": (32, 1024),
    "longest_side": (64, 16_384),
    "smallest_side": (1, MANY),
    "letters moments max_subjects neighbors partners": (1, 1000),
    "growth": (1.0, MANY),
    "reference_aesthetic": (-MANY, MANY),  # the head's scores have no bounds
    "same_face same_face_across": (0.0, 2.0),  # distances of unit vectors
}


@dataclass(frozen=True)
class Detection:
    """Something found in an image: its box (left, top, right, bottom) in pixels, mask bool [H, W], name and certainty."""

    box: tuple[int, int, int, int]
    mask: np.ndarray
    name: str = ""  # what the caption calls it; empty where there is no caption
    score: float = 1.0
    is_person: bool = False
    unnamed: bool = False  # known by its pose or motion alone, and so to be found again at another moment
    head: float = 1.0  # of a person: share of the head that lies in the frame
    shoulders: float = 0.0  # of a person: share of the frame by which the shoulders lie outside
    has_logo: bool = False  # a thing with its mark whole: the same wherever it shows (Phantom-Data, section 4)
    unsure: str = ""  # why it is no subject, where the detector itself says so


@dataclass(frozen=True)
class Models:
    """The networks of the stages; those that are None are done without."""

    # stills, phrases, small frames around each still -> detections of each still
    detect: Callable[[list[np.ndarray], list[str], list[np.ndarray]], list[list[Detection]]]
    embed: Callable[[list[np.ndarray]], np.ndarray]  # cutouts on white -> float32 [n, d], of length one
    # a cutout -> its texture, float32 [k], of length one: where it is given, texture and colors are compared as well
    features: Callable[[np.ndarray], np.ndarray] | None = None
    # the same as `detect`, of stills among the frames between them (number of the still or None, frame): subjects are followed
    follow: Callable[[list[np.ndarray], list[str], Iterable[tuple[int | None, np.ndarray]]], list[list[Detection]]] | None = None
    cuts: Callable[[np.ndarray], np.ndarray] | None = None  # uint8 [100, 27, 48, 3] -> chance of a cut after each frame
    captions: Callable[[list[list[np.ndarray]]], list[str]] | None = None  # stills of each clip -> its caption
    phrases: Callable[[list[str]], list[list[str]]] | None = None  # subjects of each caption, with their appearance
    face: Callable[[np.ndarray], np.ndarray | None] | None = None  # a crop -> float32 [k], None without a face
    face_width: int = 128  # numbers of it: 128 of dlib's, 512 of ArcFace's
    # do the two crops of each pair show one subject in different places
    same: Callable[[list[tuple[np.ndarray, np.ndarray]]], list[bool]] | None = None
    whole: Callable[[list[np.ndarray]], list[bool]] | None = None  # does each crop show a whole subject
    aesthetic: Callable[[list[np.ndarray]], np.ndarray] | None = None  # reference images -> float32 [n], 1..10
    text: Callable[[list[np.ndarray]], list[Line]] | None = None  # stills -> lines of text that do not move
    # an image, uint8 [h, w, 3], and a mask, bool [h, w] -> the image with what the mask covers filled
    inpaint: Callable[[np.ndarray, np.ndarray], np.ndarray] = inpaint
