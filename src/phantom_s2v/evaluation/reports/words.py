"""What the faults of a score mean, which number shows them, and what to do about them."""

from dataclasses import dataclass

from phantom_s2v.evaluation.instruments import Thresholds
from phantom_s2v.evaluation.score import SubjectScore, VideoScore


@dataclass(frozen=True)
class FaultWords:
    """A fault in words. The value of `metric` has to be on the right side of the threshold `limit`."""

    means: str
    advice: str
    metric: str = ""
    limit: str = ""
    least: bool = False  # whether the threshold is a minimum


FAULT_WORDS = {
    "other subject": FaultWords(
        "another subject is in the reference's place",
        "compare reference and frame below; if they differ, generate with --best-of 4 or another seed, or use a reference that "
        "shows the subject whole, sharp and from the side that the prompt asks for",
        "similarity", "similarity", least=True,
    ),
    "missing": FaultWords(
        "the subject is in too few frames",
        "describe the subject in the prompt in the words of its reference's name, and generate with --best-of 4 or another seed",
        "seen", "seen", least=True,
    ),
    "doubled": FaultWords(
        "the subject is in the frames twice",
        "say in the prompt that there is one, and generate with another seed",
        "doubled", "doubled",
    ),
    "swapped": FaultWords(
        "subjects are in each other's place",
        "name each subject and its place in the prompt (at the left, at the right), or generate with another seed",
        "swapped", "swapped",
    ),
    "pasted": FaultWords(
        "the reference image was copied into the frames",
        "remove the reference's background (--cutout), lower --image-guidance-scale, or give another view of the subject",
        "copy_paste", "pasted",
    ),
    "flashed": FaultWords(
        "the reference image itself is shown for some frames",
        "cut these frames out, or lower --image-guidance-scale",
        "flash", "flashed",
    ),
    "frozen": FaultWords(
        "the video hardly moves",
        "ask for a motion in the prompt, or generate with another seed",
        "frozen", "frozen",
    ),
    "flicker": FaultWords(
        "brightness jumps from frame to frame",
        "generate with more --num-inference-steps",
        "flicker", "flicker",
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
    values = [getattr(part, words.metric, None) for part in _parts(score, names)]
    found = [f"{value:.3g}" for value in values if value is not None and value == value]
    if not found:
        return said
    limit = getattr(limits, "in_windows" if words.metric == "similarity" and score.in_windows else words.limit)
    return f"{said} ({words.metric} {', '.join(found)}; {'at least' if words.least else 'at most'} {limit:g} passes)"


def threshold(metric: str, score: VideoScore, limits: Thresholds) -> tuple[float, bool] | None:
    """The threshold of a metric, and whether it is a minimum; None where no fault hangs on it."""
    words = next((each for each in FAULT_WORDS.values() if each.metric == metric), None)
    if words is None:
        return None
    return getattr(limits, "in_windows" if metric == "similarity" and score.in_windows else words.limit), words.least


def _parts(score: VideoScore, names: list[str]) -> list[SubjectScore | VideoScore]:
    subjects = [subject for subject in score.subjects if subject.name in names]
    return [*subjects] if subjects else [score]
