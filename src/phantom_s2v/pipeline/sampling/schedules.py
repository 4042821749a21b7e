"""Grids of t from noise (t near 1) to the clean latent (t = 0)."""

import torch

from phantom_s2v.models.flow_matching import shift_t


def uniform(steps: int, shift: float = 1.0, start: float = 1.0) -> torch.Tensor:
    """steps + 1 times from `start` to 0, evenly spaced and then shifted (float64)."""
    return shift_t(torch.linspace(start, 0, steps + 1, dtype=torch.float64), shift)
