"""The page of the emoji suite: how many subjects are identified, between control and true clips, then every subject."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.media.charts import Axis, Chart, curves
from phantom_s2v.media.pages import Cases, Headline, percent, preview, render, write_pages

ON_PAGE = 20  # subjects
LAST = 1000.0  # rank, for the order of cases, of a subject that was not found
TRUE = "identification_true_clips"
ROWS = (  # words, figure, that of its control, that of true clips
    ("Subject identified, prompt says only “the subject”", "identification", "identification_control", TRUE),
    ("… among the first five", "top5", "top5_control", ""),
    ("Subject identified, prompt names it", "identification_named", "", TRUE),
    ("… among the first five", "top5_named", "", ""),
    ("Two subjects, both identified", "two_subjects", "", "two_subjects_true_clips"),
    ("Direction of motion as asked", "direction", "", "direction_true_clips"),
    ("Background as asked", "background", "", "background_true_clips"),
)  # fmt: skip
DECIBELS = (
    ("Autoencoder, textured clips, whole frame", "autoencoder_psnr"),
    ("Autoencoder, box of the subject", "autoencoder_psnr_subject"),
)


@dataclass(frozen=True)
class Made:
    """A clip that was generated: how it was asked for, some of its frames side by side, and the ranks of its references."""

    words: str
    strip: np.ndarray
    ranks: Sequence[int | None]  # 0 is first, None not found
    video: Path | None = None  # where it can be played


@dataclass(frozen=True)
class Shown:
    """What was asked for, and what came: the name, its references, some frames of the true clip, and the clips made."""

    name: str
    references: Sequence[np.ndarray]
    true: np.ndarray
    made: Sequence[Made]

    @property
    def rank(self) -> tuple[float, float]:
        """Place in the report: single subjects first, the worst first."""
        return float(len(self.references)), -max(LAST if rank is None else rank for rank in self.made[0].ranks)


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right reference in clips of one kind, for the curve."""

    words: str
    ranks: Sequence[int | None] = field(default_factory=list)


def write_emoji_page(
    path: Path, model: str, figures: Mapping[str, Any], ranks: Sequence[Ranks], candidates: int, shown: Iterable[Shown]
) -> None:
    """Write the pages; `candidates` are the references among which the classifier chooses."""
    cases = Cases()
    for each in shown:
        made = [(m, _words(m, candidates)) for m in each.made]
        body = render("emoji_case.html", shown=each, made=made)
        facts = {
            "name": each.name,
            "asked": each.made[0].words,
            "wrong": any(r != 0 for r in each.made[0].ranks),
            "path": str(each.made[0].video or ""),
        }
        cases.add(each.rank, facts, body)
    write_pages(
        path,
        "emoji.html",
        cases,
        _played,
        size=ON_PAGE,
        title=f"Emoji suite: {model}",
        headline=_headline(figures, len(ranks[0].ranks), candidates),
        rows=[row for row in (_row(*each, figures) for each in ROWS) if row],
        decibels=[(words, figures[name], figures[f"{name}_interval"]) for words, name in DECIBELS if name in figures],
        chart=_chart(ranks, candidates),
        candidates=candidates,
    )  # fmt: skip


def _words(made: Made, candidates: int) -> str:
    """What became of the references of a clip."""
    said = ["identified" if r == 0 else "not found" if r is None else f"rank {r + 1} of {candidates}" for r in made.ranks]
    return f"{made.words}: {' and '.join(said)}"


def _played(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its video, where it can be played."""
    return {**case, "video": preview(Path(case["path"])) if case["path"] else None}


def _headline(figures: Mapping[str, Any], count: int, candidates: int) -> Headline:
    """How many subjects are identified, between what chance and what the true clips give."""
    low, high = figures["identification_interval"]
    control, true = figures["identification_control"], figures["identification_true_clips"]
    seen = low > figures["identification_control_interval"][1]
    state = "good" if high >= figures["identification_true_clips_interval"][0] else "mixed" if seen else "bad"
    words = (
        f"In {count} clips of as many subjects that no part of the model ever saw, the classifier picks the right one of "
        f"{candidates} references in {percent(figures['identification'])} (95% interval {percent(low)} to {percent(high)}). "
        f"Without a reference image it is {percent(control)}, in true clips {percent(true)}."
    )
    gaps = [(figures[bound] - figures[name], said) for said, name, _, bound in ROWS if bound and name != "identification"]
    gap, weakest = max(gaps)
    points = [("Farthest from true clips", f"{weakest.lower()}: {100 * gap:.0f} points below")] if gap > 0 else []
    advice = (
        "Nothing: the clips are named as well as true ones."
        if state == "good"
        else "Look at the worst subjects below: what do they lack, color, shape or details?"
        if seen
        else "The clips show no more of their references than chance would: train further, or check that the model sees them."
    )
    return Headline(state, f"{percent(figures['identification'])} identified", words, [*points, ("What to do", advice)])


def _row(words: str, name: str, control: str, true: str, figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """A figure with its interval, and where it, its control and its upper bound lie on a line from 0 to 100; None if absent."""
    if figures.get(name) is None or math.isnan(figures[name]):
        return None
    named = {"value": name, "control": control, "true": true}
    return {
        "words": words,
        **{key: (figures[each], figures[f"{each}_interval"]) if each else None for key, each in named.items()},
    }


def _chart(ranks: Sequence[Ranks], candidates: int) -> Chart:
    """Share of clips whose right reference is among the first so many."""
    x = Axis("the right reference is among the first", 1, candidates, math.log)
    series = []
    for kind in ranks:
        places = np.array([candidates + 1 if rank is None else rank + 1 for rank in kind.ranks])
        points = [(float(k), 100 * float((places <= k).mean())) for k in range(1, candidates + 1)] if len(places) else []
        series.append((kind.words, points))
    return curves("Share of clips by the rank of their reference", x, Axis("clips (%)", 0, 100), series)
