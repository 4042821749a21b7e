"""What an arm is judged by: errors on fixed clips at fixed noise and t, and what samples show of subject, text and reference.

Legend: N subjects that are shown, K candidates, B batch, C latent channels, T h w latent grid.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from phantom_s2v.data.synthetic.appearance import COLORS, PLAIN_APPEARANCE, Background
from phantom_s2v.data.synthetic.compose import Cast, ClipSpec, Shot, caption, plain_spec, scene_tensors
from phantom_s2v.data.synthetic.emoji import Subject
from phantom_s2v.data.synthetic.render import Rendered, Tensors, render
from phantom_s2v.evaluation.metrics import measures
from phantom_s2v.evaluation.metrics.pasting import copy_paste
from phantom_s2v.evaluation.metrics.regions import cut_out, regions
from phantom_s2v.evaluation.suites.classifier import FRAMES, SubjectClassifier
from phantom_s2v.models.autoencoder import decode, load_autoencoder, to_video
from phantom_s2v.models.flow_matching import clean, interpolate
from phantom_s2v.models.phantom.conditioning import Conditions, null, stack, without_text
from phantom_s2v.pipeline.sampling.guidance import combine, weights
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler, set_timesteps
from phantom_s2v.training.latents import conditions_of
from phantom_s2v.training.validation import TIMES

from .arms import SIDE
from .world import Velocity, World

COARSE = 40  # pixels of a candidate's side: as coarse as subjects are in samples of 64 pixels
SCALES, STEPS, SHIFT = (3.5, 4.0), 8, 3.0  # phantom-mini's defaults, but for half of its steps, which ranks do not tell apart
AT_ONCE = {1: 16, 13: 6}  # samples of a batch, by frames
CLIPS = 24  # subjects that are shown in clips
TURN, SCALE = 12.0, 0.85  # degrees, by turns, and size of a reference: what a model that copies keeps


@dataclass(frozen=True)
class Cases:
    """Clips with their references and prompts, encoded once."""

    specs: list[ClipSpec]
    batches: list[Tensors]  # with latents, conditions and shares
    drawn: list[Rendered]


def single(index: int, subject: Subject, frames: int) -> ClipSpec:
    """A large subject in its own colors on a plain background that its reference does not have."""
    spec = plain_spec(np.random.default_rng([7, index]), (subject,), frames, SIDE)
    cast = replace(spec.casts[0], appearance=PLAIN_APPEARANCE)
    shot = Shot(turn=TURN * (-1) ** index, scale=SCALE)
    return ClipSpec((cast,), ((shot,),), _background(index), False, frames, SIDE)


def pair(index: int, subjects: tuple[Subject, Subject]) -> ClipSpec:
    """Two subjects side by side; the first is at the left in every second one."""
    sides = (0.25, 0.75) if index % 2 else (0.75, 0.25)
    casts = tuple(Cast(s, size=0.5, center=(0.5, x), reach=0.1, motion="up") for s, x in zip(subjects, sides, strict=True))
    return ClipSpec(casts, ((Shot(),), (Shot(),)), _background(index), False, 1, SIDE)


def _background(index: int) -> Background:
    names = [name for name in COLORS if name != "white"]
    return Background("plain", names[index % len(names)])


class Candidates:
    """The subjects among which a shown one is sought, and who seeks: loaded when they are first needed."""

    def __init__(self, world: World) -> None:
        self.store, self.subjects = world.store, world.candidates

    @cached_property
    def classifier(self) -> SubjectClassifier:
        """EfficientNet-Lite0."""
        return SubjectClassifier()

    @cached_property
    def features(self) -> np.ndarray:
        """Of the candidates' stills on white, [K, 1280]."""
        specs = [ClipSpec((Cast(subject),), ((Shot(),),), Background(), False, 1, COARSE) for subject in self.subjects]
        images = render(scene_tensors(specs, self.store), self.store.pixels, COARSE).references[:, 0].numpy()
        return np.stack([self.classifier.reference(image) for image in images])


def judge_of(world: World, frames: int, limit: int | None = None) -> "Judge":
    """The judge of stills or of clips: on the subjects that no arm learns from, or the first `limit` of them."""
    subjects = world.shown[: CLIPS if frames > 1 else None][:limit]
    pairs = list(zip(subjects[::2], subjects[1::2], strict=False)) if frames == 1 else []
    return Judge(
        world, frames, [single(i, s, frames) for i, s in enumerate(subjects)], [pair(*each) for each in enumerate(pairs)]
    )


class Judge:
    """Judges by clips of one subject each, and of two."""

    def __init__(self, world: World, frames: int, singles: list[ClipSpec], pairs: list[ClipSpec]) -> None:
        self.world, self.frames = world, frames
        self.singles, self.pairs = self._cases(singles), self._cases(pairs)
        self.candidates, self.autoencoder = Candidates(world), load_autoencoder(world.folder / "vae")

    def with_cases(self, world: World, singles: list[ClipSpec]) -> "Judge":
        """The same judge, its networks shared, by other clips of one subject each, whose prompts `world` encodes."""
        other = copy(self)
        other.world, other.pairs = world, Cases([], [], [])
        other.singles = other._cases(singles)
        return other

    def _cases(self, specs: list[ClipSpec]) -> Cases:
        batches, drawn = [], []
        for start in range(0, len(specs), AT_ONCE[self.frames]):
            part = specs[start : start + AT_ONCE[self.frames]]
            tokens, mask = self.world.text.tokens([caption(spec, self.world.store) for spec in part])
            scene = scene_tensors(part, self.world.store)
            drawn.append(render(scene, self.world.store.pixels, SIDE))
            batches.append(self.world.encoder({**scene, "tokens": tokens, "text_mask": mask, "side": torch.tensor(SIDE)}))
        return Cases(specs, batches, drawn)

    def __call__(self, velocity: Velocity) -> dict[str, list[float]]:
        """Figures of each subject or pair; `error_with` and `error_without` are means over TIMES."""
        return {**_rounded(self.errors(velocity)), **self.samples_seen(velocity)}

    def samples_seen(self, velocity: Velocity) -> dict[str, list[float]]:
        """What samples show, of each subject or pair."""
        figures: dict[str, list[float]] = {}
        for cases, seen in ((self.singles, self._seen), (self.pairs, self._seen_pair)):
            for number, video in enumerate(self.samples(velocity, cases)):
                for name, value in seen(number, video).items():
                    figures.setdefault(name, []).append(value)
        return _rounded(figures)

    @torch.no_grad()
    def errors(self, velocity: Velocity) -> dict[str, list[float]]:
        """Squared error of the predicted clean latent where the subject is, with and without (no places for) references."""
        figures: dict[str, list[float]] = {}
        for name, cases, seen in (
            ("error_with", self.singles, True),
            ("error_without", self.singles, False),
            ("error_pairs", self.pairs, True),
        ):
            rows = [_error(velocity, batch, seen, number) for number, batch in enumerate(cases.batches)]
            if rows:
                each = torch.cat(rows, 1)
                figures[name] = each.mean(0).tolist()
                figures |= {f"{name}_{t}": [value] for t, value in zip(TIMES, each.mean(1).tolist(), strict=True)}
        return figures

    def samples(self, velocity: Velocity, cases: Cases) -> Iterator[np.ndarray]:
        """uint8 [F, H, W, 3] of each case, at guidance, from noise of its number."""
        for number, batch in enumerate(cases.batches):
            noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(100 + number))
            latents = sample(velocity, conditions_of(batch), self.world.empty, noise)
            for row in latents:
                yield to_video(decode(self.autoencoder, row[None].float())[0].float())

    def true_figures(self) -> dict[str, list[float]]:
        """The same of the true clips: what can be reached."""
        figures: dict[str, list[float]] = {}
        for seen, cases in ((self._seen, self.singles), (self._seen_pair, self.pairs)):
            for number, video in enumerate(row.numpy() for part in cases.drawn for row in part.video):
                for name, value in seen(number, video).items():
                    figures.setdefault(name, []).append(value)
        return _rounded(figures)

    def _seen(self, number: int, video: np.ndarray) -> dict[str, float]:
        """What a sample of one subject shows."""
        spec = self.singles.specs[number]
        rank, similarity, _ = self._look(video, spec)
        reference = self.singles.drawn[number // AT_ONCE[self.frames]].references[number % AT_ONCE[self.frames], 0].numpy()
        shown = {
            "log_rank": rank[0],
            "similarity": similarity[0],
            "background": float(measures.background(video) == spec.background.color),
            "copy_paste": copy_paste([video[0], video[-1]] if len(video) > 1 else [video[0]], reference),
        }
        moving = spec.casts[0].motion in ("left", "right", "up", "down")
        return (
            {**shown, "direction": float(measures.direction(video) == spec.casts[0].motion)}
            if moving and len(video) > 1
            else shown
        )

    def _seen_pair(self, number: int, video: np.ndarray) -> dict[str, float]:
        """What a sample of two subjects shows; `sides`: whether each is where the prompt says."""
        ranks, similarity, sides = self._look(video, self.pairs.specs[number])
        return {"log_rank_pairs": float(np.mean(ranks)), "similarity_pairs": float(np.mean(similarity)), "sides": float(sides)}

    def _look(self, video: np.ndarray, spec: ClipSpec) -> tuple[list[float], list[float], bool]:
        """log(1 + rank) of each subject among the candidates, its cosine, and whether two stand from left to right as asked for.

        Where no region is found, a rank is that of chance and a cosine 0.
        """
        right = [self.candidates.subjects.index(cast.subject) for cast in spec.casts]
        sums, places = np.zeros((len(right), self.candidates.features.shape[1])), np.full((len(right), FRAMES), np.nan)
        for look, index in enumerate(np.unique(np.linspace(0, len(video) - 1, FRAMES).round().astype(int))):
            found = regions(video[index], len(right))
            if not found:
                continue
            features = self.candidates.classifier.features([cut_out(video[index], region) for region in found])
            for region, subject in zip(*linear_sum_assignment(-features @ self.candidates.features[right].T), strict=True):
                sums[subject] += features[region]
                places[subject, look] = found[region].center[1]
        scores, lengths = sums @ self.candidates.features.T, np.linalg.norm(sums, axis=1)
        chance = float(np.log1p(np.arange(len(self.candidates.subjects))).mean())
        ranks = [float(np.log1p((s > s[r]).sum())) if n else chance for s, r, n in zip(scores, right, lengths, strict=True)]
        cosines = [float(s[r] / n) if n else 0.0 for s, r, n in zip(scores, right, lengths, strict=True)]
        across = np.nanmean(places, 1) if (~np.isnan(places)).any(1).all() else np.zeros(len(right))
        asked = [cast.center[1] for cast in spec.casts]
        return ranks, cosines, bool(len(right) == 2 and (across[1] - across[0]) * (asked[1] - asked[0]) > 0)


def _rounded(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(float(value), 4) for value in values] for name, values in figures.items()}


def _error(velocity: Velocity, batch: Tensors, seen: bool, number: int) -> torch.Tensor:
    """[times, B], weighted by how much of a position the subject covers."""
    x, weight = batch["latents"], batch["subject_share"]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
    c = conditions_of(batch)
    c = c if seen else without_references(c)
    rows = []
    for t in TIMES:
        x_t = interpolate(x, noise, torch.tensor(t))
        error = (clean(x_t, velocity(x_t, torch.full((len(x),), t), c).float(), t) - x).square().mean(1)
        rows.append((error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)))
    return torch.stack(rows)


def without_references(c: Conditions) -> Conditions:
    """Text to video: no places for images."""
    names = ("references", "image_tokens", "image_seen", "subjects")
    gone: dict[str, Any] = {name: getattr(c, name)[:, :0] for name in names}
    return replace(c, **gone)


def sample(velocity: Velocity, c: Conditions, empty: tuple[torch.Tensor, torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    """Latents of noise [B, C, T, h, w], guided; all branches are one batch."""
    shares = weights(*SCALES, references=c.references.shape[1] > 0)
    every = {"null": null(c, empty), "image": without_text(c, empty), "both": c}
    rows, x = stack([every[name] for name in shares]), noise
    scheduler = build_scheduler("euler", SHIFT)
    for step, timestep in enumerate(set_timesteps(scheduler, STEPS, noise.device)):
        t = torch.full((len(rows),), float(scheduler.sigmas[step]))
        parts = velocity(x.repeat(len(shares), 1, 1, 1, 1), t, rows).float().split(len(x))
        x = scheduler.step(combine(dict(zip(shares, parts, strict=True)), shares), timestep, x, return_dict=False)[0]
    return x
