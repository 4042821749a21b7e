"""Three-branch guidance (facts 2.5): null, image and both, as a pure function.

v = null + g_image (image - null) + g_text (both - image)

A distilled model gives v in one forward (Meng 2023, arXiv 2210.03142).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from phantom_s2v.models.phantom.conditioning import Conditions, null, stack, without_text

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [B, C, T, h, w], t [] or [T] -> velocity
Branches = Callable[[torch.Tensor, torch.Tensor, Iterable[str]], Mapping[str, torch.Tensor]]  # x, t, names -> velocities


def weights(guidance_image: float, guidance_text: float, references: bool) -> dict[str, float]:
    """Weights of the branches, (1 - gi) null + (gi - gt) image + gt both: (0,0), (1,0), (1,1) give one branch bit for bit.

    Without references the image branch is the null branch. Branches of weight zero are left out and need no forward.
    """
    null_weight, image_weight = 1 - guidance_image, guidance_image - guidance_text
    if not references:
        null_weight, image_weight = null_weight + image_weight, 0.0
    every = {"null": null_weight, "image": image_weight, "both": guidance_text}
    return {name: weight for name, weight in every.items() if weight} or {"null": 0.0}


def combine(branches: Mapping[str, torch.Tensor], shares: Mapping[str, float]) -> torch.Tensor:
    """Weighted sum of the branches that `shares` names."""
    first, *rest = (weight * branches[name] for name, weight in shares.items())
    return sum(rest, first)


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
    shares = weights(guidance_image, guidance_text, bool(conditions.subjects.shape[1]))
    every = {"null": null(conditions, negative), "image": without_text(conditions, negative), "both": conditions}
    batch = stack([every[name] for name in shares])

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        many = x.expand(len(shares), *x.shape[1:])
        out = model(many, t.expand(len(shares), *t.shape), **batch.arguments()).split(1)
        return combine(dict(zip(shares, out, strict=True)), shares)

    return velocity


def distilled(
    model: Callable[..., torch.Tensor], conditions: Conditions, guidance_image: float, guidance_text: float
) -> Velocity:
    """velocity(x, t) of a batch of one under guidance, in one forward of a model that takes the weights as inputs."""
    given = torch.tensor([[guidance_image, guidance_text]])

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x, t.expand(1, *t.shape), **conditions.arguments(), guidance=given.to(x))

    return velocity


def is_distilled(
    guidance_range: Sequence[float] | None, guidance_image: float, guidance_text: float, negative_prompt: str
) -> bool:
    """Whether `distilled` serves: the model takes weights as inputs and learned these, and no negative prompt asks for branches.

    Otherwise the model's plain velocity, at weights 1 and 1, gives the branches.
    """
    if guidance_range is None or negative_prompt:
        return False
    lowest, highest = guidance_range
    return all(lowest <= weight <= highest for weight in (guidance_image, guidance_text))


def guided_by(velocities: Branches, guidance_image: float, guidance_text: float, references: bool) -> Velocity:
    """velocity(x, t) under guidance, of a model that computes the branches that it is asked for in the way that suits it."""
    shares = weights(guidance_image, guidance_text, references)

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return combine(velocities(x, t, shares), shares)

    return velocity
