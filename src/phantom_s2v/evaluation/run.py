"""Scores of files: a video or a folder of them against references, one after the other, so that memory stays flat."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from phantom_s2v.errors import InputError, NotFiniteError
from phantom_s2v.evaluation.footage import watch
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.kpi import Kpi, evaluate_kpis, verdict_of
from phantom_s2v.evaluation.metrics.table import TABLE, network_of
from phantom_s2v.evaluation.reports.score import Scored, ScorePage
from phantom_s2v.evaluation.score import as_json, faults, mean_of, score_footage, stranger_similarity
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import check_outputs, writing
from phantom_s2v.files.reuse import origin_hash
from phantom_s2v.media import images
from phantom_s2v.media.pages import later_pages
from phantom_s2v.media.videos import Timed, Video
from phantom_s2v.pipeline.request import split_reference

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
SMALLEST = 16  # pixels a side of a video that can be scored
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass
class SuiteResult:
    """What became of the videos."""

    lines: list[str] = field(default_factory=list)
    missed: int = 0  # KPIs
    unreadable: int = 0
    with_faults: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)  # metric -> sum and number of the videos that have it

    def add(self, each: Scored) -> None:
        """Take in a video: its line is kept, of its metrics only the sums."""
        self.unreadable += bool(each.unreadable)
        self.missed += sum(v.met is False for v in each.verdicts)
        self.with_faults += bool(each.faults)
        self.lines.append(_line(each))
        for metric in (m.name for m in TABLE if m.in_summary):
            if each.score and (value := mean_of(each.score, metric)) == value:
                total, count = self.sums.get(metric, (0.0, 0))
                self.sums[metric] = (total + value, count + 1)

    def means(self, tools: Instruments) -> dict[str, float]:
        """Means over the videos that have a value, under the names of metric and network."""
        named = {
            metric: f"{metric}_{network}" if (network := network_of(metric, tools.all_names())) else metric
            for metric in self.sums
        }
        return {named[metric]: round(total / count, 4) for metric, (total, count) in self.sums.items()}


def name_references(texts: list[str]) -> list[tuple[str, Path]]:
    """(name, file) of every "[NAME=]PATH", each another subject. Raises InputError for an image that cannot be read."""
    named = [split_reference(text, number) for number, text in enumerate(texts)]
    for _, path in named:
        images.read_image(Path(path))
    return [(name, Path(path)) for name, path in named]


def parse_crop(text: str) -> Box:
    """(left, top, right, bottom) in shares. Raises InputError for anything else."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"crop must be LEFT,TOP,RIGHT,BOTTOM as fractions, such as 0,0.2,1,1 (got {text!r})") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"crop must be fractions 0 to 1 with left < right and top < bottom (got {text!r})")
    return left, top, right, bottom


@dataclass(frozen=True)
class Asked:
    """What a video is held against, and by what."""

    references: list[tuple[str, Path]]  # name and image of each subject
    prompt: str
    tools: Instruments
    crop: Box = WHOLE
    kpis: list[Kpi] = field(default_factory=list)
    stranger: Path | None = None  # an image of another case: similarity to it is the control
    label: dict[str, str] = field(default_factory=dict)  # what the row says of the case

    @property
    def hash(self) -> str:
        """Of prompt, references by content, and crop: scores of one case are compared where it is the same."""
        references = [[name, content_hash(path)] for name, path in self.references]
        return origin_hash({"prompt": self.prompt, "references": references, "crop": self.crop})


def find_videos(place: Path) -> list[Path]:
    """A video, or those of a folder in the order of their names. Raises InputError where there is none."""
    paths = [place] if place.is_file() else sorted(p for p in place.glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{place} must be a video or a folder of videos ({', '.join(SUFFIXES)})")
    return paths


def score_all(todo: Sequence[tuple[Path, Asked]], out: Path | None, report: Callable[[int, int], None]) -> SuiteResult:
    """Score every video against what is asked of it, one after the other; write the page where it is asked for, and sum up.

    Raises InputError where none can be read.
    """
    if out:
        check_outputs([out, *later_pages(out), out.with_suffix(".jsonl")], force=True)
    tools = todo[0][1].tools
    result, page = SuiteResult(), ScorePage(tools.limits, tools.all_names())
    with writing(out.with_suffix(".jsonl"), sealed=True) if out else nullcontext() as file:
        for number, (path, asked) in enumerate(todo, 1):
            each, row = score_one(path, asked)
            result.add(each)
            page.add(each)
            if file:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
            report(number, len(todo))
        if result.unreadable == len(todo):
            raise InputError(f"none of {len(todo)} videos could be read; {result.lines[0]}")
    if out:
        page.write(out, [*_region(todo[0][1].crop), *_measured_by(tools)], result.means(tools))
    result.summary = {
        "videos": len(todo),
        "unreadable": result.unreadable,
        "backend": tools.backend,
        "networks": tools.all_names(),
        **result.means(tools),
        "with_faults": result.with_faults,
        "kpis_missed": result.missed,
        "limits": asdict(tools.limits),
    }
    return result


def _region(crop: Box) -> list[str]:
    """Which part of the frames was scored, where it is not all of them: the videos on a page play whole."""
    left, top, right, bottom = (f"{100 * share:g}%" for share in crop)
    words = f"Only a part of the frames was scored: {left} to {right} of the width, {top} to {bottom} of the height."
    return [] if crop == WHOLE else [f"{words} The videos play whole."]


def _measured_by(tools: Instruments) -> list[str]:
    others = ", ".join(f"{metric} by {name}" for metric, name in tools.names.items())
    notes = [f"Similarity is measured by {tools.features}, on what stands out in ten frames{'; ' + others if others else ''}."]
    return [*notes, f"An image counts as pasted from {tools.limits.pasted:g} on."]


@dataclass(frozen=True)
class Cropped:
    """A video of which only a part of the frames counts."""

    video: Video
    box: Box

    def frames(self) -> Iterator[Timed]:
        """(seconds, uint8 [H, W, 3]) of every frame."""
        for now, frame in self.video.frames():
            height, width = frame.shape[:2]
            left, top, right, bottom = (round(share * side) for share, side in zip(self.box, (width, height) * 2, strict=True))
            part = frame[top:bottom, left:right]
            if min(part.shape[:2]) < SMALLEST:
                raise InputError(
                    f"videos must have at least {SMALLEST} pixels per side (got {part.shape[1]}x{part.shape[0]} for "
                    f"{self.video.name})"
                )
            yield now, part


def score_one(path: Path, asked: Asked) -> tuple[Scored, dict[str, Any]]:
    """A video's score and its row; of the frames only those are kept that a page can show.

    One that cannot be read, or of which a number is not finite, is unreadable: the others of a run go on.
    """
    reference_images, names = [images.read_image(p)[0] for _, p in asked.references], [n for n, _ in asked.references]
    alphas = [images.read_alpha(p) for _, p in asked.references]
    other = images.read_image(asked.stranger)[0] if asked.stranger else None
    video = Video(path)
    try:
        footage, notices = watch(Cropped(video, asked.crop), reference_images, asked.tools), list(video.facts.notices)
        score = score_footage(footage, reference_images, names, asked.prompt, asked.tools, alphas)
        control = {} if other is None else {"control": stranger_similarity(footage, other, asked.tools)}
    except (InputError, NotFiniteError) as error:
        empty = Scored(path.name, {}, [], None, {}, [], str(error), kind=asked.label.get("kind", ""))
        return empty, {**asked.label, "video": path.name, "unreadable": str(error)}
    score = replace(score, notes=[*notices, *score.notes])
    wrong = faults(score, asked.tools.limits)
    verdicts = evaluate_kpis(score, asked.kpis)
    row = {**asked.label, "video": path.name, "asked": asked.hash, **as_json(score, wrong, asked.tools), **control}
    row["kpis"] = {v.kpi.metric: v.met for v in verdicts}
    seconds = {number: float(footage.small.seconds[number]) for number in footage.stills}
    kind = asked.label.get("kind", "")
    return Scored(path.name, footage.stills, reference_images, score, wrong, verdicts, "", seconds, path, kind), row


def _line(each: Scored) -> str:
    if each.unreadable:
        return f"{each.name}: not measured: {each.unreadable}"
    assert each.score
    parts = [f"{each.name}: {', '.join(each.faults) or 'no fault'}"]
    for s in each.score.subjects:
        region = (
            f"{s.similarity:.3f} (minimum {s.similarity_min:.3f} in frame {s.similarity_min_frame})"
            if s.seen
            else "seen in no frame"
        )
        parts.append(f"{s.name} {region}, whole frames {s.whole:.3f}" + (f", face {s.face:.3f}" if s.face == s.face else ""))
    parts += [f"{v.kpi.metric} {verdict_of(v)}" for v in each.verdicts if not v.met]
    own = {name: why for name, why in each.score.not_measured.items() if "frame" in why}
    parts += [f"{name} not measured: {why}" for name, why in own.items()]
    return "; ".join([*parts, *each.score.notes])
