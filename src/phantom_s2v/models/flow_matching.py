"""Rectified flow. Convention of the whole project: t = 1 is noise, t = 0 is the clean latent x.

    x_t = (1 - t) x + t noise,   velocity = dx_t/dt = noise - x        (Phantom 3.3)

Pure functions of tensors; t has the shape of the batch and is broadcast over what follows.
"""

import math

import torch


def interpolate(x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """x_t on the straight path."""
    return x + t * (noise - x)


def velocity_target(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The velocity that the network is trained to give."""
    return noise - x


def clean(x_t: torch.Tensor, velocity: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """The clean latent that a velocity implies: x = x_t - t v."""
    return x_t - t * velocity


def sample_t(
    count: int, mean: float, scale: float, generator: torch.Generator | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Logit-normal density over (0, 1) (SD3, Esser 2024, equation 19); a positive mean leans toward noise."""
    return torch.sigmoid(mean + scale * torch.randn(count, generator=generator, device=device))


def shift_mean(mean: float, tokens: int, base_tokens: int) -> float:
    """Mean of the logit of t for latents of `tokens` positions, where it is `mean` for `base_tokens` (SD3, equation 23).

    Neighboring positions show the same things, so that more of them leave as much to be seen only at more noise.
    """
    return mean + 0.5 * math.log(tokens / base_tokens)


def velocity_loss(
    velocity: torch.Tensor, target: torch.Tensor, counted: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error over the latent frames where `counted` (bool [B, T]) holds; inputs are [B, C, T, h, w].

    `weight` [B, T, h, w], positive, makes it a weighted mean over positions.
    """
    error = (velocity.float() - target.float()).square().mean(1)
    weight = torch.ones_like(error) if weight is None else weight
    weight = weight * counted[:, :, None, None]
    return (error * weight).sum() / weight.sum().clamp(min=1)
