"""A base model of one's own, as docs/architecture.md tells: sixty lines that generate, train and are evaluated."""

from functools import cached_property

import torch
from diffusers import AutoencoderKLWan, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from phantom_s2v.models.base import Preset, VideoModel
from phantom_s2v.models.registry import register
from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler


class ToyTransformer(ModelMixin, ConfigMixin):
    """Velocity of each position from its own latent, t, and the mean of the references and the prompt."""

    @register_to_config
    def __init__(self, channels: int = 8, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * channels + 2, 32), nn.GELU(), nn.Linear(32, channels))

    def forward(self, x, t, text, references):
        seen = references.mean((2, 3, 4)) if references.shape[2] else references.new_zeros(references.shape[:2])
        told = torch.cat([seen, t[:, None], text[:, None]], 1)[:, None, None, None].expand(-1, *x.shape[2:], -1)
        return self.layers(torch.cat([x.movedim(1, -1), told], -1)).movedim(-1, 1)


class ToyPipeline(PhantomPipeline):
    _optional_components = ["scheduler"]  # noqa: RUF012

    def __init__(self, vae: AutoencoderKLWan, transformer: ToyTransformer, scheduler=None) -> None:
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler or build_scheduler("euler", 1.0))

    @cached_property
    def preset(self) -> Preset:
        return ToyModel().preset({})

    def cut(self, prompt):
        return ""

    def encode_texts(self, texts, places):
        return torch.tensor([[[len(each) / 100]] for each in texts])

    def encode_references(self, images, prepared, subjects):
        return torch.cat([self.encode_images(each) for each in prepared])

    def branches(self, conditions, latents, attention_kwargs):
        some = conditions.references
        some = latents[:, :, :0] if some is None else some.expand(len(latents), -1, -1, -1, -1)
        text, none = conditions.prompt_embeds[:, 0, 0], conditions.negative_prompt_embeds[:, 0, 0]
        seen = {"both": (text, some), "image": (none, some), "null": (none, torch.zeros_like(some))}

        def velocities(x, timestep, step, names):
            t = torch.full((len(x),), float(self.scheduler.sigmas[step]))
            return {name: self.transformer(x, t, *seen[name]) for name in names}

        return velocities


class ToyModel(VideoModel):
    transformers = ("ToyTransformer",)
    pipeline = "toy_model:ToyPipeline"
    own_text_encoder = checks_prompts = False
    placed = frozenset()
    depth, measured_depth = "depth", 1

    def preset(self, config):
        return Preset("toy", 32, 32, 5, 8, 3, "euler", 1.0, 2.0, 3.0, (16, 64))

    def parts(self):
        return {"transformer": ToyTransformer, "vae": AutoencoderKLWan}

    def flops(self, config, clip):
        frames, h, w = clip.size.latent
        return 2 * frames * h * w * 32 * (3 * config["channels"] + 2)

    def widths(self, config):
        return config["channels"], 32

    def inputs(self, config, clip, branches, device, dtype):
        frames, h, w = clip.size.latent
        x = torch.zeros(branches, config["channels"], frames, h, w)
        return x, torch.ones(branches), torch.ones(branches), x[:, :, :1].expand(-1, -1, clip.images, -1, -1)


register(ToyModel())
