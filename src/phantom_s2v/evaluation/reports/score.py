"""The page of scored videos: one HTML file that opens anywhere, worst videos and worst frames first."""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phantom_s2v.evaluation.kpi import Verdict, verdict_of
from phantom_s2v.evaluation.metrics.table import TABLE
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media.images import letterbox
from phantom_s2v.media.pages import figure, write_page

SIDE = 112  # pixels of an image on the page
WORST = 6  # frames shown
SHOWN = 100  # videos shown with images
Rank = tuple[bool, int, float, int]


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
        self._worst: list[tuple[Rank, str]] = []
        self._rows: list[tuple[Rank, str]] = []

    def add(self, video: Scored) -> None:
        """Take a video in."""
        rank = _rank(video, len(self._rows))
        self._rows.append((rank, _row(video)))
        self._worst = sorted([*self._worst, (rank, _section(video))])[:SHOWN]

    def write(self, path: Path, notes: list[str]) -> None:
        """Write the page; `notes` say what was measured with, and what was not measured and why."""
        parts = [f"<p>{html.escape(note)}</p>" for note in notes]
        if len(self._rows) > 1:
            head = "<tr><th>video<th>similarity<th>faults<th>KPIs missed"
            parts.append(f"<table>{head}{''.join(row for _, row in sorted(self._rows))}</table>")
        if len(self._rows) > SHOWN:
            parts.append(f"<p>Of {len(self._rows)} videos the worst {SHOWN} are shown below.</p>")
        write_page(path, "Scores", [*parts, *(section for _, section in self._worst)])


def _rank(each: Scored, number: int) -> Rank:
    """The worst first: what could not be read, then by faults and KPIs missed, then by similarity."""
    similarity = each.score.similarity if each.score else 0.0
    found = len(each.faults) + sum(v.met is False for v in each.verdicts)
    return not each.unreadable, -found, similarity if similarity == similarity else -1.0, number


def _row(each: Scored) -> str:
    if each.score is None:
        return f"<tr><td>{html.escape(each.name)}<td><td class=bad>not measured<td>"
    similarity = f"{each.score.similarity:.3f}" if each.score.similarity == each.score.similarity else "not measured"
    missed = ", ".join(v.kpi.metric for v in each.verdicts if v.met is False)
    return f"<tr><td>{html.escape(each.name)}<td>{similarity}<td>{', '.join(each.faults) or 'none'}<td>{missed or 'none'}"


def _section(each: Scored) -> str:
    if each.score is None:
        return f"<h2>{html.escape(each.name)}</h2><p class=bad>Not measured: {html.escape(each.unreadable)}</p>"
    found, video = each.score, each.frames
    said = "; ".join(f"{fault}{': ' + ', '.join(who) if any(who) else ''}" for fault, who in each.faults.items())
    head = f"<h2>{html.escape(each.name)}</h2><p class={'bad' if said else 'good'}>{html.escape(said) or 'No fault found.'}</p>"
    subjects = "".join(
        _subject(s, image, video, found.frames_looked_at) for s, image in zip(found.subjects, each.references, strict=True)
    )
    rows = [(m.name, getattr(found, m.name)) for m in TABLE if not m.of_subjects] + [("reconstruction", found.reconstruction)]
    cells = "".join(f"<tr><td>{name}<td>{value:.4g}" for name, value in rows if value == value)
    absent = "".join(
        f"<tr><td>{html.escape(name)}<td>not measured: {html.escape(why)}" for name, why in found.not_measured.items()
    )
    notes = "".join(f"<p>{html.escape(note)}.</p>" for note in found.notes)
    return f"{head}{_verdicts(each.verdicts)}{notes}{subjects}<table>{cells}{absent}</table>"


def _verdicts(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return ""
    rows = ""
    for v in verdicts:
        kind = "good" if v.met else "bad"
        bounds = " ".join(f"{k} {b:g}" for k, b in (("least", v.kpi.least), ("most", v.kpi.most)) if b is not None)
        value = "" if v.value is None else f"{v.value:.3g}"
        rows += f"<tr><td>{v.kpi.metric}<td>{value}<td>{bounds}<td class={kind}>{verdict_of(v)}<td>{html.escape(v.kpi.reason)}"
    return f"<table><tr><th>KPI<th>value<th>bound<th>verdict<th>reason{rows}</table>"


def _subject(found: SubjectScore, reference: np.ndarray, video: dict[int, np.ndarray], frames: list[int]) -> str:
    """A reference, its similarity over time, and the frames in which it is least itself."""
    order = np.argsort(found.over_time)[:WORST].tolist()
    figures = _framed(reference, html.escape(found.name))
    figures += "".join(_framed(video[frames[i]], f"frame {frames[i]}: {_said(found.over_time[i])}") for i in order)
    figures += "".join(_framed(video[i], f"frame {i}: the reference itself") for i in found.flash_frames[:2])
    region = f"similarity {found.similarity:.3f}, lowest {found.lowest:.3f} in frame {found.lowest_frame}"
    said = [
        region if found.seen else "similarity not measured: it was seen in no frame",
        f"whole frames {found.whole:.3f}, lowest {found.whole_lowest:.3f} in frame {found.whole_lowest_frame}",
        f"seen in {100 * found.seen:.0f}% of frames",
        f"pasted {found.copy_paste:.2f}",
    ]
    if found.face == found.face:
        lowest = f"lowest {found.face_lowest:.3f} in frame {found.face_lowest_frame}"
        said.append(f"face {found.face:.3f}, {lowest}, seen in {100 * found.face_seen:.0f}% of frames")
    values = {
        **{m.name: getattr(found, m.name) for m in TABLE if m.network in ("clip_i", "dino_i")},
        "reconstruction, dB": found.reconstruction,
    }
    said += [f"{name} {value:.3f}" for name, value in values.items() if value == value]
    return f"<h3>{html.escape(found.name)}</h3><p>{'; '.join(said)}</p>{_plot(found.over_time)}<br>{figures}"


def _said(value: float) -> str:
    return "not seen" if value <= -1 else f"{value:.2f}"


def _plot(values: list[float]) -> str:
    """Similarity over the frames looked at, from -0.2 to 1."""
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


def _framed(image: np.ndarray, words: str) -> str:
    return figure([letterbox(image, SIDE, SIDE)], words)
