"""The report of a build, beside the dataset: what became of the clips, which were dropped and why, and the pairs by subject."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from phantom_s2v.data.pipeline.advice import NO_PAIRS, advice
from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.groups import Group, PairGroups
from phantom_s2v.data.pipeline.index import SubjectIndex, unpng
from phantom_s2v.data.pipeline.pair import DUPLICATE, FACE, ONE_SUBJECT, UNUSED, max_face_distance
from phantom_s2v.media.charts import Axis, Bound, Chart, histogram
from phantom_s2v.media.pages import Cases, Headline, Preview, percent, preview, render, shown, write_pages

BINS = 40
LISTED = 1000  # files that are named with a reason or a notice
REASONS, EXAMPLES = 12, 4  # reasons for drops that are shown by frames, and frames of each
KEPT = 6  # clips kept that are shown
REJECTED = 12  # pairs just rejected that are shown
GROUPS, PAIRS, MEMBERS = 100, 3, 10  # subjects with pairs that are shown, and of each its pairs and appearances
PLAYED = 30  # of them with a video
SIDE = 320  # pixels, the longer side of a subject
BOX = (255, 120, 0)
AXES = {
    "similarity": Axis("similarity of the two subjects", -0.2, 1.0),
    "within": Axis("distance of two faces within a source video", 0.0, 1.6),
    "across": Axis("distance of two faces between source videos", 0.0, 1.6),
    "sameness": Axis("similarity of their surroundings", -0.2, 1.0),
}
CHARTS = {  # the title, and how to read it
    "similarity": (
        "Similarity of pairs without two faces",
        "Below the line it is another subject. Lower it (lower in --config) if rejected pairs show one subject.",
    ),
    "within": (
        "Faces of pairs of one source video",
        "Above the line it is another person. Raise it (same_face in --config) if rejected pairs show one person.",
    ),
    "across": (
        "Faces of pairs of two source videos",
        "Above the line it is another person. Raise it (same_face_across in --config) if rejected pairs show one person.",
    ),
    "sameness": (
        "Surroundings of pairs of one subject",
        "Above the line it is the same image, from which a model learns to copy (upper in --config).",
    ),
}
Notes = list[tuple[str, str]]


class _Pairs:
    """What a report says of pairs, taken in one by one: counts, examples, and those kept by subject."""

    def __init__(self, config: Config) -> None:
        self.config, self.looked_at, self.kept, self.paired = config, 0, 0, 0
        self.more = 0  # of one subject, beyond the partners that are kept
        self.drops: Counter[str] = Counter()
        self.bars = {name: np.zeros(BINS, int) for name in AXES}
        self.near: list[Record] = []  # rejected, the least beyond a bound first, of each subject one
        self.groups, self.last = PairGroups(), ""

    def add(self, pair: Record) -> None:
        """Take in a pair; those of one subject follow each other."""
        self.groups.add(pair)
        if pair["drop"] in UNUSED:
            self.more += 1
            return
        self.looked_at += 1
        for name, value in _measured(pair).items():
            self.bars[name][_bin(value, AXES[name])] += 1
        if pair["drop"]:
            self.drops[pair["drop"]] += 1
            near = sorted([*self.near, pair], key=lambda p: _beyond(p, self.config))
            known = set[str]()
            self.near = [
                p for p in near if not known & {p["subject"], p["partner"]} and not known.update((p["subject"], p["partner"]))
            ]
            self.near = self.near[:REJECTED]
            return
        self.kept += 1
        self.paired += pair["subject"] != self.last
        self.last = pair["subject"]


class _Clips:
    """What a report says of clips, taken in one by one."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        self.kept, self.subjects = 0, 0
        self.examples: dict[str, list[Record]] = {}  # reason -> some clips, every one with the same chance
        self.sample: list[Record] = []  # of those kept
        self.crops, self.lost = 0, Counter[str]()  # reference images, and why some went
        self.backgrounds: Counter[str] = Counter()
        self.lost_examples: dict[str, list[Record]] = {}
        self.rng = np.random.default_rng(0)

    @property
    def total(self) -> int:
        """All clips."""
        return self.kept + self.drops.total()

    def add(self, clip: Record) -> None:
        """Take in a row of the index: id, drop, facts and, of a dropped clip, still."""
        facts = json.loads(clip["facts"])
        if not clip["drop"] and (background := facts.get("background")):
            words = f"clips without a background: {background['reason']}" if background["reason"] else "clips with a background"
            self.backgrounds[words] += 1
        self._add_crops(clip, facts.get("crops", {"seen": 0, "dropped": {}}))
        if not clip["drop"]:
            self.kept, self.subjects = self.kept + 1, self.subjects + len(facts["subjects"])
            self._sample(self.sample, {**facts, "id": clip["id"]}, self.kept, KEPT)
            return
        self.drops[clip["drop"]] += 1
        if clip["drop"] in self.examples or len(self.examples) < LISTED:
            example = {**facts, "still": clip["still"]}
            self._sample(self.examples.setdefault(clip["drop"], []), example, self.drops[clip["drop"]], EXAMPLES)

    def _add_crops(self, clip: Record, crops: Record) -> None:
        self.crops += crops["seen"]
        self.lost.update(crops["dropped"])
        if crops["dropped"] and not clip["drop"]:  # a dropped clip shows its frame instead
            some = self.lost_examples.setdefault(crops["reason"], [])
            self._sample(some, {"still": clip["still"], "words": crops["words"]}, self.lost[crops["reason"]], EXAMPLES)

    def _sample(self, some: list[Record], clip: Record, seen: int, most: int) -> None:
        if len(some) < most:
            some.append(clip)
        elif (place := int(self.rng.integers(seen))) < most:
            some[place] = clip


def write_report(
    path: Path, subject_index: SubjectIndex, pairs: Iterable[Record], triplets: int, seconds: dict[str, float], config: Config
) -> None:
    """The verdict, counts, dropped clips by reason with a frame, clips kept, pairs by subject, histograms with thresholds, pairs
    just rejected, files left behind, seconds by stage.
    """
    found, clips = _Pairs(config), _Clips()
    for pair in pairs:
        found.add(pair)
    for row in subject_index.rows("clips", ["drop", "facts", "still"]):
        clips.add(row)
    read, left, notices = _files(subject_index)
    subjects = found.groups.gather()
    write_pages(
        path,
        "triplets.html",
        _cases(subject_index, found.groups),
        title=f"Build of {path.stem}",
        what="subjects with pairs, the least similar first",
        headline=_headline(clips, found, subjects, triplets, len(left)),
        counts=_counts(read, len(left), clips, found, subjects, triplets),
        clip_count=clips.total,
        dropped=clips.drops.most_common(),
        examples=[(reason, count, [_dropped(each) for each in clips.examples[reason]])
                  for reason, count in clips.drops.most_common() if reason in clips.examples][:REASONS],
        crops=clips.crops,
        lost=clips.lost.most_common(),
        lost_examples=[(reason, clips.lost[reason], [(_decoded(each["still"]), each["words"]) for each in some])
                       for reason, some in clips.lost_examples.items()],
        clips_kept=clips.kept,
        kept=[_kept(subject_index, clip) for clip in clips.sample],
        subjects=subjects,
        looked_at=found.looked_at,
        pairs_dropped=found.drops.most_common(),
        charts=_charts(found, config),
        rejected=_rejected(subject_index, found.near, config),
        left_behind=left,
        notices=notices,
        listed=LISTED,
        seconds=[(name, round(value, 1)) for name, value in seconds.items()],
        seconds_total=sum(seconds.values()),
    )  # fmt: skip


def _files(subject_index: SubjectIndex) -> tuple[int, Notes, Notes]:
    """How many files were read, those that were left behind with the reason, and notices."""
    read, left, notices = 0, list[tuple[str, str]](), list[tuple[str, str]]()
    for source_video in subject_index.source_videos():
        read += not source_video["drop"]
        if source_video["drop"] and len(left) < LISTED:
            left.append((source_video["path"], source_video["drop"]))
        if source_video["notices"] and len(notices) < LISTED:
            notices.append((source_video["path"], "; ".join(source_video["notices"])))
    return read, left, notices


def _headline(clips: _Clips, pairs: _Pairs, subjects: int, triplets: int, left: int) -> Headline:
    """What share was kept, why most of the others were not, and what to do."""
    share = percent(clips.kept / clips.total) if clips.total else "none"
    words = f"{clips.kept} of {clips.total} clips were kept ({share})."
    if clips.subjects:
        paired = f"{pairs.paired} of {clips.subjects} subjects in them have a cross-pair"
        words = f"{words} {paired}, which shows the subject in another clip."
    points = []
    if dropped := clips.drops.most_common(1):
        reason, count = dropped[0]
        points += [
            ("Most frequent reason", f"{reason}: {count} of {clips.drops.total()} dropped clips"),
            ("What to do", advice(reason)),
        ]
    if clips.subjects and not pairs.paired:
        points.append(("No cross-pairs", f"{NO_PAIRS[0].upper()}{NO_PAIRS[1:]}."))
    if left:
        points.append(("Not read", f"{left} {'file' if left == 1 else 'files'}; reasons at the end"))
    state = "bad" if not triplets else "good" if 2 * pairs.paired >= clips.subjects else "mixed"
    return Headline(state, f"{triplets} {'triplet' if triplets == 1 else 'triplets'}", words, points)


def _counts(read: int, left: int, clips: _Clips, pairs: _Pairs, subjects: int, triplets: int) -> list[tuple[str, int]]:
    rare = [
        ("pairs kept but not used: their subjects were seen together", pairs.groups.contradicting),
        ("further pairs of one subject, which connect identities", pairs.more),
    ]
    return [
        ("files", read + left),
        ("files read", read),
        ("clips", clips.total),
        ("clips kept", clips.kept),
        ("subjects in them, each clip's by itself", clips.subjects),
        ("reference images", clips.crops),
        ("reference images kept", clips.crops - clips.lost.total()),
        *clips.backgrounds.items(),
        ("subjects with a cross-pair", pairs.paired),
        ("identities among those", subjects),
        ("identities in several files", pairs.groups.across),
        ("pairs looked at", pairs.looked_at),
        ("pairs kept", pairs.kept),
        *((words, count) for words, count in rare if count),
        ("triplets", triplets),
    ]


def _measured(pair: Record) -> dict[str, float]:
    """What decided whether a pair is of one subject, and of one that is how same its surroundings are, by the charts' names."""
    across = "across" if pair["kind"] == "cross-source" else "within"
    decided = {"similarity": pair["similarity"]} if pair["face"] is None else {across: pair["face"]}
    return {**decided, "sameness": pair["sameness"]} if pair["drop"] in ONE_SUBJECT else decided


def _charts(pairs: _Pairs, config: Config) -> list[tuple[Chart, str]]:
    """Histograms of what there is, with the thresholds, and what to do."""
    bounds = {
        "similarity": Bound(config.lower, f"kept from {config.lower:g}"),
        "within": Bound(config.same_face, f"kept up to {config.same_face:g}"),
        "across": Bound(config.same_face_across, f"kept up to {config.same_face_across:g}"),
        "sameness": Bound(config.upper, f"kept up to {config.upper:g}"),
    }
    return [
        (histogram(CHARTS[name][0], AXES[name], "pairs", counts.tolist(), bounds[name]), CHARTS[name][1])
        for name, counts in pairs.bars.items()
        if counts.any()
    ]


def _beyond(pair: Record, config: Config) -> float:
    """How far a pair lies beyond the bound that rejected it."""
    if pair["drop"] == FACE:
        return pair["face"] - max_face_distance(pair["kind"], config)
    return pair["sameness"] - config.upper if pair["drop"] == DUPLICATE else max(0.0, config.lower - pair["similarity"])


def _why(pair: Record, config: Config) -> str:
    """Why a pair was rejected, by the value that decided and its limit where there is one, and what else was measured."""
    similarity, same = f"similarity {pair['similarity']:.2f}", f"surroundings {pair['sameness']:.2f}"
    if pair["drop"] == FACE:
        return f"{FACE}: distance {pair['face']:.2f}, at most {max_face_distance(pair['kind'], config):g}; {similarity}, {same}"
    if pair["drop"] == DUPLICATE:
        return f"{DUPLICATE}: {same}, at most {config.upper:g}; {similarity}"
    least = f", at least {config.lower:g}" if pair["similarity"] < config.lower else ""
    return f"{pair['drop']}: {similarity}{least}; {same}"


def _bin(value: float, axis: Axis) -> int:
    """The bar of a value on a histogram's scale."""
    return min(BINS - 1, max(0, int((value - axis.low) / (axis.high - axis.low) * BINS)))


def _where(facts: Record) -> str:
    """Which clip of which file it is."""
    return f"{facts['name']}, {facts['begins']:.1f} to {facts['ends']:.1f} s"


def _decoded(content: bytes) -> np.ndarray:
    """A JPEG as uint8 [H, W, 3]."""
    return np.ascontiguousarray(np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))[..., ::-1])


def _dropped(clip: Record) -> tuple[np.ndarray | None, str]:
    """The frame of a dropped clip, with boxes around what was seen in it and is no subject, and why."""
    image = _decoded(clip["still"]) if clip["still"] else None
    here = [each for each in clip["passed_over"] if each["instant"] == clip.get("shown")]
    seen = list({(each["what"], each["reason"], tuple(each["box"])) for each in here})[:4] if image is not None else []
    if image is not None:
        height, width = image.shape[:2]
        for number, (_, _, (left, top, right, bottom)) in enumerate(sorted(seen), 1):
            corner = round(left * width), round(top * height)
            cv2.rectangle(image, corner, (round(right * width) - 1, round(bottom * height) - 1), BOX, 2)
            cv2.putText(image, str(number), (corner[0] + 4, corner[1] + 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, BOX, 2, cv2.LINE_AA)
    words = [f"{number}: {what}, {reason}" for number, (what, reason, _) in enumerate(sorted(seen), 1)]
    return image, ". ".join([_where(clip), *words])


def _kept(subject_index: SubjectIndex, clip: Record) -> Record:
    """A kept clip as it can be played, and its subjects."""
    found = subject_index.subjects(clip["subjects"])
    views = [(_middle(found[each]), found[each]["name"]) for each in clip["subjects"] if each in found]
    if background := subject_index.background(clip["id"]) if clip.get("background") else b"":
        views.append((shown(_decoded(background), SIDE), "background, subjects filled in"))
    return {"words": _where(clip), "caption": clip["caption"], "video": _video(subject_index, clip["id"]), "subjects": views}


def _video(subject_index: SubjectIndex, clip: str) -> Preview | None:
    row = next(iter(subject_index.rows("clips", ["video"], f"id = '{clip}'")), None)
    return preview(row["video"]) if row else None


def _middle(subject: Record) -> np.ndarray:
    """The image of a subject's middle moment, uint8 [H, W, 3]."""
    return shown(unpng(subject["views"][len(subject["views"]) // 2]["image"]), SIDE)


def _cases(subject_index: SubjectIndex, groups: PairGroups) -> Cases:
    """Subjects with their pairs, each once."""
    cases = Cases()
    for number, group in enumerate(groups.chosen(GROUPS, PAIRS, MEMBERS)):
        found = subject_index.subjects(group.members)
        clips = subject_index.clip_facts({row["clip"] for row in found.values()})
        name = Counter(row["name"] for row in found.values()).most_common(1)[0][0]
        video = _video(subject_index, found[group.shown[0]["one"]]["clip"]) if number < PLAYED else None
        words = {each: _where(clips[row["clip"]]) for each, row in found.items()}
        body = render("pair_group.html", group=group, words=words, images={each: _middle(row) for each, row in found.items()},
                      rest=_rest(group), video=video)  # fmt: skip
        cases.add((number,), {"name": name}, body)
    return cases


def _rest(group: Group) -> list[str]:
    """The appearances of a subject that are not in the pair that is shown first."""
    return [each for each in group.members if each not in (group.shown[0]["one"], group.shown[0]["other"])]


def _rejected(subject_index: SubjectIndex, pairs: list[Record], config: Config) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """Pairs just rejected: both images, and why."""
    found: dict[str, Any] = subject_index.subjects({p[side] for p in pairs for side in ("subject", "partner")})
    return [(_middle(found[p["subject"]]), _middle(found[p["partner"]]), _why(p, config)) for p in pairs]
