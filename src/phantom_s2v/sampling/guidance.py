"""Three-branch guidance (facts 2.5): null, image and both, as a pure function.

v = null + g_image (image - null) + g_text (both - image)
"""

from collections.abc import Callable

import torch

from phantom_s2v.conditioning import Conditions, null, stack, without_text

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [B, C, T, h, w], t [] or [T] -> velocity


def combine(
    null_branch: torch.Tensor, image_branch: torch.Tensor, both: torch.Tensor, guidance_image: float, guidance_text: float
) -> torch.Tensor:
    """(1 - gi) null + (gi - gt) image + gt both: written so that (0,0), (1,0), (1,1) give one branch bit for bit."""
    weights = (1 - guidance_image, guidance_image - guidance_text, guidance_text)
    parts = [w * branch for w, branch in zip(weights, (null_branch, image_branch, both), strict=True) if w]
    return sum(parts[1:], parts[0]) if parts else torch.zeros_like(both)


def guided(
    model: Callable[..., torch.Tensor],
    conditions: Conditions,
    negative: tuple[torch.Tensor, torch.Tensor],
    guidance_image: float,
    guidance_text: float,
) -> Velocity:
    """velocity(x, t) of a batch of one under guidance. `negative` is the text of the image and null branches.

    Without references the image branch is the null branch, and the two forwards that are left are the usual ones.
    """
    branches = [conditions, without_text(conditions, negative)]
    if conditions.subjects.shape[1]:
        branches.append(null(conditions, negative))
    batch = stack(branches)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        many = x.expand(len(branches), *x.shape[1:])
        out = model(many, t.expand(len(branches), *t.shape), **batch.arguments()).split(1)
        return combine(out[-1], out[1], out[0], guidance_image, guidance_text)

    return velocity
