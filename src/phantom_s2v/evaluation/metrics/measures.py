"""Metrics, one function each: range, direction, source and what it misses stand in the docstring."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment

from phantom_s2v.data.detectors.objects import box_of
from phantom_s2v.data.synthetic.appearance import nearest_color
from phantom_s2v.evaluation.metrics.pasting import Follower
from phantom_s2v.evaluation.metrics.regions import border_color, regions
from phantom_s2v.media import quality

CUT = 8.0  # of 255: a mean change from frame to frame that may show another image
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
OWN_SHARE = 0.2  # share of the frames with a face from which on a person's shots stand for the person
MIN_TRAVEL = 0.05  # of the side: less is no direction


def direction(video: np.ndarray) -> str | None:
    """Where the largest region of uint8 [F, H, W, 3] goes: left, right, up or down; None where it hardly moves.

    From the mean center of the first quarter to that of the last. Misses motion that returns.
    """
    centers = [scores[0].center for frame in video if (scores := regions(frame, 1))]
    if len(centers) < 4:
        return None
    quarter = max(1, len(centers) // 4)
    dy, dx = np.mean(centers[-quarter:], 0) - np.mean(centers[:quarter], 0)
    if max(abs(dy), abs(dx)) < MIN_TRAVEL * video.shape[1]:
        return None
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")


def background(video: np.ndarray) -> str:
    """Name of the color nearest to the border over all frames. Misses texture and grade."""
    return nearest_color(np.median([border_color(frame) for frame in video], 0))


class Flow:
    """Mean Farneback flow of successive frames, as OpenS2V-Eval's released code computes it, with one frame kept."""

    def __init__(self) -> None:
        self.before: np.ndarray | None = None
        self.total, self.pairs = 0.0, 0

    def add(self, frame: np.ndarray, measured: bool = True, kept: bool = True) -> None:
        """Take in the next frame, RGB uint8 [H, W, 3]: the flow from the one before is `measured`, that to the next will be."""
        import cv2

        # The weights of blue and red are exchanged, since OpenS2V hands RGB to a conversion from BGR; kept, to agree with it.
        gray = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_BGR2GRAY) if measured or kept else None
        if measured and self.before is not None and gray is not None:
            height = int(frame.shape[0] * 16 / frame.shape[1])
            flow = cv2.calcOpticalFlowFarneback(self.before, gray, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
            self.total += float(cv2.resize(flow, (16, max(1, height)), interpolation=cv2.INTER_AREA).mean())
            self.pairs += 1
        self.before = gray

    @property
    def mean(self) -> float:
        """Absolute value of the mean over all pairs and both components, pixels; nan of none."""
        return abs(self.total / self.pairs) if self.pairs else float("nan")


def motion_fb(frames: Iterable[np.ndarray]) -> float:
    """Motion amplitude of OpenS2V-Eval's released code, 0 or more: absolute value of the mean Farneback flow, in pixels.

    `frames` are RGB, uint8 [H, W, 3] each. The mean is signed and over both components, so it misses motion whose directions
    cancel, and tells no direction. Raises ValueError for fewer than two frames.
    """
    flow = Flow()
    for frame in frames:
        flow.add(frame)
    if not flow.pairs:
        raise ValueError(f"motion needs at least two frames (got {int(flow.before is not None)})")
    return flow.mean


@dataclass(frozen=True)
class OverTime:
    """Some numbers of each frame of a video: what it is like, and how it differs from those before it."""

    seconds: np.ndarray  # [F], when it is shown
    levels: np.ndarray  # [F], mean luma
    changes: np.ndarray  # [F - 1], mean difference from the frame before, of 255
    bends: np.ndarray  # [F - 2], mean difference of the frame before from the mean of its neighbors, of 255
    similarity: np.ndarray  # [references, F, Follower.PLACES], correlation of a reference image with parts of a frame, -1..1


def over_time(frames: Iterable[tuple[float, np.ndarray]], references: Sequence[np.ndarray] = ()) -> OverTime:
    """Numbers of (time, uint8 [H, W, 3]) frames, which are all of one size; three of them are in memory."""
    followers = [Follower(reference) for reference in references]
    seconds, levels, changes, bends = (array("d") for _ in range(4))
    similarities, held = array("f"), list[np.ndarray]()
    for now, frame in frames:
        seconds.append(now)
        levels.append(float((frame.astype(np.float32) @ LUMA).mean()))
        held = [*held[-2:], frame.astype(np.int16)]
        before = changes[-1] if changes else 0.0
        if len(held) > 1:
            changes.append(float(np.abs(held[-1] - held[-2]).mean()))
        cut = not changes or _cuts(changes[-1], before)
        similarities.extend(value for follower in followers for value in follower(frame, cut))
        if len(held) > 2:
            bends.append(float(np.abs(held[0] + held[2] - 2 * held[1]).mean()) / 2)
    alike = np.array(similarities).reshape(len(seconds), len(references), Follower.PLACES)
    return OverTime(np.array(seconds), np.array(levels), np.array(changes), np.array(bends), alike.swapaxes(0, 1))


def _cuts(change: float, before: float) -> bool:
    """Whether a change from frame to frame may show another image, after the change before."""
    return change > max(CUT, 2 * before)


def shots(seen: OverTime) -> np.ndarray:
    """Number of the shot of each frame, [F], from 0. Fades and cuts between similar images are missed."""
    before = np.concatenate([[0.0], seen.changes[:-1]])[: len(seen.changes)]
    starts = [_cuts(*each) for each in zip(seen.changes.tolist(), before.tolist(), strict=True)]
    return np.concatenate([[0], np.cumsum(starts, dtype=int)])[: len(seen.seconds)]


def reference_flash(similarities: np.ndarray, bound: float) -> tuple[float, list[int]]:
    """How far single frames rise above the others in similarity to the reference image itself, 0..2, and which rise by `bound`.

    `similarities` [F, places] is of `over_time`; what half of the frames have at a place is the video's own. Place by place,
    since the image may stand elsewhere in every frame of the view that it was taken from. A video that shows the image throughout
    has no flash, but copy_paste sees it; an image that is nearly the frame before and after rises by too little.
    """
    rise = np.where(similarities > 0.9, similarities - np.median(similarities, 0), 0)
    return float(rise.max()), np.flatnonzero((rise > bound).any(1)).tolist()


def frozen(seen: OverTime) -> float:
    """Share of successive frames that are the same but for compression (mean difference below 0.4 of 255).

    0..1; 1 is a still image, nan is a single frame. Slow motion of something small counts as none.
    """
    return float((seen.changes < 0.4).mean()) if len(seen.changes) else float("nan")


def flicker(seen: OverTime) -> float:
    """Mean change of brightness from frame to frame that the next change takes back, in shares of the brightness; 0 and more.

    From the luma of whole frames; nan for fewer than three. Flicker of a part of the image is diluted; a cut counts once.
    """
    if len(seen.levels) < 3:
        return float("nan")
    steps = np.diff(seen.levels)
    back = np.where(steps[1:] * steps[:-1] < 0, np.minimum(np.abs(steps[1:]), np.abs(steps[:-1])), 0)
    return float(back.mean() / max(1.0, seen.levels.mean()))


def smoothness(seen: OverTime) -> float:
    """How well each frame is foretold by its neighbors' mean, 0..1, 1 is smooth: 1 - mean error / 255, as VBench's in spirit.

    nan for fewer than three frames. A still image is perfectly smooth; fast motion of texture is not.
    """
    return float(1 - seen.bends.mean() / 255) if len(seen.bends) else float("nan")


def sharpness(frames: Sequence[np.ndarray]) -> float:
    """Median variance of the Laplacian of gray frames, uint8 [H, W, 3] each; 0 and more. Noise counts as sharp."""
    return float(np.median([quality.sharpness(frame) for frame in frames]))


def similarity(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of frames' features [F, d] with an image's or a text's [d], all of length one: [F], -1..1, 1 is the same.

    CLIP-I with CLIP features, DINO-I with DINO features, the text score with CLIP text features (Phantom, section 4.1).
    CLIP-I tells categories apart, but not instances; both reward copy-paste.
    """
    return frames @ reference


def face_similarity(
    frames: Sequence[Sequence[np.ndarray]],
    references: Sequence[np.ndarray | None],
    alike: Callable[[np.ndarray, np.ndarray], float],
) -> np.ndarray:
    """Similarity of each reference's face in each frame [F, references], 1 is the same; nan where there is none.

    `frames` hold the features of their faces. In a frame every face goes to at most one reference, so that two people are not
    both found in one face. Misses who turns away, and says nothing of a frame without a face.
    """
    scores = np.full((len(frames), len(references)), np.nan)
    for frame, faces in enumerate(frames):
        for reference, (_, similarity) in whose(faces, references, alike).items():
            scores[frame, reference] = similarity
    return scores


def whose(
    faces: Sequence[np.ndarray], references: Sequence[np.ndarray | None], alike: Callable[[np.ndarray, np.ndarray], float]
) -> dict[int, tuple[int, float]]:
    """Reference -> its face among those of a frame, and their similarity, so that the sum of similarity is the largest."""
    known = [i for i, each in enumerate(references) if each is not None]
    if not faces or not known:
        return {}
    pairs = np.array([[alike(face, references[i]) for i in known] for face in faces])  # type: ignore[arg-type]
    return {known[k]: (int(face), float(pairs[face, k])) for face, k in zip(*linear_sum_assignment(-pairs), strict=True)}


def own_shots(values: np.ndarray, shot: np.ndarray, bound: float) -> np.ndarray:
    """Frames whose face counts for a person, bool [F]: similarity `values` [F], nan without a face, in shots numbered [F].

    Shots whose mean is `bound` or more show the person; faces of the others are somebody else's, where the person has a fifth of
    the frames with a face. Else no shot shows the person for certain, and all frames count.
    """
    faces = ~np.isnan(values)
    own = np.zeros(len(values), bool)
    for number in np.unique(shot[faces]):
        rows = faces & (shot == number)
        own |= rows & (values[rows].mean() >= bound)
    return own if own.sum() >= OWN_SHARE * faces.sum() else faces


def psnr(video: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal to noise ratio in dB, higher is nearer; within `mask` (bool, [F, H, W]) where given."""
    error = (video.astype(float) - other.astype(float)) ** 2
    return decibels(float(error.mean() if mask is None else error[mask].mean()))


def decibels(error: float) -> float:
    """PSNR of a mean squared error of values in 0..255."""
    return float(-10 * np.log10(max(error / 255**2, 1e-10)))


def box_masks(masks: np.ndarray) -> np.ndarray:
    """The bounding box of a mask in every frame, bool [F, H, W]: what a crop of the subject holds."""
    boxes = np.zeros_like(masks, bool)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            left, top, right, bottom = box_of(mask)
            box[top:bottom, left:right] = True
    return boxes


def bootstrap(hits: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95% percentile interval over resampled cases; (nan, nan, nan) of nothing, the value alone of one case."""
    values = np.asarray(hits, float)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) == 1:  # scipy refuses to resample a single case
        return mean, mean, mean
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap((values,), np.mean, n_resamples=draws, method="percentile", rng=rng).confidence_interval
    return mean, float(interval.low), float(interval.high)


def share(hits: Sequence[float]) -> tuple[float, float, float]:
    """Share of hits (0 or 1) and its 95% interval: bootstrap, or the exact binomial bound (Clopper-Pearson) where all agree.

    Cases that all agree say nothing of a bootstrap's width: none of 100 is [0, 0.036] and not [0, 0].
    """
    mean, low, high = bootstrap(hits)
    if mean not in (0.0, 1.0):
        return mean, low, high
    exact = stats.binomtest(round(mean * len(hits)), len(hits)).proportion_ci(0.95, "exact")
    return mean, float(exact.low), float(exact.high)
