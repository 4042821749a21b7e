"""How the data pipeline does on films and photographs, against boxes that were drawn by eye (tests/data/real_boxes.json), and
how the evaluation does (real_evaluation.py); references and identities are in real_library.py.

    python benchmarks/real.py SAMPLES [--only FIGURE,...]

SAMPLES holds real/clips and real/photos; they are no part of this repository, and where they are not there is nothing to measure.
Each figure is a function of `FIGURES`; the last line is JSON with all of them. Networks are the packaged ones.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import real_evaluation
import real_library
from PIL import Image, ImageDraw, ImageFont

from phantom_s2v.cli.data import asked_models, read_config
from phantom_s2v.data.calibrate import separation
from phantom_s2v.data.detectors.objects import box_of
from phantom_s2v.data.pipeline import engine
from phantom_s2v.data.pipeline.config import Config, Detection
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.pipeline.quality import burnt_in
from phantom_s2v.data.pipeline.subjects import cutout
from phantom_s2v.data.triplets import Rights
from phantom_s2v.geometry import iou
from phantom_s2v.media.images import read_image
from phantom_s2v.media.videos import Video
from phantom_s2v.vision.efficientnet import EfficientNetLite0
from phantom_s2v.vision.text import fixed_lines

BOXES = Path(__file__).parents[1] / "tests" / "data" / "real_boxes.json"
NEAR = 0.35  # seconds between a still and the frame that was labelled
SAME = 0.5  # IoU of a subject's box and a label
MANY = 1000  # of a box's scale in whole numbers
EVIDENT = 0.04  # least share of the frame of a subject that a clip ought to keep
HEIGHTS = (0.04, 0.05, 0.06, 0.07, 0.08, 0.06)  # of burnt-in text
PRECISION = 0.95
CUT_MARGIN, CUT_SIDE = 0.05, 192  # of the rectangle that GrabCut starts from, and its image


def subjects(samples: Path) -> dict[str, Any]:
    """Kept subjects that are real and whole, clips with an evident subject that keep one, reasons for drops, CPU seconds."""
    settings, make = asked_models(read_config(None, {"people": True}), {"embedder": ""})
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "t.lance"
        done = engine.build(sorted((samples / "real" / "clips").iterdir()), out, settings, make, Rights("samples", "none"))
        clips = [json.loads(row["facts"]) for row in SubjectIndex(engine.index_path(out)).rows("clips", ["facts"])]
        pairs = Counter(p["kind"] for p in SubjectIndex(engine.index_path(out)).pairs(done.version, settings) if not p["drop"])
    films = json.loads(BOXES.read_text())["films"]
    right = wrong = evident = kept = 0
    for clip in clips:
        labels = [frame for frame in films[clip["name"]]["frames"] if clip["begins"] <= frame["time"] < clip["ends"]]
        verdicts = [_is_right(clip, subject, labels, settings) for subject in (clip["subjects"] if not clip["drop"] else ())]
        right, wrong = right + sum(verdicts), wrong + len(verdicts) - sum(verdicts)
        if not films[clip["name"]]["burnt_in_text"] and any(_evident(each) for frame in labels for each in frame["subjects"]):
            evident, kept = evident + 1, kept + any(verdicts)
        print(f"{clip['name'][:20]:20} {clip['begins']:5.1f} {clip['drop'] or clip['caption']} {verdicts}")
    return {
        "clips": len(clips),
        "clips_kept": sum(not clip["drop"] for clip in clips),
        "subjects_kept": right + wrong,
        "subjects_right": round(right / max(1, right + wrong), 3),
        "clips_evident": evident,
        "clips_evident_kept": round(kept / max(1, evident), 3),
        "drops": dict(Counter(clip["drop"] for clip in clips if clip["drop"])),
        "triplets": done.triplets,
        "pairs": dict(pairs),
        "cpu_seconds": round(sum(done.seconds.values()), 1),
        "cpu_seconds_of_stages": {name: round(value, 1) for name, value in done.seconds.items()},
    }


def _evident(label: dict[str, Any]) -> bool:
    left, top, right, bottom = label["box"]
    return label["extent"] != "cut" and (right - left) * (bottom - top) >= EVIDENT


def _is_right(clip: dict[str, Any], subject: str, labels: list[dict[str, Any]], settings: Config) -> bool:
    """Whether most of a subject's views that were labelled are of one that is no part."""
    left, top, right, bottom = clip["crop"]
    votes = []
    for view in (v for v in clip["views"] if v["subject"] == subject):
        moment = clip["begins"] + round(settings.instants[view["instant"]] * (clip["frames"] - 1)) / clip["fps"]
        near = [frame for frame in labels if abs(frame["time"] - moment) < NEAR]
        share = np.array(view["box"]) / ([clip["width"], clip["height"]] * 2)
        whole = share * ([right - left, bottom - top] * 2) + [left, top, left, top]
        box = tuple((whole * MANY).astype(int).tolist())
        for frame in near[:1]:
            good = [tuple(round(v * MANY) for v in each["box"]) for each in frame["subjects"] if each["extent"] != "cut"]
            votes.append(any(iou(box, other) >= SAME for other in good))
    return bool(votes) and sum(votes) * 2 >= len(votes)


def text(samples: Path) -> dict[str, Any]:
    """Clips with words of 4 to 8% of their height written over them that are found, and clean ones that are found as well."""
    films = json.loads(BOXES.read_text())["films"]
    clean = [name for name, film in films.items() if not film["burnt_in_text"] and "goldeneye" not in name]
    found = [_has_text(samples, name, height) for name, height in zip(clean[::3], HEIGHTS, strict=False)]
    false = [_has_text(samples, name, 0) for name in clean]
    own = [_has_text(samples, name, 0) for name, film in films.items() if film["burnt_in_text"]]
    return {
        "text_found": f"{sum(found)} of {len(found)}",
        "text_false": f"{sum(false)} of {len(false)}",
        "text_own_found": f"{sum(own)} of {len(own)}",
    }


def _has_text(samples: Path, name: str, height: float) -> bool:
    video = Video(samples / "real" / "clips" / name)
    facts = video.facts
    moments = [facts.count / facts.fps * share for share in Config().instants]
    stills = [_written(next(video.frames(moment))[1], height) for moment in moments]
    return bool(burnt_in(fixed_lines(stills), Config()))


def _written(still: np.ndarray, height: float) -> np.ndarray:
    """A still with a line of subtitles whose letters take `height` of it."""
    if not height:
        return still
    image, size = Image.fromarray(still), max(8, round(height * still.shape[0]))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    words, place = "We will meet again tomorrow", (round(0.1 * still.shape[1]), round(0.85 * still.shape[0]))
    draw.text(place, words, fill="white", font=font, stroke_width=max(1, size // 12), stroke_fill="black")
    return np.asarray(image)


def pairs(samples: Path) -> dict[str, Any]:
    """Pairs of photographs that the packaged embedder tells apart: whole, boxes and masks; at the default and at own bounds."""
    network, paths = EfficientNetLite0(), sorted((samples / "real" / "photos").glob("*.jpg"))
    names, photos = [path.stem.rsplit("-", 1)[0] for path in paths], [read_image(path)[0] for path in paths]
    figures: dict[str, Any] = {}
    masks = [_grabbed(photo) for photo in photos]
    for kind in ("photographs", "boxes", "masks"):
        cut = [_cut(photo, mask, kind) for photo, mask in zip(photos, masks, strict=True)]
        vectors = np.concatenate([network.features(cut[i : i + 8]) for i in range(0, len(cut), 8)])
        own = separation(vectors, names, PRECISION)
        first, second = np.triu_indices(len(names), 1)
        accepted = (vectors @ vectors.T)[first, second] >= Config().lower
        same = np.array(names)[first] == np.array(names)[second]
        figures[kind] = {
            "auc": round(own.auc, 4),
            "bound": round(own.lower, 3),
            "recall_at_95": round(own.recall, 3),
            "default_precision": round(float(same[accepted].mean()), 3),
            "default_recall": round(float(accepted[same].mean()), 3),
        }
    return figures


def _cut(photo: np.ndarray, mask: np.ndarray, kind: str) -> np.ndarray:
    """A photograph, the box of a mask in it, or what the mask covers, on a white square that it fills."""
    everything = np.ones(photo.shape[:2], bool)
    box = box_of(everything if kind == "photographs" else mask)
    return cutout(photo, Detection(box, mask if kind == "masks" else everything))


def _grabbed(photo: np.ndarray) -> np.ndarray:
    """A rough mask of what stands in the middle of a photograph; the middle itself where GrabCut finds nothing."""
    small, labels = cv2.resize(photo, (CUT_SIDE, CUT_SIDE)), np.zeros((CUT_SIDE, CUT_SIDE), np.uint8)
    margin = round(CUT_MARGIN * CUT_SIDE)
    side = CUT_SIDE - 2 * margin
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(small[..., ::-1]), labels, (margin, margin, side, side), *models, 4, cv2.GC_INIT_WITH_RECT)
    mask = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    if mask.mean() < 0.05:
        mask[2 * margin : -2 * margin, 2 * margin : -2 * margin] = 1
    return cv2.resize(mask, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0


FIGURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "subjects": subjects,
    "text": text,
    "pairs": pairs,
    **real_library.FIGURES,
    **real_evaluation.FIGURES,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--only", default=",".join(FIGURES))
    given = parser.parse_args()
    if not (given.samples / "real").is_dir():
        print(f"skipped: {given.samples} has no folder real, and the samples are no part of this repository")
        return
    print(json.dumps({name: FIGURES[name](given.samples) for name in given.only.split(",")}))


if __name__ == "__main__":
    main()
