"""What the faults of a score mean, which number shows them, and what to do about them."""

from dataclasses import dataclass

from phantom_s2v.evaluation.instruments import Thresholds
from phantom_s2v.evaluation.score import SubjectScore, VideoScore


@dataclass(frozen=True)
class FaultWords:
    """A fault in words. Of `decided` (metric, threshold) the first one that was measured decides."""

    means: str
    advice: str
    decided: tuple[tuple[str, str], ...] = ()
    least: bool = False  # whether the threshold is a minimum


FAULT_WORDS = {
    "other subject": FaultWords(
        "another subject is in the reference's place",
        "compare reference and frame below; if they differ, generate with --best-of 4 or another seed, or use a reference that "
        "shows the subject whole, sharp and from the side that the prompt asks for",
        (("face", "face"), ("similarity", "similarity")), least=True,
    ),
    "missing": FaultWords(
        "the subject is in too few frames",
        "describe the subject in the prompt in the words of its reference's name, and generate with --best-of 4 or another seed",
        (("seen", "seen"),), least=True,
    ),
    "doubled": FaultWords(
        "the subject is in the frames twice",
        "say in the prompt that there is one, and generate with another seed",
        (("doubled", "doubled"),),
    ),
    "swapped": FaultWords(
        "subjects are in each other's place",
        "name each subject and its place in the prompt (at the left, at the right), or generate with another seed",
        (("swapped", "swapped"),),
    ),
    "pasted": FaultWords(
        "the reference image was copied into the frames",
        "remove the reference's background (--cutout), lower --image-guidance-scale, or give another view of the subject",
        (("copy_paste", "pasted"),),
    ),
    "flashed": FaultWords(
        "the reference image itself is shown for some frames",
        "cut these frames out, or lower --image-guidance-scale",
        (("flash", "flashed"),),
    ),
    "frozen": FaultWords(
        "the video hardly moves",
        "ask for a motion in the prompt, or generate with another seed",
        (("frozen", "frozen"),),
    ),
    "flicker": FaultWords(
        "brightness jumps from frame to frame",
        "generate with more --num-inference-steps",
        (("flicker", "flicker"),),
    ),
    "drifting": FaultWords(
        "the subject begins right and turns into another",
        "cut the video before it changes, generate fewer frames, or use another seed",
        (("similarity_min", "in_windows"),), least=True,
    ),
    "other clothes": FaultWords(
        "the person wears other colors than in the reference",
        "name the clothes and their colors in the prompt, or use a reference that shows them whole",
        (("clothes", "clothes"),), least=True,
    ),
    "blurred": FaultWords(
        "the frames are blurred",
        "generate at a larger --size or with more --num-inference-steps",
        (("blur", "blurred"),),
    ),
}  # fmt: skip
ELSE = FaultWords("this check failed", "look at the frames below")
KPI_MISSED = "see the reasons that your KPI file gives, below each video"
UNREADABLE = "make the unreadable videos again, or convert them with ffmpeg"


def fault_words(fault: str) -> FaultWords:
    """The words of a fault; general ones of a fault that has none."""
    return FAULT_WORDS.get(fault, ELSE)


def explained(fault: str, names: list[str], score: VideoScore, limits: Thresholds) -> str:
    """A fault of a video, of which subjects, and the values that tell it beside their threshold."""
    words = fault_words(fault)
    said = f"{fault}{': ' if any(names) else ''}{', '.join(names)}: {words.means}"
    found = [part_words for part in _parts(score, names) if (part_words := _decided(words, part, limits))]
    return f"{said} ({'; '.join(dict.fromkeys(found))})" if found else said


def _decided(words: FaultWords, part: SubjectScore | VideoScore, limits: Thresholds) -> str:
    """The value that shows a fault, beside its threshold; empty if none was measured."""
    for metric, name in words.decided:
        value, limit = getattr(part, metric), _limit(metric, name, part, limits)
        if value is not None and value == value and limit is not None:
            return f"{metric} {value:.3g}; {'at least' if words.least else 'at most'} {limit:g} passes"
    return ""


def threshold(metric: str, part: SubjectScore | VideoScore, limits: Thresholds) -> tuple[float, bool] | None:
    """The threshold of a metric, and whether it is a minimum; None if no fault depends on it."""
    for words in FAULT_WORDS.values():
        for each, name in words.decided:
            if each == metric and (limit := _limit(metric, name, part, limits)) is not None:
                return limit, words.least
    return None


def _limit(metric: str, name: str, part: SubjectScore | VideoScore, limits: Thresholds) -> float | None:
    """A threshold by name; that of similarity is another one in windows of the frames, where alone a subject can drift."""
    in_windows = isinstance(part, SubjectScore) and part.in_windows
    if name == "in_windows" and not in_windows:
        return None
    return getattr(limits, "in_windows" if in_windows and metric == "similarity" else name)


def _parts(score: VideoScore, names: list[str]) -> list[SubjectScore | VideoScore]:
    subjects = [subject for subject in score.subjects if subject.name in names]
    return [*subjects] if subjects else [score]
