"""Does the evaluation see what it should? Clips with planted faults, and clean ones, composed of emoji."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from phantom_s2v.data.synthetic.appearance import COLORS, Background, mean_color, random_appearance, random_background
from phantom_s2v.data.synthetic.compose import MOTIONS, Cast, Clip, ClipSpec, Shot, compose
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.render import apply_appearance
from phantom_s2v.evaluation.footage import shrunk
from phantom_s2v.evaluation.instruments import Instruments, Thresholds
from phantom_s2v.evaluation.metrics.measures import bootstrap
from phantom_s2v.evaluation.score import FAULTS, VideoScore, faults, score
from phantom_s2v.media.images import evenly_spaced

ON_FOOTAGE = ("drifting", "blurred", "other clothes")  # faults that emoji cannot show
PLANTED = tuple(fault for fault in FAULTS if fault not in ON_FOOTAGE)
NAMES = ("first subject", "second subject")
PLACES, PAIR_SIZE, PAIR_REACH = (0.25, 0.75), 0.42, 0.035  # of two subjects, which stay apart; shares of the side
FLICKER = 0.04  # share of the brightness
FLASHED = 2  # frames
MISTAKES, STRIP = 3, 128  # mistakes of a kind that are kept, and pixels of the shorter side of their frames


@dataclass(frozen=True)
class Planted:
    """A clip, the references and prompt that it is held against, and what is wrong with it ("" for nothing)."""

    fault: str
    video: np.ndarray
    references: tuple[np.ndarray, ...]
    prompt: str


@dataclass(frozen=True)
class Mistake:
    """A clip whose planted fault was not found, or in which a fault was found that nobody planted ("" for none)."""

    planted: str
    found: tuple[str, ...]
    strip: np.ndarray  # frames side by side
    references: tuple[np.ndarray, ...]


@dataclass
class Checked:
    """(fault, score) of every clip that was checked, and the first mistakes of each kind."""

    limits: Thresholds
    planted: Sequence[str]  # the faults that are looked at
    scores: list[tuple[str, VideoScore]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)

    def add(self, made: Planted, score: VideoScore) -> None:
        """Take in a clip; a small copy of it is kept only where it is one of the first mistakes of its kind."""
        self.scores.append((made.fault, score))
        found = tuple(fault for fault in faults(score, self.limits) if fault in self.planted)
        wrong = made.fault not in found if made.fault else bool(found)
        alike = [m for m in self.mistakes if (m.planted, m.found) == (made.fault, found)]
        if wrong and len(alike) < MISTAKES:
            frames = [shrunk(made.video[i], STRIP) for i in evenly_spaced(len(made.video), 5)]
            references = tuple(shrunk(image, STRIP) for image in made.references)
            self.mistakes.append(Mistake(made.fault, found, np.concatenate(frames, 1), references))


def planted(fault: str, number: int, sprites: Sprites, seed: int = 0) -> Planted:
    """Clip `number` with a fault; two subjects where the fault needs two, else one or two."""
    rng = np.random.default_rng([seed, 11, (*PLANTED, "").index(fault), number])
    moving = [s for s in sprites.subjects if s.animated]
    two = fault in ("missing", "swapped") or (fault != "doubled" and bool(number % 2))
    subjects = [moving[i] for i in rng.choice(len(moving), 3, replace=False)]
    casts = tuple(_cast(rng, subjects[i], i, two) for i in range(1 + two))
    shot = Shot(in_pair=True) if fault == "pasted" else Shot()
    spec = ClipSpec(casts, tuple((shot,) for _ in casts), _background(rng, list(casts), sprites), False)
    clip = compose(spec, sprites)
    video = _broken(fault, rng, spec, clip, subjects[2], sprites)
    asked = _asked(casts) if two else "The subject moves."
    return Planted(fault, video, clip.references, asked)


def _cast(rng: np.random.Generator, subject: Subject, place: int, two: bool) -> Cast:
    center = (0.5, PLACES[place]) if two else (0.5, 0.5)
    size = PAIR_SIZE if two else float(rng.uniform(0.5, 0.7))
    motion = str(rng.choice([m for m in MOTIONS if m not in ("still", "grow")]))
    return Cast(subject, random_appearance(rng), size, center, PAIR_REACH if two else 0.14, motion, int(rng.integers(36)))


def _background(rng: np.random.Generator, casts: list[Cast], sprites: Sprites) -> Background:
    """Of eight backgrounds the one whose colors are farthest from the subjects'. Never white, as references are: white on
    white is pasted and not pasted at once.
    """
    shades = [mean_color(apply_appearance(sprites.still(c.subject).astype(np.float32) / 255, c.appearance)) for c in casts]

    def distance(background: Background) -> float:
        names = {background.color} if background.kind == "plain" else {background.color, background.second}
        apart = [float(np.abs(np.array(COLORS[name]) - shade).max()) for name in names for shade in shades]
        return min(apart) if "white" not in names else 0.0

    return max((random_background(rng) for _ in range(8)), key=distance)


def _asked(casts: tuple[Cast, ...]) -> str:
    return (
        f"The first subject at the left {MOTIONS[casts[0].motion]}, the second subject at the right {MOTIONS[casts[1].motion]}."
    )


def _broken(fault: str, rng: np.random.Generator, spec: ClipSpec, clip: Clip, stranger: Subject, sprites: Sprites) -> np.ndarray:
    """The video with its fault."""
    casts, video = spec.casts, clip.video
    if fault == "other subject":
        other = (replace(casts[0], subject=stranger, appearance=random_appearance(rng)), *casts[1:])
        return compose(replace(spec, casts=other), sprites).video
    if fault == "missing":
        return compose(replace(spec, casts=casts[:1], shots=((),)), sprites).video
    if fault == "swapped":
        changed = tuple(replace(cast, center=other.center) for cast, other in zip(casts, casts[::-1], strict=True))
        return compose(replace(spec, casts=changed), sprites).video
    if fault == "doubled":
        twice = tuple(replace(casts[0], size=PAIR_SIZE, center=(0.5, x), reach=PAIR_REACH) for x in PLACES)
        return compose(replace(spec, casts=twice, shots=((), ())), sprites).video
    if fault == "flashed":
        video, start = video.copy(), int(rng.integers(2, len(video) - FLASHED - 2))
        video[start : start + FLASHED] = clip.references[0]
    if fault == "frozen":
        return np.repeat(video[:1], len(video), 0)
    if fault == "flicker":
        gain = 1 + FLICKER * (-1.0) ** np.arange(len(video))[:, None, None, None]
        return np.clip(video * gain, 0, 255).astype(np.uint8)
    return video


def run(sprites: Sprites, tools: Instruments, each: int, clean: int, report: Callable[[int, int], None]) -> Checked:
    """`each` clips with every fault, and `clean` ones without, checked."""
    todo = [(fault, n) for fault in PLANTED for n in range(each)] + [("", n) for n in range(clean)]
    checked = Checked(tools.limits, PLANTED)
    for number, (fault, n) in enumerate(todo, 1):
        made = planted(fault, n, sprites)
        checked.add(made, score(made.video, made.references, NAMES[: len(made.references)], made.prompt, tools))
        report(number, len(todo))
    return checked


def table(checked: Checked) -> dict[str, dict[str, list[float]]]:
    """Fault -> detection and false alarm, each a share with its 95% interval, and the numbers of clips behind them."""
    rows = {}
    for fault in checked.planted:
        hits, alarms = list(_rates(checked, fault, fault)), list(_rates(checked, "", fault))
        rows[fault] = {
            "detection": [round(v, 4) for v in bootstrap(hits)],
            "false_alarm": [round(v, 4) for v in bootstrap(alarms)],
            "clips": [len(hits), len(alarms)],
        }
    return rows


def _rates(checked: Checked, planted_fault: str, detected_fault: str) -> Iterator[float]:
    return (float(detected_fault in faults(each, checked.limits)) for fault, each in checked.scores if fault == planted_fault)
