"""Three-branch guidance (Phantom-Wan's released code): null, image and both, as a pure function.

v = null + g_image (image - null) + g_text (both - image)

A distilled model gives v in one forward (Meng 2023, arXiv 2210.03142).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # estimates count branches without torch
    import torch


def weights(image_guidance_scale: float, guidance_scale: float, references: bool) -> dict[str, float]:
    """Weights of the branches, (1 - gi) null + (gi - gt) image + gt both: (0,0), (1,0), (1,1) give one branch bit for bit.

    Without references the image branch is the null branch. Branches of weight zero are left out and need no forward.
    """
    null_weight, image_weight = 1 - image_guidance_scale, image_guidance_scale - guidance_scale
    if not references:
        null_weight, image_weight = null_weight + image_weight, 0.0
    every = {"null": null_weight, "image": image_weight, "both": guidance_scale}
    return {name: weight for name, weight in every.items() if weight} or {"null": 0.0}


def combine(branches: Mapping[str, "torch.Tensor"], shares: Mapping[str, float]) -> "torch.Tensor":
    """Weighted sum of the branches that `shares` names."""
    first, *rest = (weight * branches[name] for name, weight in shares.items())
    return sum(rest, first)


def is_distilled(
    guidance_range: Sequence[float] | None, image_guidance_scale: float, guidance_scale: float, negated: bool
) -> bool:
    """Whether one forward serves: the model takes weights as inputs and learned these, and no negative prompt asks for branches.

    Otherwise the model's plain velocity, at weights 1 and 1, gives the branches.
    """
    if guidance_range is None or negated:
        return False
    min_weight, max_weight = guidance_range
    return all(min_weight <= weight <= max_weight for weight in (image_guidance_scale, guidance_scale))
