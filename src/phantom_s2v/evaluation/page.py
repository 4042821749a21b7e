"""The page of scored videos: one HTML file that opens anywhere, worst videos and worst frames first."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phantom_s2v.evaluation.kpi import Verdict
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media import letterbox
from phantom_s2v.pages import figure, write_page

SIDE = 112  # pixels of a picture on the page
WORST = 6  # frames shown


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


def write_scores(path: Path, videos: list[Scored], notes: list[str]) -> None:
    """Write the page; `notes` say what was measured with, and what was not measured and why."""

    def rank(each: Scored) -> tuple[bool, int, float]:
        likeness = each.score.likeness if each.score and each.score.subjects else 1.0
        return not each.unreadable, -len(each.faults) - sum(v.met is False for v in each.verdicts), likeness

    parts = [*[f"<p>{html.escape(note)}</p>" for note in notes]]
    parts += [_section(each) for each in sorted(videos, key=rank)]
    write_page(path, "Scores", parts)


def _section(each: Scored) -> str:
    if each.score is None:
        return f"<h2>{html.escape(each.name)}</h2><p class=bad>Not measured: {html.escape(each.unreadable)}</p>"
    found, video = each.score, each.frames
    said = "; ".join(f"{fault}{': ' + ', '.join(who) if any(who) else ''}" for fault, who in each.faults.items())
    head = f"<h2>{html.escape(each.name)}</h2><p class={'bad' if said else 'good'}>{html.escape(said) or 'No fault found.'}</p>"
    subjects = "".join(
        _subject(s, picture, video, found.frames_looked_at) for s, picture in zip(found.subjects, each.references, strict=True)
    )
    rows = [(name, getattr(found, name)) for name in ("motion_fb", "frozen", "flicker", "smoothness", "sharpness", "swapped")]
    cells = "".join(f"<tr><td>{name}<td>{value:.4g}" for name, value in rows)
    return f"{head}{_verdicts(each.verdicts)}{subjects}<table>{cells}</table>"


def _verdicts(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return ""
    rows = ""
    for v in verdicts:
        word, kind = ("not measured", "bad") if v.met is None else ("met", "good") if v.met else ("missed", "bad")
        bounds = " ".join(f"{k} {b:g}" for k, b in (("least", v.kpi.least), ("most", v.kpi.most)) if b is not None)
        value = "" if v.value is None else f"{v.value:.3g}"
        rows += f"<tr><td>{v.kpi.metric}<td>{value}<td>{bounds}<td class={kind}>{word}<td>{html.escape(v.kpi.reason)}"
    return f"<table><tr><th>KPI<th>value<th>bound<th>verdict<th>reason{rows}</table>"


def _subject(found: SubjectScore, reference: np.ndarray, video: dict[int, np.ndarray], frames: list[int]) -> str:
    """A reference, its likeness over time, and the frames in which it is least itself."""
    order = np.argsort(found.over_time)[:WORST].tolist()
    figures = _framed(reference, html.escape(found.name))
    figures += "".join(_framed(video[frames[i]], f"frame {frames[i]}: {_said(found.over_time[i])}") for i in order)
    figures += "".join(_framed(video[i], f"frame {i}: the reference itself") for i in found.flash_frames[:2])
    return (
        f"<h3>{html.escape(found.name)}</h3><p>likeness {found.likeness:.3f}, lowest {found.lowest:.3f} in frame "
        f"{found.lowest_frame}; whole frames {found.whole:.3f}, lowest {found.whole_lowest:.3f} in frame "
        f"{found.whole_lowest_frame}; seen in {100 * found.seen:.0f}% of frames; pasted {found.copy_paste:.2f}</p>"
        f"{_plot(found.over_time)}<br>{figures}"
    )


def _said(value: float) -> str:
    return "not seen" if value <= -1 else f"{value:.2f}"


def _plot(values: list[float]) -> str:
    """Likeness over the frames looked at, from -0.2 to 1."""
    width, height = 480, 90
    x = np.linspace(8, width - 8, max(2, len(values)))
    y = [(1 - (max(-0.2, v) + 0.2) / 1.2) * (height - 10) + 5 for v in values]
    line = " ".join(f"{a:.0f},{b:.0f}" for a, b in zip(x, y, strict=False))
    marks = "".join(
        f'<circle cx="{a:.0f}" cy="{b:.0f}" r="3"><title>{_said(v)}</title></circle>'
        for a, b, v in zip(x, y, values, strict=False)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}"><polyline points="{line}" fill="none" stroke="#69c"/>{marks}</svg>'
    )


def _framed(picture: np.ndarray, words: str) -> str:
    return figure([letterbox(picture, SIDE, SIDE)], words)
