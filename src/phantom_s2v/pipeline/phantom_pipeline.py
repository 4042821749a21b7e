"""PhantomPipeline: the face that users of diffusers know, over the same path as the command line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from phantom_s2v.errors import InputError
from phantom_s2v.files.io import write_json
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import for_inference, to_video
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import model_folder, wan_preset
from phantom_s2v.models.tensors import align, save_part
from phantom_s2v.models.wan.transformer import WanTextEncoder
from phantom_s2v.pipeline.generate import (
    Models,
    OnStep,
    decode_latents,
    generate,
    load_models,
    read_pictures,
    sample,
    wan_guided,
    wan_references,
)
from phantom_s2v.pipeline.request import Reference, Request, check, with_defaults


@dataclass(frozen=True)
class PhantomPipelineOutput:
    """`frames` is uint8 [1, F, H, W, 3], or latents [1, C, T, h, w] with output_type="latent"."""

    frames: np.ndarray | torch.Tensor


class PhantomPipeline:
    """Subject-to-video generation in diffusers' manner.

    >>> pipe = PhantomPipeline.from_pretrained("phantom-mini")  # doctest: +SKIP
    >>> video = pipe("The subject moves to the left.", references=["fox.webp"]).frames[0]  # doctest: +SKIP
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    @classmethod
    def from_parts(
        cls, transformer: WanTransformer3DModel, vae: AutoencoderKLWan, text_encoder: Any = None, tokenizer: Any = None
    ) -> "PhantomPipeline":
        """Phantom-Wan of parts that are loaded already; without text encoder and tokenizer it takes `prompt_embeds` alone.

        It computes on the device of the transformer. The parts stay as they are, but for tensors that a file was mapped to at odd
        addresses, which are moved with the same values (`model.tensors.align`). The autoencoder is a copy with the same weights.
        """
        config = {**transformer.config, "_class_name": type(transformer).__name__}
        encoder = WanTextEncoder.of(text_encoder if text_encoder is None else align(text_encoder), tokenizer)
        placement = Placement(device=str(transformer.device))
        name = f"of parts {token_hex(8)}"  # their content is not hashed, so nothing made with them is used again
        return cls(Models(wan_preset(config), align(transformer), for_inference(vae), None, encoder, name, placement))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, placement: Placement | None = None) -> "PhantomPipeline":
        """Load a model by name or folder: phantom-mini, or Phantom-Wan as `phantom convert` writes it.

        `placement` says how Phantom-Wan is held in memory. Raises CheckpointError where the model cannot be read.
        """
        return cls(load_models(model_folder(str(name_or_path)), placement))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` and the command line read."""
        target, models = Path(folder), self.models
        save_part(models.transformer, target / "transformer")
        if isinstance(models.text_encoder, WanTextEncoder):
            save_part(models.autoencoder, target / "vae")
            models.text_encoder.save_pretrained(target)
            return
        assert models.image_encoder is not None
        save_part(models.autoencoder, target / "autoencoder")
        save_part(models.image_encoder, target / "image_encoder")
        write_json(target / "preset.json", asdict(models.preset))

    def __call__(
        self,
        prompt: str = "",
        references: str | Path | Sequence[str | Path | tuple[str, str | Path]] = (),
        *,
        first_frame: str | Path | None = None,
        background: str | Path | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_image: float | None = None,
        guidance_text: float | None = None,
        negative_prompt: str | None = None,
        solver: str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        reference_latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: OnStep | None = None,
        **switches: bool,
    ) -> PhantomPipelineOutput:
        """Make one video. A reference is a path, or (name, path): one name's pictures are views of one subject.

        The seed is `seed`, or 0; a `generator` draws the noise itself. For Phantom-Wan, `reference_latents` [1, C, n, h, w],
        normalised, stand for the references, and `prompt_embeds` and `negative_prompt_embeds` [1, L, D] for the texts.
        `switches` are untrained_size, cutout, several_views and released_behaviour. Raises InputError for what cannot be made.
        """
        if seed is not None and generator is not None:
            raise InputError("both seed and generator were given; give one of them")
        if output_type not in ("np", "latent"):
            raise InputError(f"output_type is {output_type!r}; it can be np or latent")
        request = with_defaults(
            self.models.preset,
            prompt=prompt,
            references=_references(references),
            first_frame=str(first_frame) if first_frame else None,
            background=str(background) if background else None,
            height=height,
            width=width,
            frames=num_frames,
            steps=num_inference_steps,
            guidance_image=guidance_image,
            guidance_text=guidance_text,
            negative_prompt=negative_prompt,
            solver=solver,
            seed=generator.initial_seed() if generator is not None else seed,
            **switches,
        )
        tensors = (reference_latents, prompt_embeds, negative_prompt_embeds)
        wan = isinstance(self.models.text_encoder, WanTextEncoder)
        if output_type == "np" and not (wan and generator) and all(each is None for each in tensors):
            return PhantomPipelineOutput(generate(request, self.models, callback_on_step_end).video[None])
        latents = self._latents(request, *tensors, generator, callback_on_step_end)
        if output_type == "latent":
            return PhantomPipelineOutput(latents)
        return PhantomPipelineOutput(to_video(decode_latents(self.models, latents)[0])[None])

    def _latents(
        self,
        request: Request,
        references: torch.Tensor | None,
        text: torch.Tensor | None,
        negative: torch.Tensor | None,
        generator: torch.Generator | None,
        on_step: OnStep | None,
    ) -> torch.Tensor:
        """Latents of a request to Phantom-Wan, with tensors in the place of what they replace."""
        encoder = self.models.text_encoder
        if not isinstance(encoder, WanTextEncoder):
            raise InputError(f"{self.models.preset.name} takes pictures, prompts and a seed; tensors are for Phantom-Wan")
        check(request if text is None else replace(request, prompt=request.prompt or "given as features"), self.models.preset)
        if references is None:
            pictures, _ = read_pictures(request)
            references = wan_references(self.models, [letterbox(p, request.height, request.width) for p in pictures])
        elif references.ndim == 4:
            references = references[None]
        text = encoder(request.prompt) if text is None else text
        negative = encoder(request.negative_prompt) if negative is None else negative
        encoder.drop()
        velocity = wan_guided(request, self.models, text, negative, references)
        places = 0 if references is None else references.shape[2]
        return sample(request, self.models, velocity, places, None, on_step, generator)


def _references(given: str | Path | Sequence[str | Path | tuple[str, str | Path]]) -> tuple[Reference, ...]:
    given = [given] if isinstance(given, str | Path) else given
    return tuple(
        Reference(str(r[1]), r[0]) if isinstance(r, tuple) else Reference(str(r), f"subject {i + 1}") for i, r in enumerate(given)
    )
