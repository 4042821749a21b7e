"""What stands between a call of a pipeline and its base model: the conditions of the videos, and the velocities that they give.

Legend: N videos, C latent channels, T latent time, h w latent grid, L text tokens, D text width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

Guided = Callable[[torch.Tensor, int], torch.Tensor]  # x, step -> velocity
Branches = Callable[[torch.Tensor, torch.Tensor, int, Iterable[str]], dict[str, torch.Tensor]]  # x, timestep, step, names


@dataclass(frozen=True)
class Conditions:
    """What the videos of a call are made of, N rows each, before any noise."""

    prompt_embeds: torch.Tensor  # [N, L, D]
    negative_prompt_embeds: torch.Tensor  # [N, L, D]
    references: Any  # of the model: see `PhantomPipeline.encode_references`
    places: int  # reference places
    first: torch.Tensor | None  # latent [N, C, 1, h, w] that a video starts from
    negated: bool  # a negative prompt was given


@dataclass(frozen=True)
class Dropped:
    """Rows of a training batch whose conditions are dropped, bool [B] each, so that guidance has its branches."""

    text: torch.Tensor
    references: torch.Tensor  # all that is seen of them
    latents: torch.Tensor  # of references alone, where a model sees more of them (the paper's VAE-reference dropout)
    tokens: torch.Tensor  # image tokens alone
    empty: torch.Tensor  # [1, L, D], features of the empty prompt


def repeat_rows(encoded: Any, rows: list[int]) -> Any:
    """Rows of a tensor, of every tensor of a dict, or of those of a dataclass with `rows`."""
    if isinstance(encoded, dict):
        return {name: value[rows] for name, value in encoded.items()}
    return encoded[rows] if isinstance(encoded, torch.Tensor) else encoded.rows(rows)
