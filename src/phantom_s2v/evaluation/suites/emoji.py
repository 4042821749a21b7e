"""The emoji suite: 100 subjects that no part of the model ever saw.

Every subject has one prompt that names it and one that says only "the subject"; the control makes the unnamed ones
without references; 50 pairs ask for two subjects. True clips, composed from the real animation, are the upper bound.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phantom_s2v.data.synthetic.appearance import COLORS, Background
from phantom_s2v.data.synthetic.compose import Cast, ClipSpec, Shot, caption, compose, random_spec
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.heldout import ASSETS, evaluated, held_out, still_path
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics import measures
from phantom_s2v.evaluation.reports.emoji import Made, Ranks, Shown, write_emoji_page
from phantom_s2v.evaluation.suites.classifier import SubjectClassifier
from phantom_s2v.files.hashes import content_hash, folder_hash
from phantom_s2v.files.io import append, check_outputs, naming, text_lines, write_text
from phantom_s2v.files.reuse import code_version, origin_hash
from phantom_s2v.files.untrusted import parse_json
from phantom_s2v.media.images import evenly_spaced, letterbox, open_image, read_image, write_image, write_video
from phantom_s2v.media.pages import later_pages
from phantom_s2v.models.autoencoder import decode, encode, to_pixels, to_video
from phantom_s2v.pipeline.generate import generate
from phantom_s2v.pipeline.metadata import origin_of
from phantom_s2v.pipeline.request import Reference, Request, with_defaults
from phantom_s2v.vision.efficientnet import weights_file

DIRECTIONS = ("left", "right", "up", "down")
PAIRS = 50
PAGE, FPS = "report.html", 12.0  # the report, and frames a second of the clips that it plays
TEXTURED_CLIPS = 32
KINDS = {"unnamed": "prompt says only “the subject”", "named": "prompt names it", "control": "control, without a reference"}
COARSE = 64  # pixels a side of a video up to which references are embedded at REFERENCE_SIDES[0]
REFERENCE_SIDES = (40, 64)  # pixels a side of the classifier's references: sharper or coarser ones than the video are named worse


@dataclass(frozen=True)
class EmojiCase:
    """One video to make and what is asked of it."""

    id: str
    kind: str  # unnamed, named, control, pair
    spec: ClipSpec
    seed: int

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The subjects asked for."""
        return tuple(cast.subject for cast in self.spec.casts)


def emoji_cases(sprites: Sprites, limit: int | None, side: int = COARSE) -> list[EmojiCase]:
    """All cases in a fixed order, of videos of `side` pixels; `limit` keeps the first so many subjects, half as many pairs."""
    subjects = evaluated(sprites)
    count = min(limit or len(subjects), len(subjects))
    cases = []
    for index, subject in enumerate(subjects[:count]):
        motion = DIRECTIONS[index % 4]
        spec = ClipSpec(
            (Cast(subject, size=0.76, reach=0.15, motion=motion),),
            ((Shot(),),),
            _background(subject, sprites, index),
            False,
            side=side,
        )
        cases.append(EmojiCase(f"unnamed-{subject.key}", "unnamed", spec, 1000 + index))
        cases.append(EmojiCase(f"named-{subject.key}", "named", replace(spec, named=True), 2000 + index))
        cases.append(EmojiCase(f"control-{subject.key}", "control", replace(spec, shots=((),)), 1000 + index))
    for index in range(min(PAIRS, max(1, count // 2))):
        pair = subjects[index], subjects[(index + len(subjects) // 2) % len(subjects)]
        cases.append(pair_case(pair, index, sprites, side))
    return cases


def pair_case(pair: tuple[Subject, Subject], index: int, sprites: Sprites, side: int = COARSE) -> EmojiCase:
    """Two subjects side by side; every second one is named."""
    casts = tuple(
        Cast(subject, size=0.5, center=(0.5, x), reach=0.1, motion=("up", "down")[(index + place) % 2])
        for place, (subject, x) in enumerate(zip(pair, (0.25, 0.75), strict=True))
    )
    spec = ClipSpec(casts, ((Shot(),), (Shot(),)), _background(pair[0], sprites, index), index % 2 == 0, side=side)
    return EmojiCase(f"pair-{pair[0].key}-{pair[1].key}", "pair", spec, 3000 + index)


def _background(subject: Subject, sprites: Sprites, index: int) -> Background:
    """A plain background in a color distinct from the subject's."""
    still = sprites.still(subject).astype(float)
    own = still[..., :3].sum((0, 1)) / max(1.0, still[..., 3].sum() / 255)
    far = sorted(COLORS, key=lambda name: -float(((np.array(COLORS[name]) - own) ** 2).sum()))
    return Background("plain", far[index % 4])


def request_of(case: EmojiCase, sprites: Sprites, pipe: Any) -> Request:
    """The request of a case, at the model's defaults."""
    chosen = [] if case.kind == "control" else case.subjects
    references = tuple(Reference(str(still_path(s.key)), s.key) for s in chosen)
    size = {"height": case.spec.side, "width": case.spec.side}
    return with_defaults(pipe.preset, prompt=caption(case.spec, sprites), references=references, seed=case.seed, **size)


def run_emoji(pipe: Any, out: Path, limit: int | None, report: Callable[[int, int], None], side: int | None = None) -> dict:
    """Generate and score the cases of which `out`/cases.jsonl has no row of the same origin, then summarize. Returns the figures.

    Videos are of `side` pixels, by default the model's. Rows of another origin, or whose frames are gone, are made again.
    """
    sprites, classifier = held_out(), SubjectClassifier()
    frames = out / "frames"
    with naming(frames):
        frames.mkdir(parents=True, exist_ok=True)
    side = side or int(pipe.preset.height)
    reference_features = embed_references(classifier, sprites, side)
    file = out / "cases.jsonl"
    cases = emoji_cases(sprites, limit, side)
    kept = [frames / f"{case.id}{suffix}" for case in cases for suffix in (".png", ".mp4")]
    check_outputs([out / "sheet.png", out / PAGE, *later_pages(out / PAGE), *kept], force=True)
    origins = case_origins(cases, sprites, pipe)
    done = keep_rows(file, origins)
    for number, case in enumerate(cases):
        if case.id not in done:
            video = generate(request_of(case, sprites, pipe), pipe).video
            shown = _keep_frames(frames / f"{case.id}.png", video)
            row = score_case(case, video, classifier, reference_features, sprites)
            done[case.id] = {**row, "frames": shown, "origin": origins[case.id]}
            append(file, json.dumps(done[case.id]) + "\n")
        report(number + 1, len(cases))
    rows = [done[case.id] for case in cases]
    write_sheet(out, cases, sprites)
    true = true_rows(cases, classifier, reference_features, sprites)
    figures = summarize(rows, true, autoencoder_psnr(pipe, sprites, side))
    shown = shown_cases(cases, done, out, sprites)
    write_emoji_page(out / PAGE, pipe.preset.name, figures, kinds_of_ranks(rows, true), len(reference_features), shown)
    return figures


def case_origins(cases: list[EmojiCase], sprites: Sprites, pipe: Any) -> dict[str, str]:
    """Hash of all that makes a case's row: its video, what is asked of it, the classifier and the references that it ranks."""
    shared = {
        "classifier": content_hash(weights_file()),
        "subjects": folder_hash(ASSETS, (".json", ".webp")),
        "code": code_version("evaluation.suites.emoji"),
    }
    ratios = pipe.step_cache.ratios if pipe.step_cache else None
    held = pipe.placement.resolved()
    videos = {case.id: origin_of(request_of(case, sprites, pipe), pipe.weights, held, ratios) for case in cases}
    return {case.id: origin_hash({**shared, "case": repr(case), "video": videos[case.id]}) for case in cases}


def keep_rows(file: Path, origins: dict[str, str]) -> dict[str, dict]:
    """The rows of cases.jsonl whose origin is the one wanted, by id, and whose frames lie beside it. Rows of these cases of any
    other origin or frames, and damaged ones, are taken out of the file; those of other cases stay.
    """
    rows = [row for row in (_row(line, file) for line in text_lines(file)) if row] if file.exists() else []
    kept = [row for row in rows if row["id"] not in origins or _same(row, file.parent / "frames", origins[row["id"]])]
    write_text(file, "".join(json.dumps(row) + "\n" for row in kept))
    return {row["id"]: row for row in kept if row["id"] in origins}


def _same(row: dict, frames: Path, origin: str) -> bool:
    """Whether a row is of this origin, and the frames that it was written with are still there."""
    try:
        return row.get("origin") == origin and row.get("frames") == content_hash(frames / f"{row['id']}.png")
    except OSError:
        return False


def _row(line: str, file: Path) -> dict | None:
    """The row of a line; None where it is damaged, as the last one is after a kill. Raises InputError where it is not ours."""
    try:
        row = parse_json(line)
        if isinstance(row, dict) and isinstance(row.get("id"), str) and row.keys() & {"origin", "ranks"}:
            return row
    except ValueError:
        if line[:5] == '{"id"'[: len(line)]:
            return None
    raise InputError(f"{file} exists and was not written by phantom; choose another --out")


def embed_references(classifier: SubjectClassifier, sprites: Sprites, side: int = COARSE) -> np.ndarray:
    """Features [100, 1280] of the evaluated subjects' references, about as coarse as subjects are in videos of `side` pixels."""
    coarse = REFERENCE_SIDES[side > COARSE]
    stills = (read_image(still_path(s.key))[0] for s in evaluated(sprites))
    return np.stack([classifier.reference(letterbox(still, coarse, coarse)) for still in stills])


def score_case(
    case: EmojiCase, video: np.ndarray, classifier: SubjectClassifier, reference_features: np.ndarray, sprites: Sprites
) -> dict:
    """Ranks of the right references, and whether direction and background are as asked."""
    keys = [s.key for s in evaluated(sprites)]
    ranks = classifier.rank(video, reference_features, [keys.index(s.key) for s in case.subjects])
    return {
        "id": case.id,
        "kind": case.kind,
        "ranks": ranks,
        "direction": measures.direction(video) == case.spec.casts[0].motion if case.kind != "pair" else None,
        "background": measures.background(video) == case.spec.background.color,
    }


def true_rows(
    cases: list[EmojiCase], classifier: SubjectClassifier, reference_features: np.ndarray, sprites: Sprites
) -> list[dict]:
    """The same scores of the true clips: the upper bound."""
    wanted = [c for c in cases if c.kind in ("unnamed", "pair")]
    return [score_case(c, compose(c.spec, sprites).video, classifier, reference_features, sprites) for c in wanted]


@torch.no_grad()
def autoencoder_psnr(pipe: Any, sprites: Sprites, side: int) -> dict[str, list[float]]:
    """PSNR in dB of held-out clips on textured backgrounds through the autoencoder: whole frames and the subject's box."""
    whole, subject = [], []
    for index in range(TEXTURED_CLIPS):
        rng = np.random.default_rng([7, index])
        spec = random_spec(rng, evaluated(sprites), 25, side, images=1)
        background = replace(spec.background, kind=("stripes", "dots", "checks", "noise")[index % 4])
        clip = compose(replace(spec, background=background), sprites)
        latents = encode(pipe.vae, to_pixels(clip.video)[None])
        video = to_video(decode(pipe.vae, latents)[0])
        whole.append(measures.psnr(clip.video, video))
        subject.append(measures.psnr(clip.video, video, measures.box_masks(clip.masks.max(0) > 127)))
    return {"autoencoder_psnr": whole, "autoencoder_psnr_subject": subject}


def summarize(rows: list[dict], true: list[dict], psnr: dict[str, list[float]]) -> dict:
    """Every figure with its interval: name -> value, name_interval -> [low, high]; shares in 0..1, PSNR in dB."""
    first = _hits(0)
    by_kind = {kind: [r for r in rows if r["kind"] == kind] for kind in ("unnamed", "named", "control", "pair")}
    moving = by_kind["unnamed"] + by_kind["named"]
    samples = {
        "identification": first(by_kind["unnamed"]),
        "identification_named": first(by_kind["named"]),
        "identification_control": first(by_kind["control"]),
        "identification_true_clips": first([r for r in true if r["kind"] == "unnamed"]),
        "top5": _hits(4)(by_kind["unnamed"]),
        "top5_named": _hits(4)(by_kind["named"]),
        "top5_control": _hits(4)(by_kind["control"]),
        "two_subjects": first(by_kind["pair"]),
        "two_subjects_true_clips": first([r for r in true if r["kind"] == "pair"]),
        "direction": [float(r["direction"]) for r in moving],
        "direction_true_clips": [float(r["direction"]) for r in true if r["kind"] == "unnamed"],
        "background": [float(r["background"]) for r in moving],
        "background_true_clips": [float(r["background"]) for r in true if r["kind"] == "unnamed"],
        **psnr,
    }
    figures: dict = {"cases": len(rows)}
    for name, values in samples.items():
        mean, low, high = (measures.bootstrap if name in psnr else measures.share)(values)
        figures[name] = round(mean, 4)
        figures[f"{name}_interval"] = [round(low, 4), round(high, 4)]
    return figures


def _hits(within: int) -> Callable[[list[dict]], list[float]]:
    """Whether every right reference of a case ranks within the first places."""

    def hits(rows: list[dict]) -> list[float]:
        return [float(all(rank is not None and rank <= within for rank in row["ranks"])) for row in rows]

    return hits


def _keep_frames(path: Path, video: np.ndarray) -> str:
    """Write five frames of a video as one strip, then the video beside it; returns the hash of the strip.

    In this order a row of before, whose strip is gone, is never shown with the video of another.
    """
    write_image(path, strip(video))
    write_video(path.with_suffix(".mp4"), video, FPS)
    return content_hash(path)


def strip(video: np.ndarray, count: int = 5) -> np.ndarray:
    """Evenly spaced frames of uint8 [F, H, W, 3] side by side."""
    return np.concatenate([video[i] for i in evenly_spaced(len(video), count)], 1)


def kinds_of_ranks(rows: list[dict], true: list[dict]) -> list[Ranks]:
    """Ranks of the single subjects by kind of case, the unnamed ones first, and of the true clips."""
    kinds = [Ranks(words, [r for row in rows if row["kind"] == kind for r in row["ranks"]]) for kind, words in KINDS.items()]
    return [*kinds, Ranks("true clips", [r for row in true if row["kind"] == "unnamed" for r in row["ranks"]])]


def shown_cases(cases: list[EmojiCase], rows: dict[str, dict], out: Path, sprites: Sprites) -> Iterator[Shown]:
    """Subjects, with their clips of each kind, and pairs, as the page shows them."""
    for case in (c for c in cases if c.kind in ("unnamed", "pair")):
        ids = [case.id] if case.kind == "pair" else [f"{kind}-{case.subjects[0].key}" for kind in KINDS]
        made = []
        for name in ids:
            words = KINDS.get(rows[name]["kind"], "generated")
            frames = out / "frames" / f"{name}.png"
            made.append(Made(words, read_image(frames)[0], rows[name]["ranks"], frames.with_suffix(".mp4")))
        references = [read_image(still_path(subject.key))[0] for subject in case.subjects]
        yield Shown(" and ".join(s.name for s in case.subjects), references, strip(compose(case.spec, sprites).video), made)


def write_sheet(out: Path, cases: list[EmojiCase], sprites: Sprites, rows: int = 16) -> None:
    """`out`/sheet.png: reference, true clip, and what was made, for the first unnamed cases."""
    strips = []
    for case in [c for c in cases if c.kind == "unnamed"][:rows]:
        clip = compose(case.spec, sprites)
        true = np.concatenate([clip.video[i] for i in (0, 12, 24)], 1)
        with open_image(out / "frames" / f"{case.id}.png") as image:
            made = image.convert("RGB").resize((5 * case.spec.side, case.spec.side))
        strips.append(np.concatenate([clip.references[0], true, np.asarray(made)], 1))
    write_image(out / "sheet.png", np.concatenate(strips).repeat(2, 0).repeat(2, 1))
