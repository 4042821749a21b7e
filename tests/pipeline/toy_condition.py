"""A condition of one's own, as docs/architecture.md tells: the toy model with the mean color of the images as one more tensor."""

import numpy as np
import torch
from diffusers import ModelMixin  # noqa: F401  diffusers looks for this name beside a class that it loads
from diffusers.configuration_utils import register_to_config
from torch import nn
from toy_model import ToyModel, ToyPipeline, ToyTransformer

from phantom_s2v.models.registry import register


class TintedTransformer(ToyTransformer):
    @register_to_config
    def __init__(self, channels: int = 8, depth: int = 1) -> None:
        super().__init__(channels, depth)
        self.tint = nn.Linear(3, channels)

    def forward(self, x, t, text, references, tint):
        return super().forward(x, t, text, references) + self.tint(tint)[:, :, None, None, None]


class TintedPipeline(ToyPipeline):
    def encode_references(self, images, prepared, subjects):
        tint = np.stack([np.mean([image.mean((0, 1)) for image in each], 0) for each in images]) / 255
        return {"latents": super().encode_references(images, prepared, subjects), "tint": torch.tensor(tint).float()}

    def branches(self, conditions, latents, attention_kwargs):
        some = conditions.references or {"latents": latents[:, :, :0], "tint": torch.zeros(len(latents), 3)}
        some = {**some, **(attention_kwargs or {})}
        text, none = conditions.prompt_embeds[:, 0, 0], conditions.negative_prompt_embeds[:, 0, 0]
        seen = {"both": (text, some), "image": (none, some), "null": (none, {k: v * 0 for k, v in some.items()})}

        def velocities(x, timestep, step, names):
            t = torch.full((len(x),), float(self.scheduler.sigmas[step]))
            return {name: self.transformer(x, t, seen[name][0], *seen[name][1].values()) for name in names}

        return velocities


class TintedModel(ToyModel):
    transformers = ("TintedTransformer",)
    pipeline = "toy_condition:TintedPipeline"

    def parts(self):
        return {**super().parts(), "transformer": TintedTransformer}


register(TintedModel())
