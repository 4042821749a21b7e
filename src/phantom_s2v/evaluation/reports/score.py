"""The page of scored videos: one HTML file that opens anywhere, worst videos and worst frames first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from phantom_s2v.evaluation.kpi import Kpi, Verdict, verdict_of
from phantom_s2v.evaluation.metrics.table import TABLE
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media.images import letterbox
from phantom_s2v.media.pages import render, write_page

SIDE = 112  # pixels of an image on the page
WORST = 6  # frames shown
SHOWN = 100  # videos shown with images
PLOT = 480, 90  # width and height of a curve
Rank = tuple[bool, int, float, int]
Row = tuple[str, str, str, str, bool]  # name, similarity, faults, KPIs missed, whether it could be read


@dataclass(frozen=True)
class Scored:
    """A video with its score, or the reason why it has none."""

    name: str
    frames: dict[int, np.ndarray]  # those that the page can show
    references: list[np.ndarray]
    score: VideoScore | None
    faults: dict[str, list[str]]
    verdicts: list[Verdict]
    unreadable: str = ""


class ScorePage:
    """Collects videos one by one; keeps text alone, with images of the worst SHOWN, so that memory hardly grows with them."""

    def __init__(self) -> None:
        self._worst: list[tuple[Rank, Markup]] = []
        self._rows: list[tuple[Rank, Row]] = []

    def add(self, video: Scored) -> None:
        """Take a video in."""
        rank = _rank(video, len(self._rows))
        self._rows.append((rank, _row(video)))
        self._worst = sorted([*self._worst, (rank, _section(video))])[:SHOWN]

    def write(self, path: Path, notes: list[str]) -> None:
        """Write the page; `notes` say what was measured with, and what was not measured and why."""
        rows, sections = ([each for _, each in some] for some in (sorted(self._rows), self._worst))
        write_page(path, "scores.html", title="Scores", notes=notes, rows=rows, sections=sections)


def _rank(each: Scored, number: int) -> Rank:
    """The worst first: what could not be read, then by faults and KPIs missed, then by similarity."""
    similarity = each.score.similarity if each.score else 0.0
    fault_count = len(each.faults) + sum(v.met is False for v in each.verdicts)
    return not each.unreadable, -fault_count, similarity if similarity == similarity else -1.0, number


def _row(each: Scored) -> Row:
    if each.score is None:
        return each.name, "", "", "", False
    similarity = f"{each.score.similarity:.3f}" if each.score.similarity == each.score.similarity else "not measured"
    missed = ", ".join(v.kpi.metric for v in each.verdicts if v.met is False)
    return each.name, similarity, ", ".join(each.faults) or "none", missed or "none", True


def _section(each: Scored) -> Markup:
    """What the page says of a video, with its images, as HTML."""
    score, values = each.score, {}
    if score is not None:
        rows = [(m.name, getattr(score, m.name)) for m in TABLE if not m.of_subjects] + [("reconstruction", score.reconstruction)]
        pairs = zip(score.subjects, each.references, strict=True)
        values = {
            "faults": "; ".join(f"{fault}{': ' + ', '.join(who) if any(who) else ''}" for fault, who in each.faults.items()),
            "subjects": [_subject(one, image, each.frames, score.frames_looked_at) for one, image in pairs],
            "measured": [(name, f"{value:.4g}") for name, value in rows if value == value],
        }
    words = {"verdict_of": verdict_of, "bounds_of": _bounds, "plot_width": PLOT[0], "plot_height": PLOT[1]}
    return Markup(render("scored_video.html", video=each, verdicts=each.verdicts, **values, **words))


def _bounds(kpi: Kpi) -> str:
    return " ".join(f"{name} {bound:g}" for name, bound in (("min", kpi.min), ("max", kpi.max)) if bound is not None)


def _subject(score: SubjectScore, reference: np.ndarray, video: dict[int, np.ndarray], frames: list[int]) -> dict[str, Any]:
    """A reference, its similarity over time, and the frames with the lowest similarity."""
    order = np.argsort(score.over_time)[:WORST].tolist()
    figures = [(reference, score.name)]
    figures += [(video[frames[i]], f"frame {frames[i]}: {_format_score(score.over_time[i])}") for i in order]
    figures += [(video[i], f"frame {i}: the reference itself") for i in score.flash_frames[:2]]
    figures = [(letterbox(image, SIDE, SIDE), words) for image, words in figures]
    line, marks = _plot(score.over_time)
    return {"name": score.name, "facts": _facts(score), "line": line, "marks": marks, "figures": figures}


def _facts(score: SubjectScore) -> list[str]:
    """What was measured of a subject, in words."""
    region = f"similarity {score.similarity:.3f}, minimum {score.similarity_min:.3f} in frame {score.similarity_min_frame}"
    facts = [
        region if score.seen else "similarity not measured: it was seen in no frame",
        f"whole frames {score.whole:.3f}, minimum {score.whole_min:.3f} in frame {score.whole_min_frame}",
        f"seen in {100 * score.seen:.0f}% of frames",
        f"pasted {score.copy_paste:.2f}",
    ]
    if score.face == score.face:
        minimum = f"minimum {score.face_min:.3f} in frame {score.face_min_frame}"
        facts.append(f"face {score.face:.3f}, {minimum}, seen in {100 * score.face_seen:.0f}% of frames")
    values = {
        **{m.name: getattr(score, m.name) for m in TABLE if m.network in ("clip_i", "dino_i")},
        "reconstruction, dB": score.reconstruction,
    }
    return facts + [f"{name} {value:.3f}" for name, value in values.items() if value == value]


def _format_score(value: float) -> str:
    return "not seen" if value <= -1 else f"{value:.2f}"


def _plot(values: list[float]) -> tuple[str, list[tuple[str, str, str]]]:
    """Points of similarity over the frames looked at, from -0.2 to 1: as a line, and as marks (x, y, words)."""
    width, height = PLOT
    x = np.linspace(8, width - 8, max(2, len(values)))
    y = [(1 - (max(-0.2, v) + 0.2) / 1.2) * (height - 10) + 5 for v in values]
    places = [(f"{a:.0f}", f"{b:.0f}") for a, b in zip(x, y, strict=False)]
    return " ".join(f"{a},{b}" for a, b in places), [(a, b, _format_score(v)) for (a, b), v in zip(places, values, strict=True)]
