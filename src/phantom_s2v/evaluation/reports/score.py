"""The report of scored videos: the verdict, then the worst videos with their worst frames beside the reference."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from phantom_s2v.evaluation.instruments import Thresholds
from phantom_s2v.evaluation.kpi import Kpi, Verdict, verdict_of
from phantom_s2v.evaluation.metrics.table import TABLE, Metric, network_of
from phantom_s2v.evaluation.reports.words import KPI_MISSED, UNREADABLE, explained, fault_words, threshold
from phantom_s2v.evaluation.score import SubjectScore, VideoScore
from phantom_s2v.media.charts import Axis, Bound, Chart, curve
from phantom_s2v.media.pages import Cases, Headline, preview, render, share_state, shown, write_pages

WORST = 4  # frames shown of a subject
WITH_VIDEO = 100  # videos that can be played on the report, the worst ones
LISTED = 50  # different reasons and notes
KPI = "KPI missed: "


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
    seconds: dict[int, float] = field(default_factory=dict)  # when those frames are shown
    path: Path | None = None  # of the video, where it can be played
    kind: str = ""  # of case, in a suite

    @property
    def missed(self) -> list[str]:
        """Metrics whose KPI is missed."""
        return [v.kpi.metric for v in self.verdicts if v.met is False]

    @property
    def passes(self) -> bool:
        """Whether it was read, has no fault and misses no KPI."""
        return not (self.unreadable or self.faults or self.missed)


@dataclass
class _Kind:
    """Of one kind of case."""

    videos: int = 0
    passed: int = 0
    measured: int = 0
    similarity: float = 0.0  # sum


class ScorePage:
    """Takes in videos one by one; what the pages show of them waits on disk, so that memory hardly grows with them."""

    def __init__(self, limits: Thresholds, networks: Mapping[str, str]) -> None:
        self.limits, self.networks = limits, networks
        self._cases, self._kinds = Cases(), dict[str, _Kind]()
        self._wrong, self._absent, self._notes = Counter[str](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()

    def add(self, video: Scored) -> None:
        """Take a video in."""
        facts = {
            "name": video.name,
            "passes": video.passes,
            "wrong": _wrong(video),
            "similarity": _number(video.score.similarity) if video.score else "",
            "path": str(video.path or ""),
            "around": _worst_moment(video),
        }
        self._cases.add(_rank(video), facts, self._section(video))
        kind = self._kinds.setdefault(video.kind, _Kind())
        kind.videos, kind.passed = kind.videos + 1, kind.passed + video.passes
        self._wrong.update([*video.faults, *(KPI + name for name in video.missed), *(["unreadable"] if video.unreadable else [])])
        if video.score:
            if video.score.similarity == video.score.similarity:
                kind.measured, kind.similarity = kind.measured + 1, kind.similarity + video.score.similarity
            _count(self._absent, video.score.not_measured.items())
            _count(self._notes, ((note, "") for note in video.score.notes))

    def write(self, path: Path, notes: list[str], means: Mapping[str, float] | None = None) -> None:
        """Write the pages; `notes` say what was measured with, `means` are those over the videos."""
        total = len(self._cases)
        write_pages(
            path,
            "scores.html",
            self._cases,
            _with_video,
            title=f"Scores of {total} {'video' if total == 1 else 'videos'}",
            headline=self._headline(),
            wrong=self._wrong.most_common(),
            kinds=[(name or "all", k.videos, k.passed, k.similarity / k.measured if k.measured else None)
                   for name, k in self._kinds.items()] if len(self._kinds) > 1 else [],
            means=sorted((means or {}).items()),
            notes=notes,
            remarks=[(note, count) for (note, _), count in self._notes.most_common()],
            absent=[(name, why, count) for (name, why), count in self._absent.most_common()],
            with_video=WITH_VIDEO,
        )  # fmt: skip

    def _headline(self) -> Headline:
        """What share passes, which fault is the most frequent, and what to do."""
        total, passed = len(self._cases), sum(kind.passed for kind in self._kinds.values())
        low, high = stats.binomtest(passed, total).proportion_ci(0.95, "wilson") if total else (0.0, 1.0)
        words = "have no fault and meet every KPI" if any(each.startswith(KPI) for each in self._wrong) else "have no fault"
        if total > 1:
            words += f" ({100 * passed / total:.0f}%; 95% interval {100 * low:.0f} to {100 * high:.0f}%)"
        points = []
        for name, count in self._wrong.most_common(1):
            points.append(("Most frequent fault", f"{name}, in {count} of {total} videos") if total > 1 else ("Fault", name))
            points.append(("What to do", _advice(name)))
        if (unreadable := self._wrong["unreadable"]) and unreadable < max(self._wrong.values()):
            points.append(("Not readable", f"{unreadable} of {total} videos: {UNREADABLE}"))
        said = f"{passed} of {total} videos {words}." if total > 1 else f"The video {'passes' if passed else 'does not pass'}."
        return Headline(share_state(passed, total), f"{passed} of {total} pass", said, points)

    def _section(self, video: Scored) -> str:
        """What the page says of a video, with its images, as HTML."""
        score = video.score
        if score is None:
            return render("unreadable.html", reason=video.unreadable)
        pairs = zip(score.subjects, video.references, strict=True)
        return render(
            "scored_video.html",
            faults=[explained(fault, who, score, self.limits) for fault, who in video.faults.items()],
            kpis=[(v.kpi.metric, _number(v.value), _bounds(v.kpi), verdict_of(v), v.met, v.kpi.reason) for v in video.verdicts],
            subjects=[self._subject(one, image, video, score) for one, image in pairs],
            measured=self._values([m for m in TABLE if not m.of_subjects], score),
        )  # fmt: skip

    def _values(self, metrics: list[Metric], part: SubjectScore | VideoScore) -> list[tuple[str, ...]]:
        """Name, value, threshold and network of all that was measured."""
        rows = []
        for metric in metrics:
            value = getattr(part, metric.name)
            if value is None or value != value:
                continue
            bound = threshold(metric.name, part, self.limits)
            words = f"{'at least' if bound[1] else 'at most'} {bound[0]:g}" if bound else ""
            rows.append((metric.name, _number(value), words, network_of(metric.name, self.networks)))
        decibels = part.reconstruction
        return rows if decibels != decibels else [*rows, ("reconstruction", f"{decibels:.1f} dB", "", "")]

    def _subject(self, one: SubjectScore, reference: np.ndarray, video: Scored, score: VideoScore) -> dict[str, Any]:
        """A reference, its similarity over time, and the frames in which it is least itself."""
        looked = score.frames_looked_at
        order = np.argsort(one.over_time, kind="stable")[:WORST].tolist()
        frames = [(looked[i], _similarity(one.over_time[i])) for i in order]
        frames += [(i, "the reference itself") for i in one.flash_frames[:2] if i in video.frames]
        figures = [(shown(video.frames[i]), f"{_moment(i, video)}: {words}") for i, words in frames]
        return {
            "name": one.name,
            "facts": _facts(one),
            "reference": shown(reference),
            "figures": figures,
            "chart": self._chart(one, video, score) if len(one.over_time) > 1 else None,
            "measured": self._values([m for m in TABLE if m.of_subjects], one),
        }

    def _chart(self, one: SubjectScore, video: Scored, score: VideoScore) -> Chart:
        """Similarity over time, with the thresholds that hold for it."""
        looked = score.frames_looked_at
        timed = all(i in video.seconds for i in looked)
        at = [video.seconds[i] if timed else float(i) for i in looked]
        values = [None if v <= -1 else v for v in one.over_time]
        words = [f"{_moment(i, video)}: {_similarity(value)}" for i, value in zip(looked, one.over_time, strict=True)]
        bound = threshold("similarity", one, self.limits)
        bounds = [Bound(bound[0], f"threshold {bound[0]:g} (mean)")] if bound else []
        for verdict in video.verdicts:
            if verdict.kpi.metric in ("similarity", "similarity_min") and verdict.kpi.min is not None:
                bounds.append(Bound(verdict.kpi.min, f"KPI {verdict.kpi.metric} {verdict.kpi.min:g}"))
        low = min([0.0, *(v for v in values if v is not None)])
        x = Axis("time (s)" if timed else "frame", at[0], at[-1])
        return curve(
            f"Similarity of {one.name} over time",
            x,
            Axis("similarity", low, 1.0),
            list(zip(at, values, words, strict=True)),
            bounds,
        )


def _with_video(case: dict[str, Any]) -> dict[str, Any]:
    """A case with the video that its page plays, and the seconds where it begins."""
    playable = case["path"] and case["number"] <= WITH_VIDEO
    return {**case, "video": preview(Path(case["path"]), case["around"]) if playable else None}


def _rank(each: Scored) -> tuple[float, float, float]:
    """The worst first: what could not be read, then by faults and KPIs missed, then by similarity."""
    similarity = each.score.similarity if each.score else 0.0
    return (
        float(not each.unreadable),
        -float(len(each.faults) + len(each.missed)),
        similarity if similarity == similarity else -1.0,
    )


def _wrong(each: Scored) -> str:
    """What is wrong with a video, in a line."""
    faults = [f"{fault} ({', '.join(who)})" if any(who) else fault for fault, who in each.faults.items()]
    return ", ".join([*(["not readable"] if each.unreadable else []), *faults, *(KPI + name for name in each.missed)])


def _advice(name: str) -> str:
    said = UNREADABLE if name == "unreadable" else KPI_MISSED if name.startswith(KPI) else fault_words(name).advice
    return f"{said[0].upper()}{said[1:]}."


def _count(counter: Counter[tuple[str, str]], items: Any) -> None:
    """Count what is known already, and new ones while there is room."""
    counter.update(each for each in items if each in counter or len(counter) < LISTED)


def _bounds(kpi: Kpi) -> str:
    pairs = (("at least", kpi.min), ("at most", kpi.max))
    return " and ".join(f"{name} {bound:g}" for name, bound in pairs if bound is not None)


def _number(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _worst_moment(video: Scored) -> float:
    """When the frame is shown in which a subject is least itself, in seconds."""
    places = [(one.similarity_min, one.similarity_min_frame) for one in video.score.subjects if one.seen] if video.score else []
    return video.seconds.get(min(places)[1], 0.0) if places else 0.0


def _moment(frame: int, video: Scored) -> str:
    return f"frame {frame} ({video.seconds[frame]:.1f} s)" if frame in video.seconds else f"frame {frame}"


def _similarity(value: float) -> str:
    return "not seen" if value <= -1 else f"similarity {value:.2f}"


def _facts(score: SubjectScore) -> str:
    """The numbers of a subject that a reader looks for first."""
    minimum = f"lowest {_number(score.similarity_min)} in frame {score.similarity_min_frame}"
    region = (
        f"similarity {_number(score.similarity)} ({minimum})"
        if score.seen
        else "similarity not measured: it was seen in no frame"
    )
    facts = [region, f"seen in {100 * score.seen:.0f}% of the frames looked at"]
    if score.face == score.face:
        facts.append(f"face {score.face:.3f} (lowest {score.face_min:.3f} in frame {score.face_min_frame})")
    return "; ".join(facts)
