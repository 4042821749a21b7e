"""The video autoencoder: diffusers' AutoencoderKLWan, small, with Wan's geometry.

Pixels are float32 in -1..1, [B, 3, F, H, W]; latents are normalized by the config's own means and standard deviations,
[B, C, T, h, w] with T = (F - 1) / 4 + 1, h = H / 8, w = W / 8. A still is a clip of one frame.
"""

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.tensors import align
from phantom_s2v.models.weights import load_part

LATENT_CHANNELS = 48


def build_autoencoder() -> AutoencoderKLWan:
    """phantom-mini's autoencoder with random weights: 11.4 M parameters, 48 latent channels.

    A still has 48 numbers where the encoder first halves it: a narrower one loses them there.
    """
    return AutoencoderKLWan(
        base_dim=48,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


class _CausalConv(WanCausalConv3d):
    """diffusers' causal convolution, which on a frame without history multiplies two frames of zeros as well."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        """Features [B, C, T, h, w] -> [B, D, T, h, w]; `cache_x` holds up to two frames before."""
        if cache_x is not None or x.shape[2] != 1 or self._padding[4] != self.kernel_size[0] - 1 or self.stride != (1, 1, 1):
            return super().forward(x, cache_x)
        padded = torch.nn.functional.pad(x[:, :, 0], [int(side) for side in self._padding[:4]])
        return torch.nn.functional.conv2d(padded, self.weight[:, :, -1], self.bias)[:, :, None]


def load_autoencoder(folder: Path) -> AutoencoderKLWan:
    """An autoencoder from a diffusers folder, for inference. Raises CheckpointError as load_part does."""
    return for_inference(load_part(AutoencoderKLWan, folder))


def for_inference(autoencoder: AutoencoderKLWan) -> AutoencoderKLWan:
    """A copy that skips empty history and takes no gradients; the weights are shared, and the given one stays as it is."""
    shared = {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in autoencoder.parameters()}
    shared |= {id(b): b.detach() for b in autoencoder.buffers()}
    copy = align(deepcopy(autoencoder, shared)).eval()
    skip_empty_history(copy)
    return copy


def skip_empty_history(autoencoder: AutoencoderKLWan) -> None:
    """Convolve stills, references and first frames, which have no history, in two dimensions: the same numbers, sooner."""
    for module in autoencoder.modules():
        if type(module) is WanCausalConv3d:
            module.__class__ = _CausalConv


def for_encoding(autoencoder: AutoencoderKLWan, dtype: torch.dtype) -> AutoencoderKLWan:
    """A copy in `dtype` whose convolutions have their channels last, which is two to three times as fast. It is for inference.

    bfloat16 moves a latent by 0.012 of its standard deviation, as autocast does.
    """
    copy: Any = deepcopy(for_inference(autoencoder))
    torch.nn.Module.to(copy, dtype)  # diffusers' own warns of parts to keep in float32, of which there are none
    for module in copy.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.Conv2d):
            last = torch.channels_last_3d if isinstance(module, torch.nn.Conv3d) else torch.channels_last
            module.weight = torch.nn.Parameter(module.weight.detach().contiguous(memory_format=last), requires_grad=False)
    return copy


def to_pixels(video: np.ndarray) -> torch.Tensor:
    """uint8 [..., F, H, W, 3] -> float32 [..., 3, F, H, W] in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(video, -1, -4))).float() / 127.5 - 1


def to_video(pixels: torch.Tensor) -> np.ndarray:
    """Pixels [3, F, H, W] in -1..1 -> uint8 [F, H, W, 3], rounded."""
    return ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def encode(autoencoder: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Normalized latent mean of pixels [B, 3, F, H, W]: no sampling, so the same image gives the same latent.

    Raises NotFiniteError, as decoding does.
    """
    latents = latents_of(autoencoder, pixels)
    check_finite(latents, "what the autoencoder encodes")
    return latents


def latents_of(autoencoder: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """What `encode` gives, unchecked, so that training does not wait for the device."""
    mean, std = latent_statistics(autoencoder, pixels)
    output: Any = autoencoder.encode(pixels)
    return (output.latent_dist.mode() - mean) / std


def decode(autoencoder: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Pixels in -1..1 of normalized latents [B, C, T, h, w]."""
    mean, std = latent_statistics(autoencoder, latents)
    output: Any = autoencoder.decode(latents * std + mean)
    check_finite(output.sample, "what the autoencoder decodes")
    return output.sample.clamp(-1, 1)


def latent_statistics(autoencoder: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) of the latent channels, [1, C, 1, 1, 1], on the device and in the type of `like`."""
    config: Any = autoencoder.config
    mean, std = (_per_channel(tuple(v), like.device, like.dtype) for v in (config.latents_mean, config.latents_std))
    return mean, std


@lru_cache(maxsize=8)  # a copy to a GPU waits for it
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1, 1)
