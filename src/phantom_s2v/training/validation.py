"""How much the reference takes off the error: squared error of the predicted clean latent on the subject, at fixed t and noise.

It tells in a minute what identification tells in half an hour. The subjects are `validation_families`, which training leaves out.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from phantom_s2v.data.synthetic.appearance import PLAIN_APPEARANCE
from phantom_s2v.data.synthetic.compose import ClipSpec, Shot, caption, plain_spec, scene_tensors
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.render import Tensors
from phantom_s2v.geometry import latent_frames
from phantom_s2v.models.flow_matching import clean, interpolate
from phantom_s2v.models.phantom.conditioning import without_image_tokens, without_latents
from phantom_s2v.training.latents import TripletEncoder, conditions_of

TIMES = (0.3, 0.5, 0.7, 0.9)
AT_ONCE = 16  # latent frames of a batch
CLIPS = 8  # of clips; a clip costs what 7 stills do


class Validation:
    """Fixed stills, or clips, of subjects, each with one cross-pair reference and a prompt that does not name it."""

    def __init__(
        self,
        sprites: Sprites,
        subjects: tuple[Subject, ...],
        encoder: TripletEncoder,
        side: int,
        device: torch.device,
        frames: int = 1,
    ) -> None:
        subjects = subjects[:CLIPS] if frames > 1 else subjects
        specs = [_spec(np.random.default_rng([7, index]), subject, side, frames) for index, subject in enumerate(subjects)]
        self.batches = []
        at_once = max(1, AT_ONCE // latent_frames(frames))
        for start in range(0, len(specs), at_once):
            part = specs[start : start + at_once]
            tokens, mask = encoder.text.tokens([caption(spec, sprites) for spec in part])
            batch = {**scene_tensors(part, sprites), "tokens": tokens, "text_mask": mask, "side": torch.tensor(side)}
            self.batches.append(encoder({name: value.to(device) for name, value in batch.items()}))
        self.size = f"{side}px" + (f"_{frames}f" if frames > 1 else "")

    @torch.no_grad()
    def __call__(self, model: nn.Module, prefix: str = "") -> dict[str, float]:
        """`with_0.3_128px` (of clips `with_0.3_128px_25f`) and so on, and `without_...` (null references)."""
        figures = {}
        for t in TIMES:
            for name in ("with", "without"):
                parts = [self._error(model, batch, t, name == "with", number) for number, batch in enumerate(self.batches)]
                figures[f"{prefix}{name}_{t}_{self.size}"] = float(sum(p[0] for p in parts) / sum(p[1] for p in parts))
        return figures

    def _error(self, model: nn.Module, batch: Tensors, t: float, seen: bool, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error, summed over the subject's positions, and their count."""
        x, weight = batch["latents"], batch["subject_share"][:, None]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number)).to(x)
        conditions = conditions_of(batch)
        conditions = conditions if seen else without_image_tokens(without_latents(conditions))
        times = torch.full((len(x),), t, device=x.device)
        x_t = interpolate(x, noise, times[:, None, None, None, None])
        predicted = clean(x_t, model(x_t, times, **conditions.arguments()).float(), t)
        return ((predicted - x).square().mean(1, keepdim=True) * weight).sum(), weight.sum()


def _spec(rng: np.random.Generator, subject: Subject, side: int, frames: int) -> ClipSpec:
    """A large subject in its own colors on a plain background, as most requests are."""
    spec = plain_spec(rng, (subject,), frames, side)
    cast = replace(spec.casts[0], appearance=PLAIN_APPEARANCE)
    return replace(spec, casts=(cast,), shots=((Shot(),),), named=False, background=replace(spec.background, kind="plain"))
