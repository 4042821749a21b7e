"""Scores of files: a video or a folder of them against references, one after the other, so that memory stays flat."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v import media
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.kpi import Kpi, judge
from phantom_s2v.evaluation.page import Scored, write_scores
from phantom_s2v.evaluation.score import LIMITS, as_json, faults, score
from phantom_s2v.evaluation.subjects import Embed
from phantom_s2v.request import split_reference

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
NOT_MEASURED = "Text score, CLIP-I, DINO-I and the aesthetic predictor were not measured: their models come from a hub."
Box = tuple[float, float, float, float]


@dataclass
class Found:
    """What became of the videos."""

    lines: list[str] = field(default_factory=list)
    missed: int = 0  # KPIs
    unreadable: int = 0
    summary: dict[str, Any] = field(default_factory=dict)


def read_references(texts: list[str]) -> list[tuple[str, np.ndarray]]:
    """(name, picture) of every "[NAME=]PATH", each another subject. Raises InputError for a picture that cannot be read."""
    named = (split_reference(text, number) for number, text in enumerate(texts))
    return [(name, media.read_picture(Path(path))[0]) for name, path in named]


def parse_crop(text: str) -> Box:
    """(left, top, right, bottom) in shares. Raises InputError for anything else."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"crop is {text!r}; legal is LEFT,TOP,RIGHT,BOTTOM in shares such as 0,0.2,1,1") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"crop is {text!r}; legal are shares of 0 to 1 with left < right and top < bottom")
    return left, top, right, bottom


@dataclass(frozen=True)
class Asked:
    """What videos are held against, and by what."""

    references: list[tuple[str, np.ndarray]]  # name and picture of each subject
    prompt: str
    features: str  # name of `embed`
    embed: Embed
    crop: Box
    kpis: list[Kpi]


def score_all(videos: Path, asked: Asked, out: Path | None, report: Callable[[int, int], None]) -> Found:
    """Score every video, write the page where it is asked for, and sum up. Raises InputError where there is nothing to score."""
    paths = [videos] if videos.is_file() else sorted(p for p in videos.glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{videos} is neither a video nor a folder with one; {', '.join(SUFFIXES)} are read")
    if out:
        media.check_writable(out)
    features, found = asked.features, Found()
    scored: list[Scored] = []
    rows = []
    for number, path in enumerate(paths, 1):
        each, row = _one(path, asked)
        found.unreadable += bool(each.unreadable)
        found.missed += sum(v.met is False for v in each.verdicts)
        found.lines.append(_line(each))
        rows.append(row)
        scored.append(each)
        report(number, len(paths))
    if found.unreadable == len(paths):
        raise InputError(f"none of {len(paths)} videos could be read; {scored[0].name}: {scored[0].unreadable}")
    if out:
        notes = [f"Likeness is measured by {features}, on what stands out in ten frames.", NOT_MEASURED]
        write_scores(out, scored, notes)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        media.write_beside(out.with_suffix(".jsonl"), lambda scratch: scratch.write_text(text, encoding="utf-8"))
    likeness = [s.score.likeness for s in scored if s.score and s.score.subjects and s.score.likeness == s.score.likeness]
    found.summary = {
        "videos": len(paths),
        "unreadable": found.unreadable,
        "features": features,
        f"likeness_{features}": round(float(np.mean(likeness)), 4) if likeness else None,
        "with_faults": sum(bool(s.faults) for s in scored),
        "kpis_missed": found.missed,
        "limits": asdict(LIMITS[features]),
    }
    return found


def _one(path: Path, asked: Asked) -> tuple[Scored, dict[str, Any]]:
    """A video's score and its row; of the frames only those are kept that a page can show."""
    pictures, names = [p for _, p in asked.references], [n for n, _ in asked.references]
    limits = LIMITS[asked.features]
    try:
        frames, _ = media.read_video(path)
    except InputError as error:
        empty = Scored(path.name, {}, pictures, None, {}, [], str(error))
        return empty, {"video": path.name, "unreadable": str(error)}
    height, width = frames.shape[1:3]
    left, top, right, bottom = (round(share * side) for share, side in zip(asked.crop, (width, height) * 2, strict=True))
    video = frames[:, top:bottom, left:right]
    found = score(video, pictures, names, asked.prompt, asked.embed, limits)
    wrong = faults(found, limits)
    shown = {i: video[i].copy() for i in found.frames_looked_at + [i for s in found.subjects for i in s.flash_frames[:2]]}
    verdicts = judge(found, asked.kpis)
    row = {"video": path.name, **as_json(found, wrong, asked.features)}
    row["kpis"] = {v.kpi.metric: v.met for v in verdicts}
    return Scored(path.name, shown, pictures, found, wrong, verdicts), row


def _line(each: Scored) -> str:
    if each.unreadable:
        return f"{each.name}: not measured: {each.unreadable}"
    assert each.score
    said = ", ".join(each.faults) or "no fault"
    subjects = "; ".join(
        f"{s.name} {s.likeness:.3f} (lowest {s.lowest:.3f} in frame {s.lowest_frame}), whole frames {s.whole:.3f}"
        for s in each.score.subjects
    )
    missed = ", ".join(f"{v.kpi.metric} missed" for v in each.verdicts if v.met is False)
    return f"{each.name}: {said}" + (f"; {subjects}" if subjects else "") + (f"; {missed}" if missed else "")
