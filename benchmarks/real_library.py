"""Figures of `real.py` on a library: reference images, backgrounds, and identities across source videos cut into halves."""

import io
import json
import tempfile
from collections import Counter, defaultdict
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.cli.data import asked_models, read_config
from phantom_s2v.data.pipeline import engine
from phantom_s2v.data.pipeline.groups import grouped
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.triplets import Rights
from phantom_s2v.media.videos import Video, encode

LONGEST, CRF = 600, 8  # frames of a source video that are cut into halves, and how they are encoded


def library(samples: Path) -> dict[str, Any]:
    """Blur and clipped pixels of references, clips with a background, similarity of scenes, and people that are one identity in
    both halves.
    """
    settings, make = asked_models(read_config(None, {"people": True, "background": True}), {"embedder": ""})
    with tempfile.TemporaryDirectory() as place:
        halves, out = Path(place) / "halves", Path(place) / "t.lance"
        halves.mkdir()
        for path in sorted((samples / "real" / "clips").iterdir()):
            _halve(path, halves)
        done = engine.build(sorted(halves.iterdir()), out, settings, make, Rights("samples", "none"))
        index = SubjectIndex(engine.index_path(out))
        clips = [json.loads(row["facts"]) for row in index.rows("clips", ["facts"], "`drop` = ''")]
        return _crops(clips) | _scenes(index) | _identities(index, grouped(index.pairs(done.version, settings)))


def _halve(path: Path, folder: Path) -> None:
    facts = Video(path).facts
    count = min(LONGEST, facts.count) // 2
    frames = (frame for _, frame in Video(path).frames())
    for half in range(2):
        target = io.BytesIO()
        encode(target, islice(frames, count), facts.fps, CRF)
        (folder / f"{path.stem}-{half}.mp4").write_bytes(target.getvalue())


def _crops(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of all views, and what became of backgrounds."""
    scores = [view["scores"] for clip in clips for view in clip["views"]]
    blurs = [each["blur"] for each in scores if each["blur"] is not None]
    return {
        "views": len(scores),
        "blur": _rounded(blurs, (0, 0.5, 1)),
        "clipped_max": round(max(each["clipped"] for each in scores), 3),
        "backgrounds": dict(Counter(clip["background"]["reason"] or "made" for clip in clips)),
    }


def _scenes(index: SubjectIndex) -> dict[str, Any]:
    """Similarity of scenes without their subjects: of the two halves of a source video, and of different source videos."""
    names = {row["source_video"]: Path(row["path"]).stem for row in index.source_videos()}
    rows = [
        (names[row["source_video"]], np.array(row["vector"])) for row in index.rows("backgrounds", ["source_video", "vector"])
    ]
    same, others = list[tuple[float, str]](), list[float]()
    for (one, a), (other, b) in combinations(rows, 2):
        if one.rsplit("-", 1)[0] != other.rsplit("-", 1)[0]:
            others.append(float(a @ b))
        elif one != other:
            same.append((round(float(a @ b), 3), one.rsplit("-", 1)[0]))
    shares = (0.5, 0.95, 0.99, 1)
    return {"scenes_of_halves": sorted(same), "other_scenes": len(others), "other_scenes_quantiles": _rounded(others, shares)}


def _rounded(values: list[float], shares: tuple[float, ...]) -> list[float]:
    return [round(float(value), 3) for value in np.quantile(values, shares)]


def _identities(index: SubjectIndex, groups: Any) -> dict[str, Any]:
    """Of people with a face in both halves of a source video, how many are one identity; how many identities hold two people."""
    names = {row["source_video"]: Path(row["path"]).stem for row in index.source_videos()}
    faces = {row["id"]: names[row["source_video"]] for row in index.rows("subjects", ["source_video"], "has_face")}
    found, of = groups.identities(faces), defaultdict(set)
    for subject, name in faces.items():
        of[name.rsplit("-", 1)[0]].add((name[-1], found[subject]))
    both = {film: each for film, each in of.items() if len({half for half, _ in each}) == 2}
    joined = sum(any(a[1] == b[1] and a[0] != b[0] for a, b in combinations(each, 2)) for each in both.values())
    films = defaultdict(set)
    for subject, name in faces.items():
        films[found[subject]].add(name.rsplit("-", 1)[0])
    return {"people_in_both_halves": len(both), "joined": joined, "wrongly_joined": sum(len(each) > 1 for each in films.values())}


FIGURES = {"library": library}
