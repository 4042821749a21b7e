"""Small layers of the transformer: positions, timestep embedding, modulation, MLP.

Legend: B batch, N tokens, D width, T latent time, h w latent grid, H heads, E width of a head.
"""

import math

import torch
from torch import nn


def sinusoid(values: torch.Tensor, width: int, longest: float = 10000.0) -> torch.Tensor:
    """Sines and cosines of `values` [...] at `width` / 2 geometric frequencies, [..., width] (Vaswani 2017)."""
    half = width // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, device=values.device) / half)
    angles = values[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def grid_positions(time: int, height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    """Absolute sinusoidal positions [T, h, w, D]: a third of the width each for time, row and column."""
    part = dim // 6 * 2
    axes = [sinusoid(torch.arange(n, device=device), part, 100.0) for n in (time, height, width)]
    blocks = [
        axes[0][:, None, None].expand(time, height, width, part),
        axes[1][None, :, None].expand(time, height, width, part),
        axes[2][None, None].expand(time, height, width, part),
        torch.zeros(time, height, width, dim - 3 * part, device=device),
    ]
    return torch.cat(blocks, -1)


def rotary_table(time: int, height: int, width: int, head: int, device: torch.device) -> torch.Tensor:
    """Angles of 3D RoPE [T, h, w, E/2]: pairs split between time, row and column as in Wan (E/2 - 2(E/6), E/6, E/6)."""
    side = head // 6
    counts = (head // 2 - 2 * side, side, side)
    angles = []
    for axis, (count, length) in enumerate(zip(counts, (time, height, width), strict=True)):
        frequencies = 100.0 ** (-torch.arange(count, device=device) / count)  # base 100: the grids here are short
        table = torch.arange(length, device=device)[:, None] * frequencies
        shape = [1, 1, 1, count]
        shape[axis] = length
        angles.append(table.view(shape).expand(time, height, width, count))
    return torch.cat(angles, -1)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels of x [..., E] by angles [..., E/2]."""
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)


class TimeEmbedding(nn.Module):
    """t in 0..1 -> [..., D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t [...] -> [..., D]; the sinusoid sees t as Wan's 0 to 1000."""
        return self.layers(sinusoid(t * 1000, self.dim).to(next(self.parameters())))


class GuidanceEmbedding(nn.Module):
    """Weights of image and text guidance -> [..., D], zero until it is trained (Meng 2023, arXiv 2210.03142, section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        last = nn.Linear(dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), last)

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        """weights [..., 2] -> [..., D]; a weight of 10 is to the sinusoid what t = 1 is."""
        return self.layers(sinusoid(weights * 100, self.dim).flatten(-2).to(next(self.parameters())))


class Mlp(nn.Sequential):
    """Two layers with GELU."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(nn.Linear(dim, int(dim * ratio)), nn.GELU(approximate="tanh"), nn.Linear(int(dim * ratio), dim))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Layer norm without parameters, then scale and shift (adaLN, Peebles 2022)."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
