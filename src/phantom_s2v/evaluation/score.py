"""The score of one video: is every reference there, once and in its place, was it pasted, and is the video itself sound?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from phantom_s2v.errors import NotFiniteError
from phantom_s2v.evaluation.footage import FRAMES, Footage, shrunk, watch
from phantom_s2v.evaluation.instruments import Embed, Instruments, Thresholds
from phantom_s2v.evaluation.metrics import looks, measures
from phantom_s2v.evaluation.metrics.pasting import copy_paste
from phantom_s2v.evaluation.metrics.people import people_in
from phantom_s2v.evaluation.metrics.subjects import (
    Sighting,
    SubjectRegions,
    doubled,
    find_subjects,
    misplaced,
    places_asked,
)
from phantom_s2v.media.images import evenly_spaced
from phantom_s2v.models.finite import check_finite

NAN = float("nan")
OTHERS = "other shots show faces that are not {0}'s: they count as other people, and similarity of {0}'s face is of the rest"
FAULTS = (
    "other subject",
    "drifting",
    "missing",
    "doubled",
    "swapped",
    "pasted",
    "flashed",
    "frozen",
    "flicker",
    "blurred",
    "other clothes",
)


@dataclass(frozen=True)
class SubjectScore:
    """One reference in a video; nan: not measured. CLIP-I and DINO-I as in Phantom, section 4.1; _seg: subject region only."""

    name: str
    similarity: float  # of its region, mean over the frames looked at, -1..1; nan where it was never seen
    similarity_min: float
    similarity_min_frame: int
    whole: float  # the same of whole frames and the whole image
    whole_min: float
    whole_min_frame: int
    seen: float  # share of frames that have a region for it
    doubled: float  # share of frames with a second one; nan in windows
    copy_paste: float
    flash: float
    flash_frames: list[int]
    in_windows: bool = False  # similarity is of windows of the frames, instead of segmented regions
    clip_i: float = NAN
    clip_i_min: float = NAN
    clip_i_seg: float = NAN
    clip_i_seg_min: float = NAN
    dino_i: float = NAN
    dino_i_min: float = NAN
    dino_i_seg: float = NAN
    dino_i_seg_min: float = NAN
    face: float = NAN  # mean over the frames that have a face for it, of shots that show other people's without these
    face_min: float = NAN
    face_min_frame: int = 0
    face_seen: float = NAN  # share of frames that have a face for it
    copy_paste_cutout: float = NAN  # of what is opaque in a transparent reference
    clothes: float = NAN  # similarity of the colors below the face, 0..1, mean over frames that show them
    reconstruction: float = NAN  # dB, of the image through the autoencoder: what detail the model can hold at all
    over_time: list[float] = field(default_factory=list)  # similarity in each frame looked at, -1 where it was not seen
    boxes: list[list[float] | None] = field(
        default_factory=list
    )  # its region there, left, top, right, bottom in shares of the frame


@dataclass(frozen=True)
class VideoScore:
    """Everything measured of one video; nan is not measured, and `not_measured` says why."""

    subjects: list[SubjectScore]
    swapped: float  # share of frames in which subjects stand on each other's side
    motion_fb: float
    frozen: float
    flicker: float
    smoothness: float
    sharpness: float
    frames_looked_at: list[int]
    blur: float = NAN  # of the sharpest part, 0 sharp..1
    text: float = NAN  # cosine of prompt and frames
    aesthetic: float = NAN  # 1..10
    reconstruction: float = NAN  # dB, of the video through the autoencoder
    not_measured: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def similarity(self) -> float:
        """The subject score: the mean over references, nan without any or where one was never seen."""
        return float(np.mean([s.similarity for s in self.subjects])) if self.subjects else NAN


def score(
    video: np.ndarray, references: Sequence[np.ndarray], names: Sequence[str], prompt: str, tools: Instruments
) -> VideoScore:
    """Scores of uint8 [F, H, W, 3] against reference images, each another subject, with what the prompt calls them."""
    return score_footage(watch(video, references, tools), references, names, prompt, tools)


def score_footage(
    footage: Footage,
    references: Sequence[np.ndarray],
    names: Sequence[str],
    prompt: str,
    tools: Instruments,
    alphas: Sequence[np.ndarray | None] = (),
) -> VideoScore:
    """Scores of a video that was gone through; `alphas` are what references cover, bool [h, w], where they are transparent."""
    frames, small = footage.views, footage.small
    looked = find_subjects(dict(zip(footage.looked_at, frames, strict=True)), references, tools.embed, tools.limits)
    seen = looked.sightings
    there = [tools.limits.in_windows if windows else tools.limits.there for windows in looked.in_windows]
    networks = {"whole": tools.embed, "clip_i": tools.clip, "dino_i": tools.dino}
    views = _views(frames, {name: embed for name, embed in networks.items() if references or name == "clip_i"})
    people = people_in(frames, references, tools.faces)
    faces = people.similarity
    shot, places = measures.shots(small)[footage.looked_at], places_asked(prompt, names)
    own = [measures.own_shots(faces[:, i], shot, tools.limits.face) for i in range(len(names))]
    subjects = [
        SubjectScore(
            name=name,
            in_windows=looked.in_windows[i],
            boxes=_boxes(seen, i),
            **_seen(looked.similarity[i], seen, NAN if looked.in_windows[i] else doubled(seen, i, there[i])),
            **_pasted(footage, i, references[i], alphas[i] if alphas else None, tools.limits),
            **_by_networks(networks, views, _segmented(looked, i, name, tools), references[i], seen),
            **_face(np.where(own[i], faces[:, i], NAN), seen),
            clothes=people.clothes(references[i], frames, i),
            reconstruction=measures.psnr(*tools.reconstruct(references[i][None])) if tools.reconstruct else NAN,
        )
        for i, name in enumerate(names)
    ]
    absent, notes = _notes(footage.count, names, looked, people.known, subjects, tools)
    notes += [OTHERS.format(name) for i, name in enumerate(names) if (~np.isnan(faces[:, i]) & ~own[i]).any()]
    scores = VideoScore(
        subjects=subjects,
        swapped=misplaced(seen, places, there, people.centers(places, tools.limits.face)),
        motion_fb=footage.motion_fb,
        frozen=measures.frozen(small),
        flicker=measures.flicker(small),
        smoothness=measures.smoothness(small),
        sharpness=measures.sharpness(frames),
        blur=looks.blur(frames),
        frames_looked_at=footage.looked_at,
        text=float(measures.similarity(views["clip_i"], tools.words(prompt)).mean()) if tools.words and prompt else NAN,
        aesthetic=float(tools.aesthetic(frames).mean()) if tools.aesthetic else NAN,
        reconstruction=footage.reconstruction,
        not_measured=absent if prompt else {**absent, "text": absent.get("text", "no prompt was given")},
        notes=[*notes, *footage.notes],
    )
    check_scores(scores)
    return scores


def _views(frames: list[np.ndarray], networks: Mapping[str, Embed | None]) -> dict[str, np.ndarray]:
    """Features of the frames by each network that there is."""
    views = {name: embed(frames) for name, embed in networks.items() if embed}
    for name, vectors in views.items():
        check_finite(vectors, f"the embedding of frames for {name}")
    return views


def check_scores(score: VideoScore) -> None:
    """Raise NotFiniteError that names a score that is infinite; nan says that it was not measured."""
    for part in (score, *score.subjects):
        for name, value in vars(part).items():
            if isinstance(value, float) and np.isinf(value):
                raise NotFiniteError(f"the score {name} is infinite")


def ranking_score(video: np.ndarray, references: Sequence[np.ndarray], tools: Instruments) -> float:
    """What candidates are ranked by: similarity, mean over subjects and frames looked at, 0 where there is no region; -1..1."""
    stills = {i: video[i] for i in evenly_spaced(len(video), FRAMES)}
    return float(np.nan_to_num(find_subjects(stills, references, tools.embed, tools.limits).similarity).mean())


def stranger_similarity(footage: Footage, image: np.ndarray, tools: Instruments) -> float | None:
    """The subject score of an image that a video was never asked for: what chance gives. None where nothing stands out."""
    stills = dict(zip(footage.looked_at, footage.views, strict=True))
    mean, _, _ = _mean_and_min(find_subjects(stills, [image], tools.embed, tools.limits).similarity[0])
    return None if mean != mean else mean


def _mean_and_min(values: np.ndarray) -> tuple[float, float, int]:
    """Mean, minimum and its index, of what is not nan; (nan, nan, 0) of nothing."""
    if np.isnan(values).all():
        return NAN, NAN, 0
    return float(np.nanmean(values)), float(np.nanmin(values)), int(np.nanargmin(values))


def _seen(over_time: np.ndarray, seen: list[Sighting], twice: float) -> dict[str, Any]:
    mean, low, place = _mean_and_min(over_time)
    return {
        "similarity": mean,
        "similarity_min": low,
        "similarity_min_frame": seen[place].frame,
        "seen": float((~np.isnan(over_time)).mean()),
        "doubled": twice,
        "over_time": [round(float(v), 4) for v in np.nan_to_num(over_time, nan=-1.0)],
    }


def _boxes(seen: list[Sighting], reference: int) -> list[list[float] | None]:
    """The region of a reference in each frame looked at; None where it was not seen, or whole frames were compared."""
    return [s.boxes[s.assigned[reference]].round(4).tolist() if reference in s.assigned else None for s in seen]


def _pasted(footage: Footage, index: int, image: np.ndarray, alpha: np.ndarray | None, limits: Thresholds) -> dict[str, Any]:
    flash, frames = measures.reference_flash(footage.small.similarity[index], limits.flashed)
    views = [shrunk(view) for view in footage.views]
    cutout = NAN if alpha is None else copy_paste(views, image, alpha)
    return {"copy_paste": copy_paste(views, image), "copy_paste_cutout": cutout, "flash": flash, "flash_frames": frames}


def _segmented(looked: SubjectRegions, index: int, name: str, tools: Instruments) -> list[np.ndarray]:
    """The reference and its regions in the frames, on white; empty where nothing can segment them."""
    cut = looked.cut[index]
    parts = [s.cutouts[s.assigned[index]] for s in looked.sightings if index in s.assigned]
    if cut is None or not parts:
        return []
    if not looked.in_windows[index]:
        return [cut, *parts]
    return [tools.segment(image, name) for image in (cut, *parts)] if tools.segment else []


def _no_segmenter(tools: Instruments) -> dict[str, str]:
    """Why similarity of segmented subjects is not measured on photographs."""
    why = "photographs need a segmenter (--segmenter)"
    networks = {"clip_i": tools.clip, "dino_i": tools.dino}
    return {f"{name}_seg": why for name, embed in networks.items() if embed and not tools.segment}


def _by_networks(
    networks: Mapping[str, Embed | None],
    views: Mapping[str, np.ndarray],
    segmented: list[np.ndarray],
    image: np.ndarray,
    seen: list[Sighting],
) -> dict[str, Any]:
    """Mean and minimum similarity of whole frames by every network, and of the subject's region by those that come beside."""
    scores: dict[str, Any] = {}
    for name, vectors in views.items():
        embed = networks[name]
        assert embed
        mean, low, place = _mean_and_min(measures.similarity(vectors, embed([image])[0]))
        scores |= {name: mean, f"{name}_min": low}
        if name == "whole":
            scores["whole_min_frame"] = seen[place].frame
        elif segmented:
            of_parts = embed(segmented)
            mean, low, _ = _mean_and_min(measures.similarity(of_parts[1:], of_parts[0]))
            scores |= {f"{name}_seg": mean, f"{name}_seg_min": low}
    return scores


def _face(values: np.ndarray, seen: list[Sighting]) -> dict[str, Any]:
    mean, low, place = _mean_and_min(values)
    share = float((~np.isnan(values)).mean())
    return {"face": mean, "face_min": low, "face_min_frame": seen[place].frame, "face_seen": share or NAN}


def _notes(
    count: int,
    names: Sequence[str],
    looked: SubjectRegions,
    faces: Sequence[np.ndarray | None],
    subjects: Sequence[SubjectScore],
    tools: Instruments,
) -> tuple[dict[str, str], list[str]]:
    """What could not be measured and why, and what a reader has to know of the rest."""
    absent, notes = dict(tools.absent), []
    if count < 3:
        few = "one frame" if count == 1 else "two frames"
        absent |= dict.fromkeys(("flicker", "smoothness"), f"there are {few}, and it needs three")
    if count < 2:
        absent |= dict.fromkeys(("motion_fb", "frozen"), "there is one frame, and it needs two")
    if not names:
        absent["subjects"] = "no reference was given"
    if any(looked.in_windows):
        some = "" if all(looked.in_windows) else f" ({', '.join(s.name for s in subjects if s.in_windows)})"
        notes.append(
            f"similarity is of the frame windows that are most similar to the references{some}: nothing can be segmented"
        )
        absent["doubled"] = "two windows of a photographed frame may show one subject"
        absent |= _no_segmenter(tools)
    for name, part, face, subject in zip(names, looked.cut, faces, subjects, strict=True):
        if tools.faces and face is not None and np.isnan(subject.face):
            notes.append(f"the reference of {name} shows a face and no frame does: similarity decides whether it is {name}")
        if part is None:
            notes.append(f"no subject was segmented in the reference of {name}; whole frames are compared")
        if subject.seen == 0:
            absent[f"similarity of {name}"] = "it was seen in no frame"
        if tools.faces and face is None:
            absent[f"face of {name}"] = "its reference shows no face"
        elif tools.faces and np.isnan(subject.face):
            absent[f"face of {name}"] = "no frame that was looked at shows a face for it"
    return absent, notes


def faults(score: VideoScore, limits: Thresholds) -> dict[str, list[str]]:
    """Fault -> which subjects have it (the empty string: the video), in the order of FAULTS. Empty for a sound video.

    A subject is missing where no region is left for it; where there is one that is unlike it, another stands in its place. A
    face decides who it is where the reference and the video show one, and similarity otherwise.
    """
    named: dict[str, list[str]] = {}

    def tell(fault: str, who: str, holds: bool) -> None:
        if holds:
            named.setdefault(fault, []).append(who)

    brief = limits.flash_share * (1 + max(score.frames_looked_at, default=0))
    for subject in score.subjects:
        by_face, least = subject.face == subject.face, limits.in_windows if subject.in_windows else limits.similarity
        missing = subject.seen < limits.seen and not by_face
        tell("missing", subject.name, missing)
        unlike = subject.face < limits.face if by_face else subject.similarity < least
        tell("other subject", subject.name, not missing and unlike)
        tell("drifting", subject.name, not unlike and not by_face and _drifts(subject, limits))
        tell("other clothes", subject.name, not unlike and subject.clothes < limits.clothes)
        tell("doubled", subject.name, subject.doubled > limits.doubled)
        pasted = subject.copy_paste > limits.pasted or subject.copy_paste_cutout > limits.pasted_cutout
        tell("pasted", subject.name, pasted and not 0 < len(subject.flash_frames) <= brief)
        tell("flashed", subject.name, subject.flash > limits.flashed)
    tell("swapped", "", score.swapped > limits.swapped)
    tell("frozen", "", score.frozen > limits.frozen)
    tell("flicker", "", score.flicker > limits.flicker)
    tell("blurred", "", score.blur > limits.blurred)
    return {fault: named[fault] for fault in FAULTS if fault in named}


def _drifts(subject: SubjectScore, limits: Thresholds) -> bool:
    """Whether a subject of a photographed video falls below the bound in a frame, and far below its own mean."""
    lowest = subject.similarity_min
    return subject.in_windows and lowest < limits.in_windows and subject.similarity - lowest > limits.drift


def mean_of(score: VideoScore, metric: str) -> float:
    """A metric of a video, of its subjects the mean; nan where it was not measured of each."""
    if hasattr(score, metric) and metric != "reconstruction":
        return float(getattr(score, metric))
    return float(np.mean([getattr(subject, metric) for subject in score.subjects])) if score.subjects else NAN


def as_json(score: VideoScore, fault_names: dict[str, list[str]], tools: Instruments) -> dict[str, Any]:
    """A score and its faults as JSON, under the names of what measured it; what could not be measured is null."""
    by = {"backend": tools.backend, "networks": tools.all_names(), "weights": tools.hashes}
    return _without_nan({**by, "similarity": score.similarity, **asdict(score), "faults": fault_names})


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
