"""Phantom-Wan: the released weights on diffusers' Wan2.1 transformer, with the released code's timesteps and reference places.

Legend: B batch, C latent channels, T latent time, n reference places, h w latent grid, L = 512 text places, D text width.
"""

import html
import math
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import ftfy
import regex
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.models.saving import check_savable, plain_names
from phantom_s2v.models.tensors import align
from phantom_s2v.models.wan.spec import TEXT_PLACES


class Sinusoid(nn.Module):
    """Embedding of integer timesteps [B] -> [B, width], cosines first, computed in float64 as the released code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """The embedding, in float32."""
        half = self.width // 2
        powers = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = timestep.double()[:, None] * torch.exp(-math.log(10_000) * powers)
        return torch.cat([angles.cos(), angles.sin()], 1).float()


_LENDERS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # a transformer -> reference to the one whose weights it shares


class PhantomWanTransformer(WanTransformer3DModel):
    """Wan's transformer with an exact timestep embedding: in diffusers' float32 angles near t = 1000 are off by 1e-4."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _make_exact(self)

    lora_differences: Any = None  # models.wan.lora.Differences, which go on and off with the adapters

    def set_adapters(self, adapter_names: list[str] | str, weights: Any = None) -> None:
        """As diffusers does; what a LoRA file has for norms goes with its adapter, at the same strength."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        strengths = weights if isinstance(weights, list) else [weights] * len(names)
        if odd := [value for value in strengths if isinstance(value, int | float) and not math.isfinite(value)]:
            raise InputError(f"weights of adapters must be finite (got {odd[0]})")
        known = getattr(self, "peft_config", {})
        apart = self.lora_differences.by_adapter if self.lora_differences else {}
        held = [(name, value) for name, value in zip(names, strengths, strict=True) if name in known or name not in apart]
        if held or known:  # without any name peft's adapters are switched off
            super().set_adapters([name for name, _ in held], [value for _, value in held])
        if self.lora_differences:
            scales = (1.0 if value is None or isinstance(value, dict) else float(value) for value in strengths)
            self.lora_differences.switch(self, dict(zip(names, scales, strict=True)))

    def disable_lora(self) -> None:
        """Switch all adapters off, with their differences of norms."""
        self._switch_lora(False)

    def enable_lora(self) -> None:
        """Switch the adapters on again."""
        self._switch_lora(True)

    def _switch_lora(self, on: bool) -> None:
        if getattr(self, "peft_config", None) or not self.lora_differences:
            super().enable_lora() if on else super().disable_lora()
        if self.lora_differences:
            self.lora_differences.apply(self, on)

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None) -> None:
        """As diffusers does, with the differences of norms."""
        layers = (module for module in self.modules() if isinstance(module, BaseTunerLayer))
        unshare(self, (parameter for layer in layers for parameter in layer.get_base_layer().parameters()))
        super().fuse_lora(lora_scale, safe_fusing, adapter_names)
        if self.lora_differences:
            self.lora_differences.fuse(self, adapter_names, lora_scale)

    def unfuse_lora(self) -> None:
        """Take out what was fused, with the differences of norms."""
        super().unfuse_lora()
        if self.lora_differences:
            self.lora_differences.unfuse(self)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Take adapters out, with their differences of norms."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        apart = self.lora_differences.by_adapter if self.lora_differences else {}
        if held := [name for name in names if name in getattr(self, "peft_config", {}) or name not in apart]:
            super().delete_adapters(held)
        if self.lora_differences:
            self.lora_differences.forget(self, names)

    def unload_lora(self) -> None:
        """Take all adapters out, with their differences of norms."""
        super().unload_lora()
        if self.lora_differences:
            self.lora_differences.forget(self, list(self.lora_differences.by_adapter))

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As diffusers does, under the names of a transformer without adapters. Raises InputError as `check_savable` does."""
        check_savable(self)
        with plain_names(self):
            super().save_pretrained(str(save_directory), *args, **kwargs)

    @classmethod
    def of(cls, transformer: WanTransformer3DModel) -> "PhantomWanTransformer":
        """A transformer that is loaded already: a copy that shares its weights. The given one stays as it is, but for tensors
        that a file was mapped to at odd addresses, which are moved with the same values (`models.tensors.align`).

        Quantized parameters are the same objects in both, so that moving one moves the other.
        """
        if isinstance(transformer, cls):
            return transformer
        shared: dict[int, Any] = {id(p): p for p in (*align(transformer).parameters(), *transformer.buffers())}
        for parameter in transformer.parameters():
            if type(parameter) is nn.Parameter:
                shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        copy: Any = deepcopy(transformer, shared)
        copy.__class__ = cls
        _make_exact(copy)
        _LENDERS[copy] = ref(transformer)
        return copy


def unshare(transformer: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Give a transformer these of its parameters as its own, before they are changed in place, as long as the one that it was
    made of lives, whose weights they would be.
    """
    lender = _LENDERS.get(transformer, lambda: None)()
    lent = {each.data_ptr() for each in lender.parameters()} if lender is not None else ()
    for parameter in parameters:
        if parameter.data_ptr() in lent:
            parameter.data = parameter.data.clone()


class QuickRotation(WanAttnProcessor):
    """diffusers' attention with RoPE as a product of complex numbers: the same bits, in a seventh of the time with gradients."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """As diffusers has it; `rotary_emb` are cosines and sines [1, N, 1, E], twice each."""
        if rotary_emb is None or attn.add_k_proj is not None or hidden_states.device.type == "mps":
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        query, key, value = _get_qkv_projections(attn, hidden_states, cast(Any, encoder_hidden_states))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (each.unflatten(2, (attn.heads, -1)) for each in (query, key, value))
        angles = rotary_emb[0][..., 0::2].float(), rotary_emb[1][..., 1::2].float()
        query, key = (rotated(each, *angles) for each in (query, key))
        parallel = self._parallel_config if encoder_hidden_states is None else None
        out: Any = dispatch_attention_fn(
            query, key, value, attn_mask=attention_mask, backend=self._attention_backend, parallel_config=parallel
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs of neighboring channels of x [B, N, H, E] turned by angles of [1, N, 1, E/2]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile makes no programs of complex numbers
        first, second = pairs.unbind(-1)
        product = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    else:
        product = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return product.flatten(-2).type_as(x)


def _make_exact(transformer: Any) -> None:
    transformer.condition_embedder.timesteps_proj = Sinusoid(transformer.config["freq_dim"])
    for block in transformer.blocks:
        if type(block.attn1.processor) is WanAttnProcessor:
            block.attn1.set_processor(QuickRotation())


def wan_velocity(
    transformer: WanTransformer3DModel,
    x: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    references: torch.Tensor,
    attention_kwargs: dict[str, Any] | None = None,
) -> torch.Tensor:
    """Velocity [B, C, T, h, w] of noisy latents x at a timestep (a scalar in 0..1000) under text [B, L, D] and references
    [B, C, n, h, w].

    The references follow the video as clean frames at the next time indices, with the same timestep; the velocity at their
    places is dropped (released code). Timesteps are integers, without their fraction.
    """
    network = cast(Any, transformer)
    dtype = network.patch_embedding.bias.dtype  # kept by layerwise casting and by quantization
    out = network(
        hidden_states=torch.cat([x, references.to(x)], 2).to(dtype),
        timestep=timestep.long().expand(len(x)),
        encoder_hidden_states=text,
        attention_kwargs=attention_kwargs,
        return_dict=False,
    )
    return out[0][:, :, : x.shape[2]].float()


def pad_text(features: torch.Tensor) -> torch.Tensor:
    """Text features [B, L, D] with zeros up to 512 places; the zeros are seen by cross-attention (released code)."""
    missing = TEXT_PLACES - features.shape[1]
    if missing < 0:
        raise ValueError(f"the text must have at most {TEXT_PLACES} tokens (got {features.shape[1]})")
    return nn.functional.pad(features, (0, 0, 0, missing))


def clean_text(text: str) -> str:
    """A prompt as the released code cleans it: mojibake mended, HTML entities resolved twice, white space single."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip()
