"""PhantomWanPipeline: the released weights, on diffusers' Wan2.1 components."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.utils.torch_utils import get_module_execution_device
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import for_inference
from phantom_s2v.models.base import Preset
from phantom_s2v.models.wan.lora import adapters_of, add_lora, local_lora
from phantom_s2v.models.wan.spec import TEXT_PLACES, WanModel
from phantom_s2v.models.wan.step_cache import wants_one_batch
from phantom_s2v.models.wan.text import prompt_features, prompt_tokens
from phantom_s2v.models.wan.transformer import PhantomWanTransformer, pad_text, wan_velocity
from phantom_s2v.pipeline.conditions import Branches, Conditions, Dropped
from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler


class PhantomWanPipeline(PhantomPipeline, WanLoraLoaderMixin):
    """Phantom-Wan as released: WanPipeline's components, references as clean latents behind the video, three-branch guidance.

    Transformer and vae that the caller loaded are copied without their weights, which are shared; without a text encoder the
    pipeline takes `prompt_embeds`. Any of the parts may be None; the scheduler is then the released one, UniPC with a shift of 5.
    """

    _optional_components: ClassVar[list[str]] = ["tokenizer", "text_encoder", "scheduler", "transformer", "vae"]
    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]
    whole_timesteps = True
    max_tokens: ClassVar[int | None] = TEXT_PLACES

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: UMT5EncoderModel | None,
        vae: AutoencoderKLWan | None,
        scheduler: Any,
        transformer: WanTransformer3DModel | PhantomWanTransformer | None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae if vae is None else for_inference(vae),
            scheduler=scheduler or build_scheduler("unipc", 5.0),
            transformer=transformer if transformer is None else PhantomWanTransformer.of(transformer),
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As of every pipeline; diffusers' WanPipeline reads the folder too."""
        self.register_to_config(transformer=("diffusers", "WanTransformer3DModel"))  # of which ours is a subclass
        super().save_pretrained(save_directory, **kwargs)

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load a LoRA: a .safetensors file of any spelling that models.wan.lora knows, or a folder with one, strictly; a state
        dict or a repository of a hub as diffusers does.

        `hotswap` and the other arguments are those of WanLoraLoaderMixin. Raises InputError and CheckpointError.
        """
        source: Any = pretrained_model_name_or_path_or_dict
        if not isinstance(adapter_name, str | None) or "." in (adapter_name or ""):
            raise InputError(f"adapter_name must be a text without dots (got {adapter_name!r})")
        if not source or not isinstance(source, str | Path | dict):
            raise InputError(f"a LoRA must be a file, a folder, OWNER/NAME on a hub or a state dict (got {source!r})")
        file = None if isinstance(source, dict) else local_lora(source, kwargs.get("weight_name"))
        if file is not None and not kwargs.get("hotswap"):
            known = adapters_of(self.transformer)
            free = next(name for name in map("default_{}".format, count()) if name not in known)
            add_lora(self.transformer, file, adapter_name or free)
            return
        try:
            WanLoraLoaderMixin.load_lora_weights(self, cast(Any, source), adapter_name=adapter_name, **kwargs)
        except Exception as error:  # diffusers, peft and the hub's client each have their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            what = "the state dict" if isinstance(source, dict) else source
            raise CheckpointError(f"{what} cannot be loaded as a LoRA: {reason}") from error

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Adapters by component, those that hold differences of norms alone among them."""
        known = adapters_of(self.transformer)
        return {"transformer": known} if known else {}

    def get_active_adapters(self) -> list[str]:
        """Adapters that are on, those that hold differences of norms alone among them."""
        apart = getattr(self.transformer, "lora_differences", None)
        return list(dict.fromkeys([*super().get_active_adapters(), *(sorted(apart.on) if apart else ())]))

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As WanLoraLoaderMixin does; `fused_loras` names files that hold differences of norms alone too."""
        super().fuse_lora(*args, **kwargs)
        apart = getattr(self.transformer, "lora_differences", None)
        self._merged_adapters = self._merged_adapters | set(apart.fused if apart else ())

    def unfuse_lora(self, components: Sequence[str] = ("transformer",), **kwargs: Any) -> None:  # type: ignore[override]
        """Take out what was fused, with the differences of norms."""
        super().unfuse_lora(list(components), **kwargs)
        apart = getattr(self.transformer, "lora_differences", None)
        if apart and "transformer" in components:
            apart.unfuse(self.transformer)

    @property
    def preset(self) -> Preset:
        """Defaults of the released code for a transformer of this size."""
        return WanModel().preset({**self.transformer.config, "_class_name": "WanTransformer3DModel"})

    @property
    def latent_channels(self) -> int:
        """Channels of the latents; the vae may be missing."""
        return self.transformer.config.out_channels

    def noise_frames(self, frames: int, places: int) -> int:
        """The released code draws noise once over video and reference places; what falls on those is never seen."""
        return frames + places

    def pad_features(self, features: torch.Tensor) -> torch.Tensor:
        """512 places; the zeros at their end are seen (released code)."""
        return pad_text(features)

    def cut(self, prompt: str) -> str:
        """The part of a prompt beyond 512 tokens."""
        if self.tokenizer is None:
            return ""
        return self.tokenizer.decode(rest) if (rest := prompt_tokens(self.tokenizer, prompt)[1]) else ""

    @torch.no_grad()
    def encode_text(self, prompt: str, places: int = TEXT_PLACES) -> torch.Tensor:
        """Features float32 [1, L, D] of one prompt, at its own length."""
        if self.text_encoder is None or self.tokenizer is None:
            raise CheckpointError("this pipeline has no text encoder; give prompt_embeds, or a text encoder and its tokenizer")
        if not 2 <= places <= TEXT_PLACES:
            raise InputError(f"max_sequence_length must be between 2 and {TEXT_PLACES} (got {places})")
        device = get_module_execution_device(self.text_encoder)
        return prompt_features(self.text_encoder, self.tokenizer, prompt, places, device).float()

    def encode_texts(self, texts: list[str], places: int) -> torch.Tensor:
        """Each text alone, so that its features depend on no other."""
        return torch.cat([pad_text(self.encode_text(each, places)) for each in texts])

    def encode_references(
        self, images: list[list[np.ndarray]], prepared: list[list[np.ndarray]], subjects: list[list[int]]
    ) -> torch.Tensor:
        """Latents [N, C, n, h, w]."""
        return torch.cat([self.encode_images(each) for each in prepared])

    def reference_tensors(self, images: list[np.ndarray], height: int, width: int) -> dict[str, torch.Tensor]:
        """Latents "references" [n, C, h, w]."""
        prepared = [letterbox(image, height, width) for image in images]
        return {"references": self.encode_images(prepared)[0].transpose(0, 1)}

    def training_velocity(
        self, x: torch.Tensor, t: torch.Tensor, batch: dict[str, torch.Tensor], dropped: Dropped
    ) -> torch.Tensor:
        """By `wan_velocity`; dropped references are zero latents, as in the release's null branch, and t is a whole timestep."""
        dtype = self.transformer.patch_embedding.bias.dtype
        texts = torch.where(dropped.text[:, None, None], pad_text(dropped.empty), pad_text(batch["text"])).to(dtype)
        kept = batch["references"] * ~dropped.references[:, None, None, None, None]
        return wan_velocity(self.transformer, x, (t * 1000).round(), texts, kept.transpose(1, 2))

    def branches(self, conditions: Conditions, latents: torch.Tensor, attention_kwargs: dict[str, Any] | None) -> Branches:
        """The three forwards of the released code, one after the other: what each sees is written here.

        The null branch has zero latents in normalized space at the reference places, not an encoded blank. Caches that know of no
        branches get one forward over a batch of them.
        """
        transformer, cache, some = self.transformer, self.step_cache, conditions.references
        if some is None:
            some = latents.new_zeros(*latents.shape[:2], 0, *latents.shape[3:])
        some = some.expand(len(latents), -1, -1, -1, -1)
        dtype = transformer.patch_embedding.bias.dtype
        text, negative = (
            each.to(latents.device, dtype) for each in (conditions.prompt_embeds, conditions.negative_prompt_embeds)
        )
        seen = {"both": (text, some), "image": (negative, some), "null": (negative, torch.zeros_like(some))}
        if cache:
            cache.begin(self._num_timesteps, some.shape[2])
        elif transformer.is_cache_enabled:  # by the user
            transformer._reset_stateful_cache()
        one_batch = cache.one_batch if cache else wants_one_batch(transformer)

        @lru_cache  # the same tensors at every step: keys and values of the text are kept by them
        def batch(group: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
            texts, images = zip(*(seen[name] for name in group), strict=True)
            return (texts[0], images[0]) if len(group) == 1 else (torch.cat(texts), torch.cat(images))

        def velocities(x: torch.Tensor, timestep: torch.Tensor, step: int, names: Iterable[str]) -> dict[str, torch.Tensor]:
            out: dict[str, torch.Tensor] = {}
            sigma = float(self.scheduler.sigmas[step])
            state = {"step_index": step, "sigma": sigma, "num_inference_steps": self._num_timesteps}
            for group in [tuple(names)] if one_batch else [(name,) for name in names]:
                name = "+".join(group)
                with cache.context(name, step, sigma) if cache else transformer.cache_context(name, **state):
                    parts = wan_velocity(
                        transformer, x.repeat(len(group), 1, 1, 1, 1), timestep, *batch(group), attention_kwargs=attention_kwargs
                    )
                out |= dict(zip(group, parts.split(len(x)), strict=True))
            return out

        return velocities
